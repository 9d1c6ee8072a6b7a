//! `memblock_alloc_try_nid`, `_raw`, `memblock_alloc_exact_nid_raw`, `memblock_phys_alloc_try_nid`: bounds, nodes, and
//! what is given up first when there is no room.

use pagevisor_mm::memblock::{AllocError, MemblockFlags};
use pagevisor_shared::units::PhysAddr;

use crate::{BASE, END, KIB, MIB, Machine, PAGE, Placed, SIZE, at, bookkeeping, node, placements};

fn placed(result: Result<PhysAddr, AllocError>) -> Placed {
    result.ok().map(PhysAddr::raw)
}

const MEM: (u64, u64, Option<usize>) = (BASE, SIZE, None);

/// Eight nodes of 16, 4, 8, 8, 4, 4, 16 and 4 KiB, one after the other.
const NODES: [(u64, u64, Option<usize>); 8] = [
    (kib(0), 16 * KIB, Some(0)),
    (kib(16), 4 * KIB, Some(1)),
    (kib(20), 8 * KIB, Some(2)),
    (kib(28), 8 * KIB, Some(3)),
    (kib(36), 4 * KIB, Some(4)),
    (kib(40), 4 * KIB, Some(5)),
    (kib(44), 16 * KIB, Some(6)),
    (kib(60), 4 * KIB, Some(7)),
];
const ALL: u64 = 64 * KIB;

/// The address `offset` KiB into the memory of the nodes.
const fn kib(offset: u64) -> u64 {
    BASE + offset * KIB
}

mod range {
    use super::*;

    placements! {
        simple {
            memory: [MEM], reserved: [],
            ask: |m| placed(m.alloc_try_nid(128, 64, at(kib(4)), at(kib(5)), None)),
            top_down: Some(kib(5) - 128) => [(kib(5) - 128, 128)],
            bottom_up: Some(kib(4)) => [(kib(4), 128)],
        }
        end_misaligned {
            memory: [MEM], reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(128, 64, at(kib(4) + 2), at(kib(4) + 512 + 2), None)),
            top_down: Some(kib(4) + 384) => [(kib(4) + 384, 128)],
            bottom_up: Some(kib(4) + 64) => [(kib(4) + 64, 128)],
        }
        exact_fit {
            memory: [MEM], reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(kib(4)), at(kib(5)), None)),
            top_down: Some(kib(4)) => [(kib(4), KIB)],
            bottom_up: Some(kib(4)) => [(kib(4), KIB)],
        }
        /// The range is smaller than the block: the lower bound is given up, the upper is not.
        narrow_range {
            memory: [MEM], reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(256, 64, at(kib(4)), at(kib(4) + 64), None)),
            top_down: Some(kib(4) + 64 - 256) => [(kib(4) + 64 - 256, 256)],
            bottom_up: Some(BASE) => [(BASE, 256)],
        }
        max_below_memory {
            memory: [MEM], reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(256, 64, at(PAGE), at(BASE + 255), None)),
            top_down: None => [],
            bottom_up: None => [],
        }
        max_above_memory {
            memory: [MEM], reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(END - KIB), at(END + KIB), None)),
            top_down: Some(END - KIB) => [(END - KIB, KIB)],
            bottom_up: Some(END - KIB) => [(END - KIB, KIB)],
        }
        min_below_memory {
            memory: [MEM], reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(BASE - KIB), at(END), None)),
            top_down: Some(END - KIB) => [(END - KIB, KIB)],
            bottom_up: Some(BASE) => [(BASE, KIB)],
        }
        min_reserved_merges {
            memory: [MEM], reserved: [(kib(4), KIB)],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(kib(4)), at(kib(6)), None)),
            top_down: Some(kib(5)) => [(kib(4), 2 * KIB)],
            bottom_up: Some(kib(5)) => [(kib(4), 2 * KIB)],
        }
        max_reserved_merges {
            memory: [MEM], reserved: [(kib(5), KIB)],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(kib(4)), at(kib(6)), None)),
            top_down: Some(kib(4)) => [(kib(4), 2 * KIB)],
            bottom_up: Some(kib(4)) => [(kib(4), 2 * KIB)],
        }
        reserved_on_both_sides_with_space {
            memory: [MEM], reserved: [(kib(2), KIB), (kib(6), KIB)],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(kib(3)), at(kib(6)), None)),
            top_down: Some(kib(5)) => [(kib(2), KIB), (kib(5), 2 * KIB)],
            bottom_up: Some(kib(3)) => [(kib(2), 2 * KIB), (kib(6), KIB)],
        }
        reserved_on_both_sides_full_merge {
            memory: [MEM], reserved: [(kib(2), KIB), (kib(4), KIB)],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(kib(3)), at(kib(4)), None)),
            top_down: Some(kib(3)) => [(kib(2), 3 * KIB)],
            bottom_up: Some(kib(3)) => [(kib(2), 3 * KIB)],
        }
        /// Nothing is free in the range, so the block is placed below it.
        reserved_falls_below {
            memory: [MEM], reserved: [(kib(4), 4 * KIB)],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(kib(4)), at(kib(8)), None)),
            top_down: Some(kib(3)) => [(kib(3), 5 * KIB)],
            bottom_up: Some(BASE) => [(BASE, KIB), (kib(4), 4 * KIB)],
        }
        /// Only above the upper bound is room: that bound holds.
        reserved_no_space_below_max {
            memory: [MEM], reserved: [(BASE, 8 * KIB)],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(kib(4)), at(kib(8)), None)),
            top_down: None => [(BASE, 8 * KIB)],
            bottom_up: None => [(BASE, 8 * KIB)],
        }
        exact_call_also_gives_up_min {
            memory: [MEM], reserved: [(kib(4), 4 * KIB)],
            ask: |m| placed(m.alloc_exact_nid_raw(KIB, 64, at(kib(4)), at(kib(8)), None)),
            top_down: Some(kib(3)) => [(kib(3), 5 * KIB)],
            bottom_up: Some(BASE) => [(BASE, KIB), (kib(4), 4 * KIB)],
        }
    }
}

mod numa {
    use super::*;

    placements! {
        simple {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(2 * KIB, 64, at(0), at(0), Some(node(3)))),
            top_down: Some(kib(34)) => [(kib(34), 2 * KIB)],
            bottom_up: Some(kib(28)) => [(kib(28), 2 * KIB)],
        }
        alloc_node {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_node(2 * KIB, 64, Some(node(3)))),
            top_down: Some(kib(34)) => [(kib(34), 2 * KIB)],
            bottom_up: Some(kib(28)) => [(kib(28), 2 * KIB)],
        }
        phys_alloc_try_nid {
            memory: NODES, reserved: [],
            ask: |m| placed(m.phys_alloc_try_nid(2 * KIB, 64, Some(node(3)))),
            top_down: Some(kib(34)) => [(kib(34), 2 * KIB)],
            bottom_up: Some(kib(28)) => [(kib(28), 2 * KIB)],
        }
        whole_node {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(8 * KIB, 64, at(0), at(0), Some(node(3)))),
            top_down: Some(kib(28)) => [(kib(28), 8 * KIB)],
            bottom_up: Some(kib(28)) => [(kib(28), 8 * KIB)],
        }
        /// The node is too small: any node will do.
        small_node {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(8 * KIB, 64, at(0), at(0), Some(node(1)))),
            top_down: Some(kib(52)) => [(kib(52), 8 * KIB)],
            bottom_up: Some(kib(0)) => [(kib(0), 8 * KIB)],
        }
        node_reserved {
            memory: NODES, reserved: [(kib(20), 8 * KIB)],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(0), at(0), Some(node(2)))),
            top_down: Some(kib(63)) => [(kib(20), 8 * KIB), (kib(63), KIB)],
            bottom_up: Some(kib(0)) => [(kib(0), KIB), (kib(20), 8 * KIB)],
        }
        part_reserved {
            memory: NODES, reserved: [(kib(20), KIB)],
            ask: |m| placed(m.alloc_try_nid_raw(2 * KIB, 64, at(0), at(0), Some(node(2)))),
            top_down: Some(kib(26)) => [(kib(20), KIB), (kib(26), 2 * KIB)],
            bottom_up: Some(kib(21)) => [(kib(20), 3 * KIB)],
        }
        part_reserved_leaves_too_little {
            memory: NODES, reserved: [(kib(22), 4 * KIB)],
            ask: |m| placed(m.alloc_try_nid_raw(4 * KIB, 64, at(0), at(0), Some(node(2)))),
            top_down: Some(kib(60)) => [(kib(22), 4 * KIB), (kib(60), 4 * KIB)],
            bottom_up: Some(kib(0)) => [(kib(0), 4 * KIB), (kib(22), 4 * KIB)],
        }
        /// The range covers the node and part of the next: the node's part is taken.
        split_range_low {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(kib(22)), at(kib(30)), Some(node(2)))),
            top_down: Some(kib(27)) => [(kib(27), KIB)],
            bottom_up: Some(kib(22)) => [(kib(22), KIB)],
        }
        /// The node's part of the range is too small: the range wins over the node.
        split_range_high {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(2 * KIB, 64, at(kib(27)), at(kib(32)), Some(node(2)))),
            top_down: Some(kib(30)) => [(kib(30), 2 * KIB)],
            bottom_up: Some(kib(28)) => [(kib(28), 2 * KIB)],
        }
        no_overlap_low {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(kib(36)), at(kib(44)), Some(node(2)))),
            top_down: Some(kib(43)) => [(kib(43), KIB)],
            bottom_up: Some(kib(36)) => [(kib(36), KIB)],
        }
        no_overlap_high {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(kib(4)), at(kib(18)), Some(node(6)))),
            top_down: Some(kib(17)) => [(kib(17), KIB)],
            bottom_up: Some(kib(4)) => [(kib(4), KIB)],
        }
        /// No node is large enough in the range, nor below it.
        large_region {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(ALL, 64, at(BASE), at(BASE + ALL), Some(node(3)))),
            top_down: None => [],
            bottom_up: None => [],
        }
        /// Reserved up to both edges of the node: one region over three nodes.
        reserved_full_merge {
            memory: NODES, reserved: [(kib(24), 4 * KIB), (kib(36), 4 * KIB)],
            ask: |m| placed(m.alloc_try_nid_raw(8 * KIB, 64, at(kib(28)), at(kib(36)), Some(node(3)))),
            top_down: Some(kib(28)) => [(kib(24), 16 * KIB)],
            bottom_up: Some(kib(28)) => [(kib(24), 16 * KIB)],
        }
        /// The range is reserved on the node and on the others: below its start, the node is tried again first.
        split_all_reserved_goes_below_on_the_node {
            memory: NODES, reserved: [(kib(48), 16 * KIB)],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(kib(48)), at(kib(64)), Some(node(6)))),
            top_down: Some(kib(47)) => [(kib(47), 17 * KIB)],
            bottom_up: Some(kib(44)) => [(kib(44), KIB), (kib(48), 16 * KIB)],
        }
        everything_reserved {
            memory: NODES, reserved: [(BASE, ALL)],
            ask: |m| placed(m.alloc_try_nid_raw(64, 64, at(0), at(0), Some(node(6)))),
            top_down: None => [(BASE, ALL)],
            bottom_up: None => [(BASE, ALL)],
        }
        unknown_node {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(0), at(0), Some(node(40)))),
            top_down: Some(kib(63)) => [(kib(63), KIB)],
            bottom_up: Some(kib(0)) => [(kib(0), KIB)],
        }
        /// Pieces of one node are separate ranges, searched in the direction's order.
        node_in_pieces {
            memory: [(kib(0), KIB, Some(0)), (kib(1), KIB, Some(1)), (kib(2), KIB, Some(0)), (kib(3), KIB, Some(1))],
            reserved: [(kib(2) + 512, 512)],
            ask: |m| placed(m.alloc_try_nid_raw(KIB, 64, at(0), at(0), Some(node(0)))),
            top_down: Some(kib(0)) => [(kib(0), KIB), (kib(2) + 512, 512)],
            bottom_up: Some(kib(0)) => [(kib(0), KIB), (kib(2) + 512, 512)],
        }
    }
}

mod exact {
    use super::*;

    placements! {
        simple {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_exact_nid_raw(2 * KIB, 64, at(0), at(0), Some(node(3)))),
            top_down: Some(kib(34)) => [(kib(34), 2 * KIB)],
            bottom_up: Some(kib(28)) => [(kib(28), 2 * KIB)],
        }
        small_node {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_exact_nid_raw(8 * KIB, 64, at(0), at(0), Some(node(1)))),
            top_down: None => [],
            bottom_up: None => [],
        }
        node_reserved {
            memory: NODES, reserved: [(kib(20), 8 * KIB)],
            ask: |m| placed(m.alloc_exact_nid_raw(KIB, 64, at(0), at(0), Some(node(2)))),
            top_down: None => [(kib(20), 8 * KIB)],
            bottom_up: None => [(kib(20), 8 * KIB)],
        }
        part_reserved {
            memory: NODES, reserved: [(kib(27), KIB)],
            ask: |m| placed(m.alloc_exact_nid_raw(2 * KIB, 64, at(0), at(0), Some(node(2)))),
            top_down: Some(kib(25)) => [(kib(25), 3 * KIB)],
            bottom_up: Some(kib(20)) => [(kib(20), 2 * KIB), (kib(27), KIB)],
        }
        /// The range has room on another node only: its start is given up for the node.
        split_range_high {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_exact_nid_raw(2 * KIB, 64, at(kib(27)), at(kib(32)), Some(node(2)))),
            top_down: Some(kib(26)) => [(kib(26), 2 * KIB)],
            bottom_up: Some(kib(20)) => [(kib(20), 2 * KIB)],
        }
        no_overlap_low {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_exact_nid_raw(KIB, 64, at(kib(36)), at(kib(44)), Some(node(2)))),
            top_down: Some(kib(27)) => [(kib(27), KIB)],
            bottom_up: Some(kib(20)) => [(kib(20), KIB)],
        }
        /// The node lies above the range, whose end is never given up.
        no_overlap_high {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_exact_nid_raw(KIB, 64, at(kib(4)), at(kib(18)), Some(node(6)))),
            top_down: None => [],
            bottom_up: None => [],
        }
        phys_call_keeps_both_bounds {
            memory: NODES, reserved: [],
            ask: |m| placed(m.phys_alloc_range_nid(KIB, 64, at(kib(36)), at(kib(44)), Some(node(2)), true)),
            top_down: None => [],
            bottom_up: None => [],
        }
        unknown_node {
            memory: NODES, reserved: [],
            ask: |m| placed(m.alloc_exact_nid_raw(64, 64, at(0), at(0), Some(node(40)))),
            top_down: None => [],
            bottom_up: None => [],
        }
    }
}

mod flags {
    use super::*;

    placements! {
        nomap_is_never_given_out {
            memory: [MEM], reserved: [],
            ask: |m| {
                m.mark_nomap(at(BASE), 4 * KIB).unwrap();
                m.mark_nomap(at(END - 4 * KIB), 4 * KIB).unwrap();
                placed(m.alloc_raw(KIB, 64))
            },
            top_down: Some(END - 5 * KIB) => [(END - 5 * KIB, KIB)],
            bottom_up: Some(kib(4)) => [(kib(4), KIB)],
        }
        hotplug_is_given_out_by_default {
            memory: [MEM], reserved: [],
            ask: |m| { m.mark_hotplug(at(BASE), SIZE).unwrap(); placed(m.alloc_raw(KIB, 64)) },
            top_down: Some(END - KIB) => [(END - KIB, KIB)],
            bottom_up: Some(BASE) => [(BASE, KIB)],
        }
        hotplug_is_left_out_for_movable_nodes {
            memory: NODES, reserved: [],
            ask: |m| {
                m.set_movable_node(true);
                m.mark_hotplug(at(kib(0)), 20 * KIB).unwrap();
                m.mark_hotplug(at(kib(44)), 20 * KIB).unwrap();
                placed(m.alloc_try_nid_raw(KIB, 64, at(0), at(0), Some(node(6))))
            },
            top_down: Some(kib(43)) => [(kib(43), KIB)],
            bottom_up: Some(kib(20)) => [(kib(20), KIB)],
        }
        driver_managed_is_never_given_out {
            memory: [MEM], reserved: [],
            ask: |m| {
                m.add_node(at(END), MIB / 2, node(0), MemblockFlags::DRIVER_MANAGED).unwrap();
                m.add_node(at(BASE - PAGE), PAGE, node(0), MemblockFlags::DRIVER_MANAGED).unwrap();
                placed(m.alloc_raw(KIB, 64))
            },
            top_down: Some(END - KIB) => [(END - KIB, KIB)],
            bottom_up: Some(BASE) => [(BASE, KIB)],
        }
        /// Mirrored memory comes first, on any node, before the node's own.
        mirror_first {
            memory: NODES, reserved: [],
            ask: |m| {
                m.set_mirrored_kernelcore(true);
                m.mark_mirror(at(kib(28)), 8 * KIB).unwrap();
                placed(m.alloc_try_nid_raw(KIB, 64, at(0), at(0), Some(node(6))))
            },
            top_down: Some(kib(35)) => [(kib(35), KIB)],
            bottom_up: Some(kib(28)) => [(kib(28), KIB)],
        }
        mirror_full_falls_back {
            memory: NODES, reserved: [(kib(28), 8 * KIB)],
            ask: |m| {
                m.set_mirrored_kernelcore(true);
                m.mark_mirror(at(kib(28)), 8 * KIB).unwrap();
                placed(m.alloc_try_nid_raw(KIB, 64, at(0), at(0), Some(node(6))))
            },
            top_down: Some(kib(59)) => [(kib(28), 8 * KIB), (kib(59), KIB)],
            bottom_up: Some(kib(44)) => [(kib(28), 8 * KIB), (kib(44), KIB)],
        }
        mirror_is_ignored_unless_asked_for {
            memory: NODES, reserved: [],
            ask: |m| {
                m.mark_mirror(at(kib(28)), 8 * KIB).unwrap();
                placed(m.alloc_raw(KIB, 64))
            },
            top_down: Some(kib(63)) => [(kib(63), KIB)],
            bottom_up: Some(kib(0)) => [(kib(0), KIB)],
        }
    }
}

#[test]
fn find_takes_flags_as_asked() {
    let mut memblock = bookkeeping();
    memblock.add(at(BASE), SIZE).unwrap();
    memblock.mark_nomap(at(END - KIB), KIB).unwrap();
    let find = |flags| memblock.find_in_range_node(64, 64, at(0), at(0), None, flags);
    assert_eq!(find(MemblockFlags::NONE), Some(at(END - KIB - 64)));
    assert_eq!(find(MemblockFlags::NOMAP), Some(at(END - 64)));
    assert_eq!(find(MemblockFlags::MIRROR), None);
    assert!(memblock.reserved().is_empty(), "finding reserves nothing");
}

/// Two machines of the same nodes, one through each door: the calls agree.
#[test]
fn clearing_and_raw_calls_place_alike() {
    for bottom_up in [false, true] {
        let (mut one, mut other) = (Machine::new(2 * MIB, false), Machine::new(2 * MIB, false));
        for machine in [&mut one, &mut other] {
            machine.memblock.set_bottom_up(bottom_up);
            for (base, size, nid) in NODES {
                machine.memblock.add_node(at(base), size, node(nid.unwrap()), MemblockFlags::NONE).unwrap();
            }
        }
        for step in 0..40 {
            let (size, nid) = (100 + 37 * step, Some(node(step as usize % 8)));
            let (min, max) = (at(kib(step)), at(kib(64 - step / 2)));
            let cleared = placed(one.memblock.alloc_try_nid(size, 32, min, max, nid));
            assert_eq!(cleared, placed(other.memblock.alloc_try_nid_raw(size, 32, min, max, nid)));
            assert!(cleared.is_none_or(|addr| one.all(at(addr), size, 0)));
        }
    }
}
