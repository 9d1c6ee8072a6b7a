//! The `alloc_bootmem` family.

use pagevisor_mm::memblock::bootmem::{BOOTMEM_LOW_LIMIT, Bootmem};
use pagevisor_mm::memblock::{Memblock, MemblockFlags};
use pagevisor_shared::units::PhysAddr;

use crate::{KIB, MIB, Machine, PAGE, STALE, at, node};

const GOAL: u64 = BOOTMEM_LOW_LIMIT.raw();

/// 8 MiB of node 0 below the default goal, 2 MiB of node 0 and of node 1 above it.
fn machine() -> Machine {
    let mut machine = Machine::new(20 * MIB, false);
    machine.memblock.add_node(at(MIB), 8 * MIB, node(0), MemblockFlags::NONE).unwrap();
    machine.memblock.add_node(at(GOAL), 2 * MIB, node(0), MemblockFlags::NONE).unwrap();
    machine.memblock.add_node(at(GOAL + 2 * MIB), 2 * MIB, node(1), MemblockFlags::NONE).unwrap();
    machine
}

type Call = fn(&mut Memblock) -> PhysAddr;

/// Where each call of the family places, top-down and bottom-up, on a fresh machine; all clear what they return.
#[test]
fn each_call_places_by_its_name() {
    let (top, above, end0) = (GOAL + 4 * MIB, GOAL, GOAL + 2 * MIB);
    let calls: [(&str, Call, u64, u64); 13] = [
        ("alloc_bootmem", |m| m.alloc_bootmem(96), top - 128, above),
        ("_align", |m| m.alloc_bootmem_align(96, 1 << 16), top - (1 << 16), above),
        ("_nopanic", |m| m.alloc_bootmem_nopanic(96).unwrap(), top - 128, above),
        ("_pages", |m| m.alloc_bootmem_pages(96), top - PAGE, above),
        ("_pages_nopanic", |m| m.alloc_bootmem_pages_nopanic(96).unwrap(), top - PAGE, above),
        // Below 4 GiB all of this machine is low, and a low call has no goal.
        ("_low", |m| m.alloc_bootmem_low(96), top - 128, MIB),
        ("_low_pages", |m| m.alloc_bootmem_low_pages(96), top - PAGE, MIB),
        ("_low_pages_nopanic", |m| m.alloc_bootmem_low_pages_nopanic(96).unwrap(), top - PAGE, MIB),
        ("_node", |m| m.alloc_bootmem_node(node(0), 96), end0 - 128, above),
        ("_node_nopanic", |m| m.alloc_bootmem_node_nopanic(node(1), 96).unwrap(), top - 128, end0),
        ("_pages_node", |m| m.alloc_bootmem_pages_node(node(0), 96), end0 - PAGE, above),
        ("_low_pages_node", |m| m.alloc_bootmem_low_pages_node(node(0), 96), end0 - PAGE, MIB),
        ("__alloc_bootmem", |m| m.alloc_bootmem_goal(96, PAGE, at(4 * MIB)), top - PAGE, 4 * MIB),
    ];
    for (name, call, top_down, bottom_up) in calls {
        for (direction, want) in [(false, top_down), (true, bottom_up)] {
            let mut machine = machine();
            machine.memblock.set_bottom_up(direction);
            let addr = call(&mut machine.memblock);
            assert_eq!(addr, at(want), "{name}, bottom_up: {direction}");
            assert!(machine.all(addr, 96, 0) && machine.byte(addr.raw() + 96) == STALE, "{name} clears its own");
            assert_eq!(machine.memblock.reserved_size(), 96);
        }
    }
}

#[test]
fn the_goal_is_given_up_but_not_the_limit() {
    let mut machine = machine();
    let memblock = &mut machine.memblock;
    memblock.reserve(at(GOAL), 4 * MIB).unwrap();
    assert_eq!(memblock.alloc_bootmem(KIB), at(9 * MIB - KIB), "nothing is free from the goal up");
    assert_eq!(Bootmem::new(KIB).limit(at(2 * MIB)).try_alloc(memblock), Ok(at(2 * MIB - KIB)));
    memblock.reserve(at(MIB), MIB).unwrap();
    assert!(Bootmem::new(KIB).limit(at(2 * MIB)).try_alloc(memblock).is_err());
}

#[test]
fn a_full_node_falls_back_unless_exact() {
    let mut machine = machine();
    let memblock = &mut machine.memblock;
    memblock.reserve(at(GOAL + 2 * MIB), 2 * MIB).unwrap();
    assert!(Bootmem::new(KIB).node_exact(node(1)).try_alloc(memblock).is_err());
    assert_eq!(memblock.alloc_bootmem_node(node(1), KIB), at(GOAL + 2 * MIB - KIB));
    let below = Bootmem::new(4 * MIB).node_exact(node(0)).try_alloc(memblock);
    assert_eq!(below, Ok(at(5 * MIB)), "the node is kept and the goal given up");
}

/// Any node above the goal comes before the node's own memory below it.
#[test]
fn the_goal_comes_before_the_node() {
    let mut machine = machine();
    let memblock = &mut machine.memblock;
    memblock.reserve(at(GOAL), 2 * MIB).unwrap();
    assert_eq!(memblock.alloc_bootmem_node(node(0), KIB), at(GOAL + 4 * MIB - KIB));
}

#[test]
fn goal_and_alignment_combine() {
    let mut machine = machine();
    let memblock = &mut machine.memblock;
    memblock.set_bottom_up(true);
    let addr = Bootmem::new(KIB).align(0).goal(at(3 * MIB + 1)).alloc(memblock);
    assert_eq!(addr, at(3 * MIB + 64), "no alignment means a cache line");
}

#[test]
fn nopanic_calls_return_nothing() {
    let mut machine = machine();
    let memblock = &mut machine.memblock;
    assert_eq!(memblock.alloc_bootmem_nopanic(16 * MIB), None);
    assert_eq!(memblock.alloc_bootmem_pages_nopanic(16 * MIB), None);
    assert_eq!(memblock.alloc_bootmem_low_pages_nopanic(16 * MIB), None);
    assert_eq!(memblock.alloc_bootmem_node_nopanic(node(0), 16 * MIB), None);
    assert_eq!(memblock.alloc_bootmem_pages_node_nopanic(node(0), 16 * MIB), None);
    assert!(memblock.reserved().is_empty());
}

#[test]
#[should_panic(expected = "Out of memory: Failed to allocate 16777216 bytes align=0x40 nid=-1 from=0x1000000")]
fn the_others_panic() {
    machine().memblock.alloc_bootmem(16 * MIB);
}
