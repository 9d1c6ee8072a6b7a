//! The first chunk: static variables, room for those of modules, and the first dynamic allocations
//! (`pcpu_embed_first_chunk`).

use pagevisor_shared::NR_CPUS;
use pagevisor_shared::percpu::{
    PCPU_MIN_ALLOC_SIZE, PCPU_MIN_UNIT_SIZE, PERCPU_DYNAMIC_EARLY_SIZE, PcpuRoot, size_to_slot,
};
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::units::{CpuId, NodeId, PAGE_SIZE, PhysAddr, VirtAddr};

use super::{Part, area, bits, hints, slots};
use crate::memblock::{AllocError, MEMBLOCK_ALLOC_ACCESSIBLE, Memblock};
use crate::platform::Platform;
use crate::raw::{Chunk, DirectMap, boot_records, boot_unit};
use crate::sync::Plain;

/// Where it is taken from, unless there is nothing else: above ZONE_DMA.
const LOWEST: PhysAddr = PhysAddr::new(16 << 20);

/// What the first chunk is made of.
#[derive(Clone, Copy, Debug)]
pub struct FirstChunkConfig<'a> {
    /// Bytes of static variables.
    pub static_size: u64,
    /// What they hold at first, in every unit; what is behind it holds zero.
    pub initial: &'a [u8],
    /// Bytes for modules.
    pub reserved_size: u64,
    /// Bytes for dynamic allocations; at least [`PERCPU_DYNAMIC_EARLY_SIZE`] are made of it.
    pub dyn_size: u64,
    /// What memory is taken in multiples of, a power of two.
    pub atom_size: u64,
}

/// The first chunk, in memory that memblock gave for good.
#[derive(Clone, Copy, Debug)]
pub struct FirstChunk {
    pub(super) root: &'static PcpuRoot,
    pub(super) dynamic: Part,
}

impl FirstChunk {
    /// The address of CPU `cpu`'s unit, which begins with its static variables.
    pub fn unit(&self, cpu: CpuId) -> VirtAddr {
        VirtAddr::new(self.root.base_addr.get().wrapping_add(self.root.unit_off[cpu.index()].get()))
    }
}

/// How CPUs are grouped, a group per node, and how their units are put together (`struct pcpu_alloc_info`).
#[derive(Clone, Debug)]
struct AllocInfo {
    dyn_size: u64,
    unit_size: u64,
    nr_groups: usize,
    /// By CPU.
    group_of: [u8; NR_CPUS],
    /// CPUs of each group.
    count: [u8; NR_CPUS],
    /// Units of each group.
    nr_units: [u8; NR_CPUS],
    node: [u8; NR_CPUS],
}

/// Works out groups and units (`pcpu_build_alloc_info`).
fn build_alloc_info(region: &RegionRef<'static>, config: &FirstChunkConfig<'_>) -> AllocInfo {
    let fixed = config.static_size + config.reserved_size;
    let size_sum = (fixed + config.dyn_size.max(PERCPU_DYNAMIC_EARLY_SIZE)).next_multiple_of(PAGE_SIZE);
    let mut info = AllocInfo {
        dyn_size: size_sum - fixed,
        unit_size: 0,
        nr_groups: 0,
        group_of: [0; NR_CPUS],
        count: [0; NR_CPUS],
        nr_units: [0; NR_CPUS],
        node: [0; NR_CPUS],
    };
    for (cpu, state) in region.cpus().iter().take(NR_CPUS).enumerate() {
        let node = state.node.get() as u8;
        let known = info.node[..info.nr_groups].iter().position(|other| *other == node);
        let group = known.unwrap_or(info.nr_groups);
        info.nr_groups = info.nr_groups.max(group + 1);
        info.node[group] = node;
        info.group_of[cpu] = group as u8;
        info.count[group] += 1;
    }
    let min_unit_size = size_sum.max(PCPU_MIN_UNIT_SIZE);
    let alloc_size = min_unit_size.next_multiple_of(config.atom_size.max(PAGE_SIZE));
    let divides = |units: u64| alloc_size.is_multiple_of(units) && (alloc_size / units).is_multiple_of(PAGE_SIZE);
    let max = alloc_size / min_unit_size;
    let (mut best, mut least) = (1, u64::MAX);
    for units in (1..=max).rev().filter(|&units| divides(units)) {
        let cpus = region.cpus().len() as u64;
        let allocs: u64 = info.count[..info.nr_groups].iter().map(|&count| u64::from(count).div_ceil(units)).sum();
        // A third of the CPUs may have a unit to spare, and more memory is not taken for larger units.
        if allocs * units - cpus > cpus / 3 {
            continue;
        }
        if allocs > least {
            break;
        }
        (best, least) = (units, allocs);
    }
    info.unit_size = alloc_size / best;
    for (units, count) in info.nr_units.iter_mut().zip(info.count) {
        *units = u64::from(count).next_multiple_of(best) as u8;
    }
    info
}

/// Gives every CPU its unit, on its own node where there is room (`setup_per_cpu_areas`). Comes before
/// [`crate::Mm::boot`], which is to be given the result; the region must know the CPUs' nodes.
///
/// # Errors
/// [`AllocError`] when memory is short.
pub fn setup_per_cpu_areas<P: Platform>(
    platform: &P,
    region: &RegionRef<'static>,
    memblock: &mut Memblock,
    config: &FirstChunkConfig<'_>,
) -> Result<FirstChunk, AllocError> {
    let info = build_alloc_info(region, config);
    let mut areas = [0; NR_CPUS];
    for (group, area) in areas[..info.nr_groups].iter_mut().enumerate() {
        *area = take_group(platform, memblock, config, &info, group)?;
    }
    let base = areas[..info.nr_groups].iter().copied().min().unwrap_or(0);
    let offset_in_chunk = config.static_size % PAGE_SIZE;
    let pages = |from: u64, len: u64| (from % PAGE_SIZE + len).div_ceil(PAGE_SIZE) as usize;
    let reserved_pages = if config.reserved_size == 0 { 0 } else { pages(offset_in_chunk, config.reserved_size) };
    let dynamic_pages = pages(config.static_size + config.reserved_size, info.dyn_size);
    let (root, chunks) = boot_records(platform, memblock, LOWEST, [reserved_pages, dynamic_pages])?;
    let mut next = [0; NR_CPUS];
    for cpu in 0..region.cpus().len().min(NR_CPUS) {
        let group = info.group_of[cpu] as usize;
        root.unit_off[cpu].set(areas[group] - base + next[group] * info.unit_size);
        next[group] += 1;
    }
    for (group, area) in areas[..info.nr_groups].iter().enumerate() {
        root.group_offsets[group].set(area - base);
        root.group_sizes[group].set(u64::from(info.nr_units[group]) * info.unit_size);
    }
    root.base_addr.set(base);
    fill_root(root, config, &info);
    let parts = [config.static_size, config.static_size + config.reserved_size];
    for ((chunk, start), len) in chunks.into_iter().zip(parts).zip([config.reserved_size, info.dyn_size]) {
        if len != 0 {
            let is_dynamic = start == parts[1];
            make_chunk(root, chunk, base + start, len, is_dynamic);
        }
    }
    region.header().roots.percpu.set(core::ptr::from_ref(root).addr() as u64);
    region.header().nr_percpu_pages.set(root.nr_populated.get() * u64::from(root.nr_units.get()));
    let bit = (parts[1] % PAGE_SIZE / PCPU_MIN_ALLOC_SIZE) as usize;
    let dynamic = Part { chunk: chunks[1], maps: chunks[1].maps(), start: parts[1], len: info.dyn_size, bit };
    Ok(FirstChunk { root, dynamic })
}

/// Takes the units of a group, gives back what no CPU needs of them, and fills the rest; gives the address of the first.
fn take_group<P: Platform>(
    platform: &P,
    memblock: &mut Memblock,
    config: &FirstChunkConfig<'_>,
    info: &AllocInfo,
    group: usize,
) -> Result<u64, AllocError> {
    let size_sum = config.static_size + config.reserved_size + info.dyn_size;
    let align = config.atom_size.max(PAGE_SIZE);
    let (units, cpus) = (u64::from(info.nr_units[group]), u64::from(info.count[group]));
    let node = NodeId::new(info.node[group].into());
    let memory = memblock.alloc_try_nid_raw(units * info.unit_size, align, LOWEST, MEMBLOCK_ALLOC_ACCESSIBLE, node)?;
    for unit in 0..units {
        let used = if unit < cpus { size_sum } else { 0 };
        let start = memory.raw() + unit * info.unit_size;
        if used != 0 {
            boot_unit(platform, memblock, PhysAddr::new(start), used, config.initial);
        }
        if used < info.unit_size {
            // If the table of reserved ranges is full, the rest stays reserved, which harms nobody.
            let _ = memblock.phys_free(PhysAddr::new(start + used), info.unit_size - used);
        }
    }
    Ok(DirectMap::new(platform).at(memory).addr() as u64)
}

fn fill_root(root: &PcpuRoot, config: &FirstChunkConfig<'_>, info: &AllocInfo) {
    let sidelined = size_to_slot(info.unit_size as u32) + 1;
    root.sidelined_slot.set(sidelined);
    root.free_slot.set(sidelined + 1);
    root.to_depopulate_slot.set(sidelined + 2);
    root.nr_slots.set(sidelined + 3);
    root.unit_size.set(info.unit_size);
    root.static_size.set(config.static_size);
    root.reserved_size.set(config.reserved_size);
    root.dyn_size.set(info.dyn_size);
    root.nr_units.set(info.nr_units.iter().map(|&units| u32::from(units)).sum());
    root.nr_groups.set(info.nr_groups as u32);
    root.nr_populated.set((config.static_size + config.reserved_size + info.dyn_size).div_ceil(PAGE_SIZE));
}

/// Makes `chunk` the part of the first chunk that begins at `start` in unit 0 and has `len` bytes
/// (`pcpu_alloc_first_chunk`).
fn make_chunk(root: &PcpuRoot, chunk: Chunk, start: u64, len: u64, is_dynamic: bool) {
    let maps = chunk.maps();
    let pages = maps.blocks.len();
    let before = start % PAGE_SIZE;
    chunk.base_addr.set(start - before);
    chunk.start_offset.set(before as u32);
    chunk.end_offset.set((pages as u64 * PAGE_SIZE - before - len) as u32);
    chunk.immutable.set(1);
    chunk.nr_populated.set(pages as u32);
    chunk.nr_empty_pop_pages.set(pages as u32);
    chunk.free_bytes.set(len as u32);
    chunk.slot.set(slots::NO_SLOT);
    bits::write(maps.populated, 0, pages, true);
    hints::init(chunk, &maps);
    area::hide(chunk, &maps);
    slots::enter(root, chunk);
    if is_dynamic {
        root.first_chunk.set(chunk.addr());
        root.nr_empty_pop_pages.set(chunk.nr_empty_pop_pages.get().into());
        slots::add(root, chunk, slots::slot_of(root, chunk), true);
    } else {
        root.reserved_chunk.set(chunk.addr());
    }
}
