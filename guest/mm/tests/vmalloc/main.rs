//! vmalloc on hosted machines: what is mapped is found by walking the page tables in software.

mod faults;
mod io;
mod lazy;
mod model;

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::Mm;
use pagevisor_mm::check::violations;
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_shared::units::{PAGE_SIZE, Pfn, VirtAddr};
use pagevisor_shared::vmstat::{NodeStat, ZoneStat};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Two nodes and two CPUs.
fn machine() -> Machine {
    let nodes = Topology::new().node(&[(16 * MIB, 144 * MIB)], 1).node(&[(4 * GIB, 4 * GIB + 128 * MIB)], 1);
    let machine = nodes.boot();
    machine.platform().clear_log();
    machine
}

/// Fails with what is wrong if anything is.
#[track_caller]
fn assert_sound(mm: &Mm<HostPlatform>) {
    let found = violations(mm);
    assert!(found.is_empty(), "{}", found.iter().map(|v| format!("{v}\n")).collect::<String>());
}

/// Pages that are not free, and page tables among them.
fn in_use(mm: &Mm<HostPlatform>) -> (u64, i64) {
    let used = mm.populated_zones().map(|(index, zone)| {
        zone.managed_pages.load(Relaxed) - mm.zone_page_state_snapshot(index, ZoneStat::NrFreePages)
    });
    let pagesets: u64 = mm.region().pcps().iter().map(|pcp| u64::from(pcp.count.load(Relaxed))).sum();
    (used.sum::<u64>() - pagesets, tables(mm))
}

/// `NR_PAGETABLE`, with what CPUs hold back.
fn tables(mm: &Mm<HostPlatform>) -> i64 {
    let item = NodeStat::NrPageTablePages.index();
    let nodes: i64 = mm.region().nodes().iter().map(|node| node.vm_stat[item].load(Relaxed)).sum();
    let pending = mm.region().node_cpus().iter().map(|cpu| i64::from(cpu.vm_node_stat_diff[item].load(Relaxed)));
    nodes + pending.sum::<i64>()
}

/// The frames behind `pages` pages at `addr`.
#[track_caller]
fn frames(mm: &Mm<HostPlatform>, addr: VirtAddr, pages: u64) -> Vec<Pfn> {
    let frame = |page| mm.vmalloc_to_page(VirtAddr::new(addr.raw() + page * PAGE_SIZE)).expect("it is mapped");
    (0..pages).map(frame).collect()
}
