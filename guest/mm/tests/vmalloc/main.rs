//! vmalloc on hosted machines: what is mapped is found by walking the page tables in software.

mod faults;
mod io;
mod lazy;
mod model;
mod threads;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pagevisor_mm::Mm;
use pagevisor_mm::check::{area_violations, violations};
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_shared::units::{PAGE_SIZE, Pfn, VirtAddr};
use pagevisor_shared::vmalloc::VmapArea;
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
    let areas = area_violations(mm);
    assert!(areas.is_empty(), "{}", areas.iter().map(|v| format!("{v}\n")).collect::<String>());
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

/// What the checker says of damage done to `mm`'s vmalloc space.
fn found(mm: &Mm<HostPlatform>) -> Vec<&'static str> {
    let mut names: Vec<_> = area_violations(mm).into_iter().map(|violation| violation.what).collect();
    names.dedup();
    names
}

#[test]
fn the_checker_finds_damage() {
    let machine = machine();
    let mm = machine.mm();
    let areas: Vec<_> = (1..12u64).map(|pages| mm.vmalloc(pages * PAGE_SIZE).expect("memory")).collect();
    [2, 5, 6, 9].iter().for_each(|index| mm.vfree(areas[*index]));
    mm.purge_vmap_areas();
    mm.vfree(areas[0]);
    assert_sound(mm);
    let header = mm.region().header();
    let state = &header.roots.vmalloc;
    let changed = |word: &AtomicU64, to: u64, what: &str| {
        let was = word.swap(to, Relaxed);
        let names = found(mm);
        word.store(was, Relaxed);
        assert!(names.contains(&what), "{what:?} is not among {names:?}");
        assert_sound(mm);
    };
    changed(&header.nr_vmalloc_pages, 1, "pages of areas");
    changed(&state.lazy_nr, 99, "pages of addresses to be purged");
    changed(&state.busy.first, 0, "first of a list");
    changed(&state.busy.root, 0, "mapped outside of areas");
    changed(&state.free.root, 0, "first of a list");
    changed(&state.purge.first, 0, "start of the next area");
    let root = record(state.free.root.load(Relaxed));
    changed(&root.max_or_vm, PAGE_SIZE, "largest free area below");
    changed(&root.va_end, root.va_start.load(Relaxed), "size of an area");
    let root = record(state.busy.root.load(Relaxed));
    changed(&root.parent, 0, "red under red");
    changed(&root.left, 0, "black height");
    changed(&root.next, 0, "next area");
    changed(&root.va_start, root.va_start.load(Relaxed) + PAGE_SIZE, "start of the next area");
    assert_sound(mm);
}

/// A record of the machine.
fn record(addr: u64) -> &'static VmapArea {
    let area: *const VmapArea = std::ptr::with_exposed_provenance(addr as usize);
    // SAFETY: the tests pass roots of trees with areas, in a machine's memory, which is never unmapped.
    unsafe { &*area }
}
