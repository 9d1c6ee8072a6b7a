//! The tables: add, remove, reserve, free, mark, trim, cap, and questions about them.

use pagevisor_mm::memblock::{Kind, MemblockFlags};
use pagevisor_shared::units::Pfn;

use crate::{BASE, END, KIB, MIB, PAGE, SIZE, at, bookkeeping, node, ranges, regions};

const NONE: MemblockFlags = MemblockFlags::NONE;

#[test]
fn starts_empty_with_linux_defaults() {
    let memblock = bookkeeping();
    assert!(memblock.memory().is_empty() && memblock.reserved().is_empty());
    assert_eq!((memblock.phys_mem_size(), memblock.reserved_size()), (0, 0));
    assert_eq!((memblock.start_of_dram(), memblock.end_of_dram()), (at(0), at(0)));
    assert_eq!((memblock.capacity(Kind::Memory), memblock.capacity(Kind::Reserved)), (128, 128));
    assert_eq!(memblock.current_limit(), at(u64::MAX));
    assert!(!memblock.bottom_up());
}

/// `add` and `reserve` build both tables by the same rules; `remove` and `phys_free` take from them likewise.
macro_rules! both_tables {
    ($($(#[$doc:meta])* $name:ident: [$($op:ident($base:expr, $size:expr)),* $(,)?] => [$($want:expr),* $(,)?];)*) => {
        mod memory {
            use super::*;
            $($(#[$doc])* #[test] fn $name() {
                let mut memblock = bookkeeping();
                $(both_tables!(@memory memblock, $op, $base, $size);)*
                let want: &[(u64, u64)] = &[$($want),*];
                assert_eq!(ranges(memblock.memory()), want);
                assert_eq!(memblock.phys_mem_size(), want.iter().map(|r| r.1).sum::<u64>());
                assert!(memblock.reserved().is_empty());
            })*
        }
        mod reserved {
            use super::*;
            $($(#[$doc])* #[test] fn $name() {
                let mut memblock = bookkeeping();
                $(both_tables!(@reserved memblock, $op, $base, $size);)*
                let want: &[(u64, u64)] = &[$($want),*];
                assert_eq!(ranges(memblock.reserved()), want);
                assert_eq!(memblock.reserved_size(), want.iter().map(|r| r.1).sum::<u64>());
                assert!(memblock.memory().is_empty());
            })*
        }
    };
    (@memory $m:ident, put, $b:expr, $s:expr) => { $m.add(at($b), $s).unwrap() };
    (@memory $m:ident, take, $b:expr, $s:expr) => { $m.remove(at($b), $s).unwrap() };
    (@reserved $m:ident, put, $b:expr, $s:expr) => { $m.reserve(at($b), $s).unwrap() };
    (@reserved $m:ident, take, $b:expr, $s:expr) => { $m.phys_free(at($b), $s).unwrap() };
}

both_tables! {
    simple: [put(MIB, 4 * MIB)] => [(MIB, 4 * MIB)];
    empty_changes_nothing: [put(MIB, 0), put(MIB, PAGE), put(0, 0), take(MIB, 0)] => [(MIB, PAGE)];
    disjoint: [put(MIB, KIB), put(4 * MIB, KIB)] => [(MIB, KIB), (4 * MIB, KIB)];
    disjoint_descending: [put(4 * MIB, KIB), put(MIB, KIB)] => [(MIB, KIB), (4 * MIB, KIB)];
    adjacent_above_merges: [put(MIB, KIB), put(MIB + KIB, KIB)] => [(MIB, 2 * KIB)];
    adjacent_below_merges: [put(MIB + KIB, KIB), put(MIB, KIB)] => [(MIB, 2 * KIB)];
    overlap_top: [put(2 * MIB, MIB), put(MIB, MIB + KIB)] => [(MIB, 2 * MIB)];
    overlap_bottom: [put(MIB, MIB), put(MIB + KIB, MIB)] => [(MIB, MIB + KIB)];
    within: [put(MIB, MIB), put(MIB + KIB, KIB)] => [(MIB, MIB)];
    around: [put(MIB + KIB, KIB), put(MIB, MIB)] => [(MIB, MIB)];
    twice: [put(MIB, MIB), put(MIB, MIB)] => [(MIB, MIB)];
    between_merges_all_three: [put(MIB, KIB), put(MIB + 2 * KIB, KIB), put(MIB + KIB, KIB)] => [(MIB, 3 * KIB)];
    over_many: [put(MIB, KIB), put(2 * MIB, KIB), put(3 * MIB, KIB), put(MIB + 512, 2 * MIB)]
        => [(MIB, 2 * MIB + KIB)];
    near_max_is_capped: [put(u64::MAX - MIB, 2 * MIB)] => [(u64::MAX - MIB, MIB)];
    whole_address_space: [put(0, u64::MAX)] => [(0, u64::MAX)];

    take_exact: [put(MIB, KIB), put(4 * MIB, KIB), take(MIB, KIB)] => [(4 * MIB, KIB)];
    take_absent: [put(MIB, KIB), take(4 * MIB, KIB)] => [(MIB, KIB)];
    take_touching_neither_side: [put(MIB, KIB), take(MIB - KIB, KIB), take(MIB + KIB, KIB)] => [(MIB, KIB)];
    take_overlap_top: [put(2 * MIB, MIB), take(MIB, MIB + KIB)] => [(2 * MIB + KIB, MIB - KIB)];
    take_overlap_bottom: [put(MIB, MIB), take(MIB + KIB, MIB)] => [(MIB, KIB)];
    take_within_splits: [put(MIB, MIB), take(MIB + KIB, KIB)] => [(MIB, KIB), (MIB + 2 * KIB, MIB - 2 * KIB)];
    take_only_region: [put(MIB, MIB), take(MIB, MIB)] => [];
    take_around: [put(MIB, MIB), take(0, 8 * MIB)] => [];
    take_from_empty: [take(MIB, MIB)] => [];
    take_overlap_two: [put(MIB, MIB), put(4 * MIB, MIB), take(MIB + KIB, 3 * MIB)]
        => [(MIB, KIB), (4 * MIB + KIB, MIB - KIB)];
    take_over_three: [put(MIB, KIB), put(2 * MIB, KIB), put(3 * MIB, KIB), take(MIB + 512, 2 * MIB)]
        => [(MIB, 512), (3 * MIB + 512, 512)];
    take_near_max_is_capped: [put(u64::MAX - MIB, 2 * MIB), take(u64::MAX - KIB, 4 * MIB)]
        => [(u64::MAX - MIB, MIB - KIB)];
    take_then_put_again: [put(MIB, MIB), take(MIB + KIB, KIB), put(MIB + KIB, KIB)] => [(MIB, MIB)];
}

#[test]
fn memory_and_reserved_are_independent() {
    let mut memblock = bookkeeping();
    memblock.reserve(at(4 * MIB), MIB).unwrap();
    memblock.add(at(MIB), MIB).unwrap();
    memblock.remove(at(4 * MIB), MIB).unwrap();
    memblock.phys_free(at(MIB), MIB).unwrap();
    assert_eq!(ranges(memblock.memory()), [(MIB, MIB)]);
    assert_eq!(ranges(memblock.reserved()), [(4 * MIB, MIB)]);
}

#[test]
fn regions_of_different_nodes_stay_apart() {
    let mut memblock = bookkeeping();
    memblock.add_node(at(MIB), MIB, node(0), NONE).unwrap();
    memblock.add_node(at(2 * MIB), MIB, node(1), NONE).unwrap();
    memblock.add(at(3 * MIB), MIB).unwrap();
    let want = [(MIB, MIB, Some(0), NONE), (2 * MIB, MIB, Some(1), NONE), (3 * MIB, MIB, None, NONE)];
    assert_eq!(regions(memblock.memory()), want);
}

#[test]
fn regions_of_different_flags_stay_apart() {
    let mut memblock = bookkeeping();
    memblock.add_node(at(MIB), MIB, node(0), MemblockFlags::HOTPLUG).unwrap();
    memblock.add_node(at(2 * MIB), MIB, node(0), NONE).unwrap();
    let want = [(MIB, MIB, Some(0), MemblockFlags::HOTPLUG), (2 * MIB, MIB, Some(0), NONE)];
    assert_eq!(regions(memblock.memory()), want);
}

#[test]
fn adding_over_a_node_leaves_it_and_fills_the_gaps() {
    let mut memblock = bookkeeping();
    memblock.add_node(at(2 * MIB), MIB, node(1), NONE).unwrap();
    memblock.add_node(at(MIB), 3 * MIB, node(0), NONE).unwrap();
    let want = [(MIB, MIB, Some(0), NONE), (2 * MIB, MIB, Some(1), NONE), (3 * MIB, MIB, Some(0), NONE)];
    assert_eq!(regions(memblock.memory()), want);
    assert_eq!(memblock.phys_mem_size(), 3 * MIB);
}

#[test]
fn set_node_splits_and_merges() {
    let mut memblock = bookkeeping();
    memblock.add(at(MIB), 4 * MIB).unwrap();
    memblock.set_node(at(2 * MIB), MIB, Kind::Memory, Some(node(1))).unwrap();
    let want = [(MIB, MIB, None, NONE), (2 * MIB, MIB, Some(1), NONE), (3 * MIB, 2 * MIB, None, NONE)];
    assert_eq!(regions(memblock.memory()), want);
    memblock.set_node(at(0), u64::MAX, Kind::Memory, Some(node(1))).unwrap();
    assert_eq!(regions(memblock.memory()), [(MIB, 4 * MIB, Some(1), NONE)]);
    memblock.set_node(at(0), u64::MAX, Kind::Memory, None).unwrap();
    assert_eq!(regions(memblock.memory()), [(MIB, 4 * MIB, None, NONE)]);
}

#[test]
fn set_node_of_reserved_leaves_memory_alone() {
    let mut memblock = bookkeeping();
    memblock.add(at(MIB), MIB).unwrap();
    memblock.reserve(at(MIB), 2 * KIB).unwrap();
    memblock.set_node(at(MIB), KIB, Kind::Reserved, Some(node(3))).unwrap();
    assert_eq!(regions(memblock.reserved()), [(MIB, KIB, Some(3), NONE), (MIB + KIB, KIB, None, NONE)]);
    assert_eq!(regions(memblock.memory()), [(MIB, MIB, None, NONE)]);
}

#[test]
fn marks_set_and_clear_their_own_bit() {
    assert_eq!([NONE, MemblockFlags::HOTPLUG, MemblockFlags::MIRROR].map(MemblockFlags::bits), [0, 1, 2]);
    assert_eq!([MemblockFlags::NOMAP, MemblockFlags::DRIVER_MANAGED].map(MemblockFlags::bits), [4, 8]);
    let mut memblock = bookkeeping();
    memblock.add(at(MIB), 4 * MIB).unwrap();
    memblock.mark_hotplug(at(2 * MIB), MIB).unwrap();
    memblock.mark_nomap(at(2 * MIB), 2 * MIB).unwrap();
    let both = MemblockFlags::HOTPLUG | MemblockFlags::NOMAP;
    let want = [
        (MIB, MIB, None, NONE),
        (2 * MIB, MIB, None, both),
        (3 * MIB, MIB, None, MemblockFlags::NOMAP),
        (4 * MIB, MIB, None, NONE),
    ];
    assert_eq!(regions(memblock.memory()), want);
    memblock.clear_hotplug(at(0), u64::MAX).unwrap();
    assert_eq!(regions(memblock.memory())[1], (2 * MIB, 2 * MIB, None, MemblockFlags::NOMAP));
    memblock.clear_nomap(at(0), u64::MAX).unwrap();
    assert_eq!(regions(memblock.memory()), [(MIB, 4 * MIB, None, NONE)]);
}

#[test]
fn mirror_is_marked_only_when_asked_for() {
    let mut memblock = bookkeeping();
    memblock.add(at(MIB), MIB).unwrap();
    memblock.mark_mirror(at(MIB), MIB).unwrap();
    assert!(!memblock.memory()[0].is_mirror());
    memblock.set_mirrored_kernelcore(true);
    memblock.mark_mirror(at(MIB), MIB).unwrap();
    assert!(memblock.memory()[0].is_mirror());
}

#[test]
fn trim_cuts_to_the_alignment_and_drops_what_is_too_small() {
    let mut memblock = bookkeeping();
    memblock.add(at(PAGE), PAGE).unwrap();
    memblock.add(at(4 * PAGE + 1), 3 * PAGE).unwrap();
    memblock.add(at(9 * PAGE - 1), 2).unwrap();
    memblock.add(at(12 * PAGE + 5), PAGE).unwrap();
    memblock.trim_memory(PAGE);
    assert_eq!(ranges(memblock.memory()), [(PAGE, PAGE), (5 * PAGE, 2 * PAGE)]);
    assert_eq!(memblock.phys_mem_size(), 3 * PAGE);
}

#[test]
fn trim_can_leave_nothing() {
    let mut memblock = bookkeeping();
    memblock.add(at(PAGE + 1), PAGE).unwrap();
    memblock.trim_memory(PAGE);
    assert!(memblock.memory().is_empty());
    assert_eq!(memblock.phys_mem_size(), 0);
}

#[test]
fn cap_keeps_only_the_range_but_for_nomap() {
    let mut memblock = bookkeeping();
    memblock.add(at(MIB), 8 * MIB).unwrap();
    memblock.mark_nomap(at(2 * MIB), 2 * MIB).unwrap();
    memblock.mark_nomap(at(8 * MIB), MIB).unwrap();
    memblock.reserve(at(MIB), 8 * MIB).unwrap();
    memblock.cap_memory_range(at(3 * MIB), 3 * MIB);
    let want = [
        (2 * MIB, 2 * MIB, None, MemblockFlags::NOMAP),
        (4 * MIB, 2 * MIB, None, NONE),
        (8 * MIB, MIB, None, MemblockFlags::NOMAP),
    ];
    assert_eq!(regions(memblock.memory()), want);
    assert_eq!(ranges(memblock.reserved()), [(3 * MIB, 3 * MIB)]);
}

#[test]
fn cap_without_size_or_memory_does_nothing() {
    let mut memblock = bookkeeping();
    memblock.reserve(at(MIB), MIB).unwrap();
    memblock.cap_memory_range(at(4 * MIB), MIB);
    memblock.add(at(MIB), MIB).unwrap();
    memblock.cap_memory_range(at(4 * MIB), 0);
    assert_eq!((ranges(memblock.memory()), ranges(memblock.reserved())), (vec![(MIB, MIB)], vec![(MIB, MIB)]));
}

#[test]
fn memory_limit_counts_bytes_of_memory_not_addresses() {
    let mut memblock = bookkeeping();
    memblock.add(at(MIB), MIB).unwrap();
    memblock.add(at(4 * MIB), 4 * MIB).unwrap();
    memblock.reserve(at(0), 16 * MIB).unwrap();
    memblock.enforce_memory_limit(0);
    memblock.enforce_memory_limit(64 * MIB);
    assert_eq!(memblock.phys_mem_size(), 5 * MIB, "no limit, and one above what there is, change nothing");
    memblock.enforce_memory_limit(3 * MIB);
    assert_eq!(ranges(memblock.memory()), [(MIB, MIB), (4 * MIB, 2 * MIB)]);
    assert_eq!(ranges(memblock.reserved()), [(0, 6 * MIB)]);
    memblock.enforce_memory_limit(MIB);
    assert_eq!(ranges(memblock.memory()), [(MIB, MIB)]);
}

#[test]
fn limit_that_removes_map_keeps_nomap() {
    let mut memblock = bookkeeping();
    memblock.add(at(MIB), 8 * MIB).unwrap();
    memblock.mark_nomap(at(6 * MIB), MIB).unwrap();
    memblock.mem_limit_remove_map(2 * MIB);
    let want = [(MIB, 2 * MIB, None, NONE), (6 * MIB, MIB, None, MemblockFlags::NOMAP)];
    assert_eq!(regions(memblock.memory()), want);
}

#[test]
fn questions_about_addresses() {
    let mut memblock = bookkeeping();
    memblock.add_node(at(BASE), SIZE, node(2), NONE).unwrap();
    memblock.add(at(8 * MIB), MIB).unwrap();
    memblock.mark_nomap(at(8 * MIB), MIB).unwrap();
    memblock.reserve(at(BASE + PAGE), PAGE).unwrap();
    assert_eq!((memblock.start_of_dram(), memblock.end_of_dram()), (at(BASE), at(9 * MIB)));
    let edges = [BASE - 1, BASE, END - 1, END, 8 * MIB, 9 * MIB - 1, 9 * MIB];
    assert_eq!(edges.map(|a| memblock.is_memory(at(a))), [false, true, true, false, true, true, false]);
    assert_eq!(edges.map(|a| memblock.is_map_memory(at(a))), [false, true, true, false, false, false, false]);
    let edges = [BASE + PAGE - 1, BASE + PAGE, BASE + 2 * PAGE - 1, BASE + 2 * PAGE];
    assert_eq!(edges.map(|a| memblock.is_reserved(at(a))), [false, true, true, false]);
    assert!(memblock.is_region_memory(at(BASE), SIZE) && memblock.is_region_memory(at(END - 1), 1));
    assert!(!memblock.is_region_memory(at(BASE), SIZE + 1) && !memblock.is_region_memory(at(BASE - 1), 2));
    let pfn = |addr| Pfn::containing(at(addr));
    let found = memblock.search_pfn_nid(pfn(BASE + PAGE)).unwrap();
    assert_eq!((found.start, found.end, found.nid), (pfn(BASE), pfn(END), Some(node(2))));
    assert!(memblock.search_pfn_nid(pfn(END)).is_none());
}

#[test]
fn overlap_touches_a_byte_or_not() {
    let mut memblock = bookkeeping();
    assert!(!memblock.overlaps_region(Kind::Memory, at(0), u64::MAX));
    memblock.add(at(BASE), SIZE).unwrap();
    memblock.reserve(at(BASE), SIZE).unwrap();
    let overlaps = |base: u64, size: u64| {
        let reserved = memblock.is_region_reserved(at(base), size);
        assert_eq!(memblock.overlaps_region(Kind::Memory, at(base), size), reserved);
        reserved
    };
    assert!(!overlaps(BASE - PAGE, PAGE) && !overlaps(END, PAGE));
    assert!(overlaps(BASE - PAGE, PAGE + 1) && overlaps(END - 1, PAGE));
    assert!(overlaps(BASE, SIZE) && overlaps(BASE + 1, 1) && overlaps(0, u64::MAX));
}

#[test]
fn direction_and_limit_are_settings() {
    let mut memblock = bookkeeping();
    memblock.set_bottom_up(true);
    memblock.set_current_limit(at(MIB));
    assert!(memblock.bottom_up());
    assert_eq!(memblock.current_limit(), at(MIB));
    memblock.set_bottom_up(false);
    assert!(!memblock.bottom_up());
}
