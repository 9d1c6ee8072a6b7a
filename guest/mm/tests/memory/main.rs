//! Programs' memory on hosted machines: accesses walk the page tables in software, and fault as a processor would.

mod basics;
mod changes;
mod failure;
mod fork;
mod known_zero;
mod locked;
mod nodes;
mod storm;
mod tables;

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::Mm;
use pagevisor_mm::check::{area_violations, user_violations, violations};
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_mm::memory::{FaultKind, FaultResult};
use pagevisor_mm::mmap::{Limits, Space};
use pagevisor_shared::mm_types::MmCounter;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};
use pagevisor_shared::vmstat::ZoneStat;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const LIMITS: Limits = Limits::DEFAULT;

/// The memory stack of a test.
type Stack = Mm<HostPlatform>;

/// Two nodes with a CPU each.
fn machine() -> Machine {
    boot(Topology::new().node(&[(16 * MIB, 144 * MIB)], 1).node(&[(4 * GIB, 4 * GIB + 128 * MIB)], 1))
}

/// A machine that had a program before: the tables of the kernel's half, which the first one makes for good, are not
/// counted among what a test leaves behind.
fn boot(topology: Topology) -> Machine {
    let machine = topology.boot();
    machine.mm().mmput(machine.mm().mm_alloc().expect("the first space"));
    machine.platform().clear_log();
    machine
}

/// Private writable memory of `pages` pages that ends at `top`.
#[track_caller]
fn private(mm: &Stack, space: Space, top: u64, pages: u64) -> u64 {
    let made = mm.insert_stack(space, VirtAddr::new(top), pages * PAGE_SIZE, &LIMITS);
    made.expect("room for an area");
    top - pages * PAGE_SIZE
}

#[track_caller]
fn load(mm: &Stack, space: Space, addr: u64) -> (u8, Option<FaultKind>) {
    mm.user_load(space, VirtAddr::new(addr), &LIMITS).expect("it may be read")
}

#[track_caller]
fn store(mm: &Stack, space: Space, addr: u64, byte: u8) -> Option<FaultKind> {
    mm.user_store(space, VirtAddr::new(addr), byte, &LIMITS).expect("it may be written")
}

/// What a read that ends the program comes to.
#[track_caller]
fn bad_load(mm: &Stack, space: Space, addr: u64) -> FaultResult {
    mm.user_load(space, VirtAddr::new(addr), &LIMITS).expect_err("it must not be read")
}

/// What a write that ends the program comes to.
#[track_caller]
fn bad_store(mm: &Stack, space: Space, addr: u64) -> FaultResult {
    mm.user_store(space, VirtAddr::new(addr), 1, &LIMITS).expect_err("it must not be written")
}

/// Anonymous pages of `space`.
fn rss(space: Space) -> i64 {
    space.rss_stat[MmCounter::Anon as usize].load(Relaxed)
}

/// Fails with what is wrong if anything is.
#[track_caller]
fn assert_sound(mm: &Stack) {
    let found = user_violations(mm);
    assert!(found.is_empty(), "{}", found.iter().map(|v| format!("{v}\n")).collect::<String>());
    let found = violations(mm);
    assert!(found.is_empty(), "{}", found.iter().map(|v| format!("{v}\n")).collect::<String>());
    let found = area_violations(mm);
    assert!(found.is_empty(), "{}", found.iter().map(|v| format!("{v}\n")).collect::<String>());
}

/// Pages that are not free, apart from those of slab caches: records come and go with them.
fn in_use(mm: &Stack) -> u64 {
    let used = mm.populated_zones().map(|(index, zone)| {
        zone.managed_pages.load(Relaxed) - mm.zone_page_state_snapshot(index, ZoneStat::NrFreePages)
    });
    let pagesets: u64 = mm.region().pcps().iter().map(|pcp| u64::from(pcp.count.load(Relaxed))).sum();
    let slabs: u64 = mm.kmem_caches().map(|cache| slab_pages(mm, cache)).sum();
    used.sum::<u64>() - pagesets - slabs
}

fn slab_pages(mm: &Stack, cache: pagevisor_mm::slab::Cache) -> u64 {
    let record = mm.kmem_cache_record(cache);
    let nodes = (0..mm.region().nodes().len()).filter_map(pagevisor_shared::units::NodeId::new);
    let slabs: u64 = nodes.map(|node| mm.kmem_cache_node(cache, node).total_slabs.load(Relaxed)).sum();
    slabs << record.gfporder.load(Relaxed)
}
