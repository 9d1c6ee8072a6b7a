//! Slabs from the page allocator, and back (`cache_grow_begin`, `slabs_destroy`).

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::region::zone::ListHead;
use pagevisor_shared::slab::{FreelistWords, SlabFlags, SlabWord};
use pagevisor_shared::units::{NodeId, Order, Pfn, VirtAddr};
use pagevisor_shared::vmstat::NodeStat;

use super::Cache;
use super::page::SlabPage;
use crate::Mm;
use crate::list;
use crate::platform::Platform;
use crate::raw::construct;
use crate::sync::Plain;

/// What an allocation of an object passes on to that of a slab (`GFP_CONSTRAINT_MASK | GFP_RECLAIM_MASK`).
pub(super) const PASSED_ON: Gfp = Gfp::RECLAIM_MASK.with(Gfp::HARDWALL).with(Gfp::THISNODE);

/// From this node and no other, at once or not at all (`gfp_exact_node`).
pub(super) const fn gfp_exact_node(gfp: Gfp) -> Gfp {
    gfp.with(Gfp::THISNODE).with(Gfp::NOWARN).without(Gfp::RECLAIM.with(Gfp::NOFAIL))
}

/// The counter of the pages of a cache with those flags (`cache_vmstat_idx`).
pub(super) const fn vmstat_of(flags: SlabFlags) -> NodeStat {
    if flags.contains(SlabFlags::RECLAIM_ACCOUNT) { NodeStat::NrSlabReclaimable } else { NodeStat::NrSlabUnreclaimable }
}

impl<P: Platform> Mm<P> {
    /// Allocates a slab, from `node` first. It is on no list yet; `cache_grow_end` puts it there.
    #[inline(never)]
    pub(super) fn cache_grow_begin(&self, cache: Cache, gfp: Gfp, node: NodeId) -> Option<SlabPage> {
        let record = cache.record();
        let order = Order::new(record.gfporder.get()).ok()?;
        let mut flags = Gfp::from_bits(gfp.bits() & PASSED_ON.bits() | record.allocflags.get())?;
        if cache == self.slab.caches.any() || cache.flags().contains(SlabFlags::TYPE_STABLE) {
            // Descriptors are zero as long as they are free, and so are records that were never in use.
            flags = flags | Gfp::ZERO;
        }
        let (pfn, node) = self.kmem_getpages(flags, order, node)?;
        let page = self.memmap().page(pfn);
        let colour = self.next_colour(cache, node);
        page.index.set(FreelistWords::new(colour, pagevisor_shared::slab::FreelistPlace::OnSlab).index);
        let slab = self.slab_page(cache, pfn);
        let mut off_slab = 0;
        if cache.flags().contains(SlabFlags::OFF_SLAB) {
            match self.alloc_list(cache, flags, node) {
                Some(list) => off_slab = list,
                None => {
                    page.index.set(0);
                    self.free_pages_plain(pfn, order);
                    return None;
                }
            }
        }
        self.mark_slab(cache, pfn, order, node);
        slab.init_list(colour, off_slab);
        self.construct_all(cache, &slab);
        if cache.flags().intersects(SlabFlags::DEBUG) {
            self.debug_init(cache, &slab);
        }
        self.mod_node_page_state(node, vmstat_of(cache.flags()), order.pages() as i64);
        Some(slab)
    }

    /// Pages for a slab, and the node they are from (`kmem_getpages`).
    #[inline]
    fn kmem_getpages(&self, gfp: Gfp, order: Order, node: NodeId) -> Option<(u32, NodeId)> {
        if node == self.platform.this_cpu().mem_node
            && !gfp.contains(Gfp::ZERO)
            && let Some(pfn) = self.alloc_block_here(gfp, order)
        {
            return Some((pfn, node));
        }
        let first = self.alloc_pages_node(Some(node), gfp, order)?;
        let node = if gfp.contains(Gfp::THISNODE) { node } else { self.page_to_nid(first).unwrap_or(node) };
        Some((first.raw() as u32, node))
    }

    /// The colour of the next slab on `node`.
    fn next_colour(&self, cache: Cache, node: NodeId) -> u16 {
        let state = self.slab_node(cache, node.index());
        let next = state.colour_next.get() + 1;
        let next = if next >= cache.record().colour.get() { 0 } else { next };
        state.colour_next.set(next);
        next as u16
    }

    /// Physical address of memory for a slab's list.
    fn alloc_list(&self, cache: Cache, gfp: Gfp, node: NodeId) -> Option<u64> {
        let lists = self.cache_by_id(cache.record().freelist_cache.get() as u16)?;
        let gfp = gfp.without(Gfp::COMP | Gfp::DMA | Gfp::DMA32 | Gfp::RECLAIMABLE | Gfp::ZERO);
        Some(self.phys(self.kmem_cache_alloc_node(lists, gfp, Some(node))?)?.raw())
    }

    /// Writes into the metadata of its pages that they are a slab of `cache`.
    pub(super) fn mark_slab(&self, cache: Cache, pfn: u32, order: Order, node: NodeId) {
        let id = cache.record().id.get() as u16;
        let page = self.memmap().page(pfn);
        // Nobody else has the page.
        page.flags.set(page.flags.get() | PageFlag::Slab.mask());
        page.mapping.set(SlabWord::new(id, node, false).0);
        for tail in 1..order.pages() as u32 {
            let page = self.memmap().page(pfn + tail);
            page.mapping.set(SlabWord::new(id, node, true).0);
            page.index.set(tail);
        }
    }

    /// Calls the constructor for every object.
    pub(super) fn construct_all(&self, cache: Cache, slab: &SlabPage) {
        let ctor = cache.record().ctor.get();
        // Poisoned objects are constructed whenever they are handed out.
        if ctor != 0 && !cache.flags().contains(SlabFlags::POISON) {
            (0..slab.num()).for_each(|number| construct(ctor, slab.object(number)));
        }
    }

    /// Puts a new slab on its node's lists.
    pub(super) fn cache_grow_end(&self, cache: Cache, slab: &SlabPage) {
        let number = SlabWord(slab.page.mapping.get()).node() as usize;
        self.lock_slab_node(cache, number).add(slab);
        self.count_grown(cache, slab.num(), 1);
    }

    /// Gives back the slabs on `doomed`, which [`LockedNode::doom`] took off the lists of node `number`
    /// (`slabs_destroy`).
    ///
    /// [`LockedNode::doom`]: super::node::LockedNode::doom
    #[inline]
    pub(super) fn slabs_destroy(&self, cache: Cache, number: usize, doomed: &ListHead) {
        if doomed.first.get() != 0 {
            self.slabs_destroy_all(cache, number, doomed);
        }
    }

    #[inline(never)]
    fn slabs_destroy_all(&self, cache: Cache, number: usize, doomed: &ListHead) {
        let Ok(order) = Order::new(cache.record().gfporder.get()) else { return };
        let (mut pfn, mut slabs) = (doomed.first.get(), 0);
        if cache.order_of_several().is_some() {
            (pfn, slabs) = self.free_blocks_here(pfn, order);
        }
        while pfn != 0 {
            let next = list::next(pfn, self.memmap().page(pfn));
            self.slab_destroy(cache, pfn, order);
            slabs += 1;
            pfn = next;
        }
        let node = NodeId::new(number).unwrap_or_default();
        self.mod_node_page_state(node, vmstat_of(cache.flags()), -((slabs as i64) << order.raw()));
        cache.record().reaped.fetch_add(slabs as u64, Relaxed);
    }

    /// Gives back a slab (`slab_destroy`, `kmem_freepages`).
    #[inline(never)]
    fn slab_destroy(&self, cache: Cache, pfn: u32, order: Order) {
        let slab = self.slab_page(cache, pfn);
        if cache.flags().intersects(SlabFlags::DEBUG) {
            self.debug_destroy(cache, &slab);
        }
        let freelist = slab.off_slab_list();
        for tail in 0..order.pages() as u32 {
            let page = self.memmap().page(pfn + tail);
            page.mapping.set(0);
            page.index.set(0);
        }
        slab.page._mapcount.set(0);
        slab.page.private.set(0);
        self.free_pages_plain(pfn, order);
        if let Some(freelist) = freelist
            && let Some(lists) = self.cache_by_id(cache.record().freelist_cache.get() as u16)
        {
            self.kmem_cache_free(lists, freelist);
        }
    }

    /// Frees a block that the slab allocator allocated and of which it has cleared the metadata.
    pub(super) fn free_pages_plain(&self, pfn: u32, order: Order) {
        // Neither a slab nor compound any more, so that it can go the short way.
        self.memmap().page(pfn).flags.set(Self::pcp_flags(order.raw()));
        self.free_pages(Pfn::new(pfn as u64), order);
    }

    /// Reports an address that is no object of the cache it is freed to. It is left alone.
    #[cold]
    #[inline(never)]
    pub(super) fn bad_object(&self, cache: Cache, addr: VirtAddr) {
        self.slab_error(cache, "free_block", format_args!("bad object {:#018x}", addr.raw()));
    }
}
