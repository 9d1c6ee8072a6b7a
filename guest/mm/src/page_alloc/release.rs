//! Giving up many single pages at once (`release_pages`, `free_unref_page_list`).

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::event::EventKind;
use pagevisor_shared::region::zone::PcpState;
use pagevisor_shared::units::{Order, PAGEBLOCK_ORDER, Pfn};
use pagevisor_shared::vmstat::VmEvent;
use pagevisor_shared::zone::ZoneIndex;

use crate::Mm;
use crate::buddy::Placement;
use crate::list;
use crate::pcp::gated;
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// Most pages that are put on a pageset before its lock is given back (`SWAP_CLUSTER_MAX`).
const SWAP_CLUSTER_MAX: usize = 32;

/// Pages that are to be given up, collected until there are as many as fit (`struct pagevec`).
///
/// What is in it when it is dropped stays allocated; [`Self::release`] gives it up.
#[derive(Debug)]
pub(crate) struct PageVec {
    pages: [Pfn; SWAP_CLUSTER_MAX],
    len: usize,
}

impl PageVec {
    /// Nothing yet.
    pub(crate) const fn new() -> Self {
        Self { pages: [Pfn::new(0); SWAP_CLUSTER_MAX], len: 0 }
    }

    /// Gives up a block of `order`, now or with those that follow: what came first is freed first.
    pub(crate) fn add<P: Platform>(&mut self, mm: &Mm<P>, pfn: Pfn, order: Order) {
        if order != Order::ZERO {
            self.release(mm);
            return mm.free_pages(pfn, order);
        }
        if let Some(slot) = self.pages.get_mut(self.len) {
            *slot = pfn;
            self.len += 1;
        }
        if self.len == SWAP_CLUSTER_MAX {
            self.release(mm);
        }
    }

    /// Gives up all that was added.
    pub(crate) fn release<P: Platform>(&mut self, mm: &Mm<P>) {
        let len = core::mem::take(&mut self.len);
        if let Some(pages) = self.pages.get_mut(..len) {
            mm.release_pages(pages);
        }
    }
}

/// A pageset whose lock is held.
struct Locked<'a> {
    index: ZoneIndex,
    pcp: &'a PcpState,
    held: &'a AtomicU32,
}

impl<P: Platform> Mm<P> {
    /// Drops a reference to each of these single pages, and frees those to which it was the last, first first. The
    /// result is that of [`Self::free_pages`] on each; the slice's order is not kept.
    pub fn release_pages(&self, pages: &mut [Pfn]) {
        let mut left = pages;
        let traced = self.traces(EventKind::MmPageFreeBatched);
        loop {
            let freed = if traced { 0 } else { self.release_cluster(left) };
            left = left.get_mut(freed..).unwrap_or_default();
            if left.is_empty() {
                return;
            }
            if freed == 0 {
                // What is watched is recorded page by page, but all at once.
                let most = if self.instrumented() == 0 && !traced { 1 } else { left.len() };
                let (now, later) = left.split_at_mut(most);
                self.release_general(now);
                left = later;
            }
        }
    }

    /// Frees pages as the short way does, with one pageset's lock for all: as many as follow each other that it can
    /// free, up to [`SWAP_CLUSTER_MAX`]. Gives how many.
    ///
    /// What pages of one page block have in common is looked up once, and what changes with each page is written once.
    #[inline(always)]
    fn release_cluster(&self, pages: &[Pfn]) -> usize {
        let cpu = self.platform.this_cpu();
        let home = |pfn: &Pfn| self.frames.home(pfn.raw());
        let zone = pages.first().and_then(home).map_or(usize::MAX, |home| home.zone());
        let Some(pcp) = cpu.pcps.get(zone) else { return 0 };
        if !sync::try_lock(&pcp.lock) {
            return 0;
        }
        let (mut freed, mut count, high) = (0, pcp.count.get(), pcp.high.get());
        let (mut block, mut pindex, mut list) = (u64::MAX, 0, &pcp.lists[0]);
        let mut first = list.first.get();
        for pfn in pages.iter().take(SWAP_CLUSTER_MAX) {
            if pfn.raw() >> PAGEBLOCK_ORDER != block {
                let Some(home) = home(pfn).filter(|home| home.zone() == zone) else { break };
                list.first.set(first);
                (block, pindex) = (pfn.raw() >> PAGEBLOCK_ORDER, home.migratetype());
                list = &pcp.lists[pindex];
                first = list.first.get();
            }
            let frame = pfn.raw() as u32;
            let page = self.memmap().page(frame);
            // AcqRel: what others did with the page before they dropped their references comes before its next use.
            if page.flags.get() != Self::pcp_flags(0) || page._refcount.compare_exchange(1, 0, AcqRel, Relaxed).is_err()
            {
                break;
            }
            page.index.set(pindex as u32);
            list::pcp_link_head(self.memmap(), list, first, frame, page);
            first = frame;
            freed += 1;
            count += 1;
            if count >= high {
                list.first.set(first);
                pcp.count.set(count);
                self.shrink_pageset(ZoneIndex(zone as u16), pcp, pindex, false);
                (first, count) = (list.first.get(), pcp.count.get());
            }
        }
        list.first.set(first);
        pcp.count.set(count);
        sync::unlock(&pcp.lock);
        cpu.state.vm_events[VmEvent::Pgfree.index()].fetch_add(freed as u64, Relaxed);
        freed
    }

    /// As [`Self::release_pages`], for pages of any kind.
    #[inline(never)]
    fn release_general(&self, pages: &mut [Pfn]) {
        let mut last = 0;
        for at in 0..pages.len() {
            let pfn = pages[at];
            if self.drop_general(pfn) {
                pages[last] = pfn;
                last += 1;
            }
        }
        self.free_unref_page_list(&pages[..last]);
    }

    /// Drops a reference to a page; tells whether it was the last and the page is ready.
    fn drop_general(&self, pfn: Pfn) -> bool {
        match self.drop_checked(pfn, Order::ZERO) {
            Some((index, _, 1)) => self.free_unref_page_prepare(index, pfn),
            _ => false,
        }
    }

    /// Makes a page ready for its pageset; false if it is off the lists, or on those of the zone already
    /// (`free_unref_page_prepare`, and the first loop of `free_unref_page_list`).
    pub(super) fn free_unref_page_prepare(&self, index: ZoneIndex, pfn: Pfn) -> bool {
        let frame = pfn.raw() as u32;
        self.settle(index, frame);
        if !self.free_pages_prepare(frame, 0) {
            return false;
        }
        let isolated = self.frames.migratetype(pfn.raw()) == MigrateType::Isolate;
        if isolated {
            self.count_vm_events(VmEvent::Pgfree, 1);
            self.free_one_page(index, frame, 0, Placement::Auto);
        }
        !isolated
    }

    /// The zone of a page, and the type of its page block.
    #[inline(always)]
    fn place_of(&self, pfn: Pfn) -> Option<(ZoneIndex, MigrateType)> {
        let home = self.frames.home(pfn.raw())?;
        match MigrateType::ALL.get(home.migratetype()) {
            Some(kind) if home.zone() < self.zones.len() => Some((ZoneIndex(home.zone() as u16), *kind)),
            _ => Some((self.page_zone(pfn)?, self.frames.migratetype(pfn.raw()))),
        }
    }

    /// Puts pages that are ready on their pagesets, each pageset's lock held for as many of them as follow each other
    /// (the second loop of `free_unref_page_list`).
    pub(super) fn free_unref_page_list(&self, pages: &[Pfn]) {
        let cpu = self.platform.this_cpu();
        let traced = self.traces(EventKind::MmPageFreeBatched);
        let mut locked: Option<Locked<'_>> = None;
        for cluster in pages.chunks(SWAP_CLUSTER_MAX) {
            for pfn in cluster {
                let Some((index, kind)) = self.place_of(*pfn) else { continue };
                let frame = pfn.raw() as u32;
                if let Some(other) = locked.take_if(|locked| locked.index != index) {
                    sync::unlock(other.held);
                }
                if locked.is_none() {
                    locked = cpu
                        .pcps
                        .get(index.index())
                        .and_then(|pcp| gated(pcp).try_lock().map(|held| Locked { index, pcp, held }));
                }
                match &locked {
                    // The type may have changed since the first loop.
                    Some(locked) if kind != MigrateType::Isolate => {
                        if traced {
                            self.trace_free_batched(*pfn);
                        }
                        self.free_unref_page_commit(index, locked.pcp, frame, 0, kind);
                    }
                    _ => self.free_one_page(index, frame, 0, Placement::Auto),
                }
            }
            if let Some(done) = locked.take() {
                sync::unlock(done.held);
            }
        }
        cpu.state.vm_events[VmEvent::Pgfree.index()].fetch_add(pages.len() as u64, Relaxed);
    }
}
