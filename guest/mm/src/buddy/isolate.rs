//! Isolating a page block: its free pages leave the zone's count and nobody is given any, until it is put back.

use core::ops::Range;

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page::PG_BUDDY;
use pagevisor_shared::page_flags::{PG_NOTZERO, PageFlag};
use pagevisor_shared::units::{MAX_ORDER, MAX_ORDER_NR_PAGES, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER, Pfn};

use super::free::{Placement, is_buddy};
use super::lock::{Block, LockedZone, list_type};
use crate::list;
use crate::platform::Platform;
use crate::sync::Plain;

/// The largest order.
const LARGEST: u32 = MAX_ORDER as u32 - 1;

impl<P: Platform> LockedZone<'_, P> {
    /// Takes the page block at `pfn` out of use for allocations of all types (`set_migratetype_isolate`). False when it
    /// is isolated already, or holds a page that cannot be moved. `migratetype` is what the block is isolated for.
    pub(crate) fn set_migratetype_isolate(&self, pfn: u32, migratetype: MigrateType) -> bool {
        let old = self.mm.frames.migratetype(pfn as u64);
        if old == MigrateType::Isolate || self.has_unmovable_pages(pfn, migratetype) {
            return false;
        }
        self.mark_untouched(pfn);
        let moved = self.convert_pageblock(pfn, MigrateType::Isolate);
        self.mod_free_pages_of(-(moved as i64), old);
        true
    }

    /// Puts an isolated page block back in use as one of `migratetype` (`unset_migratetype_isolate`).
    pub(crate) fn unset_migratetype_isolate(&self, pfn: u32, migratetype: MigrateType) {
        if self.mm.frames.migratetype(pfn as u64) != MigrateType::Isolate {
            return;
        }
        let page = self.memmap.page(pfn);
        // As long as it was isolated it did not merge with its buddy; freeing it does.
        let buddy = pfn ^ PAGEBLOCK_NR_PAGES as u32;
        let merges = is_buddy(page, PAGEBLOCK_ORDER)
            && is_buddy(self.memmap.page(buddy), PAGEBLOCK_ORDER)
            && self.owns(buddy)
            && self.mm.frames.migratetype(buddy as u64) != MigrateType::Isolate;
        let freed = if merges {
            let notzero = page.flags.get() & PG_NOTZERO;
            self.del_page_from_free_list(pfn, page, PAGEBLOCK_ORDER, list_type(page));
            self.mm.frames.set_migratetype(pfn as u64, migratetype);
            let block = Block { pfn, order: PAGEBLOCK_ORDER, notzero, migratetype };
            self.free_one_page(block, Placement::Tail);
            PAGEBLOCK_NR_PAGES
        } else {
            self.convert_pageblock(pfn, migratetype)
        };
        self.mod_free_pages_of(freed as i64, migratetype);
    }

    /// Splits the free block that reaches over `boundary`, a page block's start, if there is one (`split_free_page`).
    pub(crate) fn split_at(&self, boundary: u32) {
        self.mark_untouched(boundary);
        let Some((head, order)) = self.free_block_of(boundary) else { return };
        if head == boundary {
            return;
        }
        let page = self.memmap.page(head);
        let notzero = page.flags.get() & PG_NOTZERO;
        if list_type(page) != MigrateType::Isolate {
            self.mod_free_pages_of(-(1i64 << order), list_type(page));
        }
        self.del_page_from_free_list(head, page, order, list_type(page));
        let (mut pfn, end) = (head, head + (1 << order));
        while pfn < end {
            // Each part goes to the list of its own page block.
            let migratetype = self.mm.frames.migratetype(pfn as u64);
            let stop = if pfn < boundary { boundary } else { end };
            let order = pfn.trailing_zeros().min((stop - pfn).ilog2());
            self.free_one_page(Block { pfn, order, notzero, migratetype }, Placement::Auto);
            if migratetype != MigrateType::Isolate {
                self.mod_free_pages_of(1 << order, migratetype);
            }
            pfn += 1 << order;
        }
    }

    /// The marked free block that frame `pfn` is in: its first frame and its order.
    pub(crate) fn free_block_of(&self, pfn: u32) -> Option<(u32, u32)> {
        (0..=LARGEST).find_map(|at_least| {
            let head = pfn & !((1 << at_least) - 1);
            let page = self.memmap.page(head);
            let order = page.private.get();
            let found = page._mapcount.get() == PG_BUDDY && order >= at_least && self.owns(head);
            found.then_some((head, order))
        })
    }

    /// How far from `start` to `end` there are free blocks side by side: the first frame that heads none, or the end of
    /// the last block (`__test_page_isolated_in_pageblock`).
    pub(crate) fn free_until(&self, start: u32, end: u32) -> u32 {
        let mut pfn = start;
        while pfn < end {
            let page = self.memmap.page(pfn);
            if page._mapcount.get() != PG_BUDDY {
                break;
            }
            pfn += 1 << page.private.get().min(LARGEST);
        }
        pfn
    }

    /// Takes the free blocks that make up isolated frames `[start, end)` off their lists, whole; gives the frames they
    /// have. None when some of the frames are not free (`isolate_freepages_range`).
    pub(crate) fn take_isolated(&self, start: u32, end: u32) -> Option<Range<u32>> {
        let Some((first, _)) = self.free_block_of(start) else {
            self.mm.trace_isolated(start as u64, end as u64, start as u64);
            return None;
        };
        let stop = self.free_until(first, end);
        self.mm.trace_isolated(first as u64, end as u64, stop as u64);
        if stop < end {
            return None;
        }
        let mut pfn = first;
        while pfn < end {
            let page = self.memmap.page(pfn);
            let order = page.private.get().min(LARGEST);
            self.del_page_from_free_list(pfn, page, order, list_type(page));
            pfn += 1 << order;
        }
        Some(first..pfn)
    }

    /// Whether something in the page block at `pfn` cannot be moved out of it (`has_unmovable_pages`): a page in use
    /// that is on no LRU list, or what is not this zone's memory.
    fn has_unmovable_pages(&self, pfn: u32, migratetype: MigrateType) -> bool {
        let end = pfn + PAGEBLOCK_NR_PAGES as u32;
        if !self.mm.is_usable(self.index, pfn as u64, end as u64) {
            return true;
        }
        // Areas are isolated for their own allocations only, and whatever they hold is there on that condition.
        if self.mm.frames.migratetype(pfn as u64) == MigrateType::Cma {
            return migratetype != MigrateType::Cma;
        }
        // The compound page that reaches into the block counts by its head.
        let mut at = self.mm.compound_head(Pfn::new(pfn as u64)).map_or(pfn, |head| head.raw() as u32);
        while at < end {
            let page = self.memmap.page(at);
            let flags = page.flags.get();
            let sized = if page._refcount.get() == 0 {
                page._mapcount.get() == PG_BUDDY
            } else if flags & PageFlag::Lru.mask() == 0 {
                return true;
            } else {
                flags & PageFlag::Head.mask() != 0
            };
            at += if sized { 1 << page.private.get().min(LARGEST) } else { 1 };
        }
        false
    }

    /// Gives the free block of the largest order around `pfn` its mark, if it is one that nobody has touched yet.
    pub(crate) fn mark_untouched(&self, pfn: u32) {
        let head = pfn & !(MAX_ORDER_NR_PAGES as u32 - 1);
        if self.is_untouched_head(head) {
            let page = self.memmap.page(head);
            page._mapcount.set(PG_BUDDY);
            page.private.set(LARGEST);
        }
    }

    /// Whether `head` is on the list of the largest blocks without a mark. Metadata alone does not tell.
    fn is_untouched_head(&self, head: u32) -> bool {
        let page = self.memmap.page(head);
        let words = [&page._mapcount, &page._refcount, &page.private, &page.index];
        if words.iter().any(|word| word.get() != 0) || !self.owns(head) {
            return false;
        }
        let (area, kind) = (&self.state.free_area[MAX_ORDER - 1], MigrateType::Movable.index());
        let mut pfn = area.free_list[kind].first.get();
        let mut left = area.nr_free[kind].get();
        while pfn != 0 && left != 0 {
            if pfn == head {
                return true;
            }
            pfn = list::next(pfn, self.memmap.page(pfn));
            left -= 1;
        }
        false
    }
}
