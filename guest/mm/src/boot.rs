//! From memblock to a working page allocator (`mm_core_init` and what it calls).

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pagevisor_shared::layout;
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::region::records::RangeRecord;
use pagevisor_shared::units::{NodeId, NodeMask, PAGE_SHIFT};
use pagevisor_shared::zone::ZoneIndex;

use crate::Mm;
use crate::buddy::Clearing;
use crate::contig::{CmaAreas, dma_contiguous_reserve};
use crate::filemap::FileCaches;
use crate::hooks::Hooks;
use crate::instrument::Instrument;
use crate::kmap::KmapDepths;
use crate::memblock::{AllocError, Memblock, MemblockFlags, Region};
use crate::memory::Memory;
use crate::mmap::Mmap;
use crate::page_alloc::Reports;
use crate::params::Params;
use crate::percpu::{FirstChunk, PerCpuMemory};
use crate::pgtable::TableLock;
use crate::platform::{Level, Platform};
use crate::raw::{DirectMap, FrameTables};
use crate::shrinker::Shrinkers;
use crate::slab::Slab;
use crate::sparse::{self, MapMemmap};
use crate::sync::Plain;
use crate::vmalloc::Vmalloc;
use crate::zone::{MovableStart, Settings, free_area_init, mark_frames, zone_ranges};

/// What [`Mm::boot`] needs.
pub struct BootConfig<'a, P: Platform> {
    /// The machine.
    pub platform: &'static P,
    /// The state region, laid out for this machine, with the CPUs' nodes and the distances filled in.
    pub region: RegionRef<'static>,
    /// All memory with its nodes, and all that is in use reserved.
    pub memblock: &'a mut Memblock,
    /// The kernel's command line; what it says about memory is obeyed.
    pub command_line: &'a str,
    /// Memory that nobody has used since the machine started reads as zero.
    pub fresh_is_zero: bool,
    /// Per-CPU memory, if it was set up ([`crate::percpu::setup_per_cpu_areas`]).
    pub percpu: Option<FirstChunk>,
    /// Upward calls.
    pub hooks: Hooks<P>,
    /// Maps page metadata at `VMEMMAP_START`, before it is used.
    pub map_memmap: MapMemmap<'a>,
}

impl<P: Platform> fmt::Debug for BootConfig<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BootConfig").field("memblock", &self.memblock).finish_non_exhaustive()
    }
}

/// Why there is no page allocator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootError {
    /// Memory for page metadata or tables is short.
    Memory(AllocError),
    /// Memory, or a CPU, belongs to a node that the region has no room for.
    Node(NodeId),
    /// There is no memory.
    Empty,
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => write!(f, "page metadata: {error}"),
            Self::Node(node) => write!(f, "node {} is not possible on this machine", node.index()),
            Self::Empty => f.write_str("no memory"),
        }
    }
}

impl core::error::Error for BootError {}

impl From<AllocError> for BootError {
    fn from(error: AllocError) -> Self {
        Self::Memory(error)
    }
}

impl<P: Platform> Mm<P> {
    /// Brings up nodes, zones, zonelists and the page allocator, and hands all free memory over to it. Memblock is
    /// spent afterwards.
    ///
    /// Runs on the boot CPU before the others, and does not ask the platform for the current CPU. The caller then
    /// gives each CPU the record that [`Self::cpu_local`] makes, calls [`Self::slab_init`], and then
    /// [`Self::finish_boot`].
    ///
    /// # Errors
    /// [`BootError`] when the configuration is impossible or memory is short.
    pub fn boot(config: BootConfig<'_, P>) -> Result<Self, BootError> {
        let BootConfig { platform, region, memblock, command_line, fresh_is_zero, percpu, hooks, map_memmap } = config;
        let params = Params::parse(command_line, &mut |why| platform.log(Level::Warning, format_args!("{why}")));
        let cpus = check_nodes(&region, memblock)?;
        let boot_area = params.cma.and_then(|request| dma_contiguous_reserve(platform, memblock, request));
        sparse::sparse_init(memblock, map_memmap)?;
        let frames = FrameTables::allocate(platform, memblock)?;
        let instrument = Instrument::allocate(platform, memblock, &params)?;
        let movable = MovableStart::find(memblock, params.movable);
        let memory = free_area_init(&region, memblock, &movable);
        if memory == NodeMask::default() {
            return Err(BootError::Empty);
        }
        mark_frames(&frames, memblock, &movable);
        let mm = Self {
            platform,
            nodes: region.nodes(),
            zones: region.zones(),
            cpus: region.cpus(),
            node_cpus: region.node_cpus(),
            shrinkers: Shrinkers::new(),
            slab: Slab::new(DirectMap::new(platform), &region),
            region,
            frames,
            online_nodes: NodeMask(memory.0 | cpus.0),
            fresh_is_zero,
            clearing: Clearing::new(),
            hooks,
            reports: Reports::new(),
            cma: CmaAreas::new(),
            boot_area,
            settings: Settings::new(),
            instrument,
            percpu: PerCpuMemory::new(percpu),
            boosted: [const { AtomicU64::new(0) }; 5],
            reclaim_locked: AtomicU64::new(0),
            reserved_lock: AtomicU32::new(0),
            table_lock: TableLock::new(),
            vmalloc: Vmalloc::new(),
            kmaps: KmapDepths::new(),
            memory: Memory::new(),
            mmap: Mmap::new(),
            files: FileCaches::new(),
        };
        mm.publish(memblock);
        mm.build_all_zonelists(memory, cpus);
        mm.report_movable(&movable);
        mm.memblock_free_all(memblock, &movable);
        mm.report_zonelists();
        mm.init_settings();
        mm.init_instruments(&params);
        for cpu in mm.cpus {
            let node = NodeId::new(cpu.node.get() as usize).unwrap_or_default();
            cpu.mem_node.set(mm.local_memory_node(node).index() as u32);
        }
        Ok(mm)
    }

    /// Writes what the host must know to the region: roots and memblock's tables.
    fn publish(&self, memblock: &Memblock) {
        let header = self.region.header();
        let [_, sections, blocks] = self.frames.addrs(self.platform);
        header.roots.sections.set(sections.raw());
        header.roots.nr_sections.set(self.frames.nr_sections() as u64);
        header.roots.pageblocks.set(blocks.raw());
        header.roots.max_pfn.set(memblock.end_of_dram().raw() >> PAGE_SHIFT);
        header.roots.vmemmap.set(layout::VMEMMAP_START);
        header.roots.page_offset.set(layout::PAGE_OFFSET);
        header.nodes_online.set(self.online_nodes.0);
        header.pages_total.set(memblock.phys_mem_size() >> PAGE_SHIFT);
        let memory = publish_ranges(self.region.memory_slots(), memblock.memory());
        header.nr_memory.store(memory, Ordering::Release);
        let reserved = publish_ranges(self.region.reserved_slots(), memblock.reserved());
        header.nr_reserved.store(reserved, Ordering::Release);
    }

    /// Hands all memory that is not reserved to the buddy allocator (`memblock_free_all`).
    fn memblock_free_all(&self, memblock: &Memblock, movable: &MovableStart) {
        let used = memblock.used_range();
        let mut zones = zone_ranges(memblock, movable);
        let mut zone = zones.next();
        for free in memblock.free_mem_ranges(None, MemblockFlags::HOTPLUG) {
            let (mut start, end) = (free.start.raw().div_ceil(1 << PAGE_SHIFT), free.end.raw() >> PAGE_SHIFT);
            while start < end {
                // Free ranges and zone ranges come in the same order, and every free page is in one of the latter.
                let Some(range) = zone else { return };
                if range.end <= start {
                    zone = zones.next();
                    continue;
                }
                let stop = end.min(range.end);
                self.free_boot_range(ZoneIndex::of(range.node, range.zone), start, stop, &used);
                start = stop;
            }
        }
    }
}

/// Checks that every node of memory and CPUs is possible; gives the nodes with CPUs, which it enters in the node
/// records.
fn check_nodes(region: &RegionRef<'static>, memblock: &Memblock) -> Result<NodeMask, BootError> {
    let nodes = region.nodes();
    for range in memblock.mem_ranges() {
        if let Some(node) = range.nid
            && node.index() >= nodes.len()
        {
            return Err(BootError::Node(node));
        }
    }
    let mut with_cpus = NodeMask::default();
    for (cpu, state) in region.cpus().iter().enumerate() {
        let node = NodeId::new(state.node.get() as usize).unwrap_or_default();
        let record = nodes.get(node.index()).ok_or(BootError::Node(node))?;
        record.cpus.set(record.cpus.get() | 1 << cpu);
        with_cpus = with_cpus.with(node);
    }
    Ok(with_cpus)
}

/// Copies memblock's regions to a table of the region; gives how many fit.
fn publish_ranges(slots: &[RangeRecord], regions: &[Region]) -> u32 {
    for (slot, region) in slots.iter().zip(regions) {
        slot.base.set(region.base().raw());
        slot.size.set(region.size());
        slot.node.set(region.nid().map_or(u32::MAX, |node| node.index() as u32));
        slot.flags.set(region.flags().bits());
    }
    slots.len().min(regions.len()) as u32
}
