//! The reserve for high-order atomic allocations: who adds to it, how far, who gets it, and who takes it back.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::check::free_list;
use pagevisor_mm::hosted::{Machine, Topology};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::units::{Order, Pfn};
use pagevisor_shared::zone::ZoneType;

use crate::{GIB, MIB, assert_sound, order, take_all, zone};

const ATOMIC: Gfp = Gfp::ATOMIC_ALLOC.with(Gfp::NOWARN);
const LAST: Gfp = Gfp::KERNEL.with(Gfp::MEMALLOC);

/// One zone of `mib`, all in use; gives the blocks of the largest order.
fn used_up(mib: u64) -> (Machine, Vec<Pfn>) {
    let machine = Topology::pages_only().node(&[(4 * GIB, 4 * GIB + mib * MIB)], 1).boot();
    let mm = machine.mm();
    let blocks = take_all(mm, LAST, order(10));
    take_all(mm, LAST, Order::ZERO);
    mm.quiet_vmstat();
    (machine, blocks)
}

fn reserved(machine: &Machine) -> u64 {
    machine.mm().zone(zone(0, ZoneType::Normal)).expect("a zone").nr_reserved_highatomic.load(Relaxed)
}

#[test]
fn the_reserve_serves_first_and_has_a_limit() {
    let (machine, blocks) = used_up(512);
    let mm = machine.mm();
    // One percent of 512 MiB, rounded up to page blocks, is three.
    for (round, want) in [512, 1024, 1536, 1536].into_iter().enumerate() {
        mm.free_pages(blocks[round], order(10));
        let first = mm.alloc_pages(ATOMIC, order(8)).expect("atomic allocations may go below the low watermark");
        assert_eq!(reserved(&machine), want, "round {round}");
        let second = mm.alloc_pages(ATOMIC, order(8)).expect("a block");
        if round < 3 {
            assert_eq!(mm.pageblock_migratetype(first), MigrateType::HighAtomic);
            assert_eq!(second.pageblock(), first.pageblock(), "from the reserve, not from another page block");
        }
        mm.alloc_pages(LAST, order(9)).expect("the other half");
    }
    assert_sound(mm);
}

#[test]
fn a_small_zone_reserves_nothing() {
    let (machine, blocks) = used_up(128);
    let mm = machine.mm();
    mm.free_pages(blocks[0], order(10));
    take_all(mm, LAST, order(8));
    mm.free_pages(blocks[1], order(10));
    mm.alloc_pages(ATOMIC, order(9)).expect("a block");
    assert_eq!(reserved(&machine), 0, "one percent is less than a page block");
    assert_sound(mm);
}

#[test]
fn the_reserve_is_given_back_before_an_allocation_fails() {
    let (machine, blocks) = used_up(512);
    let mm = machine.mm();
    mm.free_pages(blocks[0], order(10));
    mm.free_pages(blocks[1], order(10));
    let half = [(); 2].map(|()| mm.alloc_pages(LAST, order(8)).expect("half of the second"));
    assert_eq!(half[0].pageblock(), half[1].pageblock());
    // A block of two page blocks, of which one is reserved, goes back to the reserve whole.
    let atomic = mm.alloc_pages(ATOMIC, order(10)).expect("atomic allocations may go below the low watermark");
    assert_eq!(reserved(&machine), 512);
    mm.free_pages(atomic, order(10));
    let normal = zone(0, ZoneType::Normal);
    assert_eq!(free_list(mm, normal, order(10), MigrateType::HighAtomic), [atomic]);
    assert_sound(mm);
    let mut taken = 0;
    while reserved(&machine) != 0 {
        mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN, Order::ZERO).expect("the reserve comes before a failure");
        taken += 1;
    }
    assert!(taken > 1, "not as long as there is other memory");
    assert_eq!(free_list(mm, normal, order(10), MigrateType::HighAtomic), []);
    assert_ne!(mm.pageblock_migratetype(atomic), MigrateType::HighAtomic);
    assert_sound(mm);
}
