//! Calls from the page allocator up to layers above it. A layer that is not there leaves its hook empty, and the
//! allocator goes on as Linux does when that layer made no progress.

use core::fmt;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{NodeId, NodeMask, Order, Pfn};
use pagevisor_shared::zone::{ZoneIndex, ZoneType};

use crate::Mm;
use crate::platform::Platform;

/// What an allocation that ran short asked for.
#[derive(Clone, Copy, Debug)]
pub struct ReclaimRequest {
    /// Its flags.
    pub gfp: Gfp,
    /// Its order.
    pub order: Order,
    /// The highest zone it may use.
    pub highest_zone: ZoneType,
    /// The zone it tries first.
    pub preferred: Option<ZoneIndex>,
    /// The nodes it may use; all when absent.
    pub nodemask: Option<NodeMask>,
}

/// What reclaiming one node came to (`NODE_RECLAIM_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeReclaim {
    /// Nothing was looked at.
    NoScan = -2,
    /// There is nothing to reclaim.
    Full = -1,
    /// Some pages came free, fewer than were wanted.
    Some = 0,
    /// As many as were wanted.
    Success = 1,
}

/// Reclaims one node.
pub type ReclaimNode<P> = fn(&Mm<P>, NodeId, Gfp, Order) -> NodeReclaim;

/// A function value of a layer above.
type Hook<P, R> = Option<fn(&Mm<P>, &ReclaimRequest) -> R>;

/// The upward calls.
pub struct Hooks<P: Platform> {
    /// Wakes the background reclaim of the nodes the request may use (`wake_all_kswapds`).
    pub wake_kswapd: Hook<P, ()>,
    /// Reclaims and gives the number of pages that came free (`try_to_free_pages`).
    pub direct_reclaim: Hook<P, u64>,
    /// Compacts; gives a block it captured for the request, if it did (`try_to_compact_pages`).
    pub direct_compact: Hook<P, Option<Pfn>>,
    /// Reclaims one node for an allocation, which may block, before it goes to another (`__node_reclaim`).
    pub node_reclaim: Option<ReclaimNode<P>>,
    /// Kills a process to get memory; tells whether it made progress (`out_of_memory`).
    pub out_of_memory: Hook<P, bool>,
}

impl<P: Platform> Hooks<P> {
    /// The layers above that this crate has: reclaim asks the shrinkers ([`crate::shrinker`]).
    pub const fn shrinkers() -> Self {
        Self {
            direct_reclaim: Some(|mm, request| mm.try_to_free_pages(request)),
            node_reclaim: Some(|mm, node, gfp, order| mm.node_reclaim_slab(node, gfp, order)),
            ..Self::none()
        }
    }

    /// No layer above.
    pub const fn none() -> Self {
        Self { wake_kswapd: None, direct_reclaim: None, direct_compact: None, node_reclaim: None, out_of_memory: None }
    }
}

impl<P: Platform> fmt::Debug for Hooks<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooks")
            .field("wake_kswapd", &self.wake_kswapd.is_some())
            .field("direct_reclaim", &self.direct_reclaim.is_some())
            .field("direct_compact", &self.direct_compact.is_some())
            .field("node_reclaim", &self.node_reclaim.is_some())
            .field("out_of_memory", &self.out_of_memory.is_some())
            .finish()
    }
}
