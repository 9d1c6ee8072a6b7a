//! Making, changing and emptying arrays (`enable_cpucache`, `do_tune_cpucache`, `drain_cpu_caches`).
//!
//! Memory for an array is taken when it is first of use, so that neither booting nor making a cache costs anything by
//! CPUs and nodes. Without memory for it, things work without the array.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::zone::{ListHead, hot};
use pagevisor_shared::slab::{ALIEN_LIMIT, ArrayCache, KmemCacheNode, SlabFlags, SlabWord};
use pagevisor_shared::units::{NodeId, VirtAddr};

use super::grow::gfp_exact_node;
use super::{Cache, gated};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// Bytes of the entries of an array of another node's objects.
const ALIEN_BYTES: usize = 8 * ALIEN_LIMIT as usize;

impl<P: Platform> Mm<P> {
    /// Memory for an array, on `node`.
    fn alloc_arraycache(&self, bytes: usize, gfp: Gfp, node: NodeId) -> Option<VirtAddr> {
        let gfp = gfp_exact_node(gfp).without(Gfp::ZERO | Gfp::DMA | Gfp::DMA32 | Gfp::RECLAIMABLE);
        self.kmalloc_node(bytes, gfp, Some(node))
    }

    /// Gives the memory of an array back, past all arrays, so that emptying them fills none.
    fn free_arraycache(&self, addr: u64) {
        let addr = VirtAddr::new(addr);
        let found = self.virt_to_slab(addr).and_then(|(_, word)| Some((word, self.cache_by_id(word.cache())?)));
        if found.is_some() && self.instrumented() & hot::SLAB_EVENTS != 0 {
            self.trace_kfree(addr);
        }
        match found {
            Some((word, cache)) => self.free_to_slabs(cache, word.node() as usize, &[AtomicU64::new(addr.raw())]),
            // 0, or pages.
            None => self.kfree(addr),
        }
    }

    /// Makes the array of this CPU, and its node's shared one. The lock of `array` is held, so that what happens
    /// meanwhile on this CPU goes another way.
    #[cold]
    #[inline(never)]
    pub(super) fn setup_cpu_cache(&self, cache: Cache, array: &ArrayCache, gfp: Gfp) {
        let record = cache.record();
        let (limit, batch, node) = (record.limit.get(), record.batchcount.get(), self.platform.this_cpu().mem_node);
        if self.slab.up.load(Acquire) == 0 || limit == 0 {
            return;
        }
        let Some(entry) = self.alloc_arraycache(8 * limit as usize, gfp, node) else { return };
        array.entry.set(entry.raw());
        array.batchcount.set(batch);
        array.home.set(SlabWord::new(record.id.get() as u16, node, false).0);
        array.limit.set(limit);
        let room = record.shared.get() * batch;
        let shared = &self.slab_node(cache, node.index()).shared;
        if room == 0 || shared.limit.get() != 0 {
            return;
        }
        let Some(entry) = self.alloc_arraycache(8 * room as usize, gfp, node) else { return };
        let lists = self.lock_slab_node(cache, node.index());
        let spare = if shared.limit.get() == 0 {
            shared.entry.set(entry.raw());
            shared.batchcount.set(batch);
            shared.limit.set(room);
            None
        } else {
            Some(entry)
        };
        drop(lists);
        if let Some(spare) = spare {
            self.kfree(spare);
        }
    }

    /// The arrays of other nodes' objects that a node has, by their nodes; none as long as there is no memory for them.
    /// The lock of the node's lists is held.
    pub(crate) fn alien_arrays(&self, state: &KmemCacheNode) -> &'static [ArrayCache] {
        let base = state.alien.get();
        if base == 0 { &[] } else { self.slab_memory().arrays(base, self.slab.shape.nr_nodes) }
    }

    /// Makes the arrays of other nodes' objects on `node`, if there are none (`alloc_alien_cache`).
    pub(super) fn setup_alien(&self, cache: Cache, node: NodeId) {
        if self.slab_node(cache, node.index()).alien.get() == 0 && self.slab.up.load(Acquire) != 0 {
            self.make_alien(cache, node);
        }
    }

    #[cold]
    fn make_alien(&self, cache: Cache, node: NodeId) {
        let nodes = self.slab.shape.nr_nodes;
        let bytes = nodes * (size_of::<ArrayCache>() + ALIEN_BYTES);
        // Sizes of classes that are aligned to cache lines.
        let bytes = bytes.max(128).next_power_of_two();
        let Some(base) = self.alloc_arraycache(bytes, Gfp::NOWAIT, node) else { return };
        self.slab_memory().fill(base, bytes, 0);
        let entries = base.raw() + (nodes * size_of::<ArrayCache>()) as u64;
        let id = cache.record().id.get() as u16;
        for (home, array) in self.slab_memory().arrays(base.raw(), nodes).iter().enumerate() {
            array.entry.set(entries + (home * ALIEN_BYTES) as u64);
            array.limit.set(ALIEN_LIMIT);
            array.batchcount.set(ALIEN_LIMIT);
            array.home.set(SlabWord::new(id, NodeId::new(home).unwrap_or_default(), false).0);
        }
        let lists = self.lock_slab_node(cache, node.index());
        let first = lists.state.alien.get() == 0;
        if first {
            lists.state.alien.set(base.raw());
        }
        drop(lists);
        if !first {
            self.kfree(base);
        }
    }

    /// Takes all objects out of all arrays of a cache and gives up the arrays' memory; they are made anew when they are
    /// next of use (`drain_cpu_caches`). Not from interrupts: it waits for the arrays' locks.
    pub(super) fn drain_cpu_caches(&self, cache: Cache) {
        for cpu in 0..self.slab.shape.nr_cpus {
            let array = cache.array_of(self.slab.shape, cpu);
            if array.limit.get() != 0 {
                self.drain_array(cache, array);
            }
        }
        (0..self.slab.shape.nr_nodes).for_each(|node| self.drain_aliens(cache, node));
        (0..self.slab.shape.nr_nodes).for_each(|node| self.drain_shared(cache, node));
    }

    /// Gives up the array of a CPU (`do_drain`).
    fn drain_array(&self, cache: Cache, array: &ArrayCache) {
        let held = gated(array).lock(|| self.platform.relax());
        let (avail, entry) = (array.avail.get() as usize, array.entry.get());
        if avail != 0 {
            let home = SlabWord(array.home.get()).node() as usize;
            self.free_to_slabs(cache, home, self.slab_memory().words(entry, avail));
        }
        for word in [&array.avail, &array.limit, &array.home] {
            word.set(0);
        }
        array.entry.set(0);
        sync::unlock(held);
        self.free_arraycache(entry);
    }

    /// Gives up a node's arrays of other nodes' objects (`drain_alien_cache`).
    fn drain_aliens(&self, cache: Cache, node: usize) {
        let batch = [const { AtomicU64::new(0) }; ALIEN_LIMIT as usize];
        for home in 0..self.slab.shape.nr_nodes {
            let lists = self.lock_slab_node(cache, node);
            let Some(alien) = self.alien_arrays(lists.state).get(home) else { return };
            let count = self.empty_alien(alien, &batch);
            drop(lists);
            self.send_home(cache, home, &batch[..count]);
        }
        let lists = self.lock_slab_node(cache, node);
        let base = lists.state.alien.get();
        // Whoever frees meanwhile may have put something in again.
        if self.alien_arrays(lists.state).iter().any(|alien| alien.avail.get() != 0) {
            return;
        }
        lists.state.alien.set(0);
        drop(lists);
        self.free_arraycache(base);
    }

    /// Gives up a node's shared array.
    fn drain_shared(&self, cache: Cache, node: usize) {
        let shared = &self.slab_node(cache, node).shared;
        if shared.limit.get() == 0 {
            return;
        }
        let doomed = ListHead::new();
        let lists = self.lock_slab_node(cache, node);
        let (avail, entry) = (shared.avail.get() as usize, shared.entry.get());
        lists.free_block(self.slab_memory().words(entry, avail), &doomed);
        for word in [&shared.avail, &shared.limit] {
            word.set(0);
        }
        shared.entry.set(0);
        drop(lists);
        self.free_arraycache(entry);
        self.slabs_destroy(cache, node, &doomed);
    }

    /// How many objects free slabs on `node` may hold before they are given back.
    fn free_limit(&self, cache: Cache, node: usize) -> u32 {
        let record = cache.record();
        if cache.flags().contains(SlabFlags::TYPE_STABLE) {
            return u32::MAX;
        }
        let cpus = self.nodes.get(node).map_or(0, |node| node.cpus.get().count_ones());
        (1 + cpus) * record.batchcount.get() + record.num.get()
    }

    /// Sets tunables that hold for arrays made from now on.
    pub(super) fn set_tunables(&self, cache: Cache, limit: u32, batchcount: u32, shared: u32) {
        let record = cache.record();
        record.limit.store(limit, Relaxed);
        record.batchcount.store(batchcount, Relaxed);
        record.shared.store(shared, Relaxed);
        for node in self.online_nodes.iter() {
            let limit = self.free_limit(cache, node.index());
            self.slab_node(cache, node.index()).free_limit.store(limit, Relaxed);
        }
    }
}
