//! Isolated page blocks: nothing is allocated from them, their free pages do not count, and all of it can be undone.

use core::ops::Range;

use pagevisor_mm::check::free_list;
use pagevisor_mm::contig::ContigError;
use pagevisor_mm::hosted::Machine;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::units::{Order, Pfn};
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::ZoneType;

use crate::{assert_sound, order, small, take_all, two_nodes, zone};

const MOVABLE: MigrateType = MigrateType::Movable;

/// `count` frames from `start` on.
fn frames(start: Pfn, count: u64) -> Range<Pfn> {
    start..start.add(count)
}

fn free(machine: &Machine) -> u64 {
    machine.mm().zone_page_state_snapshot(zone(0, ZoneType::Dma32), ZoneStat::NrFreePages)
}

/// The free blocks of `order` and `kind`, in order of address.
fn blocks(machine: &Machine, raw: u32, kind: MigrateType) -> Vec<Pfn> {
    let mut blocks = free_list(machine.mm(), zone(0, ZoneType::Dma32), order(raw), kind);
    blocks.sort();
    blocks
}

#[test]
fn what_is_freed_to_an_isolated_block_stays_there() {
    let machine = small();
    let mm = machine.mm();
    // The first of a page block that has no reserved memory.
    let mut allocated = core::iter::from_fn(|| mm.alloc_pages(Gfp::HIGHUSER_MOVABLE, order(3)));
    let pfn = allocated.find(|pfn| pfn.raw() % 512 == 0).expect("a block");
    let page = mm.page(pfn).expect("memory");
    page.set_flag(PageFlag::Lru);
    let range = frames(pfn, 8);
    mm.start_isolate_page_range(&range, MOVABLE).expect("pages on LRU lists can be moved");
    assert_eq!(mm.pageblock_migratetype(pfn), MigrateType::Isolate);
    assert_eq!(mm.start_isolate_page_range(&range, MOVABLE), Err(ContigError::Busy), "not twice");
    assert!(!mm.test_pages_isolated(&range), "it is in use");
    assert_sound(mm);
    page.clear_flag(PageFlag::Lru);
    let before = free(&machine);
    mm.free_pages(pfn, order(3));
    assert_eq!(free(&machine), before, "pages of an isolated block do not count as free");
    // What was on pagesets comes back to the block, too.
    mm.drain_all_pages(None);
    let block = Pfn::new(pfn.pageblock() << 9);
    assert_eq!(blocks(&machine, 9, MigrateType::Isolate), [block]);
    assert!(mm.test_pages_isolated(&frames(block, 512)));
    assert_sound(mm);
    let all = take_all(mm, Gfp::HIGHUSER_MOVABLE | Gfp::MEMALLOC, Order::ZERO);
    assert!(all.iter().all(|page| page.pageblock() != block.pageblock()), "nothing is allocated from it");
    let before = free(&machine);
    mm.undo_isolate_page_range(&range, MOVABLE);
    assert_eq!(free(&machine), before + 512);
    assert_sound(mm);
    let page = mm.alloc_pages(Gfp::HIGHUSER_MOVABLE | Gfp::MEMALLOC, Order::ZERO).expect("a page");
    assert_eq!(page.pageblock(), block.pageblock());
}

#[test]
fn larger_free_blocks_are_split_and_merge_again() {
    let machine = small();
    let mm = machine.mm();
    let (all, whole) = (free(&machine), blocks(&machine, 10, MOVABLE));
    // Neither end of the run of untouched blocks.
    let (head, half) = (whole[3], whole[3].add(512));
    for (isolated, rest) in [(half, head), (head, half)] {
        let others = blocks(&machine, 9, MOVABLE);
        mm.start_isolate_page_range(&frames(isolated, 512), MOVABLE).expect("it is free");
        assert_eq!(free(&machine), all - 512);
        assert_eq!(blocks(&machine, 9, MigrateType::Isolate), [isolated]);
        let kept: Vec<Pfn> = blocks(&machine, 9, MOVABLE).into_iter().filter(|pfn| !others.contains(pfn)).collect();
        assert_eq!(kept, [rest]);
        assert_sound(mm);
        mm.undo_isolate_page_range(&frames(isolated, 512), MOVABLE);
        assert_eq!((free(&machine), blocks(&machine, 10, MOVABLE)), (all, whole.clone()));
        assert_sound(mm);
    }
    // Two page blocks are isolated whole, and a range takes every page block it touches.
    mm.start_isolate_page_range(&frames(head.add(3), 510), MOVABLE).expect("it is free");
    assert_eq!(free(&machine), all - 1024);
    assert_eq!(blocks(&machine, 10, MigrateType::Isolate), [head]);
    assert!(mm.test_pages_isolated(&frames(head, 1024)));
    assert_sound(mm);
    mm.undo_isolate_page_range(&frames(head.add(3), 510), MigrateType::Unmovable);
    assert_eq!(blocks(&machine, 10, MigrateType::Unmovable), [head]);
    assert_eq!(mm.pageblock_migratetype(half), MigrateType::Unmovable);
    assert_eq!(free(&machine), all);
    assert_sound(mm);
}

#[test]
fn one_page_in_use_keeps_a_range_from_being_isolated() {
    // At the start, in the middle, at the end of four page blocks.
    for place in [0, 700, 1400, 2047] {
        let machine = small();
        let mm = machine.mm();
        let start = blocks(&machine, 10, MOVABLE)[2];
        let all = take_all(mm, Gfp::HIGHUSER_MOVABLE | Gfp::MEMALLOC, Order::ZERO);
        all.iter().filter(|&&pfn| pfn != start.add(place)).for_each(|&pfn| mm.free_page(pfn));
        mm.drain_all_pages(None);
        let before = free(&machine);
        let range = frames(start, 2048);
        assert_eq!(mm.start_isolate_page_range(&range, MOVABLE), Err(ContigError::Busy), "page {place} is in use");
        assert_eq!(free(&machine), before);
        assert!((0..4).all(|block| mm.pageblock_migratetype(start.add(block * 512)) == MOVABLE));
        assert_sound(mm);
        mm.free_page(start.add(place));
        mm.start_isolate_page_range(&range, MOVABLE).expect("all of it is free");
        mm.drain_all_pages(None);
        assert!(mm.test_pages_isolated(&range));
        assert_sound(mm);
    }
}

#[test]
fn blocks_in_use_reach_into_a_range() {
    let machine = small();
    let mm = machine.mm();
    let compound = mm.alloc_pages(Gfp::HIGHUSER_MOVABLE | Gfp::COMP, order(10)).expect("a block");
    let second = frames(compound.add(512), 512);
    assert_eq!(mm.start_isolate_page_range(&second, MOVABLE), Err(ContigError::Busy), "its head tells");
    // On an LRU list it could be moved as a whole, but not cut in two.
    let page = mm.page(compound).expect("memory");
    page.set_flag(PageFlag::Lru);
    let first = frames(compound, 512);
    for half in [&first, &second] {
        assert_eq!(mm.start_isolate_page_range(half, MOVABLE), Err(ContigError::Busy));
        assert_eq!(mm.pageblock_migratetype(half.start), MOVABLE);
    }
    page.clear_flag(PageFlag::Lru);
    mm.free_pages(compound, order(10));
    // The parts of a block that is not compound cannot be told from free pages; the test at the end does.
    let plain = mm.alloc_pages(Gfp::HIGHUSER_MOVABLE, order(10)).expect("a block");
    let second = frames(plain.add(512), 512);
    mm.start_isolate_page_range(&second, MOVABLE).expect("nothing in sight");
    assert!(!mm.test_pages_isolated(&second));
    mm.undo_isolate_page_range(&second, MOVABLE);
    mm.free_pages(plain, order(10));
    assert_sound(mm);
}

#[test]
fn only_memory_of_one_zone_is_isolated() {
    let machine = two_nodes();
    let mm = machine.mm();
    let isolate = |start: u64, end: u64| mm.start_isolate_page_range(&(Pfn::new(start)..Pfn::new(end)), MOVABLE);
    assert_eq!(isolate(1, 512), Err(ContigError::Busy), "the hole below 1 MiB");
    assert_eq!(isolate(4096 - 512, 4096 + 512), Err(ContigError::Invalid), "DMA and DMA32");
    assert_eq!(isolate(0x1_0000, 0x1_0000), Err(ContigError::Invalid), "nothing");
    assert_eq!(isolate(0xa_0000, 0xa_0200), Err(ContigError::Invalid), "no memory");
    assert_sound(mm);
}

#[test]
fn isolating_amid_traffic_loses_nothing() {
    let machine = small();
    let mm = machine.mm();
    let (first, all) = (16 << 8, free(&machine));
    let (mut held, mut isolated, mut seed) = (Vec::new(), Vec::new(), 1u64);
    for step in 0..3000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let random = seed >> 33;
        let gfp = if random & 64 == 0 { Gfp::KERNEL } else { Gfp::HIGHUSER_MOVABLE } | Gfp::NOWARN;
        match random % 8 {
            0..4 => {
                let order = order((random >> 8) as u32 % 10);
                held.extend(mm.alloc_pages(gfp, order).map(|pfn| (pfn, order)));
            }
            4..6 if !held.is_empty() => {
                let (pfn, order) = held.swap_remove(random as usize % held.len());
                mm.free_pages(pfn, order);
            }
            6 => {
                let range = frames(Pfn::new(first + (random >> 8) % 30 * 512), 512 * (1 + random % 3));
                if mm.start_isolate_page_range(&range, MOVABLE).is_ok() {
                    isolated.push(range);
                }
            }
            _ if !isolated.is_empty() => {
                let range = isolated.swap_remove(random as usize % isolated.len());
                mm.undo_isolate_page_range(&range, MOVABLE);
            }
            _ => {}
        }
        if step % 100 == 0 {
            assert_sound(mm);
        }
    }
    held.iter().for_each(|&(pfn, order)| mm.free_pages(pfn, order));
    isolated.iter().for_each(|range| mm.undo_isolate_page_range(range, MOVABLE));
    mm.drain_all_pages(None);
    assert_sound(mm);
    assert_eq!(free(&machine), all);
}
