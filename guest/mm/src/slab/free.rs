//! Freeing, the general way: flushing the CPU's array, objects of other nodes, mistakes.

use core::fmt;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::zone::{ListHead, hot};
use pagevisor_shared::slab::{ALIEN_LIMIT, ArrayCache, SlabFlags, SlabWord};
use pagevisor_shared::units::VirtAddr;

use super::node::copy;
use super::{Cache, gated};
use crate::Mm;
use crate::platform::{Level, Platform};
use crate::sync::{self, Plain};

impl<P: Platform> Mm<P> {
    /// Frees an object with nothing taken for granted (`cache_from_obj`, `__cache_free`).
    #[cold]
    #[inline(never)]
    pub(super) fn slab_free_general(&self, cache: Cache, addr: VirtAddr) {
        let found = self.virt_to_slab(addr).and_then(|(_, word)| Some((word, self.cache_by_id(word.cache())?)));
        let Some((word, owner)) = found else {
            return self.warn_free(format_args!("cache_from_obj: Object is not a Slab page!"), addr);
        };
        if owner != cache {
            self.warn_free(
                format_args!("cache_from_obj: Wrong slab cache. {} but object is from {}", cache.name(), owner.name()),
                addr,
            );
        }
        if self.instrumented() & hot::SLAB_EVENTS != 0 {
            self.trace_cache_free(owner, addr);
        }
        // As Linux, it goes back where it came from.
        self.slab_free(owner, word, addr);
    }

    /// Warns about a free that cannot be right (`WARN`).
    #[cold]
    pub(super) fn warn_free(&self, what: fmt::Arguments<'_>, addr: VirtAddr) {
        self.platform.log(Level::Warning, format_args!("WARNING: {what}"));
        self.platform.log(Level::Warning, format_args!("object pointer: {:#018x}", addr.raw()));
        self.platform.dump_stack();
    }

    /// Frees an object of a slab whose first page says `word`.
    pub(super) fn slab_free(&self, cache: Cache, word: SlabWord, addr: VirtAddr) {
        if cache.flags().intersects(SlabFlags::DEBUG) && !self.debug_free(cache, addr) {
            return;
        }
        if self.instrumented() & hot::INIT_ON_FREE != 0 {
            self.init_on_free(cache, addr);
        }
        let local = self.platform.this_cpu();
        let one = [AtomicU64::new(addr.raw())];
        if word.node() as usize != local.mem_node.index() {
            return self.cache_free_alien(cache, word, addr);
        }
        let array = cache.array(self.platform);
        // Held by what this interrupted, or by a CPU that empties it: the object goes to its slab at once.
        let Some(held) = gated(array).try_lock() else {
            return self.free_to_slabs(cache, word.node() as usize, &one);
        };
        if array.limit.get() == 0 {
            self.setup_cpu_cache(cache, array, Gfp::NOWAIT);
        }
        if array.limit.get() == 0 {
            self.free_to_slabs(cache, word.node() as usize, &one);
        } else {
            if array.avail.get() >= array.limit.get() {
                self.make_room(cache, array);
            }
            let avail = array.avail.get();
            self.slab_memory().entry(array, avail).set(addr.raw());
            array.avail.set(avail + 1);
        }
        sync::unlock(held);
    }

    /// The end of a free to this CPU's array, which is full and has nobody watching. The array's lock is held.
    #[inline(always)]
    pub(super) fn slab_free_full(&self, addr: VirtAddr, cache: Cache, array: &ArrayCache) {
        if cache.is_whole() {
            self.slab_free_full_whole(addr, cache, array);
        } else {
            self.slab_free_full_any(addr, cache, array);
        }
    }

    /// As [`Self::slab_free_full`], of any cache.
    #[cold]
    #[inline(never)]
    pub(super) fn slab_free_full_any(&self, addr: VirtAddr, cache: Cache, array: &ArrayCache) {
        self.make_room(cache, array);
        let avail = array.avail.get();
        self.slab_memory().entry(array, avail).set(addr.raw());
        array.avail.set(avail + 1);
        sync::unlock(&array.lock);
    }

    /// Empties part of this CPU's array, whose lock is held and which is full.
    #[inline]
    fn make_room(&self, cache: Cache, array: &ArrayCache) {
        array.freemiss.bump(1);
        self.note_use(cache);
        self.cache_flusharray(cache, array, SlabWord(array.home.get()).node() as usize);
    }

    /// Takes objects of node `number` back into their slabs.
    pub(super) fn free_to_slabs(&self, cache: Cache, number: usize, objects: &[AtomicU64]) {
        let doomed = ListHead::new();
        self.lock_slab_node(cache, number).free_block(objects, &doomed);
        self.slabs_destroy(cache, number, &doomed);
    }

    /// Empties part of a full array, whose lock is held: its first, coldest objects go to the node's shared array as far
    /// as there is room, or else into their slabs (`cache_flusharray`).
    pub(super) fn cache_flusharray(&self, cache: Cache, array: &ArrayCache, node: usize) {
        let avail = array.avail.get() as usize;
        let batch = (array.batchcount.get() as usize).clamp(1, avail);
        let entries = self.slab_memory().words(array.entry.get(), avail);
        let doomed = ListHead::new();
        let lists = self.lock_slab_node(cache, node);
        let mut gone = lists.put_shared(&entries[..batch]);
        if gone == 0 {
            lists.free_block(&entries[..batch], &doomed);
            gone = batch;
        }
        drop(lists);
        copy(entries, &entries[gone..]);
        array.avail.set((avail - gone) as u32);
        self.slabs_destroy(cache, node, &doomed);
    }

    /// Frees an object of another node: it waits in an array until there are some to send home (`cache_free_alien`).
    pub(super) fn cache_free_alien(&self, cache: Cache, word: SlabWord, addr: VirtAddr) {
        let record = cache.record();
        record.node_frees.fetch_add(1, Relaxed);
        self.note_use(cache);
        let (home, local) = (word.node() as usize, self.platform.this_cpu().mem_node);
        self.setup_alien(cache, local);
        let batch = [const { AtomicU64::new(0) }; ALIEN_LIMIT as usize];
        let lists = self.lock_slab_node(cache, local.index());
        let Some(alien) = self.alien_arrays(lists.state).get(home) else {
            drop(lists);
            return self.free_to_slabs(cache, home, &[AtomicU64::new(addr.raw())]);
        };
        let mut avail = alien.avail.get();
        let mut full = 0;
        if avail >= alien.limit.get() {
            record.node_overflow.fetch_add(1, Relaxed);
            full = self.empty_alien(alien, &batch);
            avail = 0;
        }
        self.slab_memory().entry(alien, avail).set(addr.raw());
        alien.avail.set(avail + 1);
        drop(lists);
        self.send_home(cache, home, &batch[..full]);
    }

    /// Takes the objects out of an array of another node's; gives how many. The lock of the lists that the array belongs
    /// to is held, so nothing is sent home from here: no lock of lists is taken under another.
    pub(super) fn empty_alien(&self, alien: &ArrayCache, batch: &[AtomicU64]) -> usize {
        let count = (alien.avail.get() as usize).min(batch.len());
        for (slot, entry) in batch.iter().zip(self.slab_memory().words(alien.entry.get(), count)) {
            slot.set(entry.get());
        }
        alien.avail.set(0);
        count
    }

    /// Gives objects back to their node: to the array its CPUs share first (`__drain_alien_cache`).
    pub(super) fn send_home(&self, cache: Cache, home: usize, objects: &[AtomicU64]) {
        if objects.is_empty() {
            return;
        }
        let doomed = ListHead::new();
        let lists = self.lock_slab_node(cache, home);
        let shared = lists.put_shared(objects);
        lists.free_block(&objects[shared..], &doomed);
        drop(lists);
        self.slabs_destroy(cache, home, &doomed);
    }
}
