//! The short ways, which nearly all allocations and frees take.
//!
//! Both do nothing before they know that they can finish; otherwise the general way starts from scratch. The
//! conditions are those of `get_page_from_freelist` and `free_unref_page` for the common case, so taking the short way
//! makes no difference but speed.

use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::{MIGRATE_PCPTYPES, MigrateType};
use pagevisor_shared::region::zone::{PCP_LOW_ORDERS, ZoneState};
use pagevisor_shared::units::{Order, PAGEBLOCK_ORDER, Pfn};
use pagevisor_shared::vmstat::{NumaStat, VmEvent, ZoneStat};
use pagevisor_shared::zone::{Watermark, ZoneIndex};

use super::watermark::has_free_block;
use crate::Mm;
use crate::list;
use crate::pcp::{order_to_pindex, pcp_allowed_order};
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// Flags that give an allocation another zonelist than its CPU's own.
const OTHER_ROUTE: Gfp = Gfp::THISNODE;
/// Flags that ask for more than a block as it comes off the list.
const MORE_PREP: Gfp = Gfp::ZERO.with(Gfp::COMP);

/// Whether `zone` is above its low watermark for an allocation that prefers it. The preferred zone is the highest
/// populated one of its node that the allocation may use, so it keeps nothing from it (`lowmem_reserve` is 0).
#[inline(always)]
fn above_low_watermark(zone: &ZoneState, order: u32) -> bool {
    let free = zone.vm_stat[ZoneStat::NrFreePages.index()].get();
    let usable = free - zone.nr_reserved_highatomic.get() as i64 - ((1i64 << order) - 1);
    let mark = zone.watermark[Watermark::Low as usize].get() + zone.watermark_boost.get();
    usable > mark as i64 && (order == 0 || has_free_block(zone, order))
}

impl<P: Platform> Mm<P> {
    /// Allocates one page (`alloc_page`).
    #[inline]
    pub fn alloc_page(&self, gfp: Gfp) -> Option<Pfn> {
        match self.alloc_fast(gfp, 0) {
            0 => self.alloc_local(gfp, Order::ZERO),
            pfn => Some(Pfn::new(pfn as u64)),
        }
    }

    /// Allocates a block of `order`, which is not 0.
    #[inline]
    pub(super) fn alloc_block(&self, gfp: Gfp, order: Order) -> Option<Pfn> {
        if pcp_allowed_order(order.raw()) {
            let pfn = self.alloc_fast(gfp, order.raw());
            if pfn != 0 {
                return Some(Pfn::new(pfn as u64));
            }
        }
        self.alloc_local(gfp, order)
    }

    /// A block from the pageset of the preferred zone; 0 when that is not possible at once.
    #[inline(always)]
    fn alloc_fast(&self, gfp: Gfp, order: u32) -> u32 {
        let cpu = self.platform.this_cpu();
        let route = cpu.route(gfp);
        let pcp = route.pcp;
        if gfp.intersects(OTHER_ROUTE) || !above_low_watermark(route.zone, order) || !sync::try_lock(&pcp.lock) {
            return 0;
        }
        let Some(list) = pcp.lists.get(order_to_pindex(route.migratetype, order)) else { return 0 };
        let pfn = list.first.get();
        if pfn == 0 {
            sync::unlock(&pcp.lock);
            return 0;
        }
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
        page.private.set(0);
        if page.flags.get() != Self::pcp_flags(order) || gfp.intersects(MORE_PREP) {
            self.prep_flags(pfn, order, gfp);
        }
        // Release: whoever gets a reference by `get_page` sees the page prepared.
        page._refcount.store(1, core::sync::atomic::Ordering::Release);
        pfn
    }

    /// Drops a reference to the page at `pfn` and frees it if that was the last (`__free_page`).
    #[inline]
    pub fn free_page(&self, pfn: Pfn) {
        if !self.free_fast(pfn.raw(), 0) {
            self.free_pages_slow(pfn, Order::ZERO);
        }
    }

    /// As [`Self::free_page`], for a block of `order`, which is not 0.
    #[inline]
    pub(super) fn free_block(&self, pfn: Pfn, order: Order) {
        if !pcp_allowed_order(order.raw()) || !self.free_fast(pfn.raw(), order.raw()) {
            self.free_pages_slow(pfn, order);
        }
    }

    /// Puts a block back on this CPU's pageset; false when that is not possible at once.
    #[inline(always)]
    fn free_fast(&self, pfn: u64, order: u32) -> bool {
        let cpu = self.platform.this_cpu();
        let zone = self.frames.zone_of(pfn);
        let Some(pcp) = cpu.pcps.get(zone as usize) else { return false };
        let page = self.memmap().page(pfn as u32);
        // The allocation's order is kept in the flags: a wrong one does not match, nor does a flag that says the page
        // is in use.
        if page.flags.get() != Self::pcp_flags(order) || page._mapcount.get() | page.mapping.get() != 0 {
            return false;
        }
        let block_type = self.frames.migratetype(pfn);
        if block_type.index() >= MIGRATE_PCPTYPES || !sync::try_lock(&pcp.lock) {
            return false;
        }
        // AcqRel: what others did with the page before they dropped their references comes before its next use.
        if page._refcount.fetch_sub(1, AcqRel) != 1 {
            page._refcount.fetch_add(1, Relaxed);
            sync::unlock(&pcp.lock);
            return false;
        }
        self.free_unref_page_commit(ZoneIndex(zone), pcp, pfn as u32, order, block_type);
        sync::unlock(&pcp.lock);
        cpu.state.vm_events[VmEvent::Pgfree.index()].fetch_add(1 << order, Relaxed);
        true
    }
}

const _: () = assert!(PCP_LOW_ORDERS == 4 && PAGEBLOCK_ORDER == 9 && MigrateType::Reclaimable.index() == 2);
