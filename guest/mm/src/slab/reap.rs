//! What nobody uses any more goes back bit by bit (`cache_reap`).
//!
//! Every two seconds a CPU takes some objects out of those of its arrays that were not refilled meanwhile, and every four
//! some free slabs off its node's lists that nobody took from. As Linux's, this is no reason to wake a CPU: one that is awake
//! and has time looks whether its turn has come ([`Mm::cache_reap`]). And it looks only at caches that it has moved objects
//! of since its node had last no slab of them: what nobody touches stays as it is.
//!
//! Linux also spares an array of which objects were only taken; here the short ways leave no trace. Such an array is refilled
//! when it has run empty, every ten seconds or so.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::region::zone::ListHead;
use pagevisor_shared::slab::{ALIEN_LIMIT, ArrayCache};
use pagevisor_shared::units::NodeId;

use super::node::{LockedNode, copy};
use super::{Cache, gated};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// Nanoseconds from one look of a CPU to its next (`REAPTIMEOUT_AC`).
const REAPTIMEOUT_AC: u64 = 2_000_000_000;
/// Milliseconds from one look at a node's lists to the next (`REAPTIMEOUT_NODE`).
const REAPTIMEOUT_NODE: u32 = 4000;

/// What a CPU remembers.
#[derive(Debug)]
pub(crate) struct Reaper {
    /// When it looks next, in nanoseconds since boot.
    due: AtomicU64,
    /// The node whose objects it sends home next (`slab_reap_node`).
    node: AtomicU32,
}

impl Reaper {
    pub(crate) const fn new() -> Self {
        Self { due: AtomicU64::new(REAPTIMEOUT_AC), node: AtomicU32::new(0) }
    }
}

impl<P: Platform> LockedNode<'_, P> {
    /// Takes a fifth of an array's room of objects back into their slabs, its coldest, but not more than half of those it has
    /// (`drain_array_locked`). The array is the node's shared one, or its lock is held.
    fn drain_array_part(&self, array: &ArrayCache, doomed: &ListHead) {
        let (avail, fifth) = (array.avail.get(), array.limit.get().div_ceil(5));
        let count = if fifth > avail { avail.div_ceil(2) } else { fifth } as usize;
        let entries = self.mm.array_entries(array);
        self.free_block(&entries[..count], doomed);
        copy(entries, &entries[count..]);
        array.avail.set(avail - count as u32);
    }
}

impl<P: Platform> Mm<P> {
    /// Notes that this CPU moves objects between its array and slabs, so that it will look at them.
    #[inline(always)]
    pub(super) fn note_use(&self, cache: Cache) {
        let (used_by, bit) = (&cache.record().used_by, self.platform.this_cpu().bit);
        if used_by.load(Relaxed) & bit == 0 {
            used_by.fetch_or(bit, Relaxed);
        }
    }

    /// Lets be what caches hold that nobody uses from now on.
    pub fn cache_reap_from_now(&self) {
        // There are no more than were made.
        let made = self.slab.serial.get() as usize;
        self.kmem_caches().take(made).for_each(|cache| cache.record().used_by.store(0, Relaxed));
    }

    /// Gives back some of what was not used of late on this CPU and its node, when it is time for that (`cache_reap`). For
    /// whoever has time. Not from interrupts.
    #[inline]
    pub fn cache_reap(&self) {
        let (reaper, now) = (&self.platform.this_cpu().reaper, self.platform.now());
        if now >= reaper.due.get() {
            self.reap(reaper, now);
        }
    }

    #[cold]
    fn reap(&self, reaper: &Reaper, now: u64) {
        reaper.due.set(now + REAPTIMEOUT_AC);
        // Caches come and go: next time.
        if !sync::try_lock(&self.slab.lock) {
            return;
        }
        let cpu = self.platform.this_cpu();
        let home = reaper.node.get() as usize % self.nodes.len().max(1);
        for cache in self.kmem_caches() {
            let bit = 1 << cpu.cpu.index();
            if cache.record().used_by.load(Relaxed) & bit != 0 && !self.reap_cache(cache, cpu.mem_node, home, now) {
                cache.record().used_by.fetch_and(!bit, Relaxed);
            }
        }
        reaper.node.set(home as u32 + 1);
        sync::unlock(&self.slab.lock);
    }

    /// Gives back some of what `cache` holds for this CPU and `node`, its node; tells whether there may be anything to be given
    /// back another time.
    fn reap_cache(&self, cache: Cache, node: NodeId, home: usize, now: u64) -> bool {
        let state = self.slab_node(cache, node.index());
        if home != node.index() {
            self.reap_alien(cache, node.index(), home);
        }
        let array = cache.array(self.platform);
        self.reap_array(cache, array, node.index());
        let (clock, next) = ((now / 1_000_000) as u32, &state.next_reap);
        let (due, unknown) = (clock.wrapping_sub(next.get()) as i32 >= 0, next.get() == 0);
        if due || unknown {
            next.set(clock.wrapping_add(REAPTIMEOUT_NODE).max(1));
        }
        if due && !unknown {
            self.reap_node(cache, node.index());
        }
        let lists = self.lock_slab_node(cache, node.index());
        let aliens = self.alien_arrays(lists.state).iter().any(|alien| alien.avail.get() != 0);
        state.total_slabs.get() != 0 || aliens
    }

    /// Sends objects of node `home` that wait on `node` home (`reap_alien`).
    fn reap_alien(&self, cache: Cache, node: usize, home: usize) {
        let batch = [const { AtomicU64::new(0) }; ALIEN_LIMIT as usize];
        let lists = self.lock_slab_node(cache, node);
        let Some(alien) = self.alien_arrays(lists.state).get(home) else { return };
        let count = self.empty_alien(alien, &batch);
        drop(lists);
        self.send_home(cache, home, &batch[..count]);
    }

    /// Takes some objects out of this CPU's array, unless it was refilled since the last time (`drain_array`).
    fn reap_array(&self, cache: Cache, array: &ArrayCache, node: usize) {
        let Some(held) = gated(array).try_lock() else { return };
        if array.touched.get() != 0 {
            array.touched.set(0);
        } else if array.avail.get() != 0 {
            let doomed = ListHead::new();
            self.lock_slab_node(cache, node).drain_array_part(array, &doomed);
            self.slabs_destroy(cache, node, &doomed);
        }
        sync::unlock(held);
    }

    /// Takes some objects out of the shared array of `node`, unless it served since the last time, and a fifth of the free
    /// slabs that it may keep off its lists, unless one of them was used.
    fn reap_node(&self, cache: Cache, node: usize) {
        let doomed = ListHead::new();
        let lists = self.lock_slab_node(cache, node);
        let shared = &lists.state.shared;
        if shared.touched.get() != 0 {
            shared.touched.set(0);
        } else if shared.avail.get() != 0 {
            lists.drain_array_part(shared, &doomed);
        }
        if lists.state.free_touched.get() != 0 {
            lists.state.free_touched.set(0);
        } else if !self.keeps_slabs(cache) {
            let num = cache.record().num.get().max(1);
            lists.doom(lists.state.free_limit.get().div_ceil(5 * num) as u64, &doomed);
        }
        drop(lists);
        self.slabs_destroy(cache, node, &doomed);
    }
}
