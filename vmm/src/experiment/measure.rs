//! What a guest's state says about a run.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::report::counters::{self, FreeCounts};
use pagevisor_shared::vmstat::{NumaStat, ZoneStat};

use super::matrix::Setting;
use super::record::ZoneMeasure;
use crate::state::StateView;

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
                free_pages,
                min_free_pages: free_pages,
                free_blocks: FreeCounts::read(record).by_order(),
            }
        })
        .collect()
}

/// Pages that were taken from another node than the one they were wanted from (`numa_miss`), since the guest started.
pub(super) fn numa_misses(state: &StateView) -> u64 {
    counters::global_numa_event(&state.region(), NumaStat::NumaMiss)
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
    fn misses_are_those_of_all_nodes() {
        let guest = FakeGuest::used();
        let before = numa_misses(&guest.view());
        guest.region().zones()[0].vm_numa_event[NumaStat::NumaMiss as usize].fetch_add(3, Relaxed);
        assert_eq!(numa_misses(&guest.view()), before + 3);
    }
}
