//! Where contiguous memory areas are reserved.

use pagevisor_mm::contig::{CmaRequest, cma_declare_contiguous};
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
    let area = cma_declare_contiguous(&mut memblock, CmaRequest::of_size(15 * MIB)).expect("room");
    assert_eq!(area, at(4 * GIB)..at(4 * GIB + 16 * MIB), "whole page blocks");
    assert_eq!(ranges(memblock.reserved()), [(4 * GIB, 16 * MIB)]);
    assert!(!memblock.bottom_up());
    // Node 0 has none there; under a limit the highest place below it.
    let below = CmaRequest { limit: at(GIB + 1), node: Some(node(0)), ..CmaRequest::of_size(2 * MIB) };
    let area = cma_declare_contiguous(&mut memblock, below).expect("room");
    assert_eq!(area, at(GIB - 2 * MIB)..at(GIB));
}

#[test]
fn areas_are_refused_when_there_is_no_room() {
    let mut memblock = two_nodes(4 * GIB + 8 * MIB);
    assert!(cma_declare_contiguous(&mut memblock, CmaRequest::of_size(4 * GIB)).is_err());
    let below = CmaRequest { limit: at(2 * MIB), ..CmaRequest::of_size(4 * MIB) };
    assert!(cma_declare_contiguous(&mut memblock, below).is_err());
    assert!(memblock.reserved().is_empty());
    let area = cma_declare_contiguous(&mut memblock, CmaRequest::of_size(0)).expect("room");
    assert_eq!(area.end.raw() - area.start.raw(), 2 * MIB, "never nothing");
}

#[test]
fn an_area_is_where_it_was_asked_for() {
    let mut memblock = two_nodes(5 * GIB);
    memblock.reserve(at(GIB), MIB).expect("room");
    let fixed =
        |base, size| CmaRequest { base: at(base), limit: at(base + size), fixed: true, ..CmaRequest::of_size(size) };
    let mut declare = |request| cma_declare_contiguous(&mut memblock, request);
    assert_eq!(declare(fixed(512 * MIB, 64 * MIB)).expect("room"), at(512 * MIB)..at(576 * MIB));
    assert!(declare(fixed(512 * MIB, 64 * MIB)).is_err(), "taken");
    assert!(declare(fixed(GIB - 2 * MIB, 4 * MIB)).is_err(), "partly taken");
    assert!(declare(fixed(3 * GIB, 4 * MIB)).is_err(), "no memory");
    assert!(declare(fixed(700 * MIB + 4096, 4 * MIB)).is_err(), "not a page block");
    let between = CmaRequest { base: at(2 * GIB), limit: at(2 * GIB + 8 * MIB), ..CmaRequest::of_size(4 * MIB) };
    assert_eq!(declare(between).expect("room"), at(2 * GIB + 4 * MIB)..at(2 * GIB + 8 * MIB), "as high as possible");
    assert!(declare(CmaRequest { size: 9 * MIB, ..between }).is_err());
    assert!(declare(CmaRequest::of_size(u64::MAX)).is_err());
}
