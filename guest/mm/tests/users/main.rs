//! What is built on slabs and pages: owned values, pools, shrinkers, parts of pages.

mod failure;
mod mempool;
mod owned;
mod pages;
mod shrinker;

use pagevisor_mm::Mm;
use pagevisor_mm::check::violations;
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, Pfn};
use pagevisor_shared::vmstat::ZoneStat;

const MIB: u64 = 1 << 20;

/// One node with `cpus` CPUs and 32 MiB.
fn boot(cpus: usize) -> Machine {
    let machine = Topology::new().node(&[(0, 640 << 10), (MIB, 32 * MIB)], cpus).boot();
    machine.platform().clear_log();
    machine
}

/// Pages free in zones and on pagesets, and in slabs that nobody uses.
fn free_pages(mm: &Mm<HostPlatform>) -> u64 {
    mm.kmem_cache_shrink_all();
    mm.drain_all_pages(None);
    let zones = mm.populated_zones();
    zones.map(|(index, _)| mm.zone_page_state_snapshot(index, ZoneStat::NrFreePages)).sum()
}

/// Takes every page that can be had, reserves included.
fn exhaust(mm: &Mm<HostPlatform>) -> Vec<Pfn> {
    let greedy = Gfp::NOWAIT | Gfp::MEMALLOC | Gfp::NOWARN;
    core::iter::from_fn(|| mm.alloc_pages(greedy, Order::ZERO)).collect()
}

/// Nothing is wrong anywhere, and nothing was reported.
fn assert_sound(machine: &Machine) {
    let found = violations(machine.mm());
    assert!(found.is_empty(), "{}", found.iter().map(|v| format!("{v}\n")).collect::<String>());
    assert_eq!(machine.log_text(), "");
}
