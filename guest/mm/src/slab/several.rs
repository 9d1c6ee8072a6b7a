//! Several slabs at once: where a slab holds fewer objects than arrays exchange at a time, most of what one costs is
//! paid once for all.
//!
//! Linux adds a slab per refill. Here an array that finds no objects on its node's lists gets about as many as it would
//! have got from there, out of as many new slabs as that takes. Objects are only ever taken out of these all at once,
//! so they need no list of free objects yet.
//!
//! Of objects larger than a page it gets as many as it holds, and slabs go back as far below the limit as the next objects
//! to come back will fill: a slab costs most there, and these arrays are short.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::page::{Page, encode_next, encode_prev};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::slab::{SlabFlags, SlabWord};
use pagevisor_shared::units::{NodeId, Order, PAGE_SHIFT, Pfn};

use super::Cache;
use super::grow::{PASSED_ON, gfp_exact_node, vmstat_of};
use crate::Mm;
use crate::platform::Platform;
use crate::raw::Memmap;
use crate::sync::Plain;

/// Slabs of caches with any of these are made and given back one by one.
const ONE_BY_ONE: SlabFlags = SlabFlags::DEBUG.with(SlabFlags::OFF_SLAB).with(SlabFlags::TYPE_STABLE);

/// Calls `mark` for the distances from the first page of a slab to its others. There is hardly ever more than one.
#[inline(always)]
fn for_tails(order: Order, mut mark: impl FnMut(u32)) {
    if order != Order::ZERO {
        mark(1);
        for tail in 2..order.pages() as u32 {
            mark(tail);
        }
    }
}

/// Slabs that are being made out of blocks, all of whose objects are handed out.
struct Made<'a> {
    memmap: Memmap,
    /// What the metadata of a slab's first page says, and that of its others.
    words: [u32; 2],
    order: Order,
    /// Objects of a slab.
    num: u32,
    /// The slab that was made last, and its metadata: not a page's before the first was.
    last: u32,
    page: &'a Page,
}

impl<'a> Made<'a> {
    /// None yet of `cache` on `node`. `outside` stands for what is in front of the first.
    #[inline(always)]
    fn new(memmap: Memmap, cache: Cache, node: NodeId, order: Order, outside: &'a Page) -> Self {
        let record = cache.record();
        let words = [false, true].map(|tail| SlabWord::new(record.id.get() as u16, node, tail).0);
        Self { memmap, words, order, num: record.num.get(), last: 0, page: outside }
    }

    /// Makes a slab of the block at `pfn`, linked to the one that was made before.
    #[inline(always)]
    fn add(&mut self, pfn: u32, colour: u32) {
        let page = self.memmap.page(pfn);
        page.mapping.set(self.words[0]);
        page.index.set(colour);
        page._mapcount.set(self.num);
        for_tails(self.order, |tail| {
            let page = self.memmap.page(pfn + tail);
            page.mapping.set(self.words[1]);
            page.index.set(tail);
        });
        // The same word links both ways.
        let link = encode_next(self.last, pfn);
        self.page.next.set(link);
        page.prev.set(link);
        (self.last, self.page) = (pfn, page);
    }
}

/// Makes the slab at `pfn`, of which nothing is handed out and which is on no list, pages that nobody owns.
#[inline(always)]
pub(super) fn disown(memmap: Memmap, pfn: u32, order: Order) {
    let page = memmap.page(pfn);
    page.mapping.set(0);
    page.private.set(0);
    for_tails(order, |tail| {
        let page = memmap.page(pfn + tail);
        page.mapping.set(0);
        page.index.set(0);
    });
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
        // What a slab's objects are written to is its own block's slot at most, or those of blocks before it.
        let blocks = self.blocks_for(cache, gfp, &slots[slots.len() - most as usize..]);
        let (Some(first), Ok(order)) = (blocks.first(), Order::new(record.gfporder.get())) else { return 0 };
        let (node, first, outside) = (self.platform.this_cpu().mem_node, first.get() as u32, Page::default());
        let mut made = Made::new(self.memmap(), cache, node, order, &outside);
        let state = self.slab_node(cache, node.index());
        let (size, offset) = (record.size.get() as u64, record.obj_offset.get() as u64);
        let (colours, colour_off) = (record.colour.get(), record.colour_off.get() as u64);
        let base = self.virt(Pfn::new(0).addr()).raw();
        let mut colour = state.colour_next.get();
        let mut left = slots;
        for block in blocks {
            let pfn = block.get() as u32;
            colour = if colour + 1 >= colours { 0 } else { colour + 1 };
            made.add(pfn, colour);
            let object = base + ((pfn as u64) << PAGE_SHIFT) + colour as u64 * colour_off + offset;
            let (mine, others) = left.split_at_checked(num as usize).unwrap_or((left, &[]));
            left = others;
            fill(mine, object, size);
        }
        state.colour_next.set(colour);
        self.add_grown(cache, node, (first, made.last), blocks.len() as u32);
        blocks.len() as u32 * num
    }

    /// As [`Self::cache_grow_several`], of a cache that [`Cache::is_whole`]: of as many slabs as there is room for.
    #[inline(never)]
    pub(super) fn cache_grow_whole(&self, cache: Cache, gfp: Gfp, slots: &[AtomicU64]) -> u32 {
        let blocks = self.blocks_for(cache, gfp, slots);
        let (Some(first), Ok(order)) = (blocks.first(), Order::new(cache.record().gfporder.get())) else { return 0 };
        let (node, first, outside) = (self.platform.this_cpu().mem_node, first.get() as u32, Page::default());
        let mut made = Made::new(self.memmap(), cache, node, order, &outside);
        let base = self.virt(Pfn::new(0).addr()).raw();
        // The last in the array is used first.
        for (slot, block) in slots.iter().zip(blocks) {
            let pfn = block.get() as u32;
            made.add(pfn, 0);
            slot.set(base + ((pfn as u64) << PAGE_SHIFT));
        }
        self.add_grown(cache, node, (first, made.last), blocks.len() as u32);
        blocks.len() as u32
    }

    /// Blocks for slabs, by their numbers, in the last of `slots`, as many as can be had at once.
    #[inline(always)]
    fn blocks_for<'a>(&self, cache: Cache, gfp: Gfp, slots: &'a [AtomicU64]) -> &'a [AtomicU64] {
        let record = cache.record();
        let flags = gfp_exact_node(gfp).bits() & PASSED_ON.bits() | record.allocflags.get();
        let (Ok(order), Some(gfp)) = (Order::new(record.gfporder.get()), Gfp::from_bits(flags)) else { return &[] };
        let taken = self.alloc_blocks_here(gfp, order, PageFlag::Slab, slots);
        slots.get(slots.len() - taken as usize..).unwrap_or_default()
    }

    /// Puts `slabs` new slabs, all of whose objects are handed out, on the lists of `node`: from the first to the last, as
    /// they are linked.
    #[inline(always)]
    fn add_grown(&self, cache: Cache, node: NodeId, (first, last): (u32, u32), slabs: u32) {
        let record = cache.record();
        self.memmap().page(first).prev.set(encode_prev(first, 0));
        self.lock_slab_node(cache, node.index()).add_full(first, last, slabs);
        self.count_grown(cache, record.num.get(), slabs);
        self.mod_node_page_state(node, vmstat_of(cache.flags()), (slabs as i64) << record.gfporder.get());
    }

    /// Counts slabs of `num` objects that were added, and the objects in use.
    pub(super) fn count_grown(&self, cache: Cache, num: u32, slabs: u32) {
        let record = cache.record();
        record.grown.fetch_add(slabs as u64, Relaxed);
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
