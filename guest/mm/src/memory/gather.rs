//! Pages that are freed only when no processor remembers where they were mapped (`mm/mmu_gather.c`).

use core::sync::atomic::AtomicU32;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::mm_types::MmStruct;
use pagevisor_shared::units::{Pfn, VirtAddr};

use crate::Mm;
use crate::platform::Platform;
use crate::raw::{FrameList, Space};
use crate::sync::Plain;

/// Pages collected without memory for more (`MMU_GATHER_BUNDLE`).
const BUNDLED: usize = 8;
/// Pages of frame numbers at most (`MAX_GATHER_BATCH_COUNT`: 10000 frames).
const MAX_BATCHES: usize = 10;

/// Collects pages that were mapped, and tables (`struct mmu_gather`), until [`Self::flush`] or [`Self::finish`] frees them.
pub(crate) struct Gather<'a, P: Platform> {
    mm: &'a Mm<P>,
    space: Space,
    /// Addresses that the processors must forget.
    start: u64,
    end: u64,
    /// All of the address space goes, and nobody else uses it.
    full: bool,
    tables: bool,
    /// The batch that is being filled: 0 for [`Self::bundled`], else one more than its index.
    batch: usize,
    /// Pages in it.
    len: usize,
    bundled: [Pfn; BUNDLED],
    /// Room of the batch that is being filled; none for [`Self::bundled`].
    current: &'static [AtomicU32],
    batches: [Option<FrameList>; MAX_BATCHES],
}

impl<'a, P: Platform> Gather<'a, P> {
    /// For pages of `space` (`tlb_gather_mmu`).
    pub(crate) fn new(mm: &'a Mm<P>, space: Space) -> Self {
        Self {
            mm,
            space,
            start: u64::MAX,
            end: 0,
            full: false,
            tables: false,
            batch: 0,
            len: 0,
            bundled: [Pfn::new(0); BUNDLED],
            current: &[],
            batches: [const { None }; MAX_BATCHES],
        }
    }

    /// For all that is left of `space`, which nobody else uses (`tlb_gather_mmu_fullmm`).
    pub(crate) fn full(mm: &'a Mm<P>, space: Space) -> Self {
        Self { full: true, ..Self::new(mm, space) }
    }

    /// Whether all of the address space goes.
    #[inline(always)]
    pub(crate) fn is_full_mm(&self) -> bool {
        self.full
    }

    /// The address space.
    #[inline(always)]
    pub(crate) fn space(&self) -> &'static MmStruct {
        self.space.record()
    }

    /// Entries from `start` up to `end` were changed (`tlb_flush_pte_range`).
    #[inline(always)]
    pub(crate) fn changed(&mut self, start: u64, end: u64) {
        self.start = self.start.min(start);
        self.end = self.end.max(end);
    }

    /// Adds a page that an entry kept; the entry's reference is dropped when no processor remembers it
    /// (`__tlb_remove_page`). False when there is no room for another: then the caller gives its locks back and calls
    /// [`Self::flush`].
    ///
    /// Nobody comes to the addresses of a space that all goes, whatever a processor remembers: of its pages, the references
    /// are dropped at once, and the tables alone wait.
    #[inline(always)]
    #[must_use]
    pub(crate) fn remove_page(&mut self, pfn: Pfn) -> bool {
        if self.full && !self.mm.drop_user_page(pfn) {
            return true;
        }
        self.keep(pfn)
    }

    #[inline(always)]
    fn keep(&mut self, pfn: Pfn) -> bool {
        if self.batch == 0
            && let Some(slot) = self.bundled.get_mut(self.len)
        {
            *slot = pfn;
            self.len += 1;
            return self.len < BUNDLED || self.next_batch();
        }
        if let Some(slot) = self.current.get(self.len) {
            slot.set(pfn.raw() as u32);
            self.len += 1;
            return self.len < FrameList::CAPACITY || self.next_batch();
        }
        // Nobody flushed when told to: late is better than not at all.
        self.flush();
        self.keep(pfn)
    }

    /// Goes on to the next batch (`tlb_next_batch`).
    #[cold]
    fn next_batch(&mut self) -> bool {
        let Some(next) = self.batches.get_mut(self.batch) else { return false };
        if next.is_none() {
            *next = self.mm.alloc_pages(Gfp::NOWAIT | Gfp::NOWARN, Default::default()).map(FrameList::new);
        }
        let Some(list) = next else { return false };
        self.current = list.slots(self.mm.direct_map());
        self.batch += 1;
        self.len = 0;
        true
    }

    /// Adds a table that was taken out.
    pub(crate) fn remove_table(&mut self, pfn: Pfn) {
        self.tables = true;
        // Its only reference is that of the entry that led there, as a page's.
        if self.full {
            self.mm.drop_user_page(pfn);
        }
        if !self.keep(pfn) {
            self.flush();
        }
    }

    /// Makes the processors forget, and frees what was collected (`tlb_flush_mmu`).
    pub(crate) fn flush(&mut self) {
        if self.start < self.end || self.tables {
            let (start, end) = if self.full || self.start >= self.end { (0, u64::MAX) } else { (self.start, self.end) };
            self.mm.platform.flush_user(self.space.record(), VirtAddr::new(start), VirtAddr::new(end), self.tables);
        }
        (self.start, self.end, self.tables) = (u64::MAX, 0, false);
        let (batch, len) = (core::mem::take(&mut self.batch), core::mem::take(&mut self.len));
        let bundled = if batch == 0 { len } else { BUNDLED };
        self.current = &[];
        self.free(bundled);
        for index in 0..batch {
            let size = if index + 1 == batch { len } else { FrameList::CAPACITY };
            self.free_batch(index, size);
        }
    }

    fn free_batch(&mut self, index: usize, size: usize) {
        let Some(Some(list)) = self.batches.get(index) else { return };
        let slots = list.slots(self.mm.direct_map());
        let mut at = 0;
        while at < size {
            let now = (size - at).min(BUNDLED);
            for (pfn, slot) in self.bundled[..now].iter_mut().zip(slots.iter().skip(at)) {
                *pfn = Pfn::new(slot.get().into());
            }
            self.free(now);
            at += now;
        }
    }

    /// Frees the first `count` pages.
    fn free(&mut self, count: usize) {
        let pages = &mut self.bundled[..count];
        if self.full { self.mm.free_dropped_pages(pages) } else { self.mm.free_user_pages(pages) }
    }

    /// As [`Self::flush`]; nothing follows (`tlb_finish_mmu`).
    pub(crate) fn finish(mut self) {
        self.flush();
        for list in self.batches.into_iter().flatten() {
            self.mm.free_page(list.pfn());
        }
    }
}
