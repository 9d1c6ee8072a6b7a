//! ZONE_MOVABLE and the area of the command line, on machines that boot with them.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::hosted::{Machine, Topology};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::records::ZONELIST_FALLBACK;
use pagevisor_shared::report;
use pagevisor_shared::units::{NodeId, Order, Pfn};
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::{ZoneIndex, ZoneRef, ZoneType};
use proptest::prelude::*;

use crate::{GIB, MIB, assert_sound, order, take_all, zone};

/// Two nodes and two CPUs; node 0 has all of the lower zones.
fn boot(line: &str) -> Machine {
    Topology::pages_only()
        .node(&[(0, 640 << 10), (MIB, 128 * MIB), (4 * GIB, 4 * GIB + 64 * MIB)], 1)
        .node(&[(4 * GIB + 64 * MIB, 4 * GIB + 192 * MIB)], 1)
        .command_line(line)
        .boot()
}

/// First frame, spanned, present pages.
fn sizes(machine: &Machine, index: ZoneIndex) -> [u64; 3] {
    let zone = machine.mm().zone(index).expect("a zone");
    [&zone.zone_start_pfn, &zone.spanned_pages, &zone.present_pages].map(|word| word.load(Relaxed))
}

const fn frames(bytes: u64) -> u64 {
    bytes >> 12
}

/// Node 0 has 128 MiB below 4 GiB (but for 97 pages), which is more than its share. Half of the rest is taken from
/// node 1, and the other half from node 0 again; both are rounded up to 4 MiB.
const LINE: &str = "kernelcore=160M";

#[test]
fn the_zone_is_cut_off_the_end_of_each_node() {
    let machine = boot(LINE);
    let sizes = |node, kind| sizes(&machine, zone(node, kind));
    let cut = 4 * GIB + 64 * MIB + 20 * MIB;
    // As in Linux, a zone spans up to its own limit if its node has memory behind that.
    assert_eq!(sizes(0, ZoneType::Dma32), [4096, frames(4 * GIB - 16 * MIB), frames(112 * MIB)]);
    assert_eq!(sizes(0, ZoneType::Normal), [frames(4 * GIB), frames(20 * MIB), frames(20 * MIB)]);
    assert_eq!(sizes(0, ZoneType::Movable), [frames(4 * GIB + 20 * MIB), frames(44 * MIB), frames(44 * MIB)]);
    assert_eq!(sizes(1, ZoneType::Normal), [frames(4 * GIB + 64 * MIB), frames(20 * MIB), frames(20 * MIB)]);
    assert_eq!(sizes(1, ZoneType::Movable), [frames(cut), frames(108 * MIB), frames(108 * MIB)]);
    let log = machine.log_text();
    let told = "Movable zone start for each node\n  Node 0: 0x0000000101400000\n  Node 1: 0x0000000105400000\n";
    assert!(log.contains(told), "{log}");
    let mm = machine.mm();
    assert_eq!(mm.page_zone(Pfn::new(frames(cut) - 1)), Some(zone(1, ZoneType::Normal)));
    assert_eq!(mm.page_zone(Pfn::new(frames(cut))), Some(zone(1, ZoneType::Movable)));
    assert_eq!(mm.page_to_nid(Pfn::new(frames(cut))), NodeId::new(1));
    let mut text = String::new();
    report::zoneinfo(mm.region(), &mut text).expect("a string takes all");
    assert!(text.contains("Node 1, zone  Movable\n  pages free     27648\n"), "{text}");
    assert_sound(mm);
}

#[test]
fn zonelists_start_with_it() {
    let machine = boot(LINE);
    let node = &machine.mm().region().nodes()[0];
    let list = node.node_zonelists[ZONELIST_FALLBACK].iter().map(|entry| ZoneRef(entry.load(Relaxed)));
    let zones: Vec<_> = list.map_while(|entry| entry.zone()).collect();
    let want = [
        zone(0, ZoneType::Movable),
        zone(0, ZoneType::Normal),
        zone(0, ZoneType::Dma32),
        zone(0, ZoneType::Dma),
        zone(1, ZoneType::Movable),
        zone(1, ZoneType::Normal),
    ];
    assert_eq!(zones, want);
    let first = |kind: ZoneType| node.first_zone[ZONELIST_FALLBACK][kind.index()].load(Relaxed);
    assert_eq!([ZoneType::Dma, ZoneType::Dma32, ZoneType::Normal, ZoneType::Movable].map(first), [3, 2, 1, 0]);
}

#[test]
fn lower_zones_keep_a_share_from_movable_pages() {
    let machine = boot(LINE);
    let mm = machine.mm();
    let managed = |node, kind| mm.zone(zone(node, kind)).expect("a zone").managed_pages.load(Relaxed);
    let reserve =
        |node, kind| mm.zone(zone(node, kind)).expect("a zone").lowmem_reserve.each_ref().map(|r| r.load(Relaxed));
    let [dma32, normal, movable] = [ZoneType::Dma32, ZoneType::Normal, ZoneType::Movable].map(|kind| managed(0, kind));
    let above = [0, dma32, dma32 + normal, dma32 + normal + movable, dma32 + normal + movable];
    assert_eq!(reserve(0, ZoneType::Dma), above.map(|pages| pages / 256));
    let above = [0, 0, normal, normal + movable, normal + movable];
    assert_eq!(reserve(0, ZoneType::Dma32), above.map(|pages| pages / 256));
    let movable = managed(1, ZoneType::Movable);
    assert_eq!(reserve(1, ZoneType::Normal), [0, 0, 0, movable / 32, movable / 32]);
    assert_eq!(reserve(1, ZoneType::Movable), [0; 5]);
}

#[test]
fn movable_user_pages_go_there_and_nothing_else_does() {
    let machine = boot(LINE);
    for cpu in [0, 1] {
        machine.on_cpu(cpu, |mm| {
            let of = |gfp: Gfp| {
                let page = mm.alloc_page(gfp).expect("a page");
                let found = mm.page_zone(page).map(|index| ZoneType::ALL[index.index() % 5]);
                mm.free_page(page);
                found.expect("a zone")
            };
            assert_eq!(of(Gfp::HIGHUSER_MOVABLE), ZoneType::Movable);
            for gfp in [Gfp::KERNEL, Gfp::HIGHUSER, Gfp::USER, Gfp::KERNEL | Gfp::MOVABLE] {
                assert_eq!(of(gfp), ZoneType::Normal, "{gfp}");
            }
        });
    }
    let mm = machine.mm();
    let is_movable =
        |page: &Pfn| mm.page_zone(*page).is_some_and(|index| index.index() % 5 == ZoneType::Movable.index());
    let all = take_all(mm, Gfp::KERNEL | Gfp::MEMALLOC, Order::ZERO);
    assert!(!all.iter().any(is_movable));
    // With all of the rest gone, there is still plenty for pages that can move.
    assert!(mm.alloc_pages(Gfp::HIGHUSER_MOVABLE, order(9)).is_some_and(|page| is_movable(&page)));
    all.iter().for_each(|page| mm.free_page(*page));
    assert_sound(mm);
}

#[test]
fn no_zone_without_a_wish_or_with_an_impossible_one() {
    for line in ["", "kernelcore=mirror", "kernelcore=1T", "movablecore=0", "kernelcore=many"] {
        let machine = boot(line);
        assert!(machine.mm().populated_zones().all(|(index, _)| index.index() % 5 != 3), "{line}");
        assert_eq!(machine.log_text().contains("no mirror memory"), line.ends_with("mirror"));
    }
}

#[test]
fn an_area_of_the_command_line_is_lent_from_the_start() {
    let machine = boot("cma=16M");
    let mm = machine.mm();
    let normal = zone(0, ZoneType::Normal);
    let state = mm.zone(normal).expect("a zone");
    assert_eq!((state.cma_pages.load(Relaxed), mm.zone_page_state_snapshot(normal, ZoneStat::NrFreeCma)), (4096, 4096));
    assert_eq!(mm.pageblock_migratetype(Pfn::new(frames(4 * GIB))), MigrateType::Cma);
    assert!(machine.log_text().contains("cma: Reserved 16 MiB at 0x0000000100000000\n"), "{}", machine.log_text());
    assert_sound(mm);
    let placed = boot("cma=8M@64M");
    assert_eq!(placed.mm().pageblock_migratetype(Pfn::new(frames(64 * MIB))), MigrateType::Cma);
    assert_eq!(placed.mm().pageblock_migratetype(Pfn::new(frames(72 * MIB))), MigrateType::Movable);
    assert_sound(placed.mm());
    // Part of it would be in ZONE_MOVABLE.
    let split = boot("cma=32M kernelcore=160M");
    assert!(split.log_text().contains("CMA area reserved could not be activated: "), "{}", split.log_text());
    let zones = || split.mm().populated_zones().map(|(_, zone)| zone);
    assert_eq!(zones().map(|zone| zone.cma_pages.load(Relaxed)).sum::<u64>(), 0);
    let free = |(index, _)| split.mm().zone_page_state_snapshot(index, ZoneStat::NrFreePages);
    let free: u64 = split.mm().populated_zones().map(free).sum();
    assert_eq!(free, zones().map(|zone| zone.managed_pages.load(Relaxed)).sum::<u64>());
    assert_sound(split.mm());
    let refused = boot("cma=1G");
    assert!(refused.log_text().contains("cma: Failed to reserve 1024 MiB\n"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the share: the zones are sound at boot, after being run dry, and after everything came back; and what
    /// cannot move is never in the zone.
    #[test]
    fn zones_stay_sound(percent in 1u64..100, by_movable: bool, raw in 0u32..11) {
        let name = if by_movable { "movablecore" } else { "kernelcore" };
        let machine = boot(&format!("{name}={percent}%"));
        let mm = machine.mm();
        assert_sound(mm);
        let present: u64 = mm.populated_zones().map(|(_, zone)| zone.present_pages.load(Relaxed)).sum();
        prop_assert_eq!(present, frames(320 * MIB) - 1 - 96, "all memory is in some zone");
        let kernel = take_all(mm, Gfp::KERNEL | Gfp::MEMALLOC, order(raw));
        prop_assert!(kernel.iter().all(|page| mm.page_zone(*page).is_some_and(|zone| zone.index() % 5 != 3)));
        let user = take_all(mm, Gfp::HIGHUSER_MOVABLE | Gfp::MEMALLOC, order(raw));
        assert_sound(mm);
        kernel.iter().chain(&user).for_each(|page| mm.free_pages(*page, order(raw)));
        assert_sound(mm);
        mm.drain_all_pages(None);
        for (_, zone) in mm.populated_zones() {
            let free = zone.vm_stat[0].load(Relaxed);
            prop_assert!(free.unsigned_abs().abs_diff(zone.managed_pages.load(Relaxed)) <= 250);
        }
    }
}
