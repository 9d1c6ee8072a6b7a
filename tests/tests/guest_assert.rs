//! What the allocator does, step by step, on several machines: zones, fallbacks, watermarks, reserves, merging, stealing,
//! pagesets, NUMA counters, exhaustion, injected failures, contiguous memory.

use pagevisor::guest::{
    Blocks, CpuHandle, Error, Fault, Gfp, Guest, MigrateType, NodeId, NodeMask, OpError, Order, Pfn,
};
use pagevisor::guest::{Setting, ZoneType};
use pagevisor_shared::vmstat::NumaStat;
use pagevisor_shared::zone::Watermark;
use pagevisor_tests::guest::{guest, guest_appended};

/// One node with all zones.
const PC: &str = "[[node]]\ndma = \"16M\"\ndma32 = \"48M\"\nnormal = \"64M\"\ncpus = 2\n";
/// Two alike.
const TWO: &str = "[[node]]\nmem = \"64M\"\n[[node]]\nmem = \"64M\"\n";
/// A line of three: 0 is nearer to 2 than to 1.
const LINE: &str = r#"
distance = [[10, 40, 20], [40, 10, 30], [20, 30, 10]]
[[node]]
mem = "64M"
[[node]]
mem = "64M"
[[node]]
mem = "64M"
"#;
/// A node with memory only.
const FAR: &str = "[[node]]\nmem = \"64M\"\ncpus = 1\n[[node]]\nmem = \"64M\"\ncpus = 0\n";

fn order(raw: u32) -> Order {
    Order::new(raw).expect("an order")
}

fn node(number: usize) -> NodeId {
    NodeId::new(number).expect("a node")
}

/// All blocks of an order that an allocation of these flags can get.
fn all<'g>(cpu: CpuHandle<'g>, gfp: Gfp, raw: u32) -> Result<Blocks<'g>, Error> {
    cpu.alloc_many(gfp | Gfp::NOWARN, order(raw), 8192)
}

/// Nodes from which blocks came, in the order of their first.
fn nodes_in_turn(blocks: &Blocks<'_>) -> Result<Vec<usize>, Error> {
    let mut nodes = Vec::new();
    for (node, _) in blocks.places()? {
        if !nodes.contains(&node.index()) {
            nodes.push(node.index());
        }
    }
    Ok(nodes)
}

/// Pages are taken for the guest's table of handles; before anything is counted.
fn warm(guest: &Guest) -> Result<(), Error> {
    guest.any_cpu().alloc_many(Gfp::KERNEL, Order::ZERO, 2048)?.free()?;
    guest.drain_pages()
}

#[test]
fn flags_choose_the_highest_zone() {
    guest(PC, |guest| {
        let cpu = guest.cpu(0)?;
        let zones = [
            (Gfp::KERNEL, ZoneType::Normal),
            (Gfp::KERNEL | Gfp::DMA32, ZoneType::Dma32),
            (Gfp::KERNEL | Gfp::DMA, ZoneType::Dma),
            (Gfp::HIGHUSER_MOVABLE, ZoneType::Normal),
        ];
        for (gfp, zone) in zones {
            let page = cpu.alloc_pages(gfp, Order::ZERO)?;
            assert_eq!(page.zone()?, zone, "{gfp:?}");
            let limit = match zone {
                ZoneType::Dma => 16 << 8,
                ZoneType::Dma32 => 4 << 18,
                _ => u64::MAX,
            };
            assert!(page.pfn().raw() < limit, "{}", page.pfn());
        }
        Ok(())
    });
}

#[test]
fn zones_are_left_from_the_highest_down() {
    guest(PC, |guest| {
        let blocks = all(guest.cpu(0)?, Gfp::KERNEL, 8)?;
        let mut zones: Vec<ZoneType> = blocks.places()?.into_iter().map(|(_, zone)| zone).collect();
        zones.dedup();
        assert_eq!(zones[..2], [ZoneType::Normal, ZoneType::Dma32]);
        assert!(!zones[2..].contains(&ZoneType::Normal), "{zones:?}");
        // What lower zones keep for those who need them.
        let state = guest.state();
        let dma = state.zone(node(0), ZoneType::Dma).ok_or("DMA")?;
        let reserve = dma.lowmem_reserve[ZoneType::Normal as usize];
        assert!(reserve > 0 && dma.lowmem_reserve[ZoneType::Dma as usize] == 0);
        assert!(dma.free_pages() >= dma.watermark(Watermark::Min) + reserve, "{state}");
        // They still get it.
        assert_eq!(guest.cpu(0)?.alloc_pages(Gfp::KERNEL | Gfp::DMA, order(3))?.zone()?, ZoneType::Dma);
        Ok(())
    });
}

#[test]
fn a_dma_allocation_fails_alone() {
    guest(PC, |guest| {
        let dma = all(guest.cpu(0)?, Gfp::KERNEL | Gfp::DMA, 5)?;
        assert!(dma.places()?.iter().all(|(_, zone)| *zone == ZoneType::Dma));
        assert!((80..128).contains(&dma.len()), "{}", dma.len());
        let error = guest.cpu(1)?.alloc_pages(Gfp::KERNEL | Gfp::DMA | Gfp::NOWARN, order(5)).map(drop).unwrap_err();
        assert_eq!(error.op(), Some(OpError::NoMemory));
        assert_eq!(guest.cpu(1)?.alloc_pages(Gfp::KERNEL | Gfp::DMA32, order(5))?.zone()?, ZoneType::Dma32);
        assert_eq!(guest.cpu(0)?.alloc_pages(Gfp::KERNEL, order(5))?.zone()?, ZoneType::Normal);
        dma.free()?;
        assert_eq!(guest.cpu(1)?.alloc_pages(Gfp::KERNEL | Gfp::DMA, order(5))?.zone()?, ZoneType::Dma);
        Ok(())
    });
}

#[test]
fn nodes_are_left_for_the_nearest() {
    guest(LINE, |guest| {
        for (cpu, expected) in [(0, [0, 2, 1]), (1, [1, 2, 0])] {
            let blocks = all(guest.cpu(cpu)?, Gfp::KERNEL, 7)?;
            assert_eq!(nodes_in_turn(&blocks)?, expected, "CPU {cpu}");
        }
        Ok(())
    });
}

#[test]
fn a_node_without_cpus_serves_the_others() {
    guest(FAR, |guest| {
        assert_eq!(guest.state().node(node(1)).map(|node| node.cpus.weight()), Some(0));
        let blocks = all(guest.cpu(0)?, Gfp::KERNEL, 7)?;
        assert_eq!(nodes_in_turn(&blocks)?, [0, 1]);
        drop(blocks);
        assert_eq!(guest.cpu(0)?.alloc_on(node(1), Gfp::KERNEL, Order::ZERO)?.node()?, node(1));
        Ok(())
    });
}

#[test]
fn bound_and_this_node_never_leave() {
    guest(TWO, |guest| {
        let cpu = guest.cpu(0)?;
        let bound = all(cpu.bind(NodeMask(0b10)), Gfp::KERNEL, 7)?;
        assert_eq!(nodes_in_turn(&bound)?, [1]);
        let thisnode = all(cpu, Gfp::KERNEL | Gfp::THISNODE, 7)?;
        assert_eq!(nodes_in_turn(&thisnode)?, [0]);
        Ok(())
    });
}

#[test]
fn numa_events_count_wishes_and_places() {
    guest(TWO, |guest| {
        warm(guest)?;
        let before = guest.state();
        let delta = |item, number: usize| {
            let count = |state: &pagevisor::guest::State| state.node(node(number)).map_or(0, |node| node.numa(item));
            count(&guest.state()) - count(&before)
        };
        let cpu = guest.cpu(0)?;
        let near = cpu.alloc_many(Gfp::KERNEL, Order::ZERO, 10)?;
        assert_eq!(delta(NumaStat::NumaHit, 0), 10);
        assert_eq!(delta(NumaStat::NumaLocal, 0), 10);
        let far = cpu.prefer(node(1)).alloc_many(Gfp::KERNEL, Order::ZERO, 7)?;
        assert_eq!(delta(NumaStat::NumaHit, 1), 7);
        assert_eq!(delta(NumaStat::NumaOther, 1), 7);
        assert_eq!(delta(NumaStat::NumaLocal, 1), 0);
        let turns = cpu.interleave(NodeMask(0b11)).alloc_many(Gfp::KERNEL, Order::ZERO, 8)?;
        assert_eq!([0, 1].map(|node| delta(NumaStat::NumaInterleave, node)), [4, 4]);
        assert_eq!([0, 1].map(|node| delta(NumaStat::NumaMiss, node)), [0, 0]);
        // Node 0 is empty: a wish for it is a miss where it is met, and foreign where it was wished for.
        let all = all(cpu, Gfp::KERNEL | Gfp::THISNODE, 5)?;
        let pages = cpu.alloc_pages(Gfp::KERNEL, order(5))?;
        assert_eq!(pages.node()?, node(1));
        assert_eq!((delta(NumaStat::NumaMiss, 1), delta(NumaStat::NumaForeign, 0)), (1, 1));
        drop((near, far, turns, all, pages));
        Ok(())
    });
}

#[test]
fn halves_merge_with_their_buddies() {
    guest(PC, |guest| {
        warm(guest)?;
        let cpu = guest.cpu(0)?;
        let zone = || guest.state().zone(node(0), ZoneType::Normal).cloned().ok_or("Normal");
        let before = zone()?;
        let block = cpu.alloc_pages(Gfp::KERNEL, order(10))?;
        assert_eq!(zone()?.free_blocks(order(10)) + 1, before.free_blocks(order(10)));
        let start = block.pfn().raw();
        let pages = block.split()?;
        assert_eq!(pages.len(), 1024);
        // All but the first: what is free are the blocks of every order behind it.
        let mut pages = pages.into_iter();
        let first = pages.next().ok_or("a page")?;
        pages.try_for_each(|page| page.free())?;
        guest.drain_pages()?;
        let partly = zone()?;
        for raw in 0..10 {
            assert_eq!(partly.free_blocks(order(raw)), before.free_blocks(order(raw)) + 1, "order {raw}");
        }
        assert_eq!(first.pfn().raw(), start);
        first.free()?;
        guest.drain_pages()?;
        let blocks = |zone: &pagevisor::guest::ZoneCounters| zone.free_area.map(|row| row.iter().sum::<u64>());
        assert_eq!(blocks(&zone()?), blocks(&before));
        Ok(())
    });
}

#[test]
fn pagesets_fill_and_empty() {
    guest(PC, |guest| {
        warm(guest)?;
        let count = |cpu: u32| {
            let state = guest.state();
            state.zone(node(0), ZoneType::Normal).and_then(|zone| zone.pageset(cpu).copied()).ok_or("a pageset")
        };
        assert_eq!([count(0)?.count, count(1)?.count], [0, 0]);
        let batch = count(0)?.batch;
        assert!(batch >= 1 && count(0)?.high >= batch);
        // One page is taken, a batch comes along.
        let page = guest.cpu(0)?.alloc_pages(Gfp::KERNEL, Order::ZERO)?;
        assert_eq!(count(0)?.count, batch - 1);
        // It goes to the pageset of the CPU that frees it.
        page.free_on(&guest.cpu(1)?)?;
        assert_eq!([count(0)?.count, count(1)?.count], [batch - 1, 1]);
        guest.cpu(0)?.drain_pages()?;
        assert_eq!([count(0)?.count, count(1)?.count], [0, 1], "only its own");
        guest.drain_pages()?;
        assert_eq!(guest.state().cached_pages(), 0);
        Ok(())
    });
}

#[test]
fn an_unmovable_page_steals_from_the_movable_list() {
    guest(TWO, |guest| {
        let zone = || guest.state().zone(node(0), ZoneType::Dma32).cloned().ok_or("DMA32");
        let unmovable = |zone: &pagevisor::guest::ZoneCounters| -> u64 {
            (0..11).map(|raw| zone.free_blocks_of(order(raw), MigrateType::Unmovable) << raw).sum()
        };
        warm(guest)?;
        let left = unmovable(&zone()?);
        // As much as is on the list of its own, and a page more.
        let blocks = guest.cpu(0)?.alloc_many(Gfp::KERNEL, Order::ZERO, left as u32 + 64)?;
        assert_eq!(blocks.len() as u64, left + 64);
        guest.drain_pages()?;
        let after = zone()?;
        assert!(unmovable(&after) > 0, "a whole block changed lists, not only the pages");
        assert!(after.free_blocks_of(order(10), MigrateType::Movable) > 0);
        Ok(())
    });
}

#[test]
fn settings_move_watermarks_and_reserves() {
    guest(PC, |guest| {
        let before = guest.state();
        guest.set(Setting::MinFreeKbytes, 0, 4096)?;
        let after = guest.state();
        let sum = |state: &pagevisor::guest::State, mark| state.zones().map(|zone| zone.watermark(mark)).sum::<u64>();
        assert!((1020..=1024).contains(&sum(&after, Watermark::Min)), "{after}");
        assert!(sum(&after, Watermark::Min) != sum(&before, Watermark::Min));
        for zone in after.zones() {
            let [min, low, high, promo] = zone.watermarks;
            assert!(min < low && low < high && high < promo, "{after}");
        }
        guest.set(Setting::WatermarkScaleFactor, 0, 1000)?;
        for zone in guest.state().zones() {
            assert_eq!(zone.watermarks[1] - zone.watermarks[0], zone.managed / 10);
        }
        guest.set(Setting::LowmemReserveRatio, ZoneType::Dma as u8, 32)?;
        let state = guest.state();
        let zone = |kind| state.zone(node(0), kind).ok_or("a zone");
        let above = zone(ZoneType::Dma32)?.managed + zone(ZoneType::Normal)?.managed;
        assert_eq!(zone(ZoneType::Dma)?.lowmem_reserve[ZoneType::Normal as usize], above / 32);
        guest.set(Setting::DropCaches, 0, 3)?;
        assert_eq!(guest.set(Setting::DropCaches, 0, 0).unwrap_err().op(), Some(OpError::Invalid));
        assert_eq!(guest.set(Setting::WatermarkScaleFactor, 0, 0).unwrap_err().op(), Some(OpError::Invalid));
        Ok(())
    });
}

#[test]
fn exactly_the_chosen_allocation_fails() {
    guest(TWO, |guest| {
        let cpu = guest.cpu(0)?;
        cpu.fail_nth(3)?;
        let results: Vec<bool> = (0..5).map(|_| cpu.alloc_pages(Gfp::KERNEL, Order::ZERO).is_ok()).collect();
        assert_eq!(results, [true, true, false, true, true]);
        guest.fail_page_alloc(Fault { probability: 100, times: 2, min_order: 1, ..Fault::default() })?;
        assert!(cpu.alloc_pages(Gfp::KERNEL, Order::ZERO).is_ok(), "below the least order");
        let results: Vec<bool> = (0..4).map(|_| cpu.alloc_pages(Gfp::KERNEL, order(2)).is_ok()).collect();
        assert_eq!(results, [false, false, true, true]);
        guest.fail_page_alloc(Fault::default())?;
        assert!(cpu.alloc_pages(Gfp::KERNEL, order(2)).is_ok());
        Ok(())
    });
}

#[test]
fn a_range_of_free_frames_is_taken_as_asked_for() {
    guest(PC, |guest| {
        let state = guest.state();
        let zone = state.zone(node(0), ZoneType::Normal).ok_or("Normal")?;
        // In the middle of the zone, where nothing is yet.
        let start = Pfn::new((zone.start + zone.spanned / 2) & !0x3ff);
        let cpu = guest.cpu(0)?;
        let frames = cpu.alloc_contig_range(start, start.add(700), MigrateType::Movable, Gfp::KERNEL)?;
        assert_eq!((frames.pfn(), frames.pages(), frames.zone()?), (start, 700, ZoneType::Normal));
        let (last, mut read) = (700 * 4096 - 3, [0; 3]);
        frames.write(last, b"end")?;
        frames.read(last, &mut read)?;
        assert_eq!(&read, b"end");
        assert_eq!(frames.write(last, b"ends").unwrap_err().op(), Some(OpError::Invalid));
        let again = cpu.alloc_contig_range(start, start.add(512), MigrateType::Movable, Gfp::KERNEL).map(drop);
        assert_eq!(again.unwrap_err().op(), Some(OpError::Busy));
        frames.free()?;
        Ok(())
    });
}

#[test]
fn nobody_gets_isolated_pages() {
    guest(PC, |guest| {
        warm(guest)?;
        let state = guest.state();
        let zone = state.zone(node(0), ZoneType::Normal).ok_or("Normal")?;
        let (start, end) = (Pfn::new(zone.start), Pfn::new((zone.start + zone.spanned / 2) & !0x3ff));
        let start = start.add((zone.spanned / 4) & !0x3ff);
        let cpu = guest.cpu(0)?;
        cpu.isolate(start, end, MigrateType::Movable)?;
        assert_eq!(cpu.isolate(start, end, MigrateType::Movable).unwrap_err().op(), Some(OpError::Busy));
        let isolated = end.raw() - start.raw();
        let now = guest.state();
        assert_eq!(state.free_pages() - now.free_pages(), isolated);
        let blocks = all(cpu, Gfp::HIGHUSER_MOVABLE, 6)?;
        assert!(blocks.pfns().iter().all(|pfn| *pfn < start || *pfn >= end));
        drop(blocks);
        cpu.unisolate(start, end, MigrateType::Movable)?;
        guest.drain_pages()?;
        assert_eq!(guest.state().free_pages(), state.free_pages());
        Ok(())
    });
}

#[test]
fn a_contiguous_area_is_lent_and_given() {
    guest_appended(PC, "cma=16M", |guest| {
        let total: u64 = guest.state().zones().map(|zone| zone.cma).sum();
        assert_eq!(total, 4096);
        let cpu = guest.cpu(0)?;
        let frames = cpu.cma_alloc(0, 300, order(4))?;
        assert!(frames.pfn().is_aligned(order(4)));
        let mut read = [0; 5];
        frames.write(299 * 4096, b"there")?;
        frames.read(299 * 4096, &mut read)?;
        assert_eq!(&read, b"there");
        let too_much = cpu.cma_alloc(0, 5000, Order::ZERO).map(drop);
        assert!(matches!(too_much.unwrap_err().op(), Some(OpError::Invalid | OpError::NoMemory)));
        frames.free()?;
        let whole = cpu.cma_alloc(0, 4096, Order::ZERO)?;
        assert_eq!(whole.pages(), 4096);
        drop(whole);
        // A second one, while the machine runs.
        let area = guest.reserve_cma(512, None)?;
        assert_eq!(area, 1);
        assert_eq!(guest.state().zones().map(|zone| zone.cma).sum::<u64>(), total + 512);
        assert_eq!(cpu.cma_alloc(area, 512, Order::ZERO)?.pages(), 512);
        Ok(())
    });
}
