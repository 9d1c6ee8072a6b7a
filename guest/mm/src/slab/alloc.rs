//! Allocating, the general way: refilling the CPU's array, other nodes.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::records::ZONELIST_FALLBACK;
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::slab::{ArrayCache, SlabFlags};
use pagevisor_shared::units::{NodeId, PAGE_SIZE, VirtAddr};
use pagevisor_shared::zone::ZoneRef;

use super::fast::{Wish, object};
use super::grow::gfp_exact_node;
use super::{Cache, gated};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// Objects taken when little was allocated of late (`BATCHREFILL_LIMIT`).
pub(super) const BATCHREFILL_LIMIT: u32 = 16;

impl<P: Platform> Mm<P> {
    /// Allocates an object from `node` (this CPU's for `None`), and if that has none, from another, unless `gfp` has
    /// `__GFP_THISNODE` (`kmem_cache_alloc_node`).
    pub fn kmem_cache_alloc_node(&self, cache: Cache, gfp: Gfp, node: Option<NodeId>) -> Option<VirtAddr> {
        self.slab_alloc_node(cache, gfp, Wish::object(gfp), node)
    }

    /// An object from `node` first. `gfp` are the flags of `wish`.
    #[inline]
    pub(super) fn slab_alloc_node(&self, cache: Cache, gfp: Gfp, wish: Wish, node: Option<NodeId>) -> Option<VirtAddr> {
        match node {
            Some(node) if node != self.platform.this_cpu().mem_node => {
                cache.record().node_allocs.fetch_add(1, Relaxed);
                object(self.slab_alloc_hooked(cache, wish, Some(node)))
            }
            _ => object(self.slab_alloc(cache, gfp, wish)),
        }
    }

    /// The end of an allocation that the CPU's array could not serve.
    #[cold]
    #[inline(never)]
    pub(super) fn slab_alloc_general(&self, cache: Cache, wish: Wish) -> u64 {
        self.slab_alloc_hooked(cache, wish, None)
    }

    /// The end of an allocation that found the CPU's array empty and nobody watching. The array's lock is held.
    #[inline(always)]
    pub(super) fn slab_alloc_refill(&self, cache: Cache, wish: Wish, array: &ArrayCache) -> u64 {
        if cache.is_whole() {
            self.slab_alloc_refill_whole(cache, wish, array)
        } else {
            self.slab_alloc_refill_any(cache, wish, array)
        }
    }

    /// As [`Self::slab_alloc_refill`], of any cache.
    #[cold]
    #[inline(never)]
    pub(super) fn slab_alloc_refill_any(&self, cache: Cache, wish: Wish, array: &ArrayCache) -> u64 {
        let mut addr = 0;
        if array.limit.get() != 0 {
            array.allocmiss.bump(1);
            self.cache_alloc_refill(cache, array, wish.gfp());
            addr = self.take_last(array);
        }
        sync::unlock(&array.lock);
        if addr == 0 { self.slab_alloc_general(cache, wish) } else { addr }
    }

    /// The last object of an array whose lock is held; 0 for none.
    #[inline]
    fn take_last(&self, array: &ArrayCache) -> u64 {
        let Some(left) = array.avail.get().checked_sub(1) else { return 0 };
        array.avail.set(left);
        self.slab_memory().entry(array, left).get()
    }

    /// An allocation with everything that is to be done before and after (`slab_pre_alloc_hook`,
    /// `slab_post_alloc_hook`).
    fn slab_alloc_hooked(&self, cache: Cache, wish: Wish, node: Option<NodeId>) -> u64 {
        let (watched, gfp) = (self.instrumented(), wish.gfp());
        let fails = watched & hot::FAILSLAB != 0 && self.should_failslab(cache, gfp);
        let addr = if fails { 0 } else { self.do_cache_alloc(cache, gfp, node) };
        if addr != 0 && cache.flags().intersects(SlabFlags::DEBUG) {
            self.debug_alloc(cache, VirtAddr::new(addr));
        }
        if addr != 0 && Self::wants_zeros(cache, gfp, watched) {
            let size = cache.record().object_size.get() as usize;
            self.slab_memory().fill(VirtAddr::new(addr), size, 0);
        }
        if watched & hot::SLAB_EVENTS != 0 {
            match wish.size() {
                Some(size) => self.trace_kmalloc(addr, size, cache.record().size.get().into(), gfp, node),
                None => self.trace_cache_alloc(cache, addr, gfp, node),
            }
        }
        addr
    }

    /// `__do_cache_alloc`.
    fn do_cache_alloc(&self, cache: Cache, gfp: Gfp, node: Option<NodeId>) -> u64 {
        if cache.record().num.get() == 0 {
            // The cache was destroyed.
            return 0;
        }
        let local = self.platform.this_cpu().mem_node;
        let node = node.filter(|node| node.index() < self.nodes.len()).unwrap_or(local);
        if node == local {
            let addr = self.cache_alloc_local(cache, gfp);
            if addr != 0 {
                return addr;
            }
        }
        let addr = self.cache_alloc_node(cache, gfp, node);
        if addr == 0 && !gfp.contains(Gfp::THISNODE) { self.fallback_alloc(cache, gfp) } else { addr }
    }

    /// From this CPU's array, refilled if need be (`____cache_alloc`).
    fn cache_alloc_local(&self, cache: Cache, gfp: Gfp) -> u64 {
        let array = cache.array(self.platform);
        // Held by what this interrupted, or by a CPU that empties it: the node's lists serve.
        let Some(held) = gated(array).try_lock() else { return 0 };
        if array.limit.get() == 0 {
            self.setup_cpu_cache(cache, array, gfp);
        }
        if array.avail.get() == 0 {
            array.allocmiss.bump(1);
            self.cache_alloc_refill(cache, array, gfp);
        }
        let addr = self.take_last(array);
        sync::unlock(held);
        addr
    }

    /// Refills an empty array, whose lock is held, if there are objects on the CPU's node or pages for them
    /// (`cache_alloc_refill`).
    #[inline]
    fn cache_alloc_refill(&self, cache: Cache, array: &ArrayCache, gfp: Gfp) {
        let node = self.platform.this_cpu().mem_node;
        let mut batch = array.batchcount.get().min(array.limit.get());
        if array.touched.get() == 0 {
            batch = batch.min(BATCHREFILL_LIMIT);
        }
        if batch == 0 {
            return;
        }
        let slots = self.slab_memory().words(array.entry.get(), batch as usize);
        let state = self.slab_node(cache, node.index());
        let mut got = 0;
        if state.free_objects.get() != 0 || state.shared.avail.get() != 0 {
            let lists = self.lock_slab_node(cache, node.index());
            got = lists.take_shared(slots);
            if got == 0 {
                got = lists.take(slots);
            }
        }
        if got == 0 && batch == array.batchcount.get() {
            let room = self.slab_memory().words(array.entry.get(), array.limit.get() as usize);
            let most = Self::most_of_new(cache, array, batch);
            got = self.cache_grow_several(cache, gfp, room, most);
        }
        if got == 0 {
            got = self.cache_grow(cache, gfp, node, slots);
        }
        array.avail.set(got);
        array.touched.set(1);
        self.note_use(cache);
    }

    /// How many objects of new slabs an array gets that would get `batch` from the lists.
    #[inline(always)]
    pub(super) fn most_of_new(cache: Cache, array: &ArrayCache, batch: u32) -> u32 {
        // Of objects larger than a page an array holds only a few.
        if cache.record().size.get() as u64 > PAGE_SIZE { array.limit.get() } else { batch }
    }

    /// One object from the lists of `node`, with a new slab if need be (`____cache_alloc_node`).
    fn cache_alloc_node(&self, cache: Cache, gfp: Gfp, node: NodeId) -> u64 {
        let one = [const { AtomicU64::new(0) }; 1];
        if self.slab_node(cache, node.index()).free_objects.get() != 0 {
            self.lock_slab_node(cache, node.index()).take(&one);
        }
        if one[0].get() == 0 {
            self.cache_grow(cache, gfp, node, &one);
        }
        one[0].get()
    }

    /// One object from whatever node has one, or has pages for one; may reclaim (`fallback_alloc`).
    #[cold]
    fn fallback_alloc(&self, cache: Cache, gfp: Gfp) -> u64 {
        let local = self.platform.this_cpu().mem_node;
        let one = [const { AtomicU64::new(0) }; 1];
        loop {
            if let Some(state) = self.nodes.get(local.index()) {
                for entry in &state.node_zonelists[ZONELIST_FALLBACK] {
                    let Some(zone) = ZoneRef(entry.get()).zone().and_then(|index| self.zone(index)) else { break };
                    let number = zone.node.get() as usize;
                    if number >= self.nodes.len() || self.slab_node(cache, number).free_objects.get() == 0 {
                        continue;
                    }
                    if self.lock_slab_node(cache, number).take(&one) != 0 {
                        return one[0].get();
                    }
                }
            }
            let Some(slab) = self.cache_grow_begin(cache, gfp, local) else { return 0 };
            let got = slab.take(&one);
            self.cache_grow_end(cache, &slab);
            if got != 0 {
                return one[0].get();
            }
        }
    }

    /// Objects of a new slab on `node` into `slots`; gives how many.
    fn cache_grow(&self, cache: Cache, gfp: Gfp, node: NodeId, slots: &[AtomicU64]) -> u32 {
        let Some(slab) = self.cache_grow_begin(cache, gfp_exact_node(gfp), node) else { return 0 };
        let got = slab.take(slots);
        self.cache_grow_end(cache, &slab);
        got
    }
}
