//! Page tables of address spaces, against a flat map of what is mapped.

mod model;
mod shared;

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::Mm;
use pagevisor_mm::check::violations;
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_shared::vmstat::{NodeStat, ZoneStat};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn machine() -> Machine {
    let machine = Topology::new().node(&[(16 * MIB, 80 * MIB)], 4).boot();
    machine.platform().clear_log();
    machine
}

/// Pages in use that are on no pageset, and page tables among them.
fn in_use(mm: &Mm<HostPlatform>) -> (u64, i64) {
    let used = mm.populated_zones().map(|(index, zone)| {
        zone.managed_pages.load(Relaxed) - mm.zone_page_state_snapshot(index, ZoneStat::NrFreePages)
    });
    let pagesets: u64 = mm.region().pcps().iter().map(|pcp| u64::from(pcp.count.load(Relaxed))).sum();
    let item = NodeStat::NrPageTablePages.index();
    let nodes: i64 = mm.region().nodes().iter().map(|node| node.vm_stat[item].load(Relaxed)).sum();
    let pending = mm.region().node_cpus().iter().map(|cpu| i64::from(cpu.vm_node_stat_diff[item].load(Relaxed)));
    (used.sum::<u64>() - pagesets, nodes + pending.sum::<i64>())
}

#[track_caller]
fn assert_sound(mm: &Mm<HostPlatform>) {
    let found = violations(mm);
    assert!(found.is_empty(), "{}", found.iter().map(|v| format!("{v}\n")).collect::<String>());
}
