//! Ranges of frames, allocated as such.

use core::ops::Range;

use pagevisor_mm::check::free_list;
use pagevisor_mm::contig::ContigError;
use pagevisor_mm::hosted::Machine;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::units::{NodeId, NodeMask, Order, Pfn};
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::{ZoneIndex, ZoneType};

use crate::{assert_sound, order, small, take_all, two_nodes, zone};

const MOVABLE: MigrateType = MigrateType::Movable;
const DMA32: ZoneIndex = ZoneIndex(ZoneType::Dma32 as u16);

fn free(machine: &Machine) -> u64 {
    machine.mm().zone_page_state_snapshot(DMA32, ZoneStat::NrFreePages)
}

fn largest(machine: &Machine) -> Vec<Pfn> {
    let mut blocks = free_list(machine.mm(), DMA32, Order::MAX, MOVABLE);
    blocks.sort();
    blocks
}

fn frames(start: Pfn, count: u64) -> Range<Pfn> {
    start..start.add(count)
}

#[test]
fn a_range_of_free_memory_is_taken_to_the_page() {
    let machine = small();
    let mm = machine.mm();
    let (all, whole) = (free(&machine), largest(&machine));
    for range in [
        frames(whole[4].add(3), 1500),
        frames(whole[5].add(1023), 2),
        frames(whole[5].add(512), 512),
        frames(whole[5].add(7), 1),
        frames(whole[3], 5 * 1024),
    ] {
        mm.alloc_contig_range(&range, MOVABLE).expect("it is free");
        let count = range.end.raw() - range.start.raw();
        assert_eq!(free(&machine), all - count, "{range:?}");
        for pfn in (range.start.raw()..range.end.raw()).map(Pfn::new) {
            assert_eq!(mm.page(pfn).map(|page| (page.refcount(), page.flags())), Some((1, 0)));
            assert_eq!(mm.pageblock_migratetype(pfn), MOVABLE);
        }
        assert_sound(mm);
        assert_eq!(mm.alloc_contig_range(&range, MOVABLE), Err(ContigError::Busy), "it is in use");
        // Nobody else gets any of it.
        let others = take_all(mm, Gfp::HIGHUSER_MOVABLE | Gfp::MEMALLOC, order(0));
        assert!(others.iter().all(|pfn| !range.contains(pfn)));
        others.iter().for_each(|&pfn| mm.free_page(pfn));
        mm.free_contig_range(&range);
        mm.drain_all_pages(None);
        assert_eq!((free(&machine), largest(&machine)), (all, whole.clone()), "{range:?}");
        assert_sound(mm);
    }
    assert!(!machine.log_text().contains("still in use"));
}

#[test]
fn a_page_in_use_makes_a_range_busy() {
    let machine = small();
    let mm = machine.mm();
    let block = mm.alloc_pages(Gfp::HIGHUSER_MOVABLE, order(10)).expect("a block");
    let all = free(&machine);
    // Its tails do not tell that they are in use, but they are not free either.
    for range in [frames(block, 1), frames(block.add(600), 10), frames(block.add(1000), 2000)] {
        assert_eq!(mm.alloc_contig_range(&range, MOVABLE), Err(ContigError::Busy), "{range:?}");
        assert_eq!(free(&machine), all);
        assert!((0..4).all(|block| mm.pageblock_migratetype(range.start.add(block * 512)) == MOVABLE));
        assert_sound(mm);
    }
    assert_eq!(mm.alloc_contig_range(&frames(block, 0), MOVABLE), Err(ContigError::Invalid));
    // What is on a pageset is free.
    let page = mm.alloc_page(Gfp::HIGHUSER_MOVABLE).expect("a page");
    mm.free_page(page);
    mm.free_pages(block, order(10));
    let block = mm.alloc_pages(Gfp::HIGHUSER_MOVABLE, order(9)).expect("a block");
    mm.free_pages(block, order(9));
    mm.alloc_contig_range(&frames(block, 512), MOVABLE).expect("it is free");
    assert_sound(mm);
}

#[test]
fn references_are_counted_when_a_range_is_freed() {
    let machine = small();
    let mm = machine.mm();
    let range = frames(largest(&machine)[2], 100);
    mm.alloc_contig_range(&range, MOVABLE).expect("it is free");
    let all = free(&machine);
    assert!(mm.get_page(range.start.add(50)));
    mm.free_contig_range(&range);
    assert!(machine.log_text().ends_with("1 pages are still in use!\n"), "{}", machine.log_text());
    mm.drain_all_pages(None);
    assert_eq!(free(&machine), all + 99);
    mm.put_page(range.start.add(50));
    mm.drain_all_pages(None);
    assert_eq!(free(&machine), all + 100);
    assert_sound(mm);
}

#[test]
fn pages_side_by_side_come_from_the_nodes_asked_for() {
    let machine = two_nodes();
    let mm = machine.mm();
    let node = |node| NodeId::new(node).expect("a node below 64");
    let normal = |node| zone(node, ZoneType::Normal);
    let first = mm.alloc_contig_pages(4096, Gfp::KERNEL, node(0), None).expect("16 MiB");
    assert_eq!(first.start.raw() % 4096, 0);
    assert_eq!((mm.page_zone(first.start), first.end), (Some(normal(0)), first.start.add(4096)));
    // More than the zone has in one piece, then more than node 0 has.
    let second = mm.alloc_contig_pages(16 * 1024, Gfp::KERNEL, node(0), None).expect("64 MiB");
    assert_eq!(mm.page_zone(second.start), Some(zone(0, ZoneType::Dma32)));
    let third = mm.alloc_contig_pages(16 * 1024, Gfp::KERNEL, node(0), None).expect("64 MiB");
    assert_eq!(mm.page_zone(third.start), Some(normal(1)));
    let only = Some(NodeMask::default().with(node(1)));
    let fourth = mm.alloc_contig_pages(512, Gfp::KERNEL, node(0), only).expect("2 MiB");
    assert_eq!(mm.page_zone(fourth.start), Some(normal(1)));
    let low = mm.alloc_contig_pages(512, Gfp::KERNEL | Gfp::DMA, node(0), None).expect("2 MiB");
    assert_eq!(mm.page_zone(low.start), Some(zone(0, ZoneType::Dma)));
    assert_eq!(mm.alloc_contig_pages(1 << 20, Gfp::KERNEL, node(0), None), None);
    assert_eq!(mm.alloc_contig_pages(u64::MAX, Gfp::KERNEL, node(0), None), None);
    assert_eq!(mm.alloc_contig_pages(0, Gfp::KERNEL, node(0), None), None);
    assert_sound(mm);
    [first, second, third, fourth, low].iter().for_each(|range| mm.free_contig_range(range));
    mm.drain_all_pages(None);
    assert_sound(mm);
}
