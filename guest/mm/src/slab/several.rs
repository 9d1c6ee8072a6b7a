//! Several slabs at once: where a slab holds fewer objects than arrays exchange at a time, most of what one costs is
//! paid once for all.
//!
//! Linux adds a slab per refill. Here an array that finds no objects on its node's lists gets about as many as it would
//! have got from there, out of as many new slabs as that takes. Objects are only ever taken out of these all at once,
//! so they need no list of free objects yet.
//!
//! Of objects larger than a page it gets as many as it holds: a slab costs most there, and these arrays are short.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::page::{Page, encode_prev};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::slab::{KmemCacheNode, SlabFlags, SlabWord};
use pagevisor_shared::units::{Order, PAGE_SHIFT, Pfn};

use super::Cache;
use super::grow::{PASSED_ON, gfp_exact_node, vmstat_of};
use crate::Mm;
use crate::page_alloc::Taken;
use crate::platform::Platform;
use crate::raw::Memmap;
use crate::sync::Plain;

/// Slabs of caches with any of these are made and given back one by one.
const ONE_BY_ONE: SlabFlags = SlabFlags::DEBUG.with(SlabFlags::OFF_SLAB).with(SlabFlags::TYPE_STABLE);

/// Writes into the metadata of a block's pages but the first what they hold in their `mapping`, and their distances from the
/// first if that is something.
#[inline(always)]
fn mark_tails(memmap: Memmap, pfn: u32, order: Order, mapping: u32) {
    // Most have one or none.
    if order.raw() == 1 {
        let page = memmap.page(pfn + 1);
        page.mapping.set(mapping);
        page.index.set(if mapping != 0 { 1 } else { 0 });
    } else {
        core::hint::cold_path();
        if order != Order::ZERO {
            mark_many_tails(memmap, pfn, order, mapping);
        }
    }
}

/// As [`mark_tails`], however many there are.
#[cold]
#[inline(never)]
fn mark_many_tails(memmap: Memmap, pfn: u32, order: Order, mapping: u32) {
    for tail in 1..order.pages() as u32 {
        let page = memmap.page(pfn + tail);
        page.mapping.set(mapping);
        page.index.set(if mapping != 0 { tail } else { 0 });
    }
}

/// What slabs that are made together, all of whose objects are handed out, have in their metadata.
#[derive(Clone, Copy)]
pub(super) struct Marks {
    memmap: Memmap,
    /// What the metadata of a slab's first page says, and that of its others.
    words: [u32; 2],
    order: Order,
    /// Objects of a slab.
    num: u32,
}

impl Marks {
    /// Those of slabs whose first pages say `home`.
    #[inline(always)]
    pub(super) fn new(memmap: Memmap, home: SlabWord, order: Order, num: u32) -> Self {
        Self { memmap, words: [home.0, home.tail().0], order, num }
    }

    /// Makes the block at `pfn`, whose first page is `page`, a slab of that colour.
    #[inline(always)]
    pub(super) fn make(&self, pfn: u32, page: &Page, colour: u32) {
        page.mapping.set(self.words[0]);
        page.index.set(colour);
        page._mapcount.set(self.num);
        mark_tails(self.memmap, pfn, self.order, self.words[1]);
    }
}

/// Makes the slab at `pfn`, whose first page is `page` and has no list of free objects, pages that nobody owns.
#[inline(always)]
pub(super) fn disown(memmap: Memmap, pfn: u32, page: &Page, order: Order) {
    page.mapping.set(0);
    mark_tails(memmap, pfn, order, 0);
}

impl Cache {
    /// The order of its slabs, if they are given back several at a time: then they are disowned when they are taken off
    /// the lists.
    #[inline(always)]
    pub(super) fn order_of_several(self) -> Option<Order> {
        if self.flags().intersects(ONE_BY_ONE) { None } else { Order::new(self.record().gfporder.get()).ok() }
    }
}

/// Fills `slots` with addresses from `object` on, `size` apart.
#[inline(always)]
fn fill(slots: &[AtomicU64], mut object: u64, size: u64) {
    let (fours, rest) = slots.as_chunks::<4>();
    for four in fours {
        four[0].set(object);
        four[1].set(object + size);
        four[2].set(object + 2 * size);
        four[3].set(object + 3 * size);
        object += 4 * size;
    }
    for slot in rest {
        slot.set(object);
        object += size;
    }
}

impl<P: Platform> Mm<P> {
    /// Fills `slots` with the objects of new slabs on this CPU's node: of as many as hold `batch` objects, or of as
    /// many as there is room for. Gives how many objects; none if a slab holds more than there is room for, or if there
    /// are no pages but the general way.
    #[inline(never)]
    pub(super) fn cache_grow_several(&self, cache: Cache, gfp: Gfp, slots: &[AtomicU64], batch: u32) -> u32 {
        let record = cache.record();
        let num = record.num.get();
        if cache.flags().intersects(ONE_BY_ONE)
            || record.ctor.get() != 0
            || num as usize > slots.len()
            || num == 0
            || cache == self.slab.caches.any()
        {
            return 0;
        }
        let most = batch.div_ceil(num).min(slots.len() as u32 / num);
        let slots = &slots[..(most * num) as usize];
        let Some((gfp, order)) = Self::pages_of(cache, gfp) else { return 0 };
        // What a slab's objects are written to is its own block's slot at most, or those of blocks before it.
        let room = &slots[slots.len() - most as usize..];
        let taken = self.alloc_blocks_here(gfp, order, PageFlag::Slab, room, |pfn, _| pfn as u64);
        if taken.blocks == 0 {
            return 0;
        }
        let node = self.platform.this_cpu().mem_node;
        let home = SlabWord::new(record.id.get() as u16, node, false);
        let marks = Marks::new(self.memmap(), home, order, num);
        let state = cache.lists(self.platform);
        let (size, offset) = (record.size.get() as u64, record.obj_offset.get() as u64);
        let (colours, colour_off) = (record.colour.get(), record.colour_off.get() as u64);
        let base = self.virt(Pfn::new(0).addr()).raw();
        let mut colour = state.colour_next.get();
        let mut left = slots;
        for block in room.get(room.len() - taken.blocks as usize..).unwrap_or_default() {
            let pfn = block.get() as u32;
            colour = if colour + 1 >= colours { 0 } else { colour + 1 };
            marks.make(pfn, marks.memmap.page(pfn), colour);
            let object = base + ((pfn as u64) << PAGE_SHIFT) + colour as u64 * colour_off + offset;
            let (mine, others) = left.split_at_checked(num as usize).unwrap_or((left, &[]));
            left = others;
            fill(mine, object, size);
        }
        state.colour_next.set(colour);
        self.add_grown(cache, state, num, taken);
        taken.blocks * num
    }

    /// How pages for slabs of `cache` are asked for when they are to come at once or not at all.
    #[inline(always)]
    pub(super) fn pages_of(cache: Cache, gfp: Gfp) -> Option<(Gfp, Order)> {
        let record = cache.record();
        let flags = gfp_exact_node(gfp).bits() & PASSED_ON.bits() | record.allocflags.get();
        Some((Gfp::from_bits(flags)?, Order::new(record.gfporder.get()).ok()?))
    }

    /// Puts new slabs of `num` objects, all of which are handed out, on the lists of this CPU's node.
    #[inline(always)]
    pub(super) fn add_grown(&self, cache: Cache, state: &'static KmemCacheNode, num: u32, new: Taken) {
        let record = cache.record();
        self.memmap().page(new.first).prev.set(encode_prev(new.first, 0));
        let lists = self.lock_slab_lists(cache, state);
        lists.add_full(new.first, new.last, new.blocks);
        self.mod_mem_node_state_irqoff(vmstat_of(cache.flags()), (new.blocks as i64) << record.gfporder.get());
        drop(lists);
        self.count_grown(cache, num, new.blocks);
    }

    /// Counts slabs of `num` objects that were added, and the objects in use.
    #[inline(always)]
    pub(super) fn count_grown(&self, cache: Cache, num: u32, slabs: u32) {
        let record = cache.record();
        let grown = record.grown.fetch_add(slabs as u64, Relaxed) + slabs as u64;
        // There are no more in use than there are. Another CPU may have given one back that is still to be counted.
        if grown.saturating_sub(record.reaped.get()) * num as u64 > record.high_mark.get() {
            self.count_in_use(cache, num);
        }
    }

    /// Notes the number of objects in use if there were never more.
    #[cold]
    #[inline(never)]
    fn count_in_use(&self, cache: Cache, num: u32) {
        let record = cache.record();
        let mut in_use = 0;
        for number in 0..self.slab.shape.nr_nodes {
            let state = self.slab_node(cache, number);
            let total = state.total_slabs.get() * num as u64;
            in_use += total.saturating_sub(state.free_objects.get());
        }
        if in_use > record.high_mark.get() {
            record.high_mark.set(in_use);
        }
    }
}
