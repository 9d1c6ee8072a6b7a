//! What a guest's state says about a run.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::report::counters::{self, FreeCounts};
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneType};

use super::matrix::Setting;
use super::record::{Fallbacks, Measures, PairMeasure, ZoneMeasure};
use crate::state::StateView;
use crate::workload::WorkloadReport;

/// The populated zones of a guest, with the free pages that they have now.
pub(super) fn zones(state: &StateView) -> Vec<ZoneMeasure> {
    let region = state.region();
    let nodes = counters::online_nodes(&region);
    let zones = nodes.iter().flat_map(|node| counters::zones_of(&region, node).map(move |zone| (node, zone)));
    let populated = zones.filter(|(_, (_, _, record))| counters::is_populated(record));
    populated
        .map(|(node, (kind, index, record))| {
            let free_pages = counters::zone_page_state_snapshot(&region, index, ZoneStat::NrFreePages);
            ZoneMeasure {
                node: node.index(),
                zone: kind.name().to_owned(),
                managed_pages: record.managed_pages.load(Relaxed),
                placed_pages: 0,
                free_pages,
                min_free_pages: free_pages,
                free_blocks: FreeCounts::read(record).by_order(),
            }
        })
        .collect()
}

/// Takes over what a workload has reported. `zones` are those of the machine, in any order.
pub(super) fn take_over(measures: &mut Measures, report: &WorkloadReport) {
    measures.guest_cycles = report.ticks;
    measures.allocs = report.allocs;
    measures.failed = report.failed;
    measures.tries = report.tries;
    measures.hits = report.hits;
    measures.fallbacks = Fallbacks { zone: report.zone_fallback, node: report.node_fallback };
    let sum = |zones: &[u64; MAX_NR_ZONES]| zones.iter().fold(0u64, |sum, &pages| sum.saturating_add(pages));
    measures.placed_pages = report.placement.iter().map(sum).collect();
    for zone in &mut measures.zones {
        let Some(kind) = ZoneType::ALL.into_iter().find(|kind| kind.name() == zone.zone) else { continue };
        let of = |table: &[[u64; MAX_NR_ZONES]]| table.get(zone.node)?.get(kind.index()).copied();
        zone.placed_pages = of(&report.placement).unwrap_or(0);
        zone.min_free_pages = of(&report.min_free).unwrap_or(u64::MAX).min(zone.free_pages);
    }
    let pairs = report.accesses.iter().zip(0..).flat_map(|(row, from)| {
        row.iter().zip(0..).map(move |(&accesses, to)| PairMeasure {
            from,
            to,
            accesses,
            latency_ns: 0,
            bandwidth_mbps: 0,
        })
    });
    measures.pairs = pairs.filter(|pair| pair.accesses != 0).collect();
}

/// Ticks of the guest's time stamp counter per millisecond; 0 if it does not say.
pub(super) fn tsc_khz(state: &StateView) -> u32 {
    state.region().header().tsc_khz.load(Relaxed).try_into().unwrap_or(0)
}

/// Ticks of the time stamp counter from the kernel's first instruction to its being ready.
pub(super) fn boot_cycles(state: &StateView) -> u64 {
    let region = state.region();
    region.header().tsc_ready.load(Relaxed).saturating_sub(region.header().tsc_entry.load(Relaxed))
}

/// What a setting of the memory stack is now; `None` for what is none of its settings.
pub(super) fn setting(state: &StateView, setting: Setting) -> Option<Vec<u64>> {
    let region = state.region();
    let sysctl = region.sysctl();
    let small = |word: &AtomicU32| vec![word.load(Relaxed).into()];
    Some(match setting {
        Setting::Append | Setting::Cpus => return None,
        Setting::LowmemReserveRatio => sysctl.lowmem_reserve_ratio.iter().flat_map(small).collect(),
        Setting::MinFreeKbytes => vec![sysctl.min_free_kbytes.load(Relaxed)],
        Setting::PercpuPagelistHighFraction => small(&sysctl.percpu_pagelist_high_fraction),
        Setting::WatermarkScaleFactor => small(&sysctl.watermark_scale_factor),
        Setting::ZoneReclaimMode => small(&sysctl.zone_reclaim_mode),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::fake::FakeGuest;

    #[test]
    fn zones_are_as_the_guest_has_them() {
        let zones = zones(&FakeGuest::used().view());
        let names: Vec<_> = zones.iter().map(|zone| (zone.node, zone.zone.as_str())).collect();
        assert_eq!(names, [(0, "DMA"), (0, "DMA32"), (1, "Normal")]);
        assert_eq!((zones[0].free_pages, zones[0].min_free_pages), (3120, 3120));
        assert_eq!(zones[0].free_blocks, [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 3]);
        assert_eq!(zones[0].managed_pages, 3899);
    }

    #[test]
    fn a_report_is_taken_over() {
        let mut measures = Measures { zones: zones(&FakeGuest::used().view()), ..Measures::default() };
        let report = WorkloadReport {
            ticks: 5,
            allocs: 6,
            zone_fallback: 7,
            node_fallback: 8,
            placement: vec![[1, 2, 0, 0, 0], [0, 0, 9, 0, 0]],
            accesses: vec![vec![10, 20], vec![0, 30]],
            min_free: vec![[100, u64::MAX, u64::MAX, 0, 0], [0, 0, 300, 0, 0]],
            ..WorkloadReport::default()
        };
        take_over(&mut measures, &report);
        assert_eq!((measures.guest_cycles, measures.allocs, measures.placed_pages), (5, 6, vec![3, 9]));
        assert_eq!(measures.fallbacks, Fallbacks { zone: 7, node: 8 });
        let free: Vec<_> = measures.zones.iter().map(|zone| (zone.placed_pages, zone.min_free_pages)).collect();
        assert_eq!(free, [(1, 100), (2, measures.zones[1].free_pages), (9, 300)]);
        let pairs: Vec<_> = measures.pairs.iter().map(|pair| (pair.from, pair.to, pair.accesses)).collect();
        assert_eq!(pairs, [(0, 0, 10), (0, 1, 20), (1, 1, 30)]);
    }
}
