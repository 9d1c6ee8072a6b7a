//! Several blocks of one order at once, for the slab allocator: one pageset lock for all of them.
//!
//! As the short ways, both do nothing with a block before they know that they can finish, and what they leave is what
//! the short ways, block by block, would have left.

use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MIGRATE_PCPTYPES;
use pagevisor_shared::page::Page;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::region::zone::{NR_PCP_LISTS, PCP_LOW_ORDERS, PcpState};
use pagevisor_shared::units::Order;
use pagevisor_shared::vmstat::{NumaStat, VmEvent};
use pagevisor_shared::zone::ZoneIndex;

use super::fast::above_low_watermark;
use crate::Mm;
use crate::list;
use crate::pcp::{keeps_none, order_to_pindex, pcp_allowed_order};
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// How many pages on a pageset make it give some back when blocks of `order` are freed to it: all, if it is to keep none;
/// but what comes after it was emptied can as well go together, since it is freed in the same order.
#[inline(always)]
fn shrinks_from(pcp: &PcpState, order: u32, emptied: bool) -> u32 {
    if keeps_none(pcp, order) && !emptied { 0 } else { pcp.high.get() }
}

impl<P: Platform> Mm<P> {
    /// Takes up to `most` blocks of `order` off this CPU's pageset of its nearest node with memory, as far as the short
    /// way can give them: they are compound if that was asked for, and not cleared. `take` is called for each, with the
    /// pageset's lock held; it may write the block's metadata but for its references, and nothing else. They stay linked
    /// to each other as they were on the list, whose next one the last is still linked to. Gives how many.
    #[inline(always)]
    pub(crate) fn alloc_blocks_here(
        &self,
        gfp: Gfp,
        order: Order,
        most: u32,
        mut take: impl FnMut(u32, &'static Page),
    ) -> u32 {
        let cpu = self.platform.this_cpu();
        let route = cpu.route(gfp);
        let pcp = route.pcp;
        if route.zone.node.get() as usize != cpu.mem_node.index()
            || !pcp_allowed_order(order.raw())
            || !above_low_watermark(route.zone, order.raw())
            || !sync::try_lock(&pcp.lock)
        {
            return 0;
        }
        let list = &pcp.lists[order_to_pindex(route.migratetype, order.raw()).min(NR_PCP_LISTS - 1)];
        let head = if order != Order::ZERO && gfp.contains(Gfp::COMP) { PageFlag::Head.mask() } else { 0 };
        let flags = Self::pcp_flags(order.raw()) | head;
        let mut taken = 0;
        let mut pfn = list.first.get();
        while pfn != 0 && taken < most {
            let page = self.memmap().page(pfn);
            let next = list::next(pfn, page);
            page.flags.set(flags);
            take(pfn, page);
            // Release: whoever gets a reference by `get_page` sees the page prepared.
            page._refcount.store(1, Release);
            taken += 1;
            pfn = next;
        }
        list.first.set(pfn);
        pcp.count.drop_by(taken << order.raw());
        // Halved by each of them.
        pcp.free_factor.set(pcp.free_factor.get() >> taken.min(31));
        sync::unlock(&pcp.lock);
        if taken != 0 {
            route.pgalloc.fetch_add((taken as u64) << order.raw(), Relaxed);
            pcp.vm_numa_event[NumaStat::NumaHit.index()].fetch_add(taken as u64, Relaxed);
            route.locality.fetch_add(taken as u64, Relaxed);
        }
        taken
    }

    /// Frees blocks of `order` to this CPU's pageset, first first: `pfn` and those that its metadata links it to, as long
    /// as they are of one zone and nobody else has a reference. `clear` is called for each, with the pageset's lock
    /// held, and must leave the metadata of all its pages as that of pages without an owner; flags and `index` of the
    /// first need not be. Gives the block it stopped at, 0 at the end, and how many it freed.
    #[inline(always)]
    pub(crate) fn free_blocks_here(&self, mut pfn: u32, order: Order, clear: impl Fn(u32, &Page)) -> (u32, u32) {
        let (cpu, raw) = (self.platform.this_cpu(), order.raw());
        let zone = self.frames.home(pfn as u64).map_or(usize::MAX, |home| home.zone());
        let Some(pcp) = cpu.pcps.get(zone) else { return (pfn, 0) };
        if !pcp_allowed_order(raw) || !sync::try_lock(&pcp.lock) {
            return (pfn, 0);
        }
        let index = ZoneIndex(zone as u16);
        let (mut freed, mut emptied, mut pindex, mut known) = (0, false, 0, None);
        let (mut count, mut limit) = (pcp.count.get(), shrinks_from(pcp, raw, emptied));
        while pfn != 0
            && let Some(home) = self.frames.home(pfn as u64)
        {
            if known != Some(home) {
                if home.zone() != zone {
                    break;
                }
                known = Some(home);
                pindex = if raw < PCP_LOW_ORDERS as u32 {
                    MIGRATE_PCPTYPES * raw as usize + home.migratetype()
                } else {
                    NR_PCP_LISTS - 1
                };
            }
            let page = self.memmap().page(pfn);
            let next = list::next(pfn, page);
            // AcqRel: what others did with the page before they dropped their references comes before its next use.
            if page._refcount.compare_exchange(1, 0, AcqRel, Relaxed).is_err() {
                break;
            }
            clear(pfn, page);
            page.flags.set(Self::pcp_flags(raw));
            page.index.set(home.migratetype() as u32);
            list::pcp_push_head(self.memmap(), &pcp.lists[pindex.min(NR_PCP_LISTS - 1)], pfn, page);
            count += 1 << raw;
            freed += 1;
            pfn = next;
            if count >= limit {
                pcp.count.set(count);
                let none = keeps_none(pcp, raw);
                self.shrink_pageset(index, pcp, pindex, none);
                emptied = none;
                (count, limit) = (pcp.count.get(), shrinks_from(pcp, raw, emptied));
            }
        }
        pcp.count.set(count);
        if emptied && pcp.count.get() != 0 && keeps_none(pcp, raw) {
            self.shrink_pageset(index, pcp, pindex, true);
        }
        sync::unlock(&pcp.lock);
        cpu.state.vm_events[VmEvent::Pgfree.index()].fetch_add((freed as u64) << raw, Relaxed);
        (pfn, freed)
    }
}
