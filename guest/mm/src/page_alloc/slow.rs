//! The long way, when no zone is above its low watermark (`__alloc_pages_slowpath`).

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::event::EventKind;
use pagevisor_shared::units::Order;
use pagevisor_shared::vmstat::{VmEvent, ZoneStat};
use pagevisor_shared::zone::{MAX_NR_ZONES, Watermark, ZoneIndex, ZoneType};

use super::PAGE_ALLOC_COSTLY_ORDER;
use super::context::{AllocContext, alloc_flags_cma};
use super::watermark::{wmark_pages, zone_watermark_ok};
use crate::Mm;
use crate::buddy::AllocFlags;
use crate::hooks::ReclaimRequest;
use crate::platform::Platform;

/// How often reclaim may be repeated without progress (`MAX_RECLAIM_RETRIES`).
const MAX_RECLAIM_RETRIES: u32 = 16;

/// `gfp_to_alloc_flags`: the rights of an allocation below the low watermark.
pub(super) const fn gfp_to_alloc_flags(gfp: Gfp, order: u32) -> AllocFlags {
    let rights = AllocFlags(gfp.bits() & (Gfp::HIGH.bits() | Gfp::KSWAPD_RECLAIM.bits()));
    let mut flags = AllocFlags::WMARK_MIN.with(AllocFlags::CPUSET).with(rights).with(alloc_flags_cma(gfp));
    if !gfp.contains(Gfp::DIRECT_RECLAIM) {
        if !gfp.contains(Gfp::NOMEMALLOC) {
            flags = flags.with(AllocFlags::NON_BLOCK);
            if order > 0 {
                flags = flags.with(AllocFlags::HIGHATOMIC);
            }
        }
        if flags.intersects(AllocFlags::MIN_RESERVE) {
            flags = flags.without(AllocFlags::CPUSET);
        }
    }
    flags
}

/// `__gfp_pfmemalloc_flags`: the right to ignore watermarks.
const fn pfmemalloc_flags(gfp: Gfp) -> Option<AllocFlags> {
    if !gfp.contains(Gfp::NOMEMALLOC) && gfp.contains(Gfp::MEMALLOC) { Some(AllocFlags::NO_WATERMARKS) } else { None }
}

/// What to do after an attempt.
enum Step {
    Got(u32),
    Retry,
    Fail,
}

impl<P: Platform> Mm<P> {
    /// Tells background reclaim that zone `index` needs it.
    pub(super) fn wake_kswapd(&self, gfp: Gfp, order: Order, index: ZoneIndex) {
        if let Some(wake) = self.hooks.wake_kswapd {
            self.trace_wakeup(index, gfp, order, index.index() % 5);
            let highest_zone = ZoneType::new(index.index() % 5).unwrap_or(ZoneType::Normal);
            wake(self, &ReclaimRequest { gfp, order, highest_zone, preferred: Some(index), nodemask: None });
        }
    }

    /// `wake_all_kswapds`.
    fn wake_all_kswapds(&self, gfp: Gfp, order: Order, context: &AllocContext) {
        if let Some(wake) = self.hooks.wake_kswapd {
            if self.traces(EventKind::MmVmscanWakeupKswapd) {
                let mut last = None;
                for candidate in context.zones(self) {
                    let node = candidate.index.index() / MAX_NR_ZONES;
                    if last.replace(node) != Some(node) {
                        self.trace_wakeup(candidate.index, gfp, order, context.highest.index());
                    }
                }
            }
            wake(self, &request(gfp, order, context));
        }
    }

    /// `__alloc_pages_slowpath`.
    #[cold]
    #[inline(never)]
    pub(super) fn alloc_pages_slowpath(&self, gfp: Gfp, order: Order, context: &mut AllocContext) -> Option<u32> {
        let can_reclaim = gfp.contains(Gfp::DIRECT_RECLAIM);
        // Both at once is a mistake: who can reclaim is not atomic.
        let gfp = if can_reclaim { gfp.without(Gfp::ATOMIC) } else { gfp };
        let mut flags = gfp_to_alloc_flags(gfp, order.raw());
        context.find_preferred(self);
        let mut page = None;
        if context.preferred.is_some() {
            if flags.intersects(AllocFlags::KSWAPD) {
                self.wake_all_kswapds(gfp, order, context);
            }
            page = self.get_page_from_freelist(gfp, order.raw(), flags, context);
        }
        let mut no_progress = 0;
        while page.is_none() {
            match self.slow_round(gfp, order, context, &mut flags, &mut no_progress) {
                Step::Got(pfn) => page = Some(pfn),
                Step::Retry => {}
                Step::Fail => match self.must_not_fail(gfp, order, context) {
                    Step::Got(pfn) => page = Some(pfn),
                    Step::Retry => self.platform.relax(),
                    Step::Fail => {
                        self.warn_alloc(gfp, order, context.nodemask);
                        return None;
                    }
                },
            }
        }
        page
    }

    /// One round from the label `retry` of Linux's function to where it decides.
    fn slow_round(
        &self,
        gfp: Gfp,
        order: Order,
        context: &mut AllocContext,
        flags: &mut AllocFlags,
        no_progress: &mut u32,
    ) -> Step {
        if context.preferred.is_none() {
            return Step::Fail;
        }
        let reserve = pfmemalloc_flags(gfp);
        if let Some(reserve) = reserve {
            *flags = reserve.with(alloc_flags_cma(gfp)).with(AllocFlags(flags.0 & AllocFlags::KSWAPD.0));
        }
        // Allocations of high priority are the system's: policies do not bind them.
        if !flags.intersects(AllocFlags::CPUSET) || reserve.is_some() {
            context.nodemask = None;
            context.find_preferred(self);
        }
        if let Some(pfn) = self.get_page_from_freelist(gfp, order.raw(), *flags, context) {
            return Step::Got(pfn);
        }
        if !gfp.contains(Gfp::DIRECT_RECLAIM) || gfp.contains(Gfp::MEMALLOC) {
            return Step::Fail;
        }
        self.count_allocstall(context.highest);
        let progress = self.hooks.direct_reclaim.map_or(0, |reclaim| reclaim(self, &request(gfp, order, context)));
        if progress != 0
            && let Some(pfn) = self.take_reclaimed(gfp, order, *flags, context)
        {
            return Step::Got(pfn);
        }
        if order != Order::ZERO
            && let Some(pfn) =
                self.hooks.direct_compact.and_then(|compact| compact(self, &request(gfp, order, context)))
        {
            self.prep_new_page(pfn.raw() as u32, order.raw(), gfp);
            return Step::Got(pfn.raw() as u32);
        }
        let costly = order.raw() > PAGE_ALLOC_COSTLY_ORDER;
        if gfp.contains(Gfp::NORETRY) || costly && !gfp.contains(Gfp::RETRY_MAYFAIL) {
            return Step::Fail;
        }
        if self.should_reclaim_retry(order.raw(), context, *flags, progress != 0, no_progress) {
            return Step::Retry;
        }
        self.may_oom(gfp, order, context)
    }

    /// Looks again after reclaim; what it freed may sit on pagesets or in the reserve.
    fn take_reclaimed(&self, gfp: Gfp, order: Order, flags: AllocFlags, context: &AllocContext) -> Option<u32> {
        let page = self.get_page_from_freelist(gfp, order.raw(), flags, context);
        if page.is_some() {
            return page;
        }
        self.unreserve_highatomic(context, false);
        self.drain_all_pages(None);
        self.get_page_from_freelist(gfp, order.raw(), flags, context)
    }

    /// `count_vm_event(ALLOCSTALL)` of the highest zone it may use.
    fn count_allocstall(&self, highest: ZoneType) {
        if self.hooks.direct_reclaim.is_some() {
            let event = VmEvent::AllocstallDma.index() + highest.index();
            self.platform.this_cpu().state.vm_events[event].fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        }
    }

    /// `should_reclaim_retry`: whether reclaiming once more could help. Before giving up, the reserve is used up.
    fn should_reclaim_retry(
        &self,
        order: u32,
        context: &AllocContext,
        flags: AllocFlags,
        progress: bool,
        no_progress: &mut u32,
    ) -> bool {
        if progress && order <= PAGE_ALLOC_COSTLY_ORDER {
            *no_progress = 0;
        } else {
            *no_progress += 1;
        }
        let hopeful = *no_progress <= MAX_RECLAIM_RETRIES
            && self.hooks.direct_reclaim.is_some()
            && context.zones(self).any(|candidate| {
                let min = wmark_pages(candidate.zone, Watermark::Min as usize);
                let reclaimable: u64 = [
                    ZoneStat::NrZoneInactiveAnon,
                    ZoneStat::NrZoneActiveAnon,
                    ZoneStat::NrZoneInactiveFile,
                    ZoneStat::NrZoneActiveFile,
                ]
                .iter()
                .map(|&item| self.zone_page_state_snapshot(candidate.index, item))
                .sum();
                let free = self.zone_page_state_snapshot(candidate.index, ZoneStat::NrFreePages);
                zone_watermark_ok(candidate.zone, order, min, context.highest, flags, (free + reclaimable) as i64)
            });
        hopeful || self.unreserve_highatomic(context, true)
    }

    /// `unreserve_highatomic_pageblock`: gives a reserved page block back. Unless `force`, one per zone is kept.
    fn unreserve_highatomic(&self, context: &AllocContext, force: bool) -> bool {
        use crate::sync::Plain;
        use pagevisor_shared::units::PAGEBLOCK_NR_PAGES;
        context.zones(self).any(|candidate| {
            let reserved = candidate.zone.nr_reserved_highatomic.get();
            (force || reserved > PAGEBLOCK_NR_PAGES)
                && reserved != 0
                && self.lock_zone(candidate.index).unreserve_highatomic_pageblock(context.migratetype)
        })
    }

    /// `__alloc_pages_may_oom`: a last look, then the OOM killer where it may help.
    fn may_oom(&self, gfp: Gfp, order: Order, context: &AllocContext) -> Step {
        let patient = gfp.without(Gfp::DIRECT_RECLAIM).with(Gfp::HARDWALL);
        let high = AllocFlags::WMARK_HIGH.with(AllocFlags::CPUSET);
        if let Some(pfn) = self.get_page_from_freelist(patient, order.raw(), high, context) {
            return Step::Got(pfn);
        }
        let helps = order.raw() <= PAGE_ALLOC_COSTLY_ORDER
            && !gfp.intersects(Gfp::RETRY_MAYFAIL.with(Gfp::THISNODE))
            && context.highest >= ZoneType::Normal;
        let Some(out_of_memory) = self.hooks.out_of_memory.filter(|_| helps) else { return Step::Fail };
        if !out_of_memory(self, &request(gfp, order, context)) {
            return Step::Fail;
        }
        // Help what must not fail with all there is.
        if gfp.contains(Gfp::NOFAIL)
            && let Some(pfn) = self.get_page_from_freelist(gfp, order.raw(), AllocFlags::NO_WATERMARKS, context)
        {
            return Step::Got(pfn);
        }
        Step::Retry
    }

    /// What `__GFP_NOFAIL` makes of a failure: an attempt with part of the reserves and with what CPUs hold on their
    /// pagesets, then another round, until a layer above or another CPU brings memory back. An allocation that cannot
    /// wait, or that no zone serves, fails all the same.
    fn must_not_fail(&self, gfp: Gfp, order: Order, context: &AllocContext) -> Step {
        if !gfp.contains(Gfp::NOFAIL) || !gfp.contains(Gfp::DIRECT_RECLAIM) || context.preferred.is_none() {
            return Step::Fail;
        }
        self.drain_all_pages(None);
        match self.get_page_from_freelist(gfp, order.raw(), AllocFlags::MIN_RESERVE, context) {
            Some(pfn) => Step::Got(pfn),
            None => Step::Retry,
        }
    }
}

/// The allocation as the layers above see it.
fn request(gfp: Gfp, order: Order, context: &AllocContext) -> ReclaimRequest {
    ReclaimRequest {
        gfp,
        order,
        highest_zone: context.highest,
        preferred: context.preferred.map(|candidate| candidate.index),
        nodemask: context.nodemask,
    }
}
