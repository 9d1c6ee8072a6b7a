//! The page allocator: `alloc_pages` and its relatives, and `free_pages`.
//!
//! An allocation first takes the short way (`fast`): the pageset of the zone its flags name first, if the zone is
//! above its low watermark and the pageset is not empty. Else it walks its zonelist as `get_page_from_freelist` does
//! (`freelist`), and if no zone can serve it goes the long way (`slow`): lower watermarks, reserves, the layers above
//! through their hooks, a report.
//!
//! Blocks are named by their first frame. Handing in a wrong one never does more than a report: freeing checks the
//! frame, the order, the references and the state of the page, and a page that fails is kept off the lists. What lies
//! in the block is the caller's own; only `unsafe` code reaches it.

mod bad_page;
mod bulk;
mod context;
mod exact;
mod fast;
mod frag;
mod free;
mod freelist;
mod node_reclaim;
mod prep;
mod release;
mod several;
mod slow;
mod user;
mod warn;
mod watermark;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{NodeId, NodeMask, Order, Pfn, VirtAddr};

use crate::Mm;
use crate::platform::Platform;

pub(crate) use context::AllocContext;
pub use frag::{PAGE_FRAG_CACHE_MAX_SIZE, PageFragCache};
pub(crate) use free::allocated_order;
pub(crate) use release::PageVec;
pub(crate) use several::{Dropped, Dropper, Taken};
pub(crate) use user::USER_GFP;
pub(crate) use warn::Reports;

/// Above this order an allocation is costly: it may fail rather than retry (`PAGE_ALLOC_COSTLY_ORDER`).
pub const PAGE_ALLOC_COSTLY_ORDER: u32 = 3;

impl<P: Platform> Mm<P> {
    /// Allocates a block of `order`, from this CPU's node first (`alloc_pages`).
    #[inline(always)]
    pub fn alloc_pages(&self, gfp: Gfp, order: Order) -> Option<Pfn> {
        if order == Order::ZERO { self.alloc_page(gfp) } else { self.alloc_block(gfp, order) }
    }

    /// Allocates a block of `order` from `node` first (`alloc_pages_node`); from this CPU's node for `None`.
    pub fn alloc_pages_node(&self, node: Option<NodeId>, gfp: Gfp, order: Order) -> Option<Pfn> {
        match node {
            None => self.alloc_pages(gfp, order),
            Some(node) if node == self.platform.this_cpu().node => self.alloc_pages(gfp, order),
            Some(node) => self.alloc_pages_nodemask(gfp, order, node, None),
        }
    }

    /// Allocates a block of `order` from `node` first and only from nodes in `nodemask` (`__alloc_pages`).
    pub fn alloc_pages_nodemask(
        &self,
        gfp: Gfp,
        order: Order,
        node: NodeId,
        nodemask: Option<NodeMask>,
    ) -> Option<Pfn> {
        Some(Pfn::new(self.alloc_pages_general(gfp, order, node, nodemask)? as u64))
    }

    /// As [`Self::alloc_pages`], by direct-map address (`__get_free_pages`).
    pub fn get_free_pages(&self, gfp: Gfp, order: Order) -> Option<VirtAddr> {
        let pfn = self.alloc_pages(gfp.without(Gfp::HIGHMEM), order)?;
        Some(self.virt(pfn.addr()))
    }

    /// A page of zeros, by direct-map address (`get_zeroed_page`).
    pub fn get_zeroed_page(&self, gfp: Gfp) -> Option<VirtAddr> {
        self.get_free_pages(gfp | Gfp::ZERO, Order::ZERO)
    }

    /// Drops a reference to the block of `order` at `pfn` and frees it if that was the last (`__free_pages`).
    ///
    /// The order is that of the allocation. If somebody else still holds a reference to the first page of a block that
    /// is not compound, the rest is freed now and the first page with its last reference.
    #[inline(always)]
    pub fn free_pages(&self, pfn: Pfn, order: Order) {
        if order == Order::ZERO { self.free_page(pfn) } else { self.free_block(pfn, order) }
    }

    /// As [`Self::free_pages`], by direct-map address (`free_pages`).
    pub fn free_pages_virt(&self, addr: VirtAddr, order: Order) {
        match self.phys(addr) {
            Some(phys) => self.free_pages(Pfn::containing(phys), order),
            None => self.report_no_page(Pfn::new(u64::MAX), "address below the direct map"),
        }
    }
}
