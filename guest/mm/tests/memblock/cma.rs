//! Where contiguous memory areas are reserved.

use pagevisor_mm::contig::cma_declare_contiguous;
use pagevisor_mm::memblock::{Memblock, MemblockFlags};

use crate::{MIB, at, bookkeeping, node, ranges};

const GIB: u64 = 1 << 30;

/// Node 0 below 3 GiB, node 1 from 4 GiB on.
fn two_nodes(top: u64) -> Memblock {
    let mut memblock = bookkeeping();
    memblock.add_node(at(MIB), 3 * GIB - MIB, node(0), MemblockFlags::NONE).expect("room");
    memblock.add_node(at(4 * GIB), top - 4 * GIB, node(1), MemblockFlags::NONE).expect("room");
    memblock
}

#[test]
fn areas_lie_just_above_4_gib_where_there_is_room() {
    let mut memblock = two_nodes(5 * GIB);
    let area = cma_declare_contiguous(&mut memblock, 15 * MIB, at(0), None).expect("room");
    assert_eq!(area, at(4 * GIB)..at(4 * GIB + 16 * MIB), "whole page blocks");
    assert_eq!(ranges(memblock.reserved()), [(4 * GIB, 16 * MIB)]);
    assert!(!memblock.bottom_up());
    // Node 0 has none there; under a limit the highest place below it.
    let area = cma_declare_contiguous(&mut memblock, 2 * MIB, at(GIB + 1), Some(node(0))).expect("room");
    assert_eq!(area, at(GIB - 2 * MIB)..at(GIB));
}

#[test]
fn areas_are_refused_when_there_is_no_room() {
    let mut memblock = two_nodes(4 * GIB + 8 * MIB);
    assert!(cma_declare_contiguous(&mut memblock, 4 * GIB, at(0), None).is_err());
    assert!(cma_declare_contiguous(&mut memblock, 4 * MIB, at(2 * MIB), None).is_err());
    assert!(memblock.reserved().is_empty());
    let area = cma_declare_contiguous(&mut memblock, 0, at(0), None).expect("room");
    assert_eq!(area.end.raw() - area.start.raw(), 2 * MIB, "never nothing");
}
