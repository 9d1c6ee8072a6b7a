//! Walking a zonelist (`get_page_from_freelist`, `rmqueue`).

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page_flags::PG_ORDER_SHIFT;
use pagevisor_shared::units::{NodeId, NodeMask, Order, PAGEBLOCK_ORDER};
use pagevisor_shared::vmstat::VmEvent;
use pagevisor_shared::zone::ZoneIndex;

use super::context::{AllocContext, Candidate, alloc_flags_cma, alloc_flags_nofragment};
use super::watermark::{wmark_pages, zone_watermark_fast};
use crate::Mm;
use crate::buddy::AllocFlags;
use crate::pcp::{gated, pcp_allowed_order};
use crate::platform::Platform;
use crate::sync::{self, Plain};

impl<P: Platform> Mm<P> {
    /// Allocates from this CPU's node first, the general way; 0 for none.
    #[inline(never)]
    pub(super) fn alloc_local(&self, gfp: Gfp, order: Order) -> u64 {
        self.alloc_pages_general(gfp, order, self.platform.this_cpu().node, None).unwrap_or(0) as u64
    }

    /// `__alloc_pages`.
    pub(super) fn alloc_pages_general(
        &self,
        gfp: Gfp,
        order: Order,
        node: NodeId,
        nodemask: Option<NodeMask>,
    ) -> Option<u32> {
        if self.instrumented() != 0 {
            return self.alloc_pages_instrumented(gfp, order, node, nodemask);
        }
        self.alloc_pages_plain(gfp, order, node, nodemask)
    }

    /// `__alloc_pages` without instrumentation.
    #[inline]
    pub(crate) fn alloc_pages_plain(
        &self,
        gfp: Gfp,
        order: Order,
        node: NodeId,
        nodemask: Option<NodeMask>,
    ) -> Option<u32> {
        let mut context = AllocContext::prepare(self, gfp, node, nodemask)?;
        let flags = AllocFlags::WMARK_LOW.with(alloc_flags_cma(gfp)).with(alloc_flags_nofragment(self, &context, gfp));
        let pfn = self.get_page_from_freelist(gfp, order.raw(), flags, &context);
        if pfn.is_some() { pfn } else { self.alloc_pages_slowpath(gfp, order, &mut context) }
    }

    /// Takes a block from the first zone of the list that has one to spare (`get_page_from_freelist`).
    pub(super) fn get_page_from_freelist(
        &self,
        gfp: Gfp,
        order: u32,
        mut flags: AllocFlags,
        context: &AllocContext,
    ) -> Option<u32> {
        let preferred = context.preferred?;
        loop {
            let no_fallback = flags.intersects(AllocFlags::NOFRAGMENT);
            let mut next = Some(preferred);
            while let Some(candidate) = next {
                // Before going to another node, fragment this one: locality matters more.
                if no_fallback && candidate.zone.node.get() != preferred.zone.node.get() {
                    break;
                }
                if self.zone_has_room(candidate, gfp, order, flags, context)
                    && let Some(pfn) = self.rmqueue(preferred.index, candidate, order, flags, context.migratetype)
                {
                    self.prep_new_page(pfn, order, gfp);
                    if flags.intersects(AllocFlags::HIGHATOMIC) {
                        self.lock_zone(candidate.index).reserve_highatomic_pageblock(pfn);
                    }
                    return Some(pfn);
                }
                next = context.next(self, candidate);
            }
            if !no_fallback {
                return None;
            }
            flags = flags.without(AllocFlags::NOFRAGMENT);
        }
    }

    /// Whether the watermarks let the allocation have pages of the zone.
    #[inline]
    fn zone_has_room(
        &self,
        candidate: Candidate,
        gfp: Gfp,
        order: u32,
        flags: AllocFlags,
        context: &AllocContext,
    ) -> bool {
        let mark = wmark_pages(candidate.zone, flags.watermark());
        zone_watermark_fast(candidate.zone, order, mark, context.highest, flags, gfp)
            || flags.intersects(AllocFlags::NO_WATERMARKS)
            || self.node_reclaim_enabled() && self.reclaimed_enough(candidate, gfp, order, mark, flags, context)
    }

    /// Takes a block from a zone, from this CPU's pageset if it keeps such blocks (`rmqueue`).
    #[inline]
    fn rmqueue(
        &self,
        preferred: ZoneIndex,
        candidate: Candidate,
        order: u32,
        flags: AllocFlags,
        migratetype: MigrateType,
    ) -> Option<u32> {
        let index = candidate.index;
        let mut pfn = None;
        // Lists of movable pages have pages of contiguous memory areas; those of a page block are for all types.
        if pcp_allowed_order(order) && (migratetype != MigrateType::Movable || flags.intersects(AllocFlags::CMA)) {
            let flags = if order == PAGEBLOCK_ORDER { flags.without(AllocFlags::CMA) } else { flags };
            pfn = self.rmqueue_pcplist(index, order, migratetype, flags);
        }
        if pfn.is_none() {
            pfn = self.rmqueue_buddy(index, order, migratetype, flags);
        }
        if pfn.is_some() {
            let cpu = self.platform.this_cpu();
            let event = VmEvent::PgallocDma.index() + candidate.zone.zone_type.get() as usize % 5;
            cpu.state.vm_events[event].fetch_add(1 << order, Relaxed);
            self.zone_statistics(cpu, preferred, index, 1);
        }
        let (word, bit) = (&self.boosted[index.index() / 64 % 5], 1 << (index.index() % 64));
        if word.load(Relaxed) & bit != 0 {
            word.fetch_and(!bit, Relaxed);
            self.wake_kswapd(Gfp::NONE, Order::ZERO, index);
        }
        pfn
    }

    /// Takes a block from this CPU's pageset of a zone (`rmqueue_pcplist`).
    #[inline]
    fn rmqueue_pcplist(&self, index: ZoneIndex, order: u32, kind: MigrateType, flags: AllocFlags) -> Option<u32> {
        let pcp = self.platform.this_cpu().pcps.get(index.index())?;
        let held = gated(pcp).try_lock()?;
        // Less is freed at once as long as pages are allocated again.
        pcp.free_factor.set(pcp.free_factor.get() >> 1);
        let pfn = self.rmqueue_pcplist_locked(index, pcp, order, kind, flags);
        sync::unlock(held);
        pfn
    }

    /// Takes a block from a zone's free lists (`rmqueue_buddy`).
    #[inline]
    fn rmqueue_buddy(&self, index: ZoneIndex, order: u32, kind: MigrateType, flags: AllocFlags) -> Option<u32> {
        let zone = self.lock_zone(index);
        let mut block = None;
        if flags.intersects(AllocFlags::HIGHATOMIC) {
            block = zone.rmqueue_smallest(order, MigrateType::HighAtomic);
        }
        if block.is_none() {
            block = zone.rmqueue(order, kind, flags);
        }
        // Rather the reserve than a failure now.
        if block.is_none() && flags.intersects(AllocFlags::OOM.with(AllocFlags::NON_BLOCK)) {
            block = zone.rmqueue_smallest(order, MigrateType::HighAtomic);
        }
        let block = block?;
        zone.mod_free_pages_of(-(1i64 << order), block.migratetype);
        drop(zone);
        self.memmap().page(block.pfn).flags.set(block.notzero | order << PG_ORDER_SHIFT);
        Some(block.pfn)
    }
}
