//! The trees against a simple model, and how many steps a search takes.
#![allow(unsafe_code, reason = "makes records of leaked memory")]

use core::sync::atomic::AtomicU64;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

use pagevisor_shared::random::SplitMix64;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};
use pagevisor_shared::vmalloc::{VmStruct, VmapArea};

use crate::raw::{AreaRef, AreaWord};
use crate::sync::Plain;
use crate::vmalloc::AreaTree;

fn word() -> AreaWord {
    // SAFETY: a word of its own for ever.
    unsafe { AreaWord::new(Box::leak(Box::new(AtomicU64::new(0)))) }
}

pub(crate) fn tree<const AUGMENTED: bool>() -> AreaTree<AUGMENTED> {
    AreaTree::new([word(), word()])
}

pub(crate) fn area(start: u64, end: u64) -> AreaRef {
    let (record, _vm) = Box::leak(Box::new((VmapArea::default(), VmStruct::default())));
    record.va_start.set(start);
    record.va_end.set(end);
    // SAFETY: leaked, so it stays a record.
    unsafe { AreaRef::adopt(VirtAddr::new(core::ptr::from_mut(record).expose_provenance() as u64)) }
}

/// Checks a subtree; gives its black height, its largest size and its areas in order.
fn check(node: Option<AreaRef>, augmented: bool, found: &mut Vec<(u64, u64)>) -> (u32, u64) {
    let Some(node) = node else { return (1, 0) };
    for child in [node.left(), node.right()].into_iter().flatten() {
        assert_eq!(child.parent(), Some(node), "a child has another parent");
        assert!(!(node.is_red() && child.is_red()), "a red node has a red child");
    }
    let (left, left_max) = check(node.left(), augmented, found);
    found.push((node.start(), node.end()));
    let (right, right_max) = check(node.right(), augmented, found);
    assert_eq!(left, right, "black heights differ");
    let max = node.size().max(left_max).max(right_max);
    assert!(!augmented || node.max() == max, "the largest size is {:#x}, not {max:#x}", node.max());
    (left + u32::from(!node.is_red()), max)
}

fn assert_is<const AUGMENTED: bool>(tree: AreaTree<AUGMENTED>, model: &BTreeMap<u64, (u64, AreaRef)>) {
    let wanted: Vec<_> = model.iter().map(|(start, (end, _))| (*start, *end)).collect();
    let mut found = Vec::new();
    assert!(tree.root().is_none_or(|root| !root.is_red() && root.parent().is_none()));
    check(tree.root(), AUGMENTED, &mut found);
    assert_eq!(found, wanted);
    let (mut list, mut prev, mut node) = (Vec::new(), None, tree.first());
    while let Some(area) = node {
        assert_eq!(area.prev(), prev);
        list.push((area.start(), area.end()));
        (prev, node) = (node, area.next());
    }
    assert_eq!(list, wanted);
}

fn churn<const AUGMENTED: bool>(seed: u64, ops: u64, check_each: bool) {
    let tree = tree::<AUGMENTED>();
    let mut model: BTreeMap<u64, (u64, AreaRef)> = BTreeMap::new();
    let mut random = SplitMix64::new(seed);
    for op in 0..ops {
        let start = random.next() % 4096 * PAGE_SIZE;
        let end = start + (1 + random.next() % 16) * PAGE_SIZE;
        let overlaps = model.range(..end).next_back().is_some_and(|(_, (last, _))| *last > start);
        assert_eq!(tree.find(start).map(AreaRef::start), {
            let below = model.range(..=start).next_back();
            below.and_then(|(first, (last, _))| (start < *last).then_some(*first))
        });
        match tree.place(start, end) {
            Some(place) => {
                assert!(!overlaps, "a place in an area that is there");
                let new = area(start, end);
                tree.insert(new, place);
                model.insert(start, (end, new));
            }
            None => {
                assert!(overlaps, "no place where there is one");
                let (first, (_, old)) = model.range(..end).next_back().map(|(k, v)| (*k, *v)).expect("it overlaps");
                tree.remove(old);
                model.remove(&first);
            }
        }
        if AUGMENTED {
            let (size, align) = ((1 + random.next() % 20) * PAGE_SIZE, PAGE_SIZE << (random.next() % 4));
            let fits = |(_, (end, area)): &(&u64, &(u64, AreaRef))| end - area.start() >= size + align - PAGE_SIZE;
            let wanted = model.iter().find(fits).map(|(start, _)| *start);
            assert_eq!(tree.find_fit(size, align, || {}).map(AreaRef::start), wanted);
        }
        if check_each || op + 1 == ops {
            assert_is(tree, &model);
        }
    }
    // And down to nothing, in an order of its own.
    while let Some(start) = model.keys().nth(random.next() as usize % model.len().max(1)).copied() {
        tree.remove(model.remove(&start).expect("just seen").1);
        if check_each {
            assert_is(tree, &model);
        }
    }
    assert!(tree.root().is_none() && tree.first().is_none());
}

#[test]
fn trees_are_what_a_sorted_map_is() {
    for seed in 0..8 {
        churn::<true>(seed, 400, true);
        churn::<false>(seed, 400, true);
    }
    churn::<true>(99, 20_000, false);
}

#[test]
fn a_search_looks_at_no_more_nodes_than_the_tree_is_high() {
    // Twice the logarithm is the most that a red-black tree can be high.
    for shift in [4, 8, 12, 16] {
        let tree = tree::<true>();
        let count = 1u64 << shift;
        let mut random = SplitMix64::new(shift);
        for index in 0..count {
            // One page each, and the only one of two pages is the last.
            let start = 4 * index * PAGE_SIZE;
            let pages = 1 + u64::from(index == count - 1);
            let new = area(start, start + pages * PAGE_SIZE);
            tree.insert(new, tree.place(new.start(), new.end()).expect("no overlap"));
        }
        let most = 2 * (u64::from(count.ilog2()) + 1);
        for _ in 0..64 {
            let pages = 1 + random.next() % 2;
            let mut steps = 0;
            let found = tree.find_fit(pages * PAGE_SIZE, PAGE_SIZE, || steps += 1).expect("there is one");
            assert!(steps <= most, "{steps} steps among {count} areas");
            assert_eq!(found.start(), if pages == 1 { 0 } else { 4 * (count - 1) * PAGE_SIZE });
        }
        assert!(tree.find_fit(3 * PAGE_SIZE, PAGE_SIZE, || unreachable!("the root knows")).is_none());
    }
}
