//! Migrate types: which page block a page comes from when its own type has none, and reserved page blocks.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::Hooks;
use pagevisor_mm::check::free_list;
use pagevisor_mm::hosted::{Machine, Topology};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::units::{MAX_ORDER, Order, Pfn};
use pagevisor_shared::zone::{ZoneIndex, ZoneType};

use crate::{GIB, MIB, assert_sound, order, small, take_all, zone};

/// Pages on the free lists of a type.
fn free_pages(machine: &Machine, zone: ZoneIndex, kind: MigrateType) -> u64 {
    (0..MAX_ORDER as u32).map(|raw| (free_list(machine.mm(), zone, order(raw), kind).len() as u64) << raw).sum()
}

fn block_type(machine: &Machine, pfn: Pfn) -> MigrateType {
    machine.mm().pageblock_migratetype(pfn)
}

#[test]
fn the_first_unmovable_page_takes_a_whole_block() {
    let machine = small();
    let zone = zone(0, ZoneType::Dma32);
    assert_eq!(free_pages(&machine, zone, MigrateType::Unmovable), 0, "all memory starts movable");
    let pfn = machine.mm().alloc_pages(Gfp::KERNEL, Order::ZERO).expect("a page");
    // The largest block there is, two page blocks, becomes unmovable.
    let head = Pfn::new(pfn.raw() & !1023);
    assert_eq!(block_type(&machine, head), MigrateType::Unmovable);
    assert_eq!(block_type(&machine, head.add(512)), MigrateType::Unmovable);
    assert_eq!(block_type(&machine, head.add(1024)), MigrateType::Movable);
    assert_sound(machine.mm());
}

#[test]
fn types_fall_back_in_linux_order() {
    // Each type's blocks only: fill what remains of the others first.
    for (kind, from) in [(Gfp::HIGHUSER_MOVABLE, MigrateType::Reclaimable), (Gfp::KERNEL, MigrateType::Reclaimable)] {
        let machine = small();
        let mm = machine.mm();
        let reclaimable = mm.alloc_pages(Gfp::KERNEL | Gfp::RECLAIMABLE, Order::ZERO).expect("a page");
        let other = if kind == Gfp::KERNEL { Gfp::HIGHUSER_MOVABLE } else { Gfp::KERNEL };
        // Whole blocks of the largest order go to the other type; the rest stays with its owner.
        let blocks = take_all(mm, other | Gfp::MEMALLOC, order(10));
        assert!(!blocks.is_empty());
        // So does what the type has of its own, where memory is ragged.
        let own = kind.migratetype();
        let has_own = || (5..11).any(|raw| !free_list(mm, zone(0, ZoneType::Dma32), order(raw), own).is_empty());
        while has_own() {
            mm.alloc_pages(kind | Gfp::MEMALLOC, order(5)).expect("a block");
        }
        let before = free_pages(&machine, zone(0, ZoneType::Dma32), from);
        assert!(before > 0);
        let page = mm.alloc_pages(kind | Gfp::MEMALLOC | Gfp::NOWARN, order(5)).expect("a block");
        assert!(free_pages(&machine, zone(0, ZoneType::Dma32), from) < before, "it came from {}", from.name());
        assert_eq!(mm.page_zone(page), mm.page_zone(reclaimable));
        assert_sound(mm);
    }
}

#[test]
fn a_movable_page_steals_the_smallest_block() {
    let machine = small();
    let mm = machine.mm();
    // All memory unmovable and in use, but for one page and one block of order 3.
    let pages = take_all(mm, Gfp::KERNEL | Gfp::MEMALLOC, Order::ZERO);
    let aligned = *pages.iter().find(|pfn| pfn.raw() % 512 == 64).expect("a frame");
    (0..8).for_each(|page| mm.free_page(aligned.add(page)));
    mm.free_page(aligned.add(128));
    mm.drain_all_pages(None);
    let got = mm.alloc_pages(Gfp::HIGHUSER_MOVABLE | Gfp::MEMALLOC, Order::ZERO);
    assert_eq!(got, Some(aligned.add(128)), "not a part of the larger block");
    assert_eq!(block_type(&machine, aligned), MigrateType::Unmovable, "the page block stays what it is");
    assert_sound(mm);
}

#[test]
fn stealing_raises_the_watermarks() {
    let hooks = Hooks { wake_kswapd: Some(|_, _| {}), ..Hooks::none() };
    let machine = Topology::pages_only().node(&[(16 * MIB, 80 * MIB)], 1).try_boot(hooks).expect("it boots");
    let mm = machine.mm();
    let state = mm.zone(zone(0, ZoneType::Dma32)).expect("a zone");
    assert_eq!(state.watermark_boost.load(Relaxed), 0);
    let pages = take_all(mm, Gfp::HIGHUSER_MOVABLE | Gfp::MEMALLOC, Order::ZERO);
    // A few free pages, all in movable blocks.
    pages.iter().filter(|pfn| pfn.raw() % 512 < 40).for_each(|&pfn| mm.free_page(pfn));
    mm.drain_all_pages(None);
    mm.alloc_pages(Gfp::KERNEL | Gfp::MEMALLOC, Order::ZERO).expect("a page");
    assert!(state.watermark_boost.load(Relaxed) >= 512);
    assert_sound(mm);
}

#[test]
fn a_lower_zone_is_tried_before_types_mix() {
    // No whole page block is left in Normal; DMA32 has some.
    let machine = Topology::pages_only().node(&[(16 * MIB, 80 * MIB), (4 * GIB, 4 * GIB + 64 * MIB)], 1).boot();
    let mm = machine.mm();
    let normal = zone(0, ZoneType::Normal);
    let pages: Vec<Pfn> = take_all(mm, Gfp::HIGHUSER_MOVABLE, Order::ZERO);
    let dma32: Vec<Pfn> = pages.iter().copied().filter(|&pfn| mm.page_zone(pfn) != Some(normal)).collect();
    dma32.iter().for_each(|&pfn| mm.free_page(pfn));
    // Half of Normal is free again, in pieces.
    let pieces = pages.iter().filter(|&&pfn| mm.page_zone(pfn) == Some(normal) && pfn.raw() % 8 < 4);
    pieces.for_each(|&pfn| mm.free_page(pfn));
    mm.drain_all_pages(None);
    let page = mm.alloc_pages(Gfp::KERNEL, Order::ZERO).expect("a page");
    assert_eq!(mm.page_zone(page), Some(zone(0, ZoneType::Dma32)));
    assert_sound(mm);
}

#[test]
fn high_order_atomic_allocations_reserve_page_blocks() {
    let machine = Topology::pages_only().node(&[(4 * GIB, 4 * GIB + 512 * MIB)], 1).boot();
    let mm = machine.mm();
    let state = mm.zone(zone(0, ZoneType::Normal)).expect("a zone");
    let reserved = || state.nr_reserved_highatomic.load(Relaxed);
    // Down to the low watermark: from there on they take the long way.
    let pages = take_all(mm, Gfp::KERNEL | Gfp::NORETRY, Order::ZERO);
    pages.iter().filter(|pfn| pfn.raw() % 512 < 16).take(8000).for_each(|&pfn| mm.free_page(pfn));
    mm.drain_all_pages(None);
    take_all(mm, Gfp::KERNEL, Order::ZERO);
    assert_eq!(reserved(), 0);
    let atomic = mm.alloc_pages(Gfp::ATOMIC_ALLOC | Gfp::NOWARN, order(2));
    let atomic = atomic.expect("atomic allocations may go below the low watermark");
    assert_eq!(reserved(), 512);
    assert_eq!(block_type(&machine, atomic), MigrateType::HighAtomic);
    assert_sound(mm);
    // The pages go back to the reserve.
    mm.free_pages(atomic, order(2));
    mm.drain_all_pages(None);
    assert!(free_pages(&machine, zone(0, ZoneType::Normal), MigrateType::HighAtomic) >= 4);
    assert_sound(mm);
}
