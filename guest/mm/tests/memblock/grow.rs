//! Tables that outgrow their arrays.

use std::cell::RefCell;
use std::fmt;

use pagevisor_mm::memblock::{INIT_MEMBLOCK_REGIONS, Kind, MemblockFlags};
use pagevisor_mm::platform::Level;

use crate::{KIB, MIB, Machine, PAGE, at, node, ranges};

/// A machine whose tables may grow into `[1 MiB, 8 MiB)`.
fn machine() -> Machine {
    let mut machine = Machine::new(8 * MIB, false);
    machine.memblock.add(at(MIB), 7 * MIB).unwrap();
    machine.memblock.allow_resize();
    machine
}

/// The `index`-th of many ranges that never touch, far above all memory.
fn far(index: u64) -> u64 {
    (1 << 40) + 2 * index * KIB
}

#[test]
fn not_before_it_is_allowed() {
    let mut machine = Machine::new(8 * MIB, false);
    let memblock = &mut machine.memblock;
    memblock.add(at(MIB), 7 * MIB).unwrap();
    for index in 0..INIT_MEMBLOCK_REGIONS as u64 {
        memblock.reserve(at(far(index)), KIB).unwrap();
    }
    let error = memblock.reserve(at(far(128)), KIB).unwrap_err();
    assert_eq!(error.to_string(), "memblock: no room in the reserved array");
    assert!(memblock.phys_free(at(far(3) + 1), 1).is_err(), "splitting a region needs room too");
    assert_eq!((memblock.reserved().len(), memblock.reserved_size()), (128, 128 * KIB));
    memblock.allow_resize();
    memblock.reserve(at(far(128)), KIB).unwrap();
    assert_eq!(memblock.capacity(Kind::Reserved), 256);
}

#[test]
fn reserved_doubles_as_often_as_needed() {
    let mut machine = machine();
    let memblock = &mut machine.memblock;
    for index in 0..1000 {
        memblock.reserve(at(far(index)), KIB).unwrap();
    }
    assert_eq!(memblock.capacity(Kind::Reserved), 1024);
    // 1024 regions of 24 bytes, at the top of memory; the tables of 256 and 512 are free again.
    let (table, bytes) = memblock.table_range(Kind::Reserved).unwrap();
    assert_eq!(bytes, 24 * KIB);
    let mut want = vec![(table.raw(), bytes)];
    want.extend((0..1000).map(|index| (far(index), KIB)));
    assert_eq!(ranges(memblock.reserved()), want);
    assert_eq!(memblock.reserved_size(), 1000 * KIB + 24 * KIB);
    assert_eq!(memblock.capacity(Kind::Memory), 128);
    assert!(memblock.table_range(Kind::Memory).is_none());
}

#[test]
fn memory_doubles_in_any_order_of_adding() {
    for descending in [false, true] {
        let mut machine = machine();
        let memblock = &mut machine.memblock;
        for step in 0..300 {
            let index = if descending { 299 - step } else { step };
            memblock.add_node(at(far(index)), KIB, node((index % 2) as usize), MemblockFlags::NONE).unwrap();
        }
        assert_eq!(memblock.capacity(Kind::Memory), 512);
        assert_eq!(memblock.memory().len(), 301);
        assert_eq!(memblock.phys_mem_size(), 7 * MIB + 300 * KIB);
        let (table, bytes) = memblock.table_range(Kind::Memory).unwrap();
        assert_eq!(ranges(memblock.reserved()), [(table.raw(), bytes)]);
        let nids = memblock.memory()[1..].iter().map(|r| r.nid().unwrap().index());
        assert!(nids.eq((0..300).map(|index| index % 2)));
    }
}

/// The table must not be placed into the range whose reservation made it grow.
#[test]
fn the_new_place_avoids_what_is_about_to_be_reserved() {
    // Top-down, the top of memory is where the table would go; when it is taken: above it nothing, so below.
    let mut machine = machine();
    let memblock = &mut machine.memblock;
    for index in 0..128 {
        memblock.reserve(at(far(index)), KIB).unwrap();
    }
    memblock.reserve(at(7 * MIB), MIB).unwrap();
    assert_eq!(memblock.table_range(Kind::Reserved), Some((at(7 * MIB - 2 * PAGE), 2 * PAGE)));
    assert_eq!(ranges(memblock.reserved())[0], (7 * MIB - 2 * PAGE, MIB + 2 * PAGE));
}

#[test]
fn above_the_pending_range_is_preferred() {
    let mut machine = machine();
    let memblock = &mut machine.memblock;
    memblock.set_bottom_up(true);
    for index in 0..128 {
        memblock.reserve(at(far(index)), KIB).unwrap();
    }
    memblock.reserve(at(2 * MIB), MIB).unwrap();
    assert_eq!(memblock.table_range(Kind::Reserved), Some((at(3 * MIB), 2 * PAGE)));
}

#[test]
fn removing_grows_the_table_it_splits() {
    let mut machine = machine();
    let memblock = &mut machine.memblock;
    for index in 0..120 {
        memblock.remove(at(MIB + (1 + 2 * index) * PAGE), PAGE).unwrap();
    }
    assert_eq!(memblock.memory().len(), 121);
    for index in 120..400 {
        memblock.remove(at(MIB + (1 + 2 * index) * PAGE), PAGE).unwrap();
    }
    assert_eq!(memblock.memory().len(), 401);
    assert_eq!(memblock.capacity(Kind::Memory), 512);
    assert_eq!(memblock.phys_mem_size(), 7 * MIB - 400 * PAGE);
}

#[test]
fn no_place_for_a_larger_table_is_an_error_and_is_logged() {
    thread_local!(static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) });
    fn log(_: Level, line: fmt::Arguments<'_>) {
        LOG.with_borrow_mut(|log| log.push(line.to_string()));
    }
    let mut machine = machine();
    let memblock = &mut machine.memblock;
    memblock.set_log(log, false);
    memblock.reserve(at(MIB), 7 * MIB).unwrap();
    for index in 0..127 {
        memblock.reserve(at(far(index)), KIB).unwrap();
    }
    assert!(memblock.reserve(at(far(127)), KIB).is_err());
    LOG.with_borrow_mut(|log| {
        assert_eq!(std::mem::take(log), ["memblock: Failed to double reserved array from 128 to 256 entries !"]);
    });
    memblock.set_log(log, true);
    memblock.reserve(at(2 * MIB), MIB).unwrap();
    memblock.dump_all();
    LOG.with_borrow(|log| {
        assert_eq!(log[0], "memblock_reserve: [0x0000000000200000-0x00000000002fffff]");
        let dump = log.iter().position(|line| line == "MEMBLOCK configuration:").unwrap();
        assert_eq!(log[dump + 1], " memory size = 0x0000000000700000 reserved size = 0x000000000071fc00");
        assert_eq!(log[dump + 2], " memory.cnt  = 0x1");
        let region = " memory[0x0]\t[0x0000000000100000-0x00000000007fffff], 0x0000000000700000 bytes flags: 0x0";
        assert_eq!(log[dump + 3], region);
        assert_eq!(log[dump + 4], " reserved.cnt  = 0x80");
        assert_eq!(log.len(), dump + 5 + 128);
    });
}

/// Random pages reserved and freed, far more than fit: the table is what was reserved, plus its own place.
#[test]
fn contents_survive_every_move() {
    let mut machine = machine();
    let memblock = &mut machine.memblock;
    let mut taken = vec![false; 4096];
    let mut seed = 12345_u64;
    for step in 0..20_000_u64 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let slot = (seed >> 33) as usize % taken.len();
        let count = 1 + (seed >> 60) as usize % 3;
        let addr = at((1 << 40) + slot as u64 * PAGE);
        let slots = slot..(slot + count).min(taken.len());
        let size = slots.len() as u64 * PAGE;
        let keep = step % 5 != 0;
        if keep { memblock.reserve(addr, size) } else { memblock.phys_free(addr, size) }.unwrap();
        taken[slots].fill(keep);
    }
    let (table, bytes) = memblock.table_range(Kind::Reserved).unwrap();
    let mut want = vec![(table.raw(), bytes)];
    let mut slot = 0;
    while slot < taken.len() {
        let run = taken[slot..].iter().take_while(|t| **t == taken[slot]).count();
        if taken[slot] {
            want.push(((1 << 40) + slot as u64 * PAGE, run as u64 * PAGE));
        }
        slot += run;
    }
    assert!(memblock.capacity(Kind::Reserved) > 256, "{} regions", want.len());
    assert_eq!(ranges(memblock.reserved()), want);
}
