//! Isolating ranges of page blocks (`start_isolate_page_range` and its relatives).

use core::ops::Range;

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::region::records::RangeRecord;
use pagevisor_shared::units::{PAGE_SHIFT, PAGEBLOCK_NR_PAGES, Pfn};
use pagevisor_shared::zone::ZoneIndex;

use super::ContigError;
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// The page blocks that frames of `range` are in, as frames.
const fn pageblocks(range: &Range<Pfn>) -> Range<u64> {
    let start = range.start.raw() & !(PAGEBLOCK_NR_PAGES - 1);
    start..range.end.raw().next_multiple_of(PAGEBLOCK_NR_PAGES)
}

/// How many bytes of frames `[start, end)` are in `ranges`.
pub(super) fn overlap(ranges: &[RangeRecord], start: u64, end: u64) -> u64 {
    let (base, top) = (start << PAGE_SHIFT, end << PAGE_SHIFT);
    let ends = ranges.iter().map(|range| (range.base.get(), range.base.get().saturating_add(range.size.get())));
    ends.map(|(from, to)| to.min(top).saturating_sub(from.max(base))).sum()
}

impl<P: Platform> Mm<P> {
    /// Isolates the page blocks of `range`: from now on nothing of them is allocated, what is freed to them stays
    /// there, and their free pages do not count as free (`start_isolate_page_range`). All or none of them. Pages on
    /// pagesets are not touched; [`Self::drain_all_pages`] returns them.
    ///
    /// `migratetype` is what the blocks are to be afterwards; `Cma` is the only one that may isolate such blocks.
    ///
    /// # Errors
    /// [`ContigError::Busy`] when a page of the blocks is in use and cannot be moved, or a block is isolated already;
    /// [`ContigError::Invalid`] for a range that is empty or not in one zone.
    pub fn start_isolate_page_range(&self, range: &Range<Pfn>, migratetype: MigrateType) -> Result<(), ContigError> {
        let index = self.zone_of_range(range)?;
        let blocks = pageblocks(range);
        let last = blocks.end - PAGEBLOCK_NR_PAGES;
        let undo = |to: u64| self.undo_isolate(index, blocks.start..to, migratetype);
        // The ends first: free blocks may reach over them.
        self.isolate_end(index, blocks.start, blocks.start, migratetype)?;
        if last == blocks.start {
            self.split_end(index, blocks.end).inspect_err(|_| undo(blocks.end))?;
        } else {
            self.isolate_end(index, last, blocks.end, migratetype).inspect_err(|_| undo(last))?;
        }
        for block in (blocks.start + PAGEBLOCK_NR_PAGES..last).step_by(PAGEBLOCK_NR_PAGES as usize) {
            if !self.lock_zone(index).set_migratetype_isolate(block as u32, migratetype) {
                undo(block);
                self.lock_zone(index).unset_migratetype_isolate(last as u32, migratetype);
                return Err(ContigError::Busy);
            }
        }
        Ok(())
    }

    /// Puts the isolated page blocks of `range` back in use as blocks of `migratetype` (`undo_isolate_page_range`).
    pub fn undo_isolate_page_range(&self, range: &Range<Pfn>, migratetype: MigrateType) {
        if let Ok(index) = self.zone_of_range(range) {
            self.undo_isolate(index, pageblocks(range), migratetype);
        }
    }

    /// Whether `range` is isolated and all its pages are free (`test_pages_isolated`). It starts with a page in use or
    /// with the first of a free block.
    pub fn test_pages_isolated(&self, range: &Range<Pfn>) -> bool {
        let Ok(index) = self.zone_of_range(range) else { return false };
        let (start, end) = (range.start.raw(), range.end.raw());
        let mut blocks = (start..end).step_by(PAGEBLOCK_NR_PAGES as usize);
        let stop = match blocks.find(|&block| self.frames.migratetype(block) != MigrateType::Isolate) {
            Some(other) => other,
            None => self.lock_zone(index).free_until(start as u32, end as u32) as u64,
        };
        self.trace_isolated(start, end, stop);
        end <= stop
    }

    /// The zone that holds the ends of `range`.
    pub(super) fn zone_of_range(&self, range: &Range<Pfn>) -> Result<ZoneIndex, ContigError> {
        if range.is_empty() {
            return Err(ContigError::Invalid);
        }
        let index = self.page_zone(range.start).ok_or(ContigError::Invalid)?;
        let last = self.page_zone(Pfn::new(range.end.raw() - 1));
        if last == Some(index) { Ok(index) } else { Err(ContigError::Invalid) }
    }

    /// Whether frames `[start, end)` are all memory of zone `index`, and none of it is reserved.
    pub(crate) fn is_usable(&self, index: ZoneIndex, start: u64, end: u64) -> bool {
        self.is_memory_of(index, start, end) && overlap(self.region.reserved(), start, end) == 0
    }

    /// Whether frames `[start, end)` are all memory of zone `index`.
    pub(super) fn is_memory_of(&self, index: ZoneIndex, start: u64, end: u64) -> bool {
        if overlap(self.region.memory(), start, end) != (end - start) << PAGE_SHIFT {
            return false;
        }
        // Zones meet at page blocks but where nodes do.
        let mut pfn = start;
        while pfn < end {
            if self.page_zone(Pfn::new(pfn)) != Some(index) {
                return false;
            }
            pfn = if self.frames.is_mixed(pfn) { pfn + 1 } else { (pfn + 1).next_multiple_of(PAGEBLOCK_NR_PAGES) };
        }
        true
    }

    /// Isolates `block`, at an end of a range, and splits what reaches over that end (`isolate_single_pageblock`).
    fn isolate_end(&self, index: ZoneIndex, block: u64, end: u64, kind: MigrateType) -> Result<(), ContigError> {
        if !self.lock_zone(index).set_migratetype_isolate(block as u32, kind) {
            return Err(ContigError::Busy);
        }
        self.split_end(index, end).inspect_err(|_| {
            self.lock_zone(index).unset_migratetype_isolate(block as u32, kind);
        })
    }

    /// Splits the free block that reaches over `end`. A compound page that does cannot be moved away.
    fn split_end(&self, index: ZoneIndex, end: u64) -> Result<(), ContigError> {
        let (before, behind) = (self.page_zone(Pfn::new(end.wrapping_sub(1))), self.page_zone(Pfn::new(end)));
        if before != Some(index) || behind != Some(index) {
            return Ok(());
        }
        let zone = self.lock_zone(index);
        zone.split_at(end as u32);
        let head = self.compound_head(Pfn::new(end)).map_or(end, Pfn::raw);
        let across = head < end && self.memmap().page(head as u32).flags.get() & PageFlag::Head.mask() != 0;
        if across { Err(ContigError::Busy) } else { Ok(()) }
    }

    /// Puts page blocks back in use.
    fn undo_isolate(&self, index: ZoneIndex, blocks: Range<u64>, migratetype: MigrateType) {
        for block in blocks.step_by(PAGEBLOCK_NR_PAGES as usize) {
            self.lock_zone(index).unset_migratetype_isolate(block as u32, migratetype);
        }
    }
}
