//! The instance that owns everything.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::region::records::{CpuState, NodeCpuState, NodeState};
use pagevisor_shared::region::zone::{PcpState, ZoneState};
use pagevisor_shared::units::{NodeId, NodeMask, Pfn, PhysAddr, VirtAddr};
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneIndex};

use crate::buddy::Clearing;
use crate::contig::CmaAreas;
use crate::filemap::FileCaches;
use crate::hooks::Hooks;
use crate::instrument::Instrument;
use crate::kmap::KmapDepths;
use crate::memory::Memory;
use crate::mmap::Mmap;
use crate::page_alloc::Reports;
use crate::percpu::PerCpuMemory;
use crate::pgtable::TableLock;
use crate::platform::Platform;
use crate::raw::{DirectMap, FrameTables, Memmap};
use crate::shrinker::Shrinkers;
use crate::slab::Slab;
use crate::sync::Plain;
use crate::vmalloc::Vmalloc;
use crate::zone::Settings;

/// The memory stack of one machine.
///
/// All of it may be called from any CPU and, unless said otherwise, from interrupts. Counters and list heads are in
/// the state region, links and page states in the page metadata.
#[derive(Debug)]
pub struct Mm<P: Platform> {
    pub(crate) platform: &'static P,
    pub(crate) region: RegionRef<'static>,
    pub(crate) nodes: &'static [NodeState],
    pub(crate) zones: &'static [ZoneState],
    pub(crate) cpus: &'static [CpuState],
    pub(crate) node_cpus: &'static [NodeCpuState],
    pub(crate) frames: FrameTables,
    pub(crate) online_nodes: NodeMask,
    pub(crate) fresh_is_zero: bool,
    /// How far idle CPUs have come with clearing free memory.
    pub(crate) clearing: Clearing,
    pub(crate) hooks: Hooks<P>,
    pub(crate) reports: Reports,
    pub(crate) cma: CmaAreas,
    /// Memory reserved for the area that the command line asked for.
    pub(crate) boot_area: Option<Range<PhysAddr>>,
    pub(crate) settings: Settings,
    pub(crate) instrument: Instrument,
    pub(crate) slab: Slab,
    pub(crate) shrinkers: Shrinkers<P>,
    pub(crate) percpu: PerCpuMemory,
    /// `ZONE_BOOSTED_WATERMARK` of each zone, a bit each.
    pub(crate) boosted: [AtomicU64; 5],
    /// `PGDAT_RECLAIM_LOCKED` of each node, a bit each.
    pub(crate) reclaim_locked: AtomicU64,
    /// Guards the region's table of reserved memory.
    pub(crate) reserved_lock: AtomicU32,
    /// Guards which page tables there are.
    pub(crate) table_lock: TableLock,
    pub(crate) vmalloc: Vmalloc,
    pub(crate) kmaps: KmapDepths,
    pub(crate) memory: Memory,
    pub(crate) mmap: Mmap,
    pub(crate) files: FileCaches,
}

impl<P: Platform> Mm<P> {
    /// The machine.
    #[inline]
    pub fn platform(&self) -> &'static P {
        self.platform
    }

    /// The state region.
    #[inline]
    pub fn region(&self) -> &RegionRef<'static> {
        &self.region
    }

    /// Nodes that have memory or CPUs.
    #[inline]
    pub fn online_nodes(&self) -> NodeMask {
        self.online_nodes
    }

    /// Page metadata.
    #[inline(always)]
    pub(crate) fn memmap(&self) -> Memmap {
        Memmap::new(self.platform)
    }

    /// The direct map.
    #[inline(always)]
    pub fn direct_map(&self) -> DirectMap {
        DirectMap::new(self.platform)
    }

    /// The direct-map address of `addr` (`__va`).
    #[inline]
    pub fn virt(&self, addr: PhysAddr) -> VirtAddr {
        VirtAddr::new(self.direct_map().at(addr).addr() as u64)
    }

    /// The physical address behind a direct-map address (`__pa`), or `None` for an address below the direct map.
    #[inline]
    pub fn phys(&self, addr: VirtAddr) -> Option<PhysAddr> {
        let base = self.direct_map().at(PhysAddr::new(0)).addr() as u64;
        Some(PhysAddr::new(addr.raw().checked_sub(base)?))
    }

    /// Zones with memory, with their indices.
    pub fn populated_zones(&self) -> impl Iterator<Item = (ZoneIndex, &'static ZoneState)> + use<P> {
        let zones = self.zones.iter().enumerate();
        zones.filter(|(_, zone)| zone.present_pages.get() != 0).map(|(index, zone)| (ZoneIndex(index as u16), zone))
    }

    /// The record of zone `index`.
    #[inline]
    pub fn zone(&self, index: ZoneIndex) -> Option<&'static ZoneState> {
        self.zones.get(index.index())
    }

    /// All CPUs' pagesets of zone `index`.
    pub(crate) fn pagesets(&self, index: ZoneIndex) -> impl Iterator<Item = &'static PcpState> + use<P> {
        self.region.pcps().iter().skip(index.index()).step_by(self.zones.len().max(1))
    }

    /// The zone of frame `pfn` (`page_zone`); `None` where there is no memory.
    #[inline]
    pub fn page_zone(&self, pfn: Pfn) -> Option<ZoneIndex> {
        let index = self.frames.zone_of(pfn.raw());
        if (index as usize) < self.zones.len() { Some(ZoneIndex(index)) } else { self.page_zone_mixed(pfn.raw()) }
    }

    /// The zone of a frame in a chunk where zones meet: memory's ranges tell.
    #[cold]
    pub(crate) fn page_zone_mixed(&self, pfn: u64) -> Option<ZoneIndex> {
        if !self.frames.is_mixed(pfn) {
            return None;
        }
        let addr = Pfn::new(pfn).addr().raw();
        let range = self.region.memory().iter().find(|range| {
            let base = range.base.get();
            base <= addr && addr - base < range.size.get()
        })?;
        let node = NodeId::new(range.node.get() as usize).unwrap_or_default();
        let index = ZoneIndex::of(node, self.region.zone_type_of(node, pfn));
        (index.index() < self.zones.len()).then_some(index)
    }

    /// The node of frame `pfn` (`page_to_nid`).
    #[inline]
    pub fn page_to_nid(&self, pfn: Pfn) -> Option<NodeId> {
        NodeId::new(self.page_zone(pfn)?.index() / MAX_NR_ZONES)
    }

    /// Pages that are free, summed over the zones `gfp` may use, without what CPUs hold back (`nr_free_pages`).
    pub fn nr_free_pages(&self, gfp: Gfp) -> u64 {
        let usable = |zone: &&ZoneState| zone.zone_type.get() <= gfp.zone() as u32;
        self.zones.iter().filter(usable).map(|zone| zone.vm_stat[0].get().max(0) as u64).sum()
    }
}
