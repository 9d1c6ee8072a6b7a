//! Slabs that are one object, from end to end: most of a page and more are. All that such a slab needs is the metadata of
//! its pages, and where it is on its node's lists.
//!
//! What comes back beyond what may stay free goes to the page allocator at once, and with it what came back before, as far as
//! the array would take it again: giving a slab back costs most here, and less the more of them go together.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::page::Page;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::slab::{ArrayCache, KmemCacheNode, SlabFlags, SlabWord};
use pagevisor_shared::units::{Order, PAGE_SHIFT, PAGE_SIZE, Pfn, VirtAddr};

use super::Cache;
use super::alloc::BATCHREFILL_LIMIT;
use super::fast::Wish;
use super::grow::vmstat_of;
use super::node::{LockedNode, copy, copy_many};
use super::several::{Marks, disown};
use crate::Mm;
use crate::list;
use crate::page_alloc::{Dropped, Dropper};
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// Stands for no frame where 0 is what the last on a list leads to.
const NONE: u32 = u32::MAX;

impl Cache {
    /// Whether it has [`SlabFlags::WHOLE`].
    #[inline(always)]
    pub(super) fn is_whole(self) -> bool {
        self.flags().contains(SlabFlags::WHOLE)
    }
}

impl<P: Platform> Mm<P> {
    /// As [`Self::slab_alloc_refill`], of a cache that [`Cache::is_whole`].
    #[cold]
    #[inline(never)]
    pub(super) fn slab_alloc_refill_whole(&self, cache: Cache, wish: Wish, array: &ArrayCache) -> u64 {
        let state = cache.lists(self.platform);
        let batch = array.batchcount.get();
        let mut got = 0;
        if state.free_objects.get() == 0
            && state.shared.avail.get() == 0
            && (1..=array.limit.get()).contains(&batch)
            && (batch <= BATCHREFILL_LIMIT || array.touched.get() != 0)
        {
            let most = Self::most_of_new(cache, array, batch);
            let slots = self.slab_memory().words(array.entry.get(), most as usize);
            got = self.cache_grow_whole(cache, wish.gfp(), state, SlabWord(array.home.get()), slots);
        }
        if got == 0 {
            return self.slab_alloc_refill_any(cache, wish, array);
        }
        array.allocmiss.bump(1);
        self.note_use(cache);
        array.touched.set(1);
        array.avail.set(got - 1);
        let addr = self.slab_memory().entry(array, got - 1).get();
        sync::unlock(&array.lock);
        addr
    }

    /// Fills `slots` with the objects of new slabs on this CPU's node: of as many as there is room for. Gives how many;
    /// none if there are no pages but the general way.
    #[inline(always)]
    fn cache_grow_whole(
        &self,
        cache: Cache,
        gfp: Gfp,
        state: &'static KmemCacheNode,
        home: SlabWord,
        slots: &[AtomicU64],
    ) -> u32 {
        let Some((gfp, order)) = Self::pages_of(cache, gfp) else { return 0 };
        let marks = Marks::new(self.memmap(), home, order, 1);
        let base = self.virt(Pfn::new(0).addr()).raw();
        // The last in the array is used first.
        let taken = self.alloc_blocks_here(gfp, order, PageFlag::Slab, slots, move |pfn, page| {
            marks.make(pfn, page, 0);
            base + ((pfn as u64) << PAGE_SHIFT)
        });
        if taken.blocks != 0 {
            self.add_grown(cache, state, 1, taken);
        }
        if (taken.blocks as usize) < slots.len() {
            copy_many(slots, &slots[slots.len() - taken.blocks as usize..]);
        }
        taken.blocks
    }

    /// As [`Self::slab_free_full`], of a cache that [`Cache::is_whole`].
    #[cold]
    #[inline(never)]
    pub(super) fn slab_free_full_whole(&self, addr: VirtAddr, cache: Cache, array: &ArrayCache) {
        let (home, state) = (SlabWord(array.home.get()), cache.lists(self.platform));
        let (avail, batch) = (array.avail.get() as usize, array.batchcount.get() as usize);
        let entries = self.slab_memory().words(array.entry.get(), avail);
        let (Some((objects, rest)), false) =
            (entries.split_at_checked(batch), batch == 0 || state.shared.limit.get() != 0)
        else {
            return self.slab_free_full_any(addr, cache, array);
        };
        array.freemiss.bump(1);
        self.note_use(cache);
        let lists = self.lock_slab_lists(cache, state);
        let free = state.free_objects.get() + batch as u64;
        let freed = if free <= state.free_limit.get() as u64 {
            let freed = lists.free_whole(objects, home);
            state.free_objects.bump(freed as u64);
            drop(lists);
            freed
        } else {
            self.give_up_whole(lists, objects, home, array.limit.get())
        };
        if freed != batch {
            self.free_to_slabs(cache, home.node() as usize, &objects[freed..]);
        }
        copy(entries, rest);
        let avail = rest.len() as u32;
        self.slab_memory().entry(array, avail).set(addr.raw());
        array.avail.set(avail + 1);
        sync::unlock(&array.lock);
    }

    /// As [`LockedNode::free_whole`], where no more may stay free: the slabs go back to the page allocator, and with them up
    /// to `more` of those that came back last, which makes room for as many to come. The node is this CPU's.
    ///
    /// Linux puts them on the list of the free ones, and takes those off it that have been there longest.
    #[inline(always)]
    fn give_up_whole(&self, lists: LockedNode<'_, P>, objects: &[AtomicU64], home: SlabWord, more: u32) -> usize {
        let record = lists.cache.record();
        let Ok(order) = Order::new(record.gfporder.get()) else { return 0 };
        let mut dropper = Dropper::new(self, lists.state.slabs_free.first.get(), order);
        let mut chain = lists.give_up_free(more, order, &mut dropper);
        let freed = lists.give_up_full(objects, home, order, &mut dropper, &mut chain);
        chain.home = dropper.home;
        lists.state.total_slabs.drop_by(chain.blocks as u64);
        self.mod_mem_node_state_irqoff(vmstat_of(lists.cache.flags()), -((chain.blocks as i64) << order.raw()));
        drop(lists);
        record.reaped.fetch_add(chain.blocks as u64, Relaxed);
        if chain.blocks != 0 {
            self.free_dropped(&chain, order);
        }
        freed
    }
}

impl<P: Platform> LockedNode<'_, P> {
    /// The slab of an object of a cache that [`Cache::is_whole`], if it is one that was handed out.
    #[inline(always)]
    fn whole_slab(&self, addr: u64, home: SlabWord) -> Option<(u32, &'static Page)> {
        // What is in an array was in a slab when it came there.
        let base = self.mm.virt(Pfn::new(0).addr()).raw();
        let (pfn, page) = self.mm.slab_memory().page_of(self.memmap, base, addr);
        let aligned = addr as u32 & (PAGE_SIZE as u32 - 1) == 0;
        let right = page.mapping.get() == home.0 && page._mapcount.get() == 1 && aligned;
        right.then_some((pfn, page))
    }

    /// Takes back the first of `objects`, of a cache that [`Cache::is_whole`], as far as they are ones that were handed out;
    /// gives how many.
    #[inline(always)]
    fn free_whole(&self, objects: &[AtomicU64], home: SlabWord) -> usize {
        let memory = self.mm.slab_memory();
        let mut count = objects.len();
        // Slabs that are neighbours on the list, with the last on it first, move together.
        let (mut first, mut last) = (NONE, 0);
        for (at, object) in objects.iter().enumerate() {
            let addr = object.get();
            let Some((pfn, page)) = self.whole_slab(addr, home) else {
                count = at;
                break;
            };
            page._mapcount.set(0);
            page.private.set(1);
            memory.byte(addr).set(0);
            if list::next(pfn, page) != first {
                self.full_to_free(first, last);
                last = pfn;
            }
            first = pfn;
        }
        self.full_to_free(first, last);
        self.state.free_slabs.bump(count as u64);
        count
    }

    /// As [`Self::free_whole`], from elsewhere.
    #[inline(never)]
    pub(super) fn free_whole_general(&self, objects: &[AtomicU64]) -> usize {
        let first = objects.first().and_then(|object| self.mm.virt_to_slab(VirtAddr::new(object.get())));
        match first {
            Some((_, word)) if word.cache() as u32 == self.cache.record().id.get() => self.free_whole(objects, word),
            _ => 0,
        }
    }

    /// Moves slabs from the list of the full ones to the front of that of the free ones: from the first to the last, as they
    /// are linked.
    #[inline]
    fn full_to_free(&self, first: u32, last: u32) {
        if first != NONE {
            list::remove_chain(self.memmap, &self.state.slabs_full, first, last);
            list::push_head_chain(self.memmap, &self.state.slabs_free, first, last);
        }
    }

    /// Takes back the first of `objects`, as [`Self::free_whole`], and gives their slabs up; gives how many.
    #[inline(always)]
    fn give_up_full(
        &self,
        objects: &[AtomicU64],
        home: SlabWord,
        order: Order,
        dropper: &mut Dropper,
        chain: &mut Dropped,
    ) -> usize {
        let (mut first, mut last, mut count) = (NONE, 0, objects.len());
        for (at, object) in objects.iter().enumerate() {
            let slab = self.whole_slab(object.get(), home);
            let Some((pfn, page)) = slab.filter(|(pfn, page)| dropper.drop_last(self.mm, *pfn, page)) else {
                count = at;
                break;
            };
            page._mapcount.set(0);
            disown(self.memmap, pfn, page, order);
            // Slabs that are neighbours on the list, with the last on it first, leave it together.
            if list::next(pfn, page) != first {
                self.leave_full(first, last, chain);
                last = pfn;
            }
            first = pfn;
        }
        self.leave_full(first, last, chain);
        chain.blocks += count as u32;
        count
    }

    /// Takes slabs off the front of the list of the free ones, up to `most`, and gives them up.
    #[inline(always)]
    fn give_up_free(&self, most: u32, order: Order, dropper: &mut Dropper) -> Dropped {
        let (list, state) = (&self.state.slabs_free, self.state);
        let first = list.first.get();
        let (mut pfn, mut last, mut blocks) = (first, 0, 0);
        while pfn != 0 && blocks < most {
            let page = self.memmap.page(pfn);
            if !dropper.drop_last(self.mm, pfn, page) {
                break;
            }
            page.private.set(0);
            disown(self.memmap, pfn, page, order);
            (last, blocks) = (pfn, blocks + 1);
            pfn = list::next(pfn, page);
        }
        if blocks == 0 {
            return Dropped::default();
        }
        list::cut_head(self.memmap, list, last);
        state.free_slabs.drop_by(blocks as u64);
        state.free_objects.drop_by(blocks as u64);
        Dropped { first, last, blocks, ..Dropped::default() }
    }

    /// Takes slabs off the list of the full ones, from the first to the last, as they are linked, and puts them in front of
    /// those in `chain`.
    #[inline(always)]
    fn leave_full(&self, first: u32, last: u32, chain: &mut Dropped) {
        if first == NONE {
            return;
        }
        list::remove_chain(self.memmap, &self.state.slabs_full, first, last);
        if chain.first == 0 {
            chain.last = last;
        } else {
            list::join(self.memmap, last, chain.first);
        }
        chain.first = first;
    }
}
