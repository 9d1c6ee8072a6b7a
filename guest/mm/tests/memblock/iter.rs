//! Walks over memory, reserved and free ranges.

use pagevisor_mm::memblock::{MemRange, MemblockFlags};
use pagevisor_shared::units::{NodeId, Pfn};

use crate::{KIB, MIB, PAGE, at, bookkeeping, node};

const NONE: MemblockFlags = MemblockFlags::NONE;

fn plain(range: MemRange) -> (u64, u64, Option<usize>) {
    (range.start.raw(), range.end.raw(), range.nid.map(NodeId::index))
}

#[test]
fn free_is_memory_without_reserved() {
    let mut memblock = bookkeeping();
    memblock.add_node(at(MIB), 4 * MIB, node(0), NONE).unwrap();
    memblock.add_node(at(5 * MIB), MIB, node(1), NONE).unwrap();
    memblock.add_node(at(8 * MIB), MIB, node(0), NONE).unwrap();
    for (base, size) in [(0, KIB), (MIB, KIB), (2 * MIB, MIB), (4 * MIB + KIB, MIB), (7 * MIB, 3 * MIB)] {
        memblock.reserve(at(base), size).unwrap();
    }
    let want = [(MIB + KIB, 2 * MIB, Some(0)), (3 * MIB, 4 * MIB + KIB, Some(0)), (5 * MIB + KIB, 6 * MIB, Some(1))];
    let forward: Vec<_> = memblock.free_mem_ranges(None, NONE).map(plain).collect();
    assert_eq!(forward, want);
    let mut backward: Vec<_> = memblock.free_mem_ranges_rev(None, NONE).map(plain).collect();
    backward.reverse();
    assert_eq!(backward, want);
    let of_node: Vec<_> = memblock.free_mem_ranges(Some(node(1)), NONE).map(plain).collect();
    assert_eq!(of_node, want[2..]);
    assert_eq!(memblock.free_mem_ranges(Some(node(2)), NONE).count(), 0);
}

#[test]
fn one_reservation_over_several_regions_hides_them_all() {
    let mut memblock = bookkeeping();
    for index in 0..8 {
        memblock.add_node(at((1 + 2 * index) * MIB), MIB, node(index as usize), NONE).unwrap();
    }
    memblock.reserve(at(3 * MIB + KIB), 8 * MIB).unwrap();
    let want = [
        (MIB, 2 * MIB, Some(0)),
        (3 * MIB, 3 * MIB + KIB, Some(1)),
        (11 * MIB + KIB, 12 * MIB, Some(5)),
        (13 * MIB, 14 * MIB, Some(6)),
        (15 * MIB, 16 * MIB, Some(7)),
    ];
    assert_eq!(memblock.free_mem_ranges(None, NONE).map(plain).collect::<Vec<_>>(), want);
    let backward = memblock.free_mem_ranges_rev(None, NONE).map(plain);
    assert!(backward.eq(want.into_iter().rev()));
}

#[test]
fn walks_leave_out_what_is_not_asked_for() {
    let mut memblock = bookkeeping();
    memblock.add(at(MIB), MIB).unwrap();
    memblock.add_node(at(3 * MIB), MIB, node(0), MemblockFlags::NOMAP).unwrap();
    memblock.add_node(at(5 * MIB), MIB, node(0), MemblockFlags::DRIVER_MANAGED).unwrap();
    memblock.add_node(at(7 * MIB), MIB, node(0), MemblockFlags::HOTPLUG).unwrap();
    memblock.set_movable_node(true);
    let free = |flags| memblock.free_mem_ranges(None, flags).map(|r| r.start.raw() / MIB).collect::<Vec<_>>();
    assert_eq!(free(NONE), [1]);
    assert_eq!(free(MemblockFlags::HOTPLUG), [1, 7]);
    assert_eq!(free(MemblockFlags::NOMAP), [1, 3]);
    assert_eq!(free(MemblockFlags::DRIVER_MANAGED), [1, 5]);
    let mapped: Vec<_> = memblock.mem_ranges().map(|r| r.start.raw() / MIB).collect();
    assert_eq!(mapped, [1, 5, 7], "all but what is not to be mapped");
    assert_eq!(memblock.mem_ranges().next_back().map(plain), Some((7 * MIB, 8 * MIB, Some(0))));
}

#[test]
fn frames_are_whole() {
    let mut memblock = bookkeeping();
    memblock.add_node(at(PAGE + 1), 3 * PAGE, node(0), NONE).unwrap();
    memblock.add_node(at(8 * PAGE + 1), PAGE, node(1), NONE).unwrap();
    memblock.add_node(at(16 * PAGE), 4 * PAGE, node(1), NONE).unwrap();
    memblock.reserve(at(2 * PAGE), PAGE).unwrap();
    let frames = |nid| memblock.mem_pfn_ranges(nid).map(|r| (r.start.raw(), r.end.raw())).collect::<Vec<_>>();
    assert_eq!(frames(None), [(2, 4), (16, 20)], "reserved or not; what holds no whole frame is left out");
    assert_eq!(frames(Some(node(1))), [(16, 20)]);
    let reserved: Vec<_> = memblock.reserved_mem_ranges().map(plain).collect();
    assert_eq!(reserved, [(2 * PAGE, 3 * PAGE, None)]);
}

#[test]
fn free_frames_of_a_zone() {
    let mut memblock = bookkeeping();
    memblock.add_node(at(MIB), 7 * MIB, node(0), NONE).unwrap();
    memblock.reserve(at(2 * MIB - 5), 10).unwrap();
    let zone = |start: u64, end: u64| {
        let ranges = memblock.free_mem_pfn_ranges_in_zone(node(0), Pfn::new(start), Pfn::new(end));
        ranges.map(|r| (r.start.raw(), r.end.raw())).collect::<Vec<_>>()
    };
    assert_eq!(zone(0, 1 << 20), [(256, 511), (513, 2048)]);
    assert_eq!(zone(300, 600), [(300, 511), (513, 600)]);
    assert_eq!(zone(511, 513), []);
    assert_eq!(zone(2048, 1 << 20), []);
}
