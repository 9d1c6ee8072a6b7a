//! Where allocations take their pages from: memory policies (`mm/mempolicy.c`).

use pagevisor_shared::command::{OpError, Placement};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{NodeId, NodeMask, Order, Pfn};
use pagevisor_shared::zone::MAX_NR_ZONES;

use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// A policy at work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placer {
    placement: Placement,
    /// The node asked for, unless nodes take turns.
    node: NodeId,
    /// How many allocations came before, where nodes take turns.
    turn: u64,
}

impl Placer {
    /// `placement` from the executing CPU's point of view; the first of nodes that take turns is number `turn`.
    ///
    /// # Errors
    /// [`OpError::Invalid`] when none of its nodes is there.
    pub(crate) fn new<P: Platform>(mm: &Mm<P>, placement: Placement, turn: u64) -> Result<Self, OpError> {
        let here = mm.platform.this_cpu().node;
        let online = mm.online_nodes;
        let (placement, node) = match placement {
            Placement::Local => (placement, here),
            Placement::Preferred(node) if online.contains(node) => (placement, node),
            Placement::Bind(mask) if mask.0 & online.0 != 0 => {
                let order = mm.nodes.get(here.index()).map_or(&[][..], |node| &node.fallback_order[..]);
                let nearest = order.iter().filter_map(|node| NodeId::new(node.get() as usize));
                let among = NodeMask(mask.0 & online.0);
                let first = nearest.filter(|node| among.contains(*node)).chain(among.iter()).next();
                (placement, first.unwrap_or(here))
            }
            Placement::Interleave(mask) if mask.0 & online.0 != 0 => {
                (Placement::Interleave(NodeMask(mask.0 & online.0)), here)
            }
            _ => return Err(OpError::Invalid),
        };
        Ok(Self { placement, node, turn })
    }

    /// Allocates a block; gives also the node it was asked of.
    #[inline]
    pub(crate) fn alloc<P: Platform>(&mut self, mm: &Mm<P>, gfp: Gfp, order: Order) -> (Option<Pfn>, NodeId) {
        let pfn = match self.placement {
            Placement::Local => mm.alloc_pages(gfp, order),
            Placement::Preferred(node) => mm.alloc_pages_node(Some(node), gfp, order),
            Placement::Bind(mask) => mm.alloc_pages_nodemask(gfp, order, mm.platform.this_cpu().node, Some(mask)),
            Placement::Interleave(mask) => {
                let which = self.turn % u64::from(mask.weight().max(1));
                self.turn += 1;
                let node = mask.iter().nth(which as usize).unwrap_or_default();
                let pfn = mm.alloc_pages_nodemask(gfp, order, node, None);
                if let Some(zone) = pfn.and_then(|pfn| mm.page_zone(pfn))
                    && zone.index() / MAX_NR_ZONES == node.index()
                {
                    mm.count_numa_interleave(zone);
                }
                return (pfn, node);
            }
        };
        (pfn, self.node)
    }

    /// Free pages that it may take with `gfp`.
    pub(crate) fn free_pages<P: Platform>(&self, mm: &Mm<P>, gfp: Gfp) -> u64 {
        let nodes = match self.placement {
            Placement::Bind(mask) | Placement::Interleave(mask) => mask,
            Placement::Local | Placement::Preferred(_) => NodeMask(u64::MAX),
        };
        let usable = mm.zones.iter().filter(|zone| {
            zone.zone_type.get() <= gfp.zone() as u32
                && NodeId::new(zone.node.get() as usize).is_some_and(|node| nodes.contains(node))
        });
        usable.map(|zone| zone.vm_stat[0].get().max(0) as u64).sum()
    }
}

/// Whether an allocation may be tried at all. `__GFP_NOFAIL` waits until it has memory, and nothing reclaims any: it
/// is refused where it could wait for ever.
///
/// # Errors
/// [`OpError::Invalid`] for what must not be combined with it, [`OpError::NoMemory`] when memory is short.
pub(crate) fn may_try<P: Platform>(mm: &Mm<P>, gfp: Gfp, order: Order, placement: Placement) -> Result<(), OpError> {
    const ENOUGH: u64 = 4096;
    if !gfp.contains(Gfp::NOFAIL) {
        return Ok(());
    }
    if order.raw() > 1 || gfp.contains(Gfp::THISNODE) || matches!(placement, Placement::Bind(_)) {
        return Err(OpError::Invalid);
    }
    if mm.nr_free_pages(gfp) < ENOUGH { Err(OpError::NoMemory) } else { Ok(()) }
}
