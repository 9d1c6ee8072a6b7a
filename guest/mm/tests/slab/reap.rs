//! What nobody uses goes back bit by bit.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::Mm;
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_mm::slab::Cache;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{CpuId, NodeId, VirtAddr};
use proptest::prelude::*;

use crate::{MIB, alloc, assert_sound, free_pages, quiet, small};

/// How often a CPU looks, in nanoseconds.
const LOOK: u64 = 2_000_000_000;

fn avail(mm: &Mm<HostPlatform>, cache: Cache, cpu: usize) -> u32 {
    mm.kmem_cache_array(cache, CpuId::new(cpu).expect("a CPU")).avail.load(Relaxed)
}

fn free_slabs(mm: &Mm<HostPlatform>, cache: Cache, node: usize) -> u64 {
    mm.kmem_cache_node(cache, NodeId::new(node).expect("a node")).free_slabs.load(Relaxed)
}

/// The next look of this CPU.
fn look(machine: &Machine) {
    machine.platform().advance(LOOK);
    machine.mm().cache_reap();
}

#[test]
fn an_array_loses_a_fifth_of_its_room_at_a_look_but_not_right_after_a_refill() {
    let machine = small();
    let mm = machine.mm();
    let cache = mm.kmem_cache_create("reaped", 256, 0, SlabFlags::NONE, None).expect("a cache");
    // The second refill leaves most of what it brings.
    let objects = alloc(mm, cache, 17);
    let mut left = avail(mm, cache, 0);
    assert!(left > 10, "{left}");
    look(&machine);
    assert_eq!(avail(mm, cache, 0), left, "was refilled since the last look");
    machine.platform().advance(LOOK - 1);
    mm.cache_reap();
    assert_eq!(avail(mm, cache, 0), left, "looks too early");
    machine.platform().advance(1);
    let mut looks = 0;
    while left != 0 {
        mm.cache_reap();
        // `drain_array_locked`, with a limit of 120.
        left -= if 24 > left { left.div_ceil(2) } else { 24 };
        assert_eq!(avail(mm, cache, 0), left);
        machine.platform().advance(LOOK);
        looks += 1;
    }
    assert!(looks > 3, "all at once");
    objects.iter().for_each(|object| mm.kmem_cache_free(cache, *object));
    mm.kmem_cache_destroy(cache);
    assert_eq!(mm.kmem_cache_find("reaped"), None);
    assert_sound(mm);
}

#[test]
fn free_slabs_go_a_fifth_at_a_time_every_second_look_unless_one_is_used() {
    let machine = small();
    let mm = machine.mm();
    let cache = mm.kmem_cache_find("kmalloc-8k").expect("a cache");
    mm.kmem_cache_shrink(cache);
    let objects = alloc(mm, cache, 64);
    objects.iter().for_each(|object| mm.kmem_cache_free(cache, *object));
    let lists = mm.kmem_cache_node(cache, NodeId::new(0).expect("a node"));
    let limit = lists.free_limit.load(Relaxed) as u64;
    // (1 + CPUs) batches and a slab (`set_up_node`).
    assert_eq!(limit, 9);
    let start = free_slabs(mm, cache, 0);
    assert!(start > 0 && start <= limit);
    // Looks at the array, and sets the clock of the lists.
    look(&machine);
    let array = avail(mm, cache, 0);
    let mut seen = vec![start];
    while free_slabs(mm, cache, 0) + u64::from(avail(mm, cache, 0)) != 0 {
        look(&machine);
        let now = free_slabs(mm, cache, 0);
        if now != *seen.last().expect("the first") {
            seen.push(now);
        }
        assert!(seen.len() < 100, "never gets anywhere: {seen:?}");
    }
    assert!(array > 0 && seen.len() > 3, "all at once: {seen:?}");
    assert_eq!(lists.total_slabs.load(Relaxed), 0);
    assert_sound(mm);

    // A slab of the free ones is used: at the next look at the lists they stay.
    let objects = alloc(mm, cache, 64);
    objects.iter().for_each(|object| mm.kmem_cache_free(cache, *object));
    let (held, before) = (alloc(mm, cache, 9), free_slabs(mm, cache, 0));
    assert!(lists.free_touched.load(Relaxed) != 0);
    look(&machine);
    look(&machine);
    assert!(free_slabs(mm, cache, 0) >= before, "a list that was used lost slabs");
    assert_eq!(lists.free_touched.load(Relaxed), 0);
    held.iter().for_each(|object| mm.kmem_cache_free(cache, *object));
    assert_sound(mm);
}

#[test]
fn objects_of_other_nodes_are_sent_home() {
    let nodes = Topology::new().node(&[(0, 640 << 10), (MIB, 64 * MIB)], 1).node(&[(64 * MIB, 128 * MIB)], 1);
    let machine = quiet(nodes.boot());
    let mm = machine.mm();
    let cache = mm.kmem_cache_create("reaped", 256, 0, SlabFlags::NONE, None).expect("a cache");
    let objects = alloc(mm, cache, 3);
    machine.on_cpu(1, |mm| objects.iter().for_each(|object| mm.kmem_cache_free(cache, *object)));
    let home = mm.kmem_cache_node(cache, NodeId::new(0).expect("a node"));
    let at_home = |mm: &Mm<HostPlatform>| {
        home.free_objects.load(Relaxed) + u64::from(home.shared.avail.load(Relaxed)) + u64::from(avail(mm, cache, 0))
    };
    let before = at_home(mm);
    machine.on_cpu(1, |_| {
        look(&machine);
        look(&machine);
    });
    assert_eq!(at_home(mm), before + 3, "still wait where they were freed");
    mm.kmem_cache_destroy(cache);
    assert_eq!(mm.kmem_cache_find("reaped"), None);
    assert_sound(mm);
}

#[test]
fn what_nobody_has_used_since_stays() {
    let machine = small();
    let mm = machine.mm();
    let cache = mm.kmem_cache_create("reaped", 256, 0, SlabFlags::NONE, None).expect("a cache");
    let objects = alloc(mm, cache, 10);
    mm.cache_reap_from_now();
    let (before, array) = (free_pages(mm), avail(mm, cache, 0));
    (0..10).for_each(|_| look(&machine));
    assert_eq!((free_pages(mm), avail(mm, cache, 0)), (before, array));
    objects.iter().for_each(|object| mm.kmem_cache_free(cache, *object));
    assert_sound(mm);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever was allocated and freed on two nodes: looking takes nothing that is in use, never more than there is, and in
    /// the end nothing but what is in use is left.
    #[test]
    fn in_the_end_all_goes_back(
        steps in prop::collection::vec((0_usize..2, 0_usize..4, any::<bool>(), 1_usize..150), 1..40),
    ) {
        const SIZES: [usize; 4] = [32, 256, 4096, 8192];
        let nodes = Topology::new().node(&[(0, 640 << 10), (MIB, 64 * MIB)], 1).node(&[(64 * MIB, 128 * MIB)], 1);
        let machine = quiet(nodes.boot());
        let mm = machine.mm();
        let caches = SIZES.map(|size| mm.kmem_cache_create("reaped", size, 0, SlabFlags::NONE, None).expect("a cache"));
        let mut held: [Vec<VirtAddr>; 4] = Default::default();
        for (cpu, which, take, count) in steps {
            machine.on_cpu(cpu, |mm| {
                if take {
                    held[which].extend(alloc(mm, caches[which], count));
                } else {
                    let rest = held[which].len().saturating_sub(count);
                    held[which].drain(rest..).for_each(|object| mm.kmem_cache_free(caches[which], object));
                }
                look(&machine);
            });
            assert_sound(mm);
        }
        for _ in 0..100 {
            (0..2).for_each(|cpu| machine.on_cpu(cpu, |_| look(&machine)));
        }
        for (cache, held) in caches.iter().zip(&held) {
            let record = mm.kmem_cache_record(*cache);
            let num = record.num.load(Relaxed) as u64;
            let lists = [0, 1].map(|node| mm.kmem_cache_node(*cache, NodeId::new(node).expect("a node")));
            let (total, free): (Vec<u64>, Vec<u64>) =
                lists.iter().map(|l| (l.total_slabs.load(Relaxed), l.free_objects.load(Relaxed))).unzip();
            prop_assert_eq!(total.iter().sum::<u64>() * num - free.iter().sum::<u64>(), held.len() as u64);
            prop_assert_eq!(lists[0].free_slabs.load(Relaxed) + lists[1].free_slabs.load(Relaxed), 0);
            prop_assert!(!held.is_empty() || record.used_by.load(Relaxed) == 0, "still to be looked at");
        }
        for (cache, held) in caches.iter().zip(held) {
            held.iter().for_each(|object| mm.kmem_cache_free(*cache, *object));
        }
        assert_sound(mm);
    }
}
