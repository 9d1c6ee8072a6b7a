//! Allocating, the general way: refilling the CPU's array, other nodes.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::records::ZONELIST_FALLBACK;
use pagevisor_shared::slab::{ArrayCache, SlabWord};
use pagevisor_shared::units::{NodeId, VirtAddr};
use pagevisor_shared::zone::ZoneRef;

use super::fast::object;
use super::grow::gfp_exact_node;
use super::{Cache, gated};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// Objects taken when little was allocated of late (`BATCHREFILL_LIMIT`).
const BATCHREFILL_LIMIT: u32 = 16;

impl<P: Platform> Mm<P> {
    /// Allocates an object from `node` (this CPU's for `None`), and if that has none, from another, unless `gfp` has
    /// `__GFP_THISNODE` (`kmem_cache_alloc_node`).
    pub fn kmem_cache_alloc_node(&self, cache: Cache, gfp: Gfp, node: Option<NodeId>) -> Option<VirtAddr> {
        match node {
            Some(node) if node != self.platform.this_cpu().mem_node => {
                cache.record().node_allocs.fetch_add(1, Relaxed);
                object(self.slab_alloc_hooked(cache, gfp, Some(node)))
            }
            _ => self.kmem_cache_alloc(cache, gfp),
        }
    }

    /// The end of an allocation that the CPU's array could not serve.
    #[cold]
    #[inline(never)]
    pub(super) fn slab_alloc_general(&self, cache: Cache, gfp: Gfp) -> u64 {
        self.slab_alloc_hooked(cache, gfp, None)
    }

    /// An allocation with everything that is to be done before and after.
    pub(super) fn slab_alloc_hooked(&self, cache: Cache, gfp: Gfp, node: Option<NodeId>) -> u64 {
        let addr = self.do_cache_alloc(cache, gfp, node);
        if addr != 0 && gfp.contains(Gfp::ZERO) {
            let size = cache.record().object_size.get() as usize;
            self.slab_memory().fill(VirtAddr::new(addr), size, 0);
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
        let array = cache.array(self.platform.this_cpu());
        // Held by what this interrupted, or by a CPU that empties it: the node's lists serve.
        let Some(held) = gated(array).try_lock() else { return 0 };
        if array.limit.get() == 0 {
            self.setup_cpu_cache(cache, array, gfp);
        }
        if array.avail.get() == 0 {
            array.allocmiss.bump(1);
            self.cache_alloc_refill(cache, array, gfp);
        }
        let mut addr = 0;
        if let Some(left) = array.avail.get().checked_sub(1) {
            addr = self.slab_memory().entry(array, left).get();
            array.touched.set(1);
            array.avail.set(left);
        }
        sync::unlock(held);
        addr
    }

    /// Refills an empty array, whose lock is held, if there are objects on the CPU's node or pages for them
    /// (`cache_alloc_refill`).
    fn cache_alloc_refill(&self, cache: Cache, array: &ArrayCache, gfp: Gfp) {
        let node = self.platform.this_cpu().mem_node;
        let mut batch = array.batchcount.get().min(array.limit.get());
        if array.touched.get() == 0 {
            batch = batch.min(BATCHREFILL_LIMIT);
        }
        if batch == 0 {
            return;
        }
        let memory = self.slab_memory();
        let entries = memory.words(array.entry.get(), batch as usize);
        let mut slots = entries.iter();
        let mut put = |addr| {
            if let Some(slot) = slots.next() {
                slot.set(addr);
            }
        };
        let state = self.slab_node(cache, node.index());
        let mut got = 0;
        if state.free_objects.get() != 0 || state.shared.avail.get() != 0 {
            let lists = self.lock_slab_node(cache, node.index());
            got = lists.take_shared(batch, &mut put);
            if got == 0 {
                got = lists.take(batch, &mut put);
            }
        }
        if got == 0
            && let Some(slab) = self.cache_grow_begin(cache, gfp_exact_node(gfp), node)
        {
            got = slab.take(batch, &mut put);
            self.cache_grow_end(cache, &slab);
        }
        array.avail.set(got);
    }

    /// One object from the lists of `node`, with a new slab if need be (`____cache_alloc_node`).
    fn cache_alloc_node(&self, cache: Cache, gfp: Gfp, node: NodeId) -> u64 {
        let mut addr = 0;
        if self.slab_node(cache, node.index()).free_objects.get() != 0 {
            self.lock_slab_node(cache, node.index()).take(1, |taken| addr = taken);
        }
        if addr == 0
            && let Some(slab) = self.cache_grow_begin(cache, gfp_exact_node(gfp), node)
        {
            slab.take(1, |taken| addr = taken);
            self.cache_grow_end(cache, &slab);
        }
        addr
    }

    /// One object from whatever node has one, or has pages for one; may reclaim (`fallback_alloc`).
    #[cold]
    fn fallback_alloc(&self, cache: Cache, gfp: Gfp) -> u64 {
        let local = self.platform.this_cpu().mem_node;
        loop {
            if let Some(state) = self.nodes.get(local.index()) {
                for entry in &state.node_zonelists[ZONELIST_FALLBACK] {
                    let Some(zone) = ZoneRef(entry.get()).zone().and_then(|index| self.zone(index)) else { break };
                    let number = zone.node.get() as usize;
                    if number >= self.nodes.len() || self.slab_node(cache, number).free_objects.get() == 0 {
                        continue;
                    }
                    let mut addr = 0;
                    self.lock_slab_node(cache, number).take(1, |taken| addr = taken);
                    if addr != 0 {
                        return addr;
                    }
                }
            }
            let Some(slab) = self.cache_grow_begin(cache, gfp, local) else { return 0 };
            let mut addr = 0;
            let node = NodeId::new(SlabWord(slab.page.mapping.get()).node() as usize);
            if node.is_some() {
                slab.take(1, |taken| addr = taken);
            }
            self.cache_grow_end(cache, &slab);
            if addr != 0 {
                return addr;
            }
        }
    }
}
