//! From the firmware's memory map to memblock.

use core::ops::Range;
use core::ptr::{NonNull, without_provenance_mut};

use pagevisor_mm::memblock::{Kind, Memblock, PhysWindow};
use pagevisor_shared::layout::{KERNEL_PHYS, PAGE_OFFSET, START_KERNEL_MAP};
use pagevisor_shared::units::{MAX_PHYSMEM_BITS, NodeId, PAGE_SIZE, PhysAddr};

use crate::acpi::Machine;
use crate::arch::paging;
use crate::boot::start_info::{MemoryKind, StartInfo};
use crate::direct_map;
use crate::log::{pr_info, pr_warn};

/// Low memory that Linux keeps out of the allocator whole: real-mode code, what firmware scribbles on
/// (`reserve_real_mode`). Our trampoline and what the loader wrote are in it.
const LOW_RESERVED: u64 = 1 << 20;
/// The part of it that is no RAM, whatever the memory map says.
const LEGACY_HOLE: Range<u64> = 0xa_0000..0x10_0000;
/// First address that a machine may not have.
const MAX_PHYS: u64 = 1 << MAX_PHYSMEM_BITS;
/// This much RAM may be in no node; more makes the NUMA description worthless (`numa_meminfo_cover_memory`).
const UNCOVERED: u64 = 1 << 20;

/// Where boot takes memory from, unless it has reasons: above the kernel, which keeps it out of ZONE_DMA.
pub const LOWEST: PhysAddr = PhysAddr::new(KERNEL_PHYS);

/// A memblock that reaches memory through the direct map. `zeroed` says that fresh RAM is zero.
pub fn new_memblock(zeroed: bool) -> Memblock {
    const BASE: NonNull<u8> = NonNull::new(without_provenance_mut(PAGE_OFFSET as usize)).unwrap();
    // SAFETY: the direct map covers all RAM that memblock is told of, at the latest when it is touched; the kernel
    // uses free memory only through memblock; `zeroed` is the host's word.
    let mut memblock = Memblock::new(unsafe { PhysWindow::new(BASE, PhysAddr::new(MAX_PHYS), zeroed) });
    // Upwards from the kernel: what boot takes lies together, so that what is left has few ragged ends. And that
    // memory is mapped first, while the top of the first GiB may be a ragged block.
    memblock.set_bottom_up(true);
    memblock
}

/// Tells memblock and the direct map what RAM there is: whole pages, without page 0 and the legacy hole.
pub fn add_ram(start_info: StartInfo, memblock: &mut Memblock) {
    let mut last = PAGE_SIZE;
    for (range, kind) in start_info.memory_map() {
        if kind != MemoryKind::Ram {
            continue;
        }
        for part in [range.start..range.end.min(LEGACY_HOLE.start), range.start.max(LEGACY_HOLE.end)..range.end] {
            // Loaders sort the map; what overlaps or goes back is believed only as far as it goes on.
            let start = part.start.max(last).next_multiple_of(PAGE_SIZE);
            let end = part.end.min(MAX_PHYS) & !(PAGE_SIZE - 1);
            if start >= end {
                continue;
            }
            if !direct_map::add_ram(start..end) {
                pr_warn!("e820: too many ranges; [mem {start:#x}-{:#x}] ignored", end - 1);
                continue;
            }
            add(memblock, start..end);
            last = end;
        }
    }
    if last == PAGE_SIZE {
        panic!("the loader gave no memory map");
    }
}

fn add(memblock: &mut Memblock, range: Range<u64>) {
    if let Err(error) = memblock.add(PhysAddr::new(range.start), range.end - range.start) {
        panic!("{error}");
    }
}

fn reserve(memblock: &mut Memblock, range: Range<u64>) {
    if let Err(error) = memblock.reserve(PhysAddr::new(range.start), range.end - range.start) {
        panic!("{error}");
    }
}

/// Reserves what is in use.
pub fn reserve_used(start_info: StartInfo, memblock: &mut Memblock) {
    let image = paging::image();
    reserve(memblock, 0..LOW_RESERVED);
    reserve(memblock, image.text - START_KERNEL_MAP..image.end - START_KERNEL_MAP);
    for range in start_info.own_ranges() {
        if range.end > LOW_RESERVED {
            reserve(memblock, range.start & !(PAGE_SIZE - 1)..range.end.next_multiple_of(PAGE_SIZE));
        }
    }
}

/// Gives the memory its nodes.
pub fn set_nodes(machine: &mut Machine, memblock: &mut Memblock) {
    let total = |ranges: &mut dyn Iterator<Item = Range<u64>>| ranges.map(|range| range.end - range.start).sum::<u64>();
    let inside = |node: &Range<u64>| {
        let node = node.clone();
        total(&mut direct_map::ram().filter_map(move |ram| {
            let both = ram.start.max(node.start)..ram.end.min(node.end);
            (!both.is_empty()).then_some(both)
        }))
    };
    let all = total(&mut direct_map::ram());
    let covered: u64 = machine.memory().map(|memory| inside(&memory.range)).sum();
    if covered + UNCOVERED <= all {
        if covered != 0 {
            pr_warn!("NUMA: nodes only cover {}MB of your {}MB e820 RAM. Not used.", covered >> 20, all >> 20);
        }
        machine.make_uniform();
    }
    set_node(memblock, 0..MAX_PHYS, NodeId::default());
    for memory in machine.memory() {
        set_node(memblock, memory.range.clone(), memory.node);
        if memory.hot_pluggable
            && memblock.mark_hotplug(PhysAddr::new(memory.range.start), memory.range.end - memory.range.start).is_err()
        {
            pr_warn!("NUMA: {:#x} cannot be marked as hot-pluggable", memory.range.start);
        }
    }
    pr_info!("NUMA: {} node(s), {} MiB of RAM", machine.nr_nodes(), all >> 20);
}

fn set_node(memblock: &mut Memblock, range: Range<u64>, node: NodeId) {
    let result = memblock.set_node(PhysAddr::new(range.start), range.end - range.start, Kind::Memory, Some(node));
    if let Err(error) = result {
        panic!("{error}");
    }
}
