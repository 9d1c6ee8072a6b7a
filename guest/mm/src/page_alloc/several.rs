//! Several blocks of one order at once, for the slab allocator: one pageset lock for all of them.
//!
//! As the short ways, both do nothing with a block before they know that they can finish, and what they leave is what
//! the short ways, block by block, would have left, but for the order of blocks that were freed together: they stay
//! linked as they were. What a pageset would not keep goes to the zone without having been on it.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MIGRATE_PCPTYPES;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::region::zone::{NR_PCP_LISTS, PCP_LOW_ORDERS, PcpState};
use pagevisor_shared::units::{Order, PAGEBLOCK_ORDER};
use pagevisor_shared::vmstat::{NumaStat, VmEvent};
use pagevisor_shared::zone::ZoneIndex;

use super::fast::above_low_watermark;
use crate::Mm;
use crate::buddy::AllocFlags;
use crate::cpu::Route;
use crate::list;
use crate::pcp::{keeps_none, order_to_pindex, pcp_allowed_order};
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// Blocks that are linked to each other, of page blocks of one type, to which nobody has a reference.
struct Chain {
    first: u32,
    last: u32,
    /// What the last was linked to; 0 for nothing.
    rest: u32,
    blocks: u32,
    migratetype: usize,
}

impl<P: Platform> Mm<P> {
    /// Fills the last of `slots` with the numbers of blocks of `order` off this CPU's pageset of its nearest node with
    /// memory, which is refilled if it has none, as far as the short way can give them; the first is in the last slot.
    /// They are compound if that was asked for, have the flag `mark`, and are not cleared. Gives how many.
    #[inline(never)]
    pub(crate) fn alloc_blocks_here(&self, gfp: Gfp, order: Order, mark: PageFlag, slots: &[AtomicU64]) -> u32 {
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
        let flags = Self::pcp_flags(order.raw()) | head | mark.mask();
        let mut pfn = list.first.get();
        if pfn == 0 {
            self.refill_here(route, order);
            pfn = list.first.get();
        }
        let mut taken = 0;
        for slot in slots.iter().rev() {
            if pfn == 0 {
                break;
            }
            let page = self.memmap().page(pfn);
            slot.set(pfn as u64);
            page.flags.set(flags);
            pfn = list::next(pfn, page);
            // Release: whoever gets a reference by `get_page` sees the page prepared.
            page._refcount.store(1, Release);
            taken += 1;
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
        let (cpu, raw) = (self.platform.this_cpu(), order.raw());
        let zone = self.frames.home(pfn as u64).map_or(usize::MAX, |home| home.zone());
        let Some(pcp) = cpu.pcps.get(zone) else { return (pfn, 0) };
        if !pcp_allowed_order(raw) || !sync::try_lock(&pcp.lock) {
            return (pfn, 0);
        }
        let index = ZoneIndex(zone as u16);
        let (mut rest, mut freed) = (pfn, 0);
        while rest != 0 {
            let none = keeps_none(pcp, raw);
            // Up to the one that makes it full.
            let room = pcp.high.get().saturating_sub(pcp.count.get()).div_ceil(1 << raw).max(1);
            let chain = self.take_chain(rest, order, if none { u32::MAX } else { room }, zone);
            if chain.blocks == 0 {
                break;
            }
            (rest, freed) = (chain.rest, freed + chain.blocks);
            if none {
                self.free_past(index, pcp, &chain, raw);
            } else {
                self.free_to(index, pcp, &chain, raw);
            }
        }
        sync::unlock(&pcp.lock);
        cpu.state.vm_events[VmEvent::Pgfree.index()].fetch_add((freed as u64) << raw, Relaxed);
        (rest, freed)
    }

    /// Drops the last references to `pfn` and the blocks behind it, to `most` at most, as long as they are in page blocks
    /// of one type and of `zone`, and nobody else has one.
    #[inline(always)]
    fn take_chain(&self, pfn: u32, order: Order, most: u32, zone: usize) -> Chain {
        let mut chain = Chain { first: pfn, last: 0, rest: pfn, blocks: 0, migratetype: 0 };
        let (mut block, mut known) = (u32::MAX, None);
        while chain.rest != 0 && chain.blocks < most {
            let pfn = chain.rest;
            if pfn >> PAGEBLOCK_ORDER != block {
                let home = self.frames.home(pfn as u64).filter(|home| home.zone() == zone);
                let Some(home) = home.filter(|home| known.is_none_or(|known| known == *home)) else { break };
                (block, known, chain.migratetype) = (pfn >> PAGEBLOCK_ORDER, Some(home), home.migratetype());
            }
            let page = self.memmap().page(pfn);
            // AcqRel: what others did with the page before they dropped their references comes before its next use.
            if page._refcount.compare_exchange(1, 0, AcqRel, Relaxed).is_err() {
                break;
            }
            page.flags.set(Self::pcp_flags(order.raw()));
            page.index.set(chain.migratetype as u32);
            chain.last = pfn;
            chain.rest = list::next(pfn, page);
            chain.blocks += 1;
        }
        chain
    }

    /// Puts blocks on a pageset, whose lock is held, and empties part of it if it is full.
    #[inline(always)]
    fn free_to(&self, index: ZoneIndex, pcp: &PcpState, chain: &Chain, raw: u32) {
        let pindex = if raw < PCP_LOW_ORDERS as u32 {
            MIGRATE_PCPTYPES * raw as usize + chain.migratetype
        } else {
            NR_PCP_LISTS - 1
        };
        let list = &pcp.lists[pindex.min(NR_PCP_LISTS - 1)];
        list::pcp_push_head_chain(self.memmap(), list, chain.first, chain.last);
        let count = pcp.count.get() + (chain.blocks << raw);
        pcp.count.set(count);
        if count >= pcp.high.get() {
            self.shrink_pageset(index, pcp, pindex, false);
        }
    }

    /// Gives blocks to the zone that a pageset, whose lock is held, does not keep, and what it has.
    #[inline(always)]
    fn free_past(&self, index: ZoneIndex, pcp: &PcpState, chain: &Chain, raw: u32) {
        if pcp.count.get() != 0 {
            self.shrink_pageset(index, pcp, 0, true);
        }
        self.lock_zone(index).free_chain(chain.first, chain.last, raw);
    }
}
