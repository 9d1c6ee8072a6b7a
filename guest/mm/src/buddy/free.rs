//! Giving a block back (`__free_one_page`).

use pagevisor_shared::migrate::{MIGRATE_PCPTYPES, MigrateType};
use pagevisor_shared::page::{PG_BUDDY, Page};
use pagevisor_shared::page_flags::PG_NOTZERO;
use pagevisor_shared::units::{MAX_ORDER, PAGEBLOCK_ORDER, Pfn};

use super::lock::{Block, LockedZone, list_type};
use crate::platform::Platform;
use crate::sync::Plain;

/// Where on its list a freed block goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// First, or last if the pair it belongs to is likely to merge soon (`FPI_NONE`).
    Auto,
    /// Last (`FPI_TO_TAIL`).
    Tail,
}

/// Whether blocks of this type merge with those of other such types (`migratetype_is_mergeable`).
const fn is_mergeable(migratetype: MigrateType) -> bool {
    migratetype.index() < MIGRATE_PCPTYPES
}

impl<P: Platform> LockedZone<'_, P> {
    /// Puts a block on the free lists, merged with its buddy, and that with its own, as far as they are free
    /// (`__free_one_page`). The count of free pages is the caller's.
    #[inline(always)]
    pub(crate) fn free_one_page(&self, block: Block, placement: Placement) {
        self.free_one_page_of(block, placement, self.has_one_zone(block.pfn));
    }

    /// Whether all buddies of blocks in the chunk of frame `pfn`, one of this zone, are in this zone.
    #[inline(always)]
    pub(super) fn has_one_zone(&self, pfn: u32) -> bool {
        // Buddies below the largest order lie in one chunk. Where it has one zone, they are in the same.
        self.mm.frames.zone_of(pfn as u64) == self.index.0
    }

    /// As [`Self::free_one_page`], for who knows whether its chunk [`Self::has_one_zone`].
    #[inline(always)]
    pub(super) fn free_one_page_of(&self, block: Block, placement: Placement, one_zone: bool) {
        let Block { mut pfn, mut order, mut notzero, migratetype } = block;
        let mut buddy = 0;
        while order < MAX_ORDER as u32 - 1 {
            buddy = pfn ^ (1 << order);
            let page = self.memmap.page(buddy);
            if !is_buddy(page, order) || !(one_zone || self.owns(buddy)) {
                break;
            }
            if order >= PAGEBLOCK_ORDER && !self.may_merge(migratetype, buddy) {
                break;
            }
            notzero |= page.flags.get() & PG_NOTZERO;
            self.del_page_from_free_list(buddy, page, order, list_type(page));
            pfn &= buddy;
            order += 1;
        }
        let tail = placement == Placement::Tail || self.buddy_merge_likely(pfn, buddy, order, one_zone);
        self.add_to_free_list(Block { pfn, order, notzero, migratetype }, tail);
    }

    /// Whether a block of `migratetype` may merge with the page block of `buddy`. Reserved and isolated page blocks
    /// stay apart from others, or their accounting would break.
    fn may_merge(&self, migratetype: MigrateType, buddy: u32) -> bool {
        let other = self.mm.frames.migratetype(buddy as u64);
        migratetype == other || is_mergeable(migratetype) && is_mergeable(other)
    }

    /// Whether the pair above the one that `pfn` and `buddy` make up is half free: then the rest is likely to be
    /// freed soon, and the block is better used last (`buddy_merge_likely`).
    #[inline]
    fn buddy_merge_likely(&self, pfn: u32, buddy: u32, order: u32, one_zone: bool) -> bool {
        if order >= MAX_ORDER as u32 - 2 {
            return false;
        }
        let higher_buddy = (buddy & pfn) ^ (1 << (order + 1));
        is_buddy(self.memmap.page(higher_buddy), order + 1) && (one_zone || self.owns(higher_buddy))
    }

    /// Whether frame `pfn` is in this zone (`page_zone_id` compared).
    #[cold]
    pub(super) fn owns(&self, pfn: u32) -> bool {
        self.mm.page_zone(Pfn::new(pfn as u64)) == Some(self.index)
    }
}

/// Whether a free block of exactly `order` starts at `page` (`page_is_buddy`).
#[inline(always)]
pub(super) fn is_buddy(page: &Page, order: u32) -> bool {
    page._mapcount.get() == PG_BUDDY && page.private.get() == order
}
