//! The short ways, which nearly all allocations and frees take.
//!
//! Both do nothing before they know that they can finish; otherwise the general way starts from scratch. The
//! conditions are those of `get_page_from_freelist` and `free_unref_page` for the common case, so taking the short way
//! makes no difference but speed.
//!
//! While something watches allocations ([`crate::instrument`]), neither gets a pageset's lock: its gate is shut. That is
//! all the short ways have to do with it.

use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MIGRATE_PCPTYPES;
use pagevisor_shared::page::Page;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::region::zone::{ListHead, NR_PCP_LISTS, PCP_LOW_ORDERS, PcpState, ZoneState};
use pagevisor_shared::units::{Order, Pfn};
use pagevisor_shared::vmstat::{NumaStat, VmEvent, ZoneStat};
use pagevisor_shared::zone::ZoneIndex;

use super::watermark::has_free_block;
use crate::Mm;
use crate::cpu::Route;
use crate::list;
use crate::pcp::{keeps_none, order_to_pindex, pcp_allowed_order};
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// Flags that want more than a block as it comes off the list, or (the first) another zonelist than the CPU's own.
const SPECIAL: Gfp = Gfp::THISNODE.with(Gfp::ZERO).with(Gfp::COMP);

/// A frame number, of which 0 stands for none.
#[inline(always)]
const fn frame(raw: u64) -> Option<Pfn> {
    if raw == 0 { None } else { Some(Pfn::new(raw)) }
}

/// Whether `zone` is above its low watermark for an allocation that prefers it. The preferred zone is the highest
/// populated one of its node that the allocation may use, so it keeps nothing from it (`lowmem_reserve` is 0).
#[inline(always)]
pub(super) fn above_low_watermark(zone: &ZoneState, order: u32) -> bool {
    let free = zone.vm_stat[ZoneStat::NrFreePages.index()].get() - ((1i64 << order) - 1);
    free > zone.alloc_mark.get() && (order == 0 || has_free_block(zone, order))
}

impl<P: Platform> Mm<P> {
    /// Allocates one page (`alloc_page`).
    #[inline]
    pub fn alloc_page(&self, gfp: Gfp) -> Option<Pfn> {
        frame(self.alloc_page_fast(gfp))
    }

    /// Allocates a block of `order`, which is not 0.
    #[inline(always)]
    pub(super) fn alloc_block(&self, gfp: Gfp, order: Order) -> Option<Pfn> {
        frame(self.alloc_block_fast(gfp, order))
    }

    /// One page; 0 for none.
    #[inline(always)]
    fn alloc_page_fast(&self, gfp: Gfp) -> u64 {
        let route = self.platform.this_cpu().route(gfp);
        let pcp = route.pcp;
        if gfp.intersects(SPECIAL) {
            return self.alloc_block_fast(gfp, Order::ZERO);
        }
        if !above_low_watermark(route.zone, 0) || !sync::try_lock(&pcp.lock) {
            return self.alloc_local(gfp, Order::ZERO);
        }
        let pfn = route.list.first.get();
        if pfn == 0 {
            return self.refill(gfp, Order::ZERO, pcp);
        }
        let page = self.pop(route, route.list, pfn, 0);
        self.hand_out(page, 0);
        pfn as u64
    }

    /// A block of any order, with any flags; 0 for none.
    #[inline(never)]
    fn alloc_block_fast(&self, gfp: Gfp, order: Order) -> u64 {
        let route = self.platform.this_cpu().route(gfp);
        let pcp = route.pcp;
        if gfp.intersects(Gfp::THISNODE)
            || !pcp_allowed_order(order.raw())
            || !above_low_watermark(route.zone, order.raw())
            || !sync::try_lock(&pcp.lock)
        {
            return self.alloc_local(gfp, order);
        }
        let list = &pcp.lists[order_to_pindex(route.migratetype, order.raw()).min(NR_PCP_LISTS - 1)];
        let pfn = list.first.get();
        if pfn == 0 {
            return self.refill(gfp, order, pcp);
        }
        let page = self.pop(route, list, pfn, order.raw());
        if gfp.intersects(SPECIAL) {
            self.prep_new_page(pfn, order.raw(), gfp);
        } else {
            self.hand_out(page, order.raw());
        }
        pfn as u64
    }

    /// A block of `order` from this CPU's pageset of its nearest node with memory, if the short way can give one; it is
    /// compound if that was asked for, and not cleared. For callers that go the general way otherwise.
    #[inline]
    pub(crate) fn alloc_block_here(&self, gfp: Gfp, order: Order) -> Option<u32> {
        let cpu = self.platform.this_cpu();
        let route = cpu.route(gfp);
        let pcp = route.pcp;
        if route.zone.node.get() as usize != cpu.mem_node.index()
            || !pcp_allowed_order(order.raw())
            || !above_low_watermark(route.zone, order.raw())
            || !sync::try_lock(&pcp.lock)
        {
            return None;
        }
        let list = &pcp.lists[order_to_pindex(route.migratetype, order.raw()).min(NR_PCP_LISTS - 1)];
        let pfn = list.first.get();
        if pfn == 0 {
            sync::unlock(&pcp.lock);
            return None;
        }
        let page = self.pop(route, list, pfn, order.raw());
        let head = if order != Order::ZERO && gfp.contains(Gfp::COMP) { PageFlag::Head.mask() } else { 0 };
        page.flags.set(Self::pcp_flags(order.raw()) | head);
        // Release: whoever gets a reference by `get_page` sees the page prepared.
        page._refcount.store(1, Release);
        Some(pfn)
    }

    /// The end of an allocation that found its list empty.
    #[cold]
    #[inline(never)]
    fn refill(&self, gfp: Gfp, order: Order, pcp: &PcpState) -> u64 {
        sync::unlock(&pcp.lock);
        self.alloc_local(gfp, order)
    }

    /// Takes the first block, `pfn`, off a list of the pageset, whose lock is held and given back.
    #[inline(always)]
    pub(super) fn pop(&self, route: &Route, list: &ListHead, pfn: u32, order: u32) -> &'static Page {
        let pcp = route.pcp;
        let page = self.memmap().page(pfn);
        list::pcp_pop_head(list, pfn, page);
        pcp.count.drop_by(1 << order);
        let factor = pcp.free_factor.get();
        if factor != 0 {
            pcp.free_factor.set(factor >> 1);
        }
        sync::unlock(&pcp.lock);
        route.pgalloc.fetch_add(1 << order, Relaxed);
        pcp.vm_numa_event[NumaStat::NumaHit.index()].fetch_add(1, Relaxed);
        route.locality.fetch_add(1, Relaxed);
        page
    }

    /// Makes a block that came off a pageset its owner's (`prep_new_page` without special wishes).
    #[inline(always)]
    fn hand_out(&self, page: &Page, order: u32) {
        // From here on the content is its owner's. Pages that were in use before have this flag already.
        if page.flags.get() != Self::pcp_flags(order) {
            page.flags.set(Self::pcp_flags(order));
        }
        // Release: whoever gets a reference by `get_page` sees the page prepared.
        page._refcount.store(1, Release);
    }

    /// Drops a reference to the page at `pfn` and frees it if that was the last (`__free_page`).
    #[inline]
    pub fn free_page(&self, pfn: Pfn) {
        self.free_fast(pfn, Order::ZERO);
    }

    /// As [`Self::free_page`], for a block of `order`, which is not 0.
    #[inline(never)]
    pub(super) fn free_block(&self, pfn: Pfn, order: Order) {
        if pcp_allowed_order(order.raw()) {
            self.free_fast(pfn, order);
        } else {
            self.free_pages_slow(pfn, order);
        }
    }

    /// Puts a block back on this CPU's pageset, or takes the general way if that is not possible at once.
    #[inline(always)]
    fn free_fast(&self, pfn: Pfn, order: Order) {
        let cpu = self.platform.this_cpu();
        let Some(home) = self.frames.home(pfn.raw()) else { return self.free_pages_slow(pfn, order) };
        let page = self.memmap().page(pfn.raw() as u32);
        let Some(pcp) = cpu.pcps.get(home.zone()) else { return self.free_pages_slow(pfn, order) };
        // The allocation's order is in the flags: a wrong one does not match, nor does a flag that says that the page is
        // in use or that its owner may have left something behind.
        if page.flags.get() != Self::pcp_flags(order.raw()) || !sync::try_lock(&pcp.lock) {
            return self.free_pages_slow(pfn, order);
        }
        // AcqRel: what others did with the page before they dropped their references comes before its next use.
        if page._refcount.fetch_sub(1, AcqRel) != 1 {
            return self.undo_free(pcp, pfn, order);
        }
        let pindex = match order.raw() {
            0 => home.migratetype(),
            low if low < PCP_LOW_ORDERS as u32 => MIGRATE_PCPTYPES * low as usize + home.migratetype(),
            _ => NR_PCP_LISTS - 1,
        };
        page.index.set(home.migratetype() as u32);
        list::pcp_push_head(self.memmap(), &pcp.lists[pindex.min(NR_PCP_LISTS - 1)], pfn.raw() as u32, page);
        let count = pcp.count.get() + (1 << order.raw());
        pcp.count.set(count);
        if count >= pcp.high.get() || keeps_none(pcp, order.raw()) {
            return self.shrink_and_unlock(home.zone(), pcp, pindex, order);
        }
        sync::unlock(&pcp.lock);
        cpu.state.vm_events[VmEvent::Pgfree.index()].fetch_add(1 << order.raw(), Relaxed);
    }

    /// Gives back a reference that was dropped too early, and frees the general way.
    #[cold]
    #[inline(never)]
    fn undo_free(&self, pcp: &PcpState, pfn: Pfn, order: Order) {
        self.memmap().page(pfn.raw() as u32)._refcount.fetch_add(1, Relaxed);
        sync::unlock(&pcp.lock);
        self.free_pages_slow(pfn, order);
    }

    /// The end of a free that filled the pageset.
    #[cold]
    #[inline(never)]
    fn shrink_and_unlock(&self, zone: usize, pcp: &PcpState, pindex: usize, order: Order) {
        self.shrink_pageset(ZoneIndex(zone as u16), pcp, pindex, keeps_none(pcp, order.raw()));
        sync::unlock(&pcp.lock);
        self.count_vm_events(VmEvent::Pgfree, 1 << order.raw());
    }
}
