//! The slab allocator and kmalloc, hosted.

mod basic;
mod errors;
mod memory;
mod model;
mod reap;
mod threads;
mod watched;
mod whole;

use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::Mm;
use pagevisor_mm::check::violations;
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_mm::slab::Cache;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::VirtAddr;

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

/// Objects of a cache.
fn alloc(mm: &Mm<HostPlatform>, cache: Cache, count: usize) -> Vec<VirtAddr> {
    (0..count).map(|_| mm.kmem_cache_alloc(cache, Gfp::KERNEL).expect("an object")).collect()
}

/// Nothing is wrong anywhere.
fn assert_sound(mm: &Mm<HostPlatform>) {
    let found = violations(mm);
    assert!(found.is_empty(), "{}", found.iter().map(|v| format!("{v}\n")).collect::<String>());
}

/// The bytes of an object, which the caller has in use.
fn bytes(addr: VirtAddr, len: usize) -> &'static [AtomicU8] {
    let first = std::ptr::with_exposed_provenance::<AtomicU8>(addr.raw() as usize);
    // SAFETY: an object in use lies in an arena, which is never unmapped; atomics are valid with any content.
    unsafe { std::slice::from_raw_parts(first, len) }
}

fn read(addr: VirtAddr, len: usize) -> Vec<u8> {
    bytes(addr, len).iter().map(|byte| byte.load(Relaxed)).collect()
}

fn write(addr: VirtAddr, len: usize, value: u8) {
    bytes(addr, len).iter().for_each(|byte| byte.store(value, Relaxed));
}
