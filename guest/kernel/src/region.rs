//! The state region: finding memory for it and filling what is the kernel's to fill.

use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::memblock::Memblock;
use pagevisor_shared::layout::{PAGE_OFFSET, STATE_REGION_VIRT, STATE_REGION_WINDOW, VMEMMAP_START};
use pagevisor_shared::region::{RegionLayout, RegionRef};
use pagevisor_shared::units::{PAGE_SIZE, PhysAddr, VirtAddr};

use crate::acpi::Machine;
use crate::arch::paging::{self, LARGE_SIZE};
use crate::log::pr_err;
use crate::memory::LOWEST;
use crate::sync::Once;
use crate::{clock, direct_map, log};

static REGION: Once<RegionRef<'static>> = Once::new();

/// The region, once there is one.
pub fn get() -> Option<&'static RegionRef<'static>> {
    REGION.get()
}

/// Maps the region and starts it: in the memory that the monitor device offers, if it is large enough, else in RAM.
pub fn init(
    offered: Option<(PhysAddr, u64)>,
    machine: &Machine,
    memblock: &mut Memblock,
) -> &'static RegionRef<'static> {
    let layout = RegionLayout::new(machine.nr_nodes() as u32, machine.cpus().len() as u32);
    let offered = offered.filter(|(base, len)| {
        let fits = *len >= layout.size && base.raw() % PAGE_SIZE == 0;
        if !fits {
            pr_err!("monitor: {len:#x} bytes at {base} cannot be the state region, {:#x} are needed", layout.size);
        }
        fits
    });
    let phys = match offered {
        Some((base, _)) => base,
        None => own_memory(&layout, memblock),
    };
    let len = layout.size.next_multiple_of(if phys.raw() % LARGE_SIZE == 0 { LARGE_SIZE } else { PAGE_SIZE });
    let len = len.min(STATE_REGION_WINDOW);
    let mapped =
        paging::map(VirtAddr::new(STATE_REGION_VIRT), phys, len, &mut || Some(direct_map::new_table(memblock)));
    assert!(mapped.is_ok(), "the state region cannot be mapped");
    let base = with_exposed_provenance_mut(STATE_REGION_VIRT as usize);
    // SAFETY: the window was just mapped onto memory that is the region's alone: the device's, which starts zeroed,
    // or cleared RAM reserved for it. Everybody uses it through atomics.
    let region = unsafe {
        let base = NonNull::new_unchecked(base);
        RegionRef::header_at(base).publish_early();
        log::attach(RegionRef::log_at(base));
        RegionRef::create(base, layout)
    };
    fill(&region, machine, phys);
    REGION.set(region)
}

/// RAM for the region. Large ones lie so that large pages map them.
fn own_memory(layout: &RegionLayout, memblock: &mut Memblock) -> PhysAddr {
    let align = if layout.size >= LARGE_SIZE { LARGE_SIZE } else { PAGE_SIZE };
    let size = layout.size.next_multiple_of(align);
    match memblock.alloc_from(size, align, LOWEST) {
        Ok(phys) => phys,
        Err(error) => panic!("no memory for the state region: {error}"),
    }
}

/// What the kernel knows: roots, CPUs, nodes, distances.
fn fill(region: &RegionRef<'static>, machine: &Machine, phys: PhysAddr) {
    let header = region.header();
    header.tsc_entry.store(clock::tsc_entry(), Relaxed);
    header.tsc_khz.store(clock::tsc_khz(), Relaxed);
    header.roots.pgd.store(paging::root().raw(), Relaxed);
    header.roots.page_offset.store(PAGE_OFFSET, Relaxed);
    header.roots.vmemmap.store(VMEMMAP_START, Relaxed);
    header.roots.region_virt.store(STATE_REGION_VIRT, Relaxed);
    header.roots.region_phys.store(phys.raw(), Relaxed);
    for (record, cpu) in region.cpus().iter().zip(machine.cpus()) {
        record.apic_id.store(cpu.apic_id, Relaxed);
        record.node.store(cpu.node.index() as u32, Relaxed);
    }
    for (node, record) in region.nodes().iter().enumerate() {
        record.proximity.store(machine.domain(node), Relaxed);
    }
    let rows = region.distances().chunks_exact(region.nr_nodes());
    for (from, row) in rows.enumerate() {
        for (to, cell) in row.iter().enumerate() {
            cell.store(machine.distance(from, to), Relaxed);
        }
    }
}
