//! Reclaim as far as shrinkers go: for an allocation that ran short, and for a node before its neighbours are asked.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::MAX_NUMNODES;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::records::ZONELIST_FALLBACK;
use pagevisor_shared::units::{NodeId, NodeMask, Order};
use pagevisor_shared::vmstat::{NodeStat, VmEvent};
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneRef};

use crate::platform::Platform;
use crate::sync::Plain;
use crate::{Mm, NodeReclaim, ReclaimRequest};

/// Priority to start with: a 4096th of everything (`DEF_PRIORITY`).
const DEF_PRIORITY: u32 = 12;
/// Priority of reclaiming one node (`NODE_RECLAIM_PRIORITY`).
const NODE_RECLAIM_PRIORITY: u32 = 4;
/// Pages that are enough (`SWAP_CLUSTER_MAX`).
const SWAP_CLUSTER_MAX: u64 = 32;
/// Percentage of a node that reclaimable slabs may take before it is reclaimed (`vm.min_slab_ratio`).
const MIN_SLAB_RATIO: u64 = 5;

impl<P: Platform> Mm<P> {
    /// Reclaims for an allocation that found no page (`try_to_free_pages`): asks shrinkers more and more urgently until
    /// enough pages are free. Gives how many this CPU freed meanwhile.
    pub fn try_to_free_pages(&self, request: &ReclaimRequest) -> u64 {
        let nodes = self.nodes_of(request);
        self.reclaim(|freed| {
            for priority in (0..=DEF_PRIORITY).rev() {
                for node in nodes.into_iter().flatten() {
                    self.shrink_slab(request.gfp, node, priority);
                }
                if freed() >= SWAP_CLUSTER_MAX {
                    break;
                }
            }
        })
    }

    /// The nodes a request may use, nearest first, each once.
    fn nodes_of(&self, request: &ReclaimRequest) -> [Option<NodeId>; MAX_NUMNODES] {
        let mut nodes = [None; MAX_NUMNODES];
        let mut slots = nodes.iter_mut();
        let mut seen = NodeMask::default();
        let local = request.preferred.map_or(self.platform.this_cpu().node.index(), |zone| zone.index() / MAX_NR_ZONES);
        let Some(state) = self.nodes.get(local) else { return nodes };
        for entry in &state.node_zonelists[ZONELIST_FALLBACK] {
            let Some(zone) = ZoneRef(entry.get()).zone() else { break };
            let Some(node) = NodeId::new(zone.index() / MAX_NR_ZONES) else { continue };
            let usable = zone.index() % MAX_NR_ZONES <= request.highest_zone.index()
                && request.nodemask.is_none_or(|mask| mask.contains(node));
            if usable && !seen.contains(node) {
                seen = seen.with(node);
                if let Some(slot) = slots.next() {
                    *slot = Some(node);
                }
            }
        }
        nodes
    }

    /// Reclaims one node, if more of it than is normal is in slabs that could be reclaimed (`node_reclaim`).
    pub fn node_reclaim_slab(&self, node: NodeId, gfp: Gfp, order: Order) -> NodeReclaim {
        let Some(state) = self.nodes.get(node.index()) else { return NodeReclaim::NoScan };
        let zones = self.zones.iter().filter(|zone| zone.node.get() as usize == node.index());
        let managed: u64 = zones.map(|zone| zone.managed_pages.get()).sum();
        let reclaimable = || state.vm_stat[NodeStat::NrSlabReclaimable.index()].get().max(0) as u64;
        if reclaimable() <= managed * MIN_SLAB_RATIO / 100 {
            return NodeReclaim::Full;
        }
        let wanted = order.pages().max(SWAP_CLUSTER_MAX);
        let got = self.reclaim(|freed| {
            for priority in (0..=NODE_RECLAIM_PRIORITY).rev() {
                self.shrink_slab(gfp, node, priority);
                if freed() >= wanted {
                    break;
                }
            }
        });
        if got >= wanted { NodeReclaim::Success } else { NodeReclaim::Some }
    }

    /// Does the work of reclaiming, to which it tells how many pages this CPU has freed meanwhile, unless this CPU is at
    /// it already. Gives that number in the end.
    fn reclaim(&self, work: impl FnOnce(&dyn Fn() -> u64)) -> u64 {
        let local = self.platform.this_cpu();
        let bit = 1 << local.cpu.index();
        if self.shrinkers.reclaiming.fetch_or(bit, Relaxed) & bit != 0 {
            return 0;
        }
        let freed = &local.state.vm_events[VmEvent::Pgfree.index()];
        let before = freed.get();
        let since = || freed.get().wrapping_sub(before);
        work(&since);
        self.shrinkers.reclaiming.fetch_and(!bit, Relaxed);
        since()
    }
}
