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
use pagevisor_shared::page::{Page, encode_prev};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::region::zone::ListHead;
use pagevisor_shared::slab::{SlabFlags, SlabWord};
use pagevisor_shared::units::{Order, Pfn};

use super::Cache;
use super::grow::{PASSED_ON, gfp_exact_node, vmstat_of};
use crate::Mm;
use crate::platform::Platform;
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

impl<P: Platform> Mm<P> {
    /// Fills `slots` with the objects of new slabs on this CPU's node: of as many as hold `batch` objects, or of as
    /// many as there is room for. Gives how many objects; none if a slab holds more than there is room for, or if there
    /// are no pages but the general way.
    #[inline(never)]
    pub(super) fn cache_grow_several(&self, cache: Cache, gfp: Gfp, slots: &[AtomicU64], batch: u32) -> u32 {
        let (record, flags) = (cache.record(), cache.flags());
        let num = record.num.get();
        if flags.intersects(ONE_BY_ONE) || record.ctor.get() != 0 || num as usize > slots.len() || num == 0 {
            return 0;
        }
        let (Ok(order), Some(gfp)) = (
            Order::new(record.gfporder.get()),
            Gfp::from_bits(gfp_exact_node(gfp).bits() & PASSED_ON.bits() | record.allocflags.get()),
        ) else {
            return 0;
        };
        if cache == self.slab.caches.any() {
            return 0;
        }
        let node = self.platform.this_cpu().mem_node;
        let state = self.slab_node(cache, node.index());
        let most = batch.div_ceil(num).min(slots.len() as u32 / num);
        let (size, offset) = (record.size.get() as u64, record.obj_offset.get() as u64);
        let (colours, colour_off) = (record.colour.get(), record.colour_off.get() as u64);
        let words = [false, true].map(|tail| SlabWord::new(record.id.get() as u16, node, tail).0);
        let (full, base, memmap) = (ListHead::new(), self.virt(Pfn::new(0).addr()).raw(), self.memmap());
        let mut colour = state.colour_next.get();
        let mut slots = slots;
        let grown = self.alloc_blocks_here(gfp, order, most, |pfn, page| {
            colour = if colour + 1 >= colours { 0 } else { colour + 1 };
            page.flags.set(page.flags.get() | PageFlag::Slab.mask());
            page.mapping.set(words[0]);
            page.index.set(colour);
            page.private.set(0);
            page._mapcount.set(num);
            for_tails(order, |tail| {
                let page = memmap.page(pfn + tail);
                page.mapping.set(words[1]);
                page.index.set(tail);
            });
            // They come linked to each other, both ways.
            if full.first.get() == 0 {
                full.first.set(pfn);
                page.prev.set(encode_prev(pfn, 0));
            }
            full.last.set(pfn);
            let mut object = base + Pfn::new(pfn as u64).addr().raw() + colour as u64 * colour_off + offset;
            if num == 1
                && let Some((slot, others)) = slots.split_first()
            {
                slot.set(object);
                slots = others;
                return;
            }
            let (mine, others) = slots.split_at_checked(num as usize).unwrap_or((slots, &[]));
            slots = others;
            let (fours, rest) = mine.as_chunks::<4>();
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
        });
        if grown == 0 {
            return 0;
        }
        state.colour_next.set(colour);
        self.lock_slab_node(cache, node.index()).add_full(&full, grown);
        self.count_grown(cache, num, grown);
        self.mod_node_page_state(node, vmstat_of(flags), (grown as i64) << order.raw());
        grown * num
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

    /// Gives back the slabs that are linked from `pfn` on, as far as that can be done at once; gives the first it could
    /// not, 0 for none, and how many it did.
    pub(super) fn slabs_destroy_several(&self, cache: Cache, pfn: u32, order: Order) -> (u32, u32) {
        if cache.flags().intersects(ONE_BY_ONE) {
            return (pfn, 0);
        }
        let memmap = self.memmap();
        self.free_blocks_here(pfn, order, |pfn, page: &Page| {
            page.mapping.set(0);
            page._mapcount.set(0);
            page.private.set(0);
            for_tails(order, |tail| {
                let page = memmap.page(pfn + tail);
                page.mapping.set(0);
                page.index.set(0);
            });
        })
    }
}
