//! Contiguous memory areas: who is lent their pages, and that they come back in one piece.

use core::ops::Range;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::contig::{CmaArea, ContigError};
use pagevisor_mm::hosted::{Machine, Topology};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::units::{Order, Pfn, PhysAddr};
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::{ZoneIndex, ZoneType};

use crate::{GIB, MIB, assert_sound, order, take_all};

const NORMAL: ZoneIndex = ZoneIndex(ZoneType::Normal as u16);
const START: u64 = 4 * GIB + 32 * MIB;

fn bytes(start: u64, size: u64) -> Range<PhysAddr> {
    PhysAddr::new(start)..PhysAddr::new(start + size)
}

/// A zone of 128 MiB with an area of `mib`.
fn machine(mib: u64) -> (Machine, CmaArea) {
    let topology = Topology::pages_only().node(&[(4 * GIB, 4 * GIB + 128 * MIB)], 1).reserve(START, START + mib * MIB);
    let machine = topology.boot();
    let area = machine.mm().cma_init_reserved_mem(&bytes(START, mib * MIB)).expect("it is reserved");
    assert_sound(machine.mm());
    (machine, area)
}

fn state(machine: &Machine, item: ZoneStat) -> u64 {
    machine.mm().zone_page_state_snapshot(NORMAL, item)
}

#[test]
fn an_area_is_lent_to_movable_pages_only() {
    let (machine, area) = machine(16);
    let (mm, range) = (machine.mm(), machine.mm().cma_range(area));
    let zone = mm.zone(NORMAL).expect("a zone");
    assert_eq!((range.start, range.end), (Pfn::new(START >> 12), Pfn::new((START + 16 * MIB) >> 12)));
    let record = &mm.region().cmas()[0];
    let shown = || (record.base_pfn.load(Relaxed), record.count.load(Relaxed), record.used.load(Relaxed));
    assert_eq!((shown(), &record.name_bytes()[..5]), ((START >> 12, 4096, 0), &b"cma0\0"[..]));
    assert_eq!((zone.cma_pages.load(Relaxed), state(&machine, ZoneStat::NrFreeCma)), (4096, 4096));
    assert!((range.start.raw()..range.end.raw()).all(|pfn| !mm.is_reserved(Pfn::new(pfn))));
    let page = mm.alloc_page(Gfp::HIGHUSER_MOVABLE).expect("a page");
    assert!(!range.contains(&page), "as long as there is more outside");
    for wanted in [order(9), Order::ZERO] {
        let all = take_all(mm, Gfp::KERNEL | Gfp::MEMALLOC, wanted);
        assert!(!all.is_empty() && all.iter().all(|pfn| !range.contains(pfn)));
    }
    assert_eq!(state(&machine, ZoneStat::NrFreeCma), 4096);
    assert_sound(mm);
    // Pages of the size of a page block go through lists that all types share; not those of areas.
    let block = mm.alloc_pages(Gfp::HIGHUSER_MOVABLE | Gfp::MEMALLOC, order(9)).expect("a block");
    assert!(range.contains(&block));
    mm.free_pages(block, order(9));
    assert_eq!(mm.alloc_pages(Gfp::KERNEL | Gfp::MEMALLOC | Gfp::NOWARN, order(9)), None);
    let lent = take_all(mm, Gfp::HIGHUSER_MOVABLE | Gfp::MEMALLOC, Order::ZERO);
    assert_eq!(lent.iter().filter(|pfn| range.contains(pfn)).count(), 4096);
    assert_eq!(state(&machine, ZoneStat::NrFreeCma), 0);
    assert_sound(mm);
    lent.iter().for_each(|&pfn| mm.free_page(pfn));
    mm.drain_all_pages(None);
    assert_eq!(state(&machine, ZoneStat::NrFreeCma), 4096);
    assert_sound(mm);
}

#[test]
fn what_is_free_in_areas_counts_for_movable_pages_only() {
    let (machine, _) = machine(16);
    let mm = machine.mm();
    take_all(mm, Gfp::KERNEL, Order::ZERO);
    assert!(state(&machine, ZoneStat::NrFreePages) > 4096, "the watermarks are kept beside the area");
    assert_eq!(mm.alloc_page(Gfp::KERNEL | Gfp::NOWARN | Gfp::NORETRY), None);
    // A block of an area will do for them, though no other is free.
    assert!(mm.alloc_pages(Gfp::HIGHUSER_MOVABLE | Gfp::NOWARN, order(10)).is_some());
    assert!(!take_all(mm, Gfp::HIGHUSER_MOVABLE, Order::ZERO).is_empty());
    assert_sound(mm);
}

#[test]
fn movable_pages_come_from_areas_that_have_most_of_the_free_memory() {
    let (machine, area) = machine(80);
    let (mm, range) = (machine.mm(), machine.mm().cma_range(area));
    mm.quiet_vmstat();
    let pages: Vec<Pfn> = (0..4000).filter_map(|_| mm.alloc_page(Gfp::HIGHUSER_MOVABLE)).collect();
    assert!(pages.iter().all(|pfn| range.contains(pfn)));
    assert_sound(mm);
    let more = take_all(mm, Gfp::HIGHUSER_MOVABLE, Order::ZERO);
    let outside = more.iter().position(|pfn| !range.contains(pfn)).expect("some come from elsewhere");
    assert!(more[outside..].iter().any(|pfn| range.contains(pfn)), "by turns, as long as both have about the same");
    assert_sound(mm);
}

#[test]
fn ranges_come_from_an_area_and_go_back() {
    let (machine, area) = machine(16);
    let (mm, range) = (machine.mm(), machine.mm().cma_range(area));
    mm.drain_all_pages(None);
    let all = state(&machine, ZoneStat::NrFreePages);
    let first = mm.cma_alloc(area, 700, Order::ZERO).expect("700 pages");
    let second = mm.cma_alloc(area, 300, order(8)).expect("300 pages");
    assert_eq!((first, second), (range.start, range.start.add(768)), "the first fit, aligned");
    assert_eq!((state(&machine, ZoneStat::NrFreePages), state(&machine, ZoneStat::NrFreeCma)), (all - 1000, 3096));
    assert_eq!(mm.pageblock_migratetype(first), MigrateType::Cma);
    assert_sound(mm);
    assert_eq!(mm.cma_alloc(area, 68, Order::ZERO), Some(first.add(700)), "the gap is not lost");
    assert_eq!(mm.cma_alloc(area, 3029, Order::ZERO), None, "more than is left in one piece");
    assert_eq!((mm.cma_alloc(area, 0, Order::ZERO), mm.cma_alloc(area, 4097, Order::ZERO)), (None, None));
    let wrong = [(second, 301), (range.start.add(4000), 97), (Pfn::new(1), 1), (range.start.add(4095), u64::MAX)];
    assert!(wrong.iter().all(|&(pfn, count)| !mm.cma_release(area, pfn, count)));
    assert_eq!(mm.region().cmas()[0].used.load(Relaxed), 1068);
    assert!(mm.cma_release(area, first, 768) && mm.cma_release(area, second, 300));
    assert_eq!(mm.region().cmas()[0].used.load(Relaxed), 0);
    assert!(!mm.cma_release(area, second, 300), "only once");
    mm.drain_all_pages(None);
    assert_eq!((state(&machine, ZoneStat::NrFreePages), state(&machine, ZoneStat::NrFreeCma)), (all, 4096));
    assert_eq!(mm.cma_alloc(area, 4096, order(10)), Some(range.start));
    assert_sound(mm);
}

#[test]
fn pages_that_are_lent_out_are_passed_over() {
    let (machine, area) = machine(16);
    let (mm, range) = (machine.mm(), machine.mm().cma_range(area));
    let all = take_all(mm, Gfp::HIGHUSER_MOVABLE | Gfp::MEMALLOC, Order::ZERO);
    let kept = range.start.add(1030);
    all.iter().filter(|&&pfn| pfn != kept).for_each(|&pfn| mm.free_page(pfn));
    let got = mm.cma_alloc(area, 1024, order(9)).expect("it can be had before");
    let next = mm.cma_alloc(area, 1024, order(9)).expect("and behind");
    assert_eq!((got, next), (range.start, range.start.add(1536)));
    assert_eq!(mm.start_isolate_page_range(&(next..next.add(1)), MigrateType::Movable), Err(ContigError::Busy));
    assert_sound(mm);
    assert!(mm.cma_release(area, next, 1024));
    mm.free_page(kept);
    assert_eq!(mm.cma_alloc(area, 1024, order(9)), Some(range.start.add(1024)));
    assert_sound(mm);
}

#[test]
fn only_reserved_page_blocks_become_areas() {
    let topology = Topology::pages_only().node(&[(4 * GIB, 4 * GIB + 128 * MIB)], 1).reserve(START, START + 4 * MIB);
    let machine = topology.boot();
    let mm = machine.mm();
    for (start, size) in [(START, 6 * MIB), (START + MIB, 2 * MIB), (START, MIB), (START, 0), (START + GIB, 2 * MIB)] {
        assert_eq!(mm.cma_init_reserved_mem(&bytes(start, size)), Err(ContigError::Invalid));
    }
    let before = mm.zone(NORMAL).expect("a zone").managed_pages.load(Relaxed);
    let first = mm.cma_init_reserved_mem(&bytes(START, 2 * MIB)).expect("an area");
    let second = mm.cma_init_reserved_mem(&bytes(START + 2 * MIB, 2 * MIB)).expect("another");
    assert_eq!(mm.zone(NORMAL).expect("a zone").managed_pages.load(Relaxed), before + 1024);
    assert_eq!(mm.cma_init_reserved_mem(&bytes(START, 2 * MIB)), Err(ContigError::Invalid), "not twice");
    let (low, high) = (mm.cma_alloc(first, 512, Order::ZERO), mm.cma_alloc(second, 512, Order::ZERO));
    assert_eq!((low, high), (Some(Pfn::new(START >> 12)), Some(Pfn::new((START >> 12) + 512))));
    assert!(!mm.cma_release(first, Pfn::new((START >> 12) + 512), 512), "the other's");
    assert_sound(mm);
}

#[test]
fn areas_are_made_of_free_page_blocks() {
    let machine = Topology::pages_only().node(&[(4 * GIB, 4 * GIB + 128 * MIB)], 1).boot();
    let mm = machine.mm();
    let keep = mm.alloc_pages(Gfp::KERNEL, order(3)).expect("a block");
    mm.drain_all_pages(None);
    let before = mm.zone_page_state_snapshot(NORMAL, ZoneStat::NrFreePages);
    let area = mm.cma_create(1500, None).expect("there is room");
    assert_eq!((area.number(), mm.cma_area_numbered(0), mm.cma_area_numbered(1)), (0, Some(area), None));
    let range = mm.cma_range(area);
    assert_eq!(range.end.raw() - range.start.raw(), 1536, "whole page blocks");
    assert!(range.start.is_aligned(order(9)) && !range.contains(&keep));
    let zone = mm.zone(NORMAL).expect("a zone");
    assert_eq!((zone.cma_pages.load(Relaxed), state(&machine, ZoneStat::NrFreeCma)), (1536, 1536));
    let bitmap = 1;
    assert_eq!(mm.zone_page_state_snapshot(NORMAL, ZoneStat::NrFreePages), before - bitmap);
    assert_sound(mm);
    let first = mm.cma_alloc(area, 1536, Order::ZERO).expect("all of it");
    assert!(mm.cma_release(area, first, 1536));
    let second = mm.cma_create(512, None).expect("there is room");
    assert!(!range.contains(&mm.cma_range(second).start));
    assert_eq!(mm.cma_create(1 << 20, None), None, "more than there is");
    assert_eq!(mm.cma_create(u64::MAX, None), None);
    for _ in 2..20 {
        mm.cma_create(1, None).expect("room for twenty");
    }
    let before = state(&machine, ZoneStat::NrFreeCma);
    assert_eq!(mm.cma_create(1, None), None);
    assert_eq!(state(&machine, ZoneStat::NrFreeCma), before);
    mm.free_pages(keep, order(3));
    assert_sound(mm);
}
