//! A node's lists of slabs, locked.

use core::fmt;
use core::sync::atomic::AtomicU64;

use pagevisor_shared::region::seq;
use pagevisor_shared::region::zone::ListHead;
use pagevisor_shared::slab::{ArrayCache, KmemCacheNode};
use pagevisor_shared::units::VirtAddr;

use super::Cache;
use super::page::SlabPage;
use super::several::disown;
use crate::Mm;
use crate::list;
use crate::platform::{IrqFlags, Platform};
use crate::raw::Memmap;
use crate::sync::{self, Plain};

/// The lists of a cache on one node, with their lock held and interrupts off; their sequence counter is odd as long as
/// this lives.
pub(super) struct LockedNode<'a, P: Platform> {
    pub(super) mm: &'a Mm<P>,
    pub(super) cache: Cache,
    pub(super) state: &'static KmemCacheNode,
    pub(super) memmap: Memmap,
    irq: IrqFlags,
}

impl<P: Platform> fmt::Debug for LockedNode<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LockedNode").field(&self.cache).finish()
    }
}

impl<P: Platform> Mm<P> {
    /// Takes the lock of the lists of node `number` (`spin_lock_irqsave(&n->list_lock)`).
    #[inline]
    pub(super) fn lock_slab_node(&self, cache: Cache, number: usize) -> LockedNode<'_, P> {
        self.lock_slab_lists(cache, self.slab_node(cache, number))
    }

    /// As [`Self::lock_slab_node`], for who has found the lists already.
    #[inline(always)]
    pub(super) fn lock_slab_lists(&self, cache: Cache, state: &'static KmemCacheNode) -> LockedNode<'_, P> {
        let irq = self.platform.irq_save();
        sync::lock(&state.list_lock, || self.platform.relax());
        seq::write_begin(&state.seq);
        LockedNode { mm: self, cache, state, memmap: self.memmap(), irq }
    }
}

impl<P: Platform> Drop for LockedNode<'_, P> {
    #[inline]
    fn drop(&mut self) {
        seq::write_end(&self.state.seq);
        sync::unlock(&self.state.list_lock);
        self.mm.platform.irq_restore(self.irq);
    }
}

impl<P: Platform> LockedNode<'_, P> {
    /// The slab to take objects from, taken off its list (`get_first_slab`).
    #[inline]
    fn get_first_slab(&self) -> Option<SlabPage> {
        let state = self.state;
        let mut from = &state.slabs_partial;
        let mut pfn = from.first.get();
        if pfn == 0 {
            state.free_touched.set(1);
            from = &state.slabs_free;
            pfn = from.first.get();
            if pfn == 0 {
                return None;
            }
            state.free_slabs.drop_by(1);
        }
        list::remove(self.memmap, from, pfn, self.memmap.page(pfn));
        Some(self.mm.slab_page(self.cache, pfn))
    }

    /// Puts a slab that objects were taken from on the list it belongs on (`fixup_slab_list`).
    #[inline]
    fn fixup_slab_list(&self, slab: &SlabPage) {
        let list = if slab.active() == slab.num() { &self.state.slabs_full } else { &self.state.slabs_partial };
        list::push_head(self.memmap, list, slab.pfn, slab.page);
    }

    /// Takes objects from the slabs into `slots`, as many as there are and there is room for; gives how many.
    #[inline]
    pub(super) fn take(&self, slots: &[AtomicU64]) -> u32 {
        let mut taken = 0;
        while (taken as usize) < slots.len()
            && let Some(slab) = self.get_first_slab()
        {
            taken += slab.take(&slots[taken as usize..]);
            self.fixup_slab_list(&slab);
        }
        self.state.free_objects.drop_by(taken as u64);
        taken
    }

    /// Adds a new slab, from which objects may have been taken (`cache_grow_end`).
    pub(super) fn add(&self, slab: &SlabPage) {
        let state = self.state;
        state.total_slabs.bump(1);
        if slab.active() == 0 {
            list::push_tail(self.memmap, &state.slabs_free, slab.pfn);
            state.free_slabs.bump(1);
        } else {
            self.fixup_slab_list(slab);
        }
        state.free_objects.bump((slab.num() - slab.active()) as u64);
    }

    /// Adds `count` new slabs, linked to each other from the first to the last, from which all objects were taken.
    pub(super) fn add_full(&self, first: u32, last: u32, count: u32) {
        self.state.total_slabs.bump(count as u64);
        list::push_head_chain(self.memmap, &self.state.slabs_full, first, last);
    }

    /// Takes objects of this node back into their slabs, and what is free beyond the limit off the lists, for
    /// `slabs_destroy` (`free_block`).
    #[inline]
    pub(super) fn free_block(&self, objects: &[AtomicU64], doomed: &ListHead) {
        let whole = if self.cache.is_whole() { self.free_whole_general(objects) } else { 0 };
        let rest = &objects[whole..];
        let others = if rest.is_empty() { 0 } else { self.free_objects(rest) };
        let free_objects = self.state.free_objects.get() + (whole + others) as u64;
        self.state.free_objects.set(free_objects);
        let beyond = free_objects.saturating_sub(self.state.free_limit.get() as u64);
        if beyond != 0 {
            self.doom_beyond(beyond, doomed);
        }
    }

    /// Takes objects back into their slabs, of whatever cache; gives how many.
    #[inline(never)]
    fn free_objects(&self, objects: &[AtomicU64]) -> usize {
        let record = self.cache.record();
        let (mut rest, mut freed) = (objects, 0);
        while let Some(first) = rest.first() {
            let addr = VirtAddr::new(first.get());
            let mut count = 0;
            if let Some((pfn, word)) = self.mm.virt_to_slab(addr)
                && word.cache() as u32 == record.id.get()
            {
                // Neighbours are freed together more often than not.
                let slab = self.mm.slab_page(self.cache, pfn);
                let before = slab.active();
                count = slab.put(rest, before);
                if count != 0 {
                    self.relist(&slab, before, before - count as u32);
                }
            }
            freed += count;
            if count == 0 {
                self.mm.bad_object(self.cache, addr);
                count = 1;
            }
            rest = &rest[count..];
        }
        freed
    }

    /// Takes free slabs off the lists that have `beyond` objects more than are to stay.
    #[inline(never)]
    fn doom_beyond(&self, beyond: u64, doomed: &ListHead) {
        let num = self.cache.record().num.get().max(1);
        self.doom(if num == 1 { beyond } else { beyond.div_ceil(num as u64) }, doomed);
    }

    /// Takes the last `slabs` of the free slabs off the lists, or all, and links them in front of those in `doomed`, in
    /// their order.
    #[inline]
    pub(super) fn doom(&self, slabs: u64, doomed: &ListHead) {
        let (state, memmap) = (self.state, self.memmap);
        let last = state.slabs_free.last.get();
        if last == 0 {
            return;
        }
        let order = self.cache.order_of_several();
        let (mut first, mut count, mut before) = (last, 0, last);
        while before != 0 && count < slabs {
            first = before;
            let page = memmap.page(first);
            if let Some(order) = order {
                page.private.set(0);
                disown(memmap, first, page, order);
            }
            before = list::prev(first, page);
            count += 1;
        }
        list::cut_tail(memmap, &state.slabs_free, first);
        list::push_head_chain(memmap, doomed, first, last);
        state.free_slabs.drop_by(count);
        state.total_slabs.drop_by(count);
        state.free_objects.drop_by(count * self.cache.record().num.get() as u64);
    }

    /// Moves a slab, of which `before` objects were handed out before some came back and `after` are now, to where it belongs now.
    #[inline]
    fn relist(&self, slab: &SlabPage, before: u32, after: u32) {
        let state = self.state;
        if after != 0 && before != slab.num() && state.slabs_partial.last.get() == slab.pfn {
            return;
        }
        let from = if before == slab.num() { &state.slabs_full } else { &state.slabs_partial };
        list::remove(self.memmap, from, slab.pfn, slab.page);
        if after == 0 {
            list::push_head(self.memmap, &state.slabs_free, slab.pfn, slab.page);
            state.free_slabs.bump(1);
        } else {
            // Last, so that the others have time to be freed too.
            list::push_tail(self.memmap, &state.slabs_partial, slab.pfn);
        }
    }

    /// The objects of the shared array, with room for as many as its limit.
    #[inline]
    fn shared_entries(&self) -> Option<(&'static ArrayCache, &'static [AtomicU64])> {
        let shared = &self.state.shared;
        let limit = shared.limit.get();
        (limit != 0).then(|| (shared, self.mm.slab_memory().words(shared.entry.get(), limit as usize)))
    }

    /// Moves objects from the shared array, its last ones, to `slots`, as many as there are and there is room for
    /// (`transfer_objects`); gives how many.
    pub(super) fn take_shared(&self, slots: &[AtomicU64]) -> u32 {
        let Some((shared, entries)) = self.shared_entries() else { return 0 };
        let avail = shared.avail.get() as usize;
        let count = slots.len().min(avail);
        copy(slots, &entries[avail - count..avail]);
        if count != 0 {
            shared.avail.set((avail - count) as u32);
            shared.touched.set(1);
        }
        count as u32
    }

    /// Moves objects to the shared array, as many of the first as there is room for; gives how many.
    #[inline]
    pub(super) fn put_shared(&self, objects: &[AtomicU64]) -> usize {
        let Some((shared, entries)) = self.shared_entries() else { return 0 };
        let avail = shared.avail.get();
        let room = &entries[avail as usize..];
        let count = copy(room, objects);
        shared.avail.set(avail + count as u32);
        count
    }
}

/// Copies words, as many as both have, first first; gives how many. `to` may begin inside or before `from`, not behind.
#[inline(always)]
pub(super) fn copy(to: &[AtomicU64], from: &[AtomicU64]) -> usize {
    // What is left of the shortest arrays that are flushed in part.
    if let ([a, b, c, d, ..], [e, f, g, h]) = (to, from) {
        for (to, from) in [(a, e), (b, f), (c, g), (d, h)] {
            to.set(from.get());
        }
        return 4;
    }
    copy_many(to, from)
}

/// As [`copy`], however many there are.
#[inline]
pub(super) fn copy_many(to: &[AtomicU64], from: &[AtomicU64]) -> usize {
    let count = to.len().min(from.len());
    let (to, from) = (to[..count].as_chunks::<8>(), from[..count].as_chunks::<8>());
    for (to, from) in to.0.iter().zip(from.0) {
        for at in 0..8 {
            to[at].set(from[at].get());
        }
    }
    for (to, from) in to.1.iter().zip(from.1) {
        to.set(from.get());
    }
    count
}
