//! Several blocks of one order at once, for the slab allocator: one pageset lock for all of them.
//!
//! As the short ways, both do nothing with a block before they know that they can finish, and what they leave is what
//! the short ways, block by block, would have left, but for the order of blocks that were freed together: they stay
//! linked as they were. What a pageset would not keep goes to the zone without having been on it.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MIGRATE_PCPTYPES;
use pagevisor_shared::page::{Page, encode_next};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::region::zone::{ListHead, NR_PCP_LISTS, PCP_LOW_ORDERS, PcpState};
use pagevisor_shared::units::{Order, PAGEBLOCK_ORDER, Pfn};
use pagevisor_shared::vmstat::{NumaStat, VmEvent};
use pagevisor_shared::zone::ZoneIndex;

use super::fast::above_low_watermark;
use crate::Mm;
use crate::buddy::AllocFlags;
use crate::cpu::Route;
use crate::list;
use crate::pcp::{keeps_none, order_to_pindex, pcp_allowed_order};
use crate::platform::Platform;
use crate::raw::Home;
use crate::sync::{self, Plain};

/// Blocks of one order that nobody has a reference to any more, linked to each other, in page blocks of one type and one
/// zone: on their way back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dropped {
    pub(crate) first: u32,
    pub(crate) last: u32,
    pub(crate) blocks: u32,
    pub(crate) home: Home,
}

/// Drops the last references to blocks of one order, as long as they have the same home.
#[derive(Debug)]
pub(crate) struct Dropper {
    /// What their first pages' flags say afterwards.
    flags: u32,
    /// The page block of the one before; none at first.
    block: u32,
    /// The number of the migrate type of [`Self::home`].
    kind: u32,
    /// Of page blocks so far; not known at first.
    pub(crate) home: Home,
}

impl Dropper {
    /// For blocks of `order`, the first of which is `pfn`.
    #[inline(always)]
    pub(crate) fn new<P: Platform>(mm: &Mm<P>, pfn: u32, order: Order) -> Self {
        let mut this = Self { flags: Mm::<P>::pcp_flags(order.raw()), block: u32::MAX, kind: 0, home: Home::UNKNOWN };
        this.enter(mm, pfn);
        this
    }

    /// Drops the last reference to the block at `pfn`, whose first page is `page`; tells whether it did: not if somebody else
    /// has one, or if the block belongs elsewhere than those before.
    #[inline(always)]
    pub(crate) fn drop_last<P: Platform>(&mut self, mm: &Mm<P>, pfn: u32, page: &Page) -> bool {
        if pfn >> PAGEBLOCK_ORDER != self.block && !self.enter_next(mm, pfn) {
            return false;
        }
        // AcqRel: what others did with the page before they dropped their references comes before its next use.
        if page._refcount.compare_exchange(1, 0, AcqRel, Relaxed).is_err() {
            return false;
        }
        page.flags.set(self.flags);
        page.index.set(self.kind);
        true
    }

    /// Goes on to the page block of `pfn`; false if it is not like those before.
    #[inline(always)]
    fn enter<P: Platform>(&mut self, mm: &Mm<P>, pfn: u32) -> bool {
        let Some(home) = mm.frames.home(pfn as u64) else { return false };
        if home.zone() >= mm.zones.len() || self.home != Home::UNKNOWN && home != self.home {
            return false;
        }
        (self.block, self.kind, self.home) = (pfn >> PAGEBLOCK_ORDER, home.migratetype() as u32, home);
        true
    }

    #[cold]
    #[inline(never)]
    fn enter_next<P: Platform>(&mut self, mm: &Mm<P>, pfn: u32) -> bool {
        self.enter(mm, pfn)
    }
}

impl Dropped {
    /// The list of a pageset that they belong on, and its number.
    #[inline(always)]
    fn list<'a>(&self, pcp: &'a PcpState, raw: u32) -> (usize, &'a ListHead) {
        let last = NR_PCP_LISTS - 1;
        let low = raw < PCP_LOW_ORDERS as u32;
        let pindex = if low { MIGRATE_PCPTYPES * raw as usize + self.home.migratetype() } else { last }.min(last);
        (pindex, &pcp.lists[pindex])
    }
}

/// Blocks that were allocated together, linked to each other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) first: u32,
    pub(crate) last: u32,
    pub(crate) blocks: u32,
}

impl<P: Platform> Mm<P> {
    /// Takes blocks of `order` off this CPU's pageset of its nearest node with memory, which is refilled if it has none, as
    /// many as there are `slots`, as far as the short way can give them; fills the last of `slots` with what `make` says of
    /// them, called in turn, the first in the last slot. They are compound if that was asked for, have the flag `mark`, and
    /// are not cleared. They are linked to each other, with what was taken last first.
    #[inline(always)]
    pub(crate) fn alloc_blocks_here(
        &self,
        gfp: Gfp,
        order: Order,
        mark: PageFlag,
        slots: &[AtomicU64],
        make: impl Fn(u32, &Page) -> u64,
    ) -> Taken {
        let cpu = self.platform.this_cpu();
        let route = cpu.route(gfp);
        let pcp = route.pcp;
        if !route.nearest
            || !pcp_allowed_order(order.raw())
            || !above_low_watermark(route.zone, order.raw())
            || !sync::try_lock(&pcp.lock)
        {
            return Taken::default();
        }
        let list = &pcp.lists[order_to_pindex(route.migratetype, order.raw()).min(NR_PCP_LISTS - 1)];
        let head = if order != Order::ZERO && gfp.contains(Gfp::COMP) { PageFlag::Head.mask() } else { 0 };
        let flags = Self::pcp_flags(order.raw()) | head | mark.mask();
        if list.first.get() == 0 {
            self.refill_here(route, order);
        }
        let mut pfn = list.first.get();
        let (last, mut first, mut left) = (pfn, 0, slots.len());
        // What is before the last is written with the one that is taken after it, if there is one.
        let mut behind = self.memmap().page(last);
        while left != 0 && pfn != 0 {
            left -= 1;
            let page = self.memmap().page(pfn);
            let next = list::next(pfn, page);
            // The same word links both ways.
            let link = encode_next(pfn, first);
            page.next.set(link);
            behind.prev.set(link);
            slots[left].set(make(pfn, page));
            page.flags.set(flags);
            // Release: whoever gets a reference by `get_page` sees the page prepared.
            page._refcount.store(1, Release);
            (first, behind, pfn) = (pfn, page, next);
        }
        list.first.set(pfn);
        let taken = (slots.len() - left) as u32;
        pcp.count.drop_by(taken << order.raw());
        // Halved by each of them.
        pcp.free_factor.set(pcp.free_factor.get() >> taken.min(31));
        sync::unlock(&pcp.lock);
        if taken != 0 {
            route.pgalloc.fetch_add((taken as u64) << order.raw(), Relaxed);
            pcp.vm_numa_event[NumaStat::NumaHit.index()].fetch_add(taken as u64, Relaxed);
            route.locality.fetch_add(taken as u64, Relaxed);
        }
        Taken { first, last, blocks: taken }
    }

    /// Refills an empty list of a pageset whose lock is held, for an allocation that need not succeed: what would have to
    /// come from page blocks of another type is left to the general way.
    #[cold]
    #[inline(never)]
    fn refill_here(&self, route: &Route, order: Order) {
        let flags = AllocFlags::WMARK_LOW.with(AllocFlags::NOFRAGMENT);
        self.refill_pageset(route.index, route.pcp, order.raw(), route.migratetype, flags);
    }

    /// Frees blocks of `order` to this CPU's pageset: `pfn` and those that its metadata links it to, both ways, as long as
    /// they are of one zone and nobody else has a reference. Their metadata says that they have no owner, but for flags
    /// and `index` of the first pages. Gives the block it stopped at, 0 at the end, and how many it freed.
    #[inline]
    pub(crate) fn free_blocks_here(&self, pfn: u32, order: Order) -> (u32, u32) {
        let (mut rest, mut freed) = (pfn, 0);
        while rest != 0 {
            let (mut dropper, mut chain) =
                (Dropper::new(self, rest, order), Dropped { first: rest, ..Dropped::default() });
            while rest != 0 {
                let page = self.memmap().page(rest);
                if !dropper.drop_last(self, rest, page) {
                    break;
                }
                (chain.last, chain.blocks) = (rest, chain.blocks + 1);
                rest = list::next(rest, page);
            }
            chain.home = dropper.home;
            if chain.blocks == 0 {
                break;
            }
            freed += chain.blocks;
            self.free_dropped(&chain, order);
        }
        (rest, freed)
    }

    /// Frees blocks of `order`, at least one, to this CPU's pageset.
    #[inline(always)]
    pub(crate) fn free_dropped(&self, chain: &Dropped, order: Order) {
        let (cpu, raw, index) = (self.platform.this_cpu(), order.raw(), ZoneIndex(chain.home.zone() as u16));
        let Some(pcp) = cpu.pcps.get(index.index()) else { return };
        if !pcp_allowed_order(raw) || !sync::try_lock(&pcp.lock) {
            return self.free_dropped_general(chain, order);
        }
        if keeps_none(pcp, raw) {
            self.free_past(index, pcp, chain, raw);
        } else {
            self.free_to(index, pcp, chain, raw);
        }
        sync::unlock(&pcp.lock);
        cpu.state.vm_events[VmEvent::Pgfree.index()].fetch_add((chain.blocks as u64) << raw, Relaxed);
    }

    /// As [`Self::free_dropped`], one by one, with nothing taken for granted.
    #[cold]
    #[inline(never)]
    fn free_dropped_general(&self, chain: &Dropped, order: Order) {
        let mut pfn = chain.first;
        for _ in 0..chain.blocks {
            let page = self.memmap().page(pfn);
            let next = list::next(pfn, page);
            page._refcount.store(1, Release);
            self.free_pages(Pfn::new(pfn as u64), order);
            pfn = next;
        }
    }

    /// Puts blocks on a pageset, whose lock is held, and empties part of it if it is full.
    #[inline(always)]
    fn free_to(&self, index: ZoneIndex, pcp: &PcpState, chain: &Dropped, raw: u32) {
        let count = pcp.count.get() + (chain.blocks << raw);
        if count >= pcp.high.get() {
            return self.free_filling(index, pcp, chain, raw);
        }
        pcp.count.set(count);
        list::pcp_push_head_chain(self.memmap(), chain.list(pcp, raw).1, chain.first, chain.last);
    }

    /// As [`Self::free_to`], where there is not room for all: whenever it is full, it is emptied.
    #[cold]
    #[inline(never)]
    fn free_filling(&self, index: ZoneIndex, pcp: &PcpState, chain: &Dropped, raw: u32) {
        let (pindex, list) = chain.list(pcp, raw);
        let (mut first, mut left) = (chain.first, chain.blocks);
        while left != 0 {
            let none = keeps_none(pcp, raw);
            // Up to the one that makes it full.
            let room = pcp.high.get().saturating_sub(pcp.count.get()).div_ceil(1 << raw).max(1);
            let blocks = if none { left } else { room.min(left) };
            let mut last = first;
            for _ in 1..blocks {
                last = list::next(last, self.memmap().page(last));
            }
            let next = list::next(last, self.memmap().page(last));
            if none {
                return self.free_past(index, pcp, &Dropped { first, last, blocks, ..*chain }, raw);
            }
            list::pcp_push_head_chain(self.memmap(), list, first, last);
            pcp.count.bump(blocks << raw);
            if pcp.count.get() >= pcp.high.get() {
                self.shrink_pageset(index, pcp, pindex, false);
            }
            (first, left) = (next, left - blocks);
        }
    }

    /// Gives blocks to the zone that a pageset, whose lock is held, does not keep, and what it has.
    #[inline(always)]
    fn free_past(&self, index: ZoneIndex, pcp: &PcpState, chain: &Dropped, raw: u32) {
        if pcp.count.get() != 0 {
            self.shrink_pageset(index, pcp, 0, true);
        }
        self.lock_zone(index).free_chain(chain.first, chain.last, raw);
    }
}
