//! The slab allocator and kmalloc, hosted.

mod basic;

use pagevisor_mm::Mm;
use pagevisor_mm::check::violations;
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};

const MIB: u64 = 1 << 20;

/// One node with one CPU and 64 MiB.
fn small() -> Machine {
    quiet(Topology::new().node(&[(0, 640 << 10), (MIB, 64 * MIB)], 1).boot())
}

/// What booting logged is forgotten.
fn quiet(machine: Machine) -> Machine {
    machine.platform().clear_log();
    machine
}

/// Pages free in zones and on pagesets.
fn free_pages(mm: &Mm<HostPlatform>) -> u64 {
    mm.drain_all_pages(None);
    let zones = mm.populated_zones();
    zones.map(|(index, _)| mm.zone_page_state_snapshot(index, pagevisor_shared::vmstat::ZoneStat::NrFreePages)).sum()
}

/// Nothing is wrong anywhere.
fn assert_sound(mm: &Mm<HostPlatform>) {
    let found = violations(mm);
    assert!(found.is_empty(), "{}", found.iter().map(|v| format!("{v}\n")).collect::<String>());
}
