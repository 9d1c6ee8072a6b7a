//! What each CPU keeps ready for the hot paths.

use core::sync::atomic::AtomicU64;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::records::{CpuState, NodeCpuState, NodeState, ZONELIST_FALLBACK};
use pagevisor_shared::region::zone::{ListHead, PcpState, ZoneState};
use pagevisor_shared::slab::{cpu_cache_offset, node_offset};
use pagevisor_shared::units::{CpuId, NodeId};
use pagevisor_shared::vmstat::{NumaStat, VmEvent};
use pagevisor_shared::zone::ZoneIndex;

use crate::Mm;
use crate::platform::Platform;
use crate::slab::Reaper;
use crate::sync::Plain;

/// Bits of the GFP flags that decide zone and migrate type.
const ROUTE_BITS: usize = 5;

/// Where an allocation of this CPU without special wishes goes first: everything the fast path needs, looked up once
/// per zonelist instead of once per allocation.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Route {
    /// The preferred zone; one without a page when the machine has none for these flags.
    pub(crate) zone: &'static ZoneState,
    /// Its number.
    pub(crate) index: ZoneIndex,
    /// This CPU's pageset of the zone.
    pub(crate) pcp: &'static PcpState,
    /// The pageset's list of single pages of the migrate type.
    pub(crate) list: &'static ListHead,
    /// This CPU's `pgalloc_*` counter for the zone.
    pub(crate) pgalloc: &'static AtomicU64,
    /// `numa_local` or `numa_other` of the pageset, whichever an allocation from here is.
    pub(crate) locality: &'static AtomicU64,
    /// The migrate type.
    pub(crate) migratetype: MigrateType,
    /// Whether the zone is of the CPU's nearest node with memory.
    pub(crate) nearest: bool,
}

/// What the memory stack keeps ready for each CPU, so that a hot path reaches it with one load.
#[derive(Debug)]
pub struct CpuLocal {
    /// The CPU.
    pub cpu: CpuId,
    /// Its node (`numa_node_id`).
    pub node: NodeId,
    /// The nearest node with memory (`numa_mem_id`).
    pub mem_node: NodeId,
    /// Its pagesets, by zone index.
    pub pcps: &'static [PcpState],
    /// Its event counters.
    pub state: &'static CpuState,
    /// The record of [`Self::mem_node`], and what this CPU holds back of that node's counters.
    pub(crate) mem_node_state: (&'static NodeState, &'static NodeCpuState),
    /// The bit of the CPU.
    pub(crate) bit: u64,
    /// From the start of a slab cache's descriptor to the CPU's array.
    slab_array: usize,
    /// From the start of a slab cache's descriptor to the lists of [`Self::mem_node`].
    slab_lists: usize,
    /// When it looks for objects that nobody uses.
    pub(crate) reaper: Reaper,
    /// By the low bits of the GFP flags.
    routes: [Route; 1 << ROUTE_BITS],
}

impl CpuLocal {
    /// Where in the record [`Self::slab_array`] is, for platforms that reach it without the record's address.
    pub const SLAB_ARRAY_OFFSET: usize = core::mem::offset_of!(Self, slab_array);

    /// From the start of a slab cache's descriptor to the CPU's array.
    #[inline(always)]
    pub fn slab_array(&self) -> usize {
        self.slab_array
    }

    /// From the start of a slab cache's descriptor to the lists of [`Self::mem_node`].
    #[inline(always)]
    pub(crate) fn slab_lists(&self) -> usize {
        self.slab_lists
    }

    /// The route of an allocation with `gfp`.
    #[inline(always)]
    pub(crate) fn route(&self, gfp: Gfp) -> &Route {
        &self.routes[gfp.bits() as usize & ((1 << ROUTE_BITS) - 1)]
    }
}

/// A zone without a page, so that a route always has one: its watermark check fails.
static NO_ZONE: ZoneState = ZoneState::new();
/// The pageset of [`NO_ZONE`]. Nobody gets as far as using it.
static NO_PCP: PcpState = PcpState::new();

impl<P: Platform> Mm<P> {
    /// The record of CPU `cpu`, for the platform to keep where [`Platform::this_cpu`] finds it. `None` for a CPU the
    /// region has no room for.
    pub fn cpu_local(&self, cpu: CpuId) -> Option<CpuLocal> {
        let state = self.cpus.get(cpu.index())?;
        let node = NodeId::new(state.node.get() as usize)?;
        let mem_node = NodeId::new(state.mem_node.get() as usize)?;
        let pending = self.node_cpus.get(cpu.index() * self.nodes.len() + mem_node.index())?;
        let mem_node_state = (self.nodes.get(mem_node.index())?, pending);
        let pcps = self.region.pcps_of(cpu);
        let mut routes = [Route {
            zone: &NO_ZONE,
            index: ZoneIndex(0),
            pcp: &NO_PCP,
            list: &NO_PCP.lists[0],
            pgalloc: &state.vm_events[VmEvent::PgallocDma.index()],
            locality: &NO_PCP.vm_numa_event[NumaStat::NumaOther.index()],
            migratetype: MigrateType::Unmovable,
            nearest: false,
        }; 1 << ROUTE_BITS];
        for (bits, route) in routes.iter_mut().enumerate() {
            let Some(gfp) = Gfp::from_bits(bits as u32) else { continue };
            route.migratetype = gfp.migratetype();
            let Some(first) = self.first_zone(node, ZONELIST_FALLBACK, gfp.zone()) else { continue };
            let (zone, pcp) = (&self.zones[first.index()], &pcps[first.index()]);
            let local = zone.node.get() as usize == node.index();
            let locality = if local { NumaStat::NumaLocal } else { NumaStat::NumaOther };
            route.zone = zone;
            route.nearest = zone.node.get() as usize == mem_node.index();
            route.index = first;
            route.pcp = pcp;
            route.list = &pcp.lists[route.migratetype.index()];
            route.pgalloc = &state.vm_events[VmEvent::PgallocDma.index() + zone.zone_type.get() as usize % 5];
            route.locality = &pcp.vm_numa_event[locality.index()];
        }
        let slab_array = cpu_cache_offset(cpu.index());
        let slab_lists = node_offset(self.slab_shape().nr_cpus, mem_node.index());
        let reaper = Reaper::new();
        let bit = 1 << cpu.index();
        Some(CpuLocal { cpu, node, mem_node, pcps, state, mem_node_state, bit, slab_array, slab_lists, reaper, routes })
    }
}
