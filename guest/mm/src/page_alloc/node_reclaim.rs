//! Reclaiming a node before an allocation goes to the next (`vm.zone_reclaim_mode`, `node_reclaim`).

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{NodeId, Order};
use pagevisor_shared::vmstat::{VmEvent, ZoneStat};

use super::context::{AllocContext, Candidate};
use super::watermark::zone_watermark_ok;
use crate::buddy::AllocFlags;
use crate::platform::Platform;
use crate::sync::Plain;
use crate::{Mm, NodeReclaim};

/// Nodes further away are not reclaimed for each other's sake (`RECLAIM_DISTANCE`).
pub const RECLAIM_DISTANCE: u8 = 30;
/// Bits of the setting that mean something (`RECLAIM_ZONE`, `RECLAIM_WRITE`, `RECLAIM_UNMAP`).
const RECLAIM_MASK: u32 = 1 | 2 | 4;

impl<P: Platform> Mm<P> {
    /// Whether nodes are reclaimed at all (`node_reclaim_enabled`).
    #[inline]
    pub(super) fn node_reclaim_enabled(&self) -> bool {
        self.region.sysctl().zone_reclaim_mode.get() & RECLAIM_MASK != 0
    }

    /// Reclaims the node of a zone that is below `mark`, if it is near enough; tells whether the zone is above it now.
    #[cold]
    pub(super) fn reclaimed_enough(
        &self,
        candidate: Candidate,
        gfp: Gfp,
        order: u32,
        mark: u64,
        flags: AllocFlags,
        context: &AllocContext,
    ) -> bool {
        let node = |candidate: Candidate| NodeId::new(candidate.zone.node.get() as usize);
        let (Some(local), Some(node)) = (context.preferred.and_then(node), node(candidate)) else { return false };
        let Ok(wanted) = Order::new(order) else { return false };
        if !self.zone_allows_reclaim(local, node) {
            return false;
        }
        match self.node_reclaim(node, gfp, wanted) {
            NodeReclaim::NoScan | NodeReclaim::Full => false,
            NodeReclaim::Some | NodeReclaim::Success => {
                let free = candidate.zone.vm_stat[ZoneStat::NrFreePages.index()].get();
                zone_watermark_ok(candidate.zone, order, mark, context.highest, flags, free.max(0))
            }
        }
    }

    /// `zone_allows_reclaim`.
    fn zone_allows_reclaim(&self, local: NodeId, node: NodeId) -> bool {
        let slot = local.index() * self.nodes.len() + node.index();
        self.region.distances().get(slot).is_some_and(|distance| distance.get() <= RECLAIM_DISTANCE)
    }

    /// `node_reclaim`: not for allocations that cannot wait, not for nodes whose own CPUs could, and by one CPU at a
    /// time. Without a layer that can, nothing is looked at.
    fn node_reclaim(&self, node: NodeId, gfp: Gfp, order: Order) -> NodeReclaim {
        let Some(reclaim) = self.hooks.node_reclaim else { return NodeReclaim::NoScan };
        if !gfp.contains(Gfp::DIRECT_RECLAIM) {
            return NodeReclaim::NoScan;
        }
        let with_cpus = self.nodes.get(node.index()).is_some_and(|state| state.cpus.get() != 0);
        if with_cpus && node != self.platform.this_cpu().node {
            return NodeReclaim::NoScan;
        }
        let bit = 1 << node.index();
        if self.reclaim_locked.fetch_or(bit, Acquire) & bit != 0 {
            return NodeReclaim::NoScan;
        }
        let result = reclaim(self, node, gfp, order);
        self.reclaim_locked.fetch_and(!bit, Release);
        if result == NodeReclaim::Some {
            let failed = VmEvent::ZoneReclaimFailed.index();
            self.platform.this_cpu().state.vm_events[failed].fetch_add(1, Relaxed);
        }
        result
    }
}
