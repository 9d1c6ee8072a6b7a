//! The kernel's own logic of tasks, where it needs no kernel: the very files, run here against models.

#[path = "../../guest/kernel/src/task/fair.rs"]
#[allow(dead_code, reason = "the kernel uses the rest")]
mod fair;
#[path = "../../guest/kernel/src/task/heap.rs"]
mod heap;
#[path = "../../guest/kernel/src/task/list.rs"]
#[allow(dead_code, reason = "the kernel uses the rest")]
mod list;
#[path = "../../guest/kernel/src/task/pid.rs"]
#[allow(dead_code, reason = "the kernel uses the rest")]
mod pid;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::atomic::AtomicU64;

use heap::{Arena, Heap, Links};
use list::{List, Node, Nodes};
use pid::{PID_MAX, PidMap, RESERVED_PIDS};

/// Numbers that look random, the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Entry `n` is the one numbered `n - 1`.
struct Entries(Vec<Links>);

impl Arena for &Entries {
    fn links(&self, entry: u64) -> &Links {
        &self.0[entry as usize - 1]
    }
}

/// Every sequence of insertions, removals from the middle and from the top keeps the heap what a sorted set is, also when
/// keys wrap.
#[test]
fn a_heap_is_a_sorted_set() {
    for seed in 1..40u64 {
        let base = if seed % 2 == 0 { 0 } else { u64::MAX - 500 };
        let entries = Entries((0..200).map(|_| Links::default()).collect());
        let mut heap = Heap::new(&entries);
        let mut model: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        let mut inside: BTreeMap<u64, u64> = BTreeMap::new();
        let mut random = Random(seed * 0x9e37_79b9);
        for _ in 0..3000 {
            let entry = 1 + random.below(200);
            let forget = |model: &mut BTreeMap<u64, BTreeSet<u64>>, entry: u64, key: u64| {
                let same = model.get_mut(&key).expect("the key is known");
                assert!(same.remove(&entry));
                if same.is_empty() {
                    model.remove(&key);
                }
            };
            match (random.below(3), inside.get(&entry).copied()) {
                (0, _) => match heap.pop() {
                    None => assert!(inside.is_empty()),
                    Some(first) => {
                        let key = inside.remove(&first).expect("it was inside");
                        assert_eq!(Some(&key), model.keys().next(), "not the smallest");
                        forget(&mut model, first, key);
                    }
                },
                (_, Some(key)) => {
                    heap.remove(entry);
                    inside.remove(&entry);
                    forget(&mut model, entry, key);
                }
                (_, None) => {
                    let key = random.below(1000);
                    entries.0[entry as usize - 1].set_key(base.wrapping_add(key));
                    heap.insert(entry);
                    inside.insert(entry, key);
                    model.entry(key).or_default().insert(entry);
                }
            }
            assert_eq!(heap.first_key(), model.keys().next().map(|key| base.wrapping_add(*key)));
        }
        let mut seen = BTreeSet::new();
        let nothing: Option<()> = heap.find(|entry| {
            assert!(seen.insert(entry), "shown twice");
            ControlFlow::Continue(())
        });
        assert!(nothing.is_none());
        assert_eq!(seen, inside.keys().copied().collect());
    }
}

struct Items(Vec<Node>);

impl Nodes for &Items {
    fn links(&self, entry: u64) -> (&AtomicU64, &AtomicU64) {
        self.0[entry as usize - 1].words()
    }
}

#[test]
fn a_list_is_a_queue_that_can_be_left() {
    let items = Items((0..50).map(|_| Node::new()).collect());
    let mut list = List::new(&items);
    let mut model: VecDeque<u64> = VecDeque::new();
    let mut random = Random(77);
    for _ in 0..5000 {
        let item = 1 + random.below(50);
        match model.iter().position(|other| *other == item) {
            Some(at) => {
                list.remove(item);
                model.remove(at);
            }
            None if random.below(4) == 0 => assert_eq!(list.pop(), model.pop_front()),
            None => {
                list.push(item);
                model.push_back(item);
            }
        }
        let there = |item: u64| (item != 0).then_some(item);
        let all = std::iter::successors(there(list.first()), |item| there(list.next(*item)));
        assert_eq!(all.collect::<VecDeque<_>>(), model);
        assert_eq!(list.first() == 0, model.is_empty());
    }
}

/// Upwards to the last, and then the lowest that is free, above those that only the first round gives.
#[test]
fn numbers_are_given_in_turn() {
    let mut map = PidMap::new();
    for pid in 1..PID_MAX {
        assert_eq!(map.alloc(), Some(pid));
    }
    assert_eq!(map.alloc(), None, "all are taken");
    map.free(5);
    assert_eq!(map.alloc(), None, "{RESERVED_PIDS} and below stay with those of the first round");
    for pid in [301, 30_000, 640] {
        map.free(pid);
    }
    assert_eq!([map.alloc(), map.alloc(), map.alloc()], [Some(301), Some(640), Some(30_000)]);
    assert_eq!(map.alloc(), None);
    map.take(5);
    map.free(5);
    map.free(5);
    map.free(0);
    assert_eq!(map.alloc(), None, "what is reserved is not given again, and 0 never");
}

#[test]
fn weights_and_slices_are_linuxs() {
    assert_eq!([-20, 0, 19].map(fair::weight_of), [88761, 1024, 15]);
    assert_eq!([-100, 100].map(fair::weight_of), [88761, 15]);
    // Each step is a quarter more or less.
    for nice in -20..19 {
        let ratio = f64::from(fair::weight_of(nice)) / f64::from(fair::weight_of(nice + 1));
        assert!((1.15..1.35).contains(&ratio), "{nice}: {ratio}");
    }
    assert_eq!(fair::virtual_time(1_000_000, 1024), 1_000_000);
    assert_eq!(fair::virtual_time(1_000_000, 2048), 500_000);
    assert_eq!(fair::slice(1024, 2048, 2), 3_000_000);
    assert_eq!(fair::slice(1024, 100 * 1024, 100), 750_000);
    assert_eq!(fair::slice(15, 1039, 2), fair::MIN_GRANULARITY);
}
