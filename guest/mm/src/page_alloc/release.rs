//! Giving up many single pages at once (`release_pages`, `free_unref_page_list`).

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::event::EventKind;
use pagevisor_shared::region::zone::PcpState;
use pagevisor_shared::units::{Order, Pfn};
use pagevisor_shared::vmstat::VmEvent;
use pagevisor_shared::zone::ZoneIndex;

use crate::Mm;
use crate::buddy::Placement;
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
        let watched = self.instrumented() != 0;
        let mut last = 0;
        for at in 0..pages.len() {
            let pfn = pages[at];
            if !watched && self.drop_short(pfn) || self.drop_general(pfn) {
                pages[last] = pfn;
                last += 1;
            }
        }
        self.free_unref_page_list(&pages[..last]);
    }

    /// Drops the last reference to a page that needs no more than that to be ready, as the short way of freeing does;
    /// false, and nothing done, for any other.
    #[inline(always)]
    fn drop_short(&self, pfn: Pfn) -> bool {
        if self.frames.home(pfn.raw()).is_none_or(|home| home.zone() >= self.zones.len()) {
            return false;
        }
        let page = self.memmap().page(pfn.raw() as u32);
        if page.flags.get() != Self::pcp_flags(0) {
            return false;
        }
        // AcqRel: what others did with the page before they dropped their references comes before its next use.
        let last = page._refcount.fetch_sub(1, AcqRel) == 1;
        if !last {
            page._refcount.fetch_add(1, Relaxed);
        }
        last
    }

    /// Drops a reference to a page; tells whether it was the last and the page is ready.
    #[inline(never)]
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
