//! When the lists of a migrate type are empty: taking from another type's, and reserves of whole page blocks.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::{MIGRATE_PCPTYPES, MigrateType};
use pagevisor_shared::page::PG_BUDDY;
use pagevisor_shared::page_flags::{PG_ORDER_MASK, PG_ORDER_SHIFT, PageFlag};
use pagevisor_shared::region::zone::FreeArea;
use pagevisor_shared::units::{MAX_ORDER, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER, Pfn};
use pagevisor_shared::zone::{Watermark, ZoneIndex};

use super::lock::LockedZone;
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;
use crate::zone::update_alloc_mark;
use crate::zone::watermark::boost_watermark;

/// How an allocation may go about it (`ALLOC_*`), with Linux's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AllocFlags(pub(crate) u32);

pagevisor_shared::flag_set!(AllocFlags);

impl AllocFlags {
    /// Checks against the min watermark.
    pub(crate) const WMARK_MIN: Self = Self(Watermark::Min as u32);
    /// Checks against the low watermark.
    pub(crate) const WMARK_LOW: Self = Self(Watermark::Low as u32);
    /// Checks against the high watermark.
    pub(crate) const WMARK_HIGH: Self = Self(Watermark::High as u32);
    /// The bits that name the watermark.
    const WMARK_MASK: u32 = 3;
    /// Does not look at watermarks at all.
    pub(crate) const NO_WATERMARKS: Self = Self(0x04);
    /// Is made by a victim of the OOM killer.
    pub(crate) const OOM: Self = Self(0x08);
    /// Cannot block.
    pub(crate) const NON_BLOCK: Self = Self(0x10);
    /// `__GFP_HIGH`: may use half of the min reserve.
    pub(crate) const MIN_RESERVE: Self = Self(0x20);
    /// Keeps to the task's cpuset.
    pub(crate) const CPUSET: Self = Self(0x40);
    /// May use contiguous memory areas.
    pub(crate) const CMA: Self = Self(0x80);
    /// Avoids mixing migrate types in a page block.
    pub(crate) const NOFRAGMENT: Self = Self(0x100);
    /// May use the page blocks reserved for high-order atomic allocations.
    pub(crate) const HIGHATOMIC: Self = Self(0x200);
    /// May wake kswapd.
    pub(crate) const KSWAPD: Self = Self(0x800);
    /// Any right to reserves below the min watermark (`ALLOC_RESERVES`).
    pub(crate) const RESERVES: Self = Self(Self::NON_BLOCK.0 | Self::MIN_RESERVE.0 | Self::HIGHATOMIC.0 | Self::OOM.0);

    /// Index of the watermark to check.
    #[inline(always)]
    pub(crate) const fn watermark(self) -> usize {
        (self.0 & Self::WMARK_MASK) as usize
    }
}

/// The types whose lists are tried, by the type whose are empty.
const FALLBACKS: [[MigrateType; 2]; MIGRATE_PCPTYPES] = [
    [MigrateType::Reclaimable, MigrateType::Movable],
    [MigrateType::Reclaimable, MigrateType::Unmovable],
    [MigrateType::Unmovable, MigrateType::Movable],
];

/// What moving the free blocks of a page block found.
#[derive(Clone, Copy, Default, Debug)]
struct Moved {
    /// Pages in free blocks, all moved.
    free: u64,
    /// Pages in use that could be migrated.
    movable: u64,
}

impl<P: Platform> Mm<P> {
    /// Takes `pages` off the boost of zone `index`'s watermarks, or all of it: what background reclaim does once it has
    /// made up for the boost (`balance_pgdat`).
    pub fn lower_watermark_boost(&self, index: ZoneIndex, pages: u64) {
        if index.index() >= self.zones.len() {
            return;
        }
        let zone = self.lock_zone(index);
        let boost = &zone.state.watermark_boost;
        boost.set(boost.get().saturating_sub(pages));
        update_alloc_mark(zone.state);
    }

    /// The migrate type of the page block of `pfn` (`get_pageblock_migratetype`).
    pub fn pageblock_migratetype(&self, pfn: Pfn) -> MigrateType {
        self.frames.migratetype(pfn.raw())
    }
}

impl<P: Platform> LockedZone<'_, P> {
    /// `can_steal_fallback`: whether taking a block of `order` for `start` may take its whole page block along.
    fn can_steal_fallback(&self, order: u32, start: MigrateType) -> bool {
        order >= PAGEBLOCK_ORDER / 2
            || matches!(start, MigrateType::Reclaimable | MigrateType::Unmovable)
            || self.mm.region.sysctl().page_group_by_mobility_disabled.get() != 0
    }

    /// `find_suitable_fallback`: the type to take a block of `area` from for an allocation of `start`.
    fn find_suitable_fallback(area: &FreeArea, start: MigrateType) -> Option<MigrateType> {
        let types = FALLBACKS.get(start.index())?;
        types.iter().copied().find(|kind| area.free_list[kind.index()].first.get() != 0)
    }

    /// Moves a free block of another type to the lists of `start`, possibly with others of its page block
    /// (`__rmqueue_fallback`). False when there is none.
    #[cold]
    pub(super) fn rmqueue_fallback(&self, order: u32, start: MigrateType, flags: AllocFlags) -> bool {
        let areas = &self.state.free_area;
        // Rather no page block of mixed types; the caller comes again without the flag when no local zone has any.
        let avoid = order < PAGEBLOCK_ORDER && flags.intersects(AllocFlags::NOFRAGMENT);
        let lowest = if avoid { PAGEBLOCK_ORDER } else { order } as usize;
        // The largest block there is: its page block likely has the most free pages.
        let largest =
            (lowest..MAX_ORDER).rev().find_map(|o| Some((o, Self::find_suitable_fallback(&areas[o], start)?)));
        let Some((mut current, mut from)) = largest else { return false };
        let mut can_steal = self.can_steal_fallback(current as u32, start);
        // A movable page that cannot have the whole page block does least harm in the smallest block.
        if !can_steal && start == MigrateType::Movable && current as u32 > order {
            let smallest =
                (order as usize..MAX_ORDER).find_map(|o| Some((o, Self::find_suitable_fallback(&areas[o], start)?)));
            if let Some(found) = smallest {
                (current, from) = found;
                can_steal = self.can_steal_fallback(current as u32, start);
            }
        }
        let pfn = areas[current].free_list[from.index()].first.get();
        self.steal_suitable_fallback(pfn, current as u32, start, flags, can_steal);
        self.trace_extfrag(pfn, [order, current as u32], [start, from]);
        true
    }

    /// `steal_suitable_fallback`: moves the free block at `pfn` to the lists of `start`, with all free blocks of its
    /// page block if that is allowed, and the page block itself if enough of it is free or alike.
    fn steal_suitable_fallback(&self, pfn: u32, order: u32, start: MigrateType, flags: AllocFlags, whole: bool) {
        let frames = &self.mm.frames;
        let old = frames.migratetype(pfn as u64);
        // Can happen in races; must not break the accounting of the reserve.
        if old == MigrateType::HighAtomic {
            return self.move_to_free_list(pfn, order, start);
        }
        if order >= PAGEBLOCK_ORDER {
            for block in 0..1u64 << (order - PAGEBLOCK_ORDER) {
                frames.set_migratetype(pfn as u64 + block * PAGEBLOCK_NR_PAGES, start);
            }
            return self.move_to_free_list(pfn, order, start);
        }
        if self.boost() && flags.intersects(AllocFlags::KSWAPD) {
            let (word, bit) = (self.index.index() / 64, self.index.index() % 64);
            self.mm.boosted[word].fetch_or(1 << bit, Relaxed);
        }
        let moved = if whole { self.move_freepages_block(pfn, start) } else { Moved::default() };
        if moved.free == 0 {
            return self.move_to_free_list(pfn, order, start);
        }
        let alike = match (start, old) {
            (MigrateType::Movable, _) => moved.movable,
            // Whatever is in use there and is not movable counts as compatible.
            (_, MigrateType::Movable) => PAGEBLOCK_NR_PAGES - (moved.free + moved.movable),
            _ => 0,
        };
        let disabled = self.mm.region.sysctl().page_group_by_mobility_disabled.get() != 0;
        if moved.free + alike >= PAGEBLOCK_NR_PAGES / 2 || disabled {
            frames.set_migratetype(pfn as u64, start);
        }
    }

    /// Raises the watermarks for a while, so that background reclaim makes room against further mixing
    /// (`boost_watermark`). Without background reclaim nobody would ever lower them again.
    fn boost(&self) -> bool {
        if self.mm.hooks.wake_kswapd.is_none() {
            return false;
        }
        let boosted = boost_watermark(
            self.state.watermark_boost.get(),
            self.state.watermark[Watermark::High as usize].get(),
            self.state.managed_pages.get(),
            self.mm.region.sysctl().watermark_boost_factor.get(),
        );
        if let Some(boost) = boosted {
            self.state.watermark_boost.set(boost);
            update_alloc_mark(self.state);
        }
        boosted.is_some()
    }

    /// Moves all free blocks of the page block of `pfn` to the lists of `to` (`move_freepages_block`). None are moved
    /// when the page block reaches beyond the end of the zone.
    fn move_freepages_block(&self, pfn: u32, to: MigrateType) -> Moved {
        let (zone_start, spanned) = (self.state.zone_start_pfn.get(), self.state.spanned_pages.get());
        let spans = |pfn: u64| zone_start <= pfn && pfn < zone_start + spanned;
        let start = pfn as u64 & !(PAGEBLOCK_NR_PAGES - 1);
        let end = start + PAGEBLOCK_NR_PAGES;
        if !spans(end - 1) {
            return Moved::default();
        }
        let mut at = if spans(start) { start } else { pfn as u64 };
        let mut moved = Moved::default();
        while at < end {
            let page = self.memmap.page(at as u32);
            if page._mapcount.get() == PG_BUDDY {
                let order = page.private.get().min(MAX_ORDER as u32 - 1);
                self.move_to_free_list(at as u32, order, to);
                moved.free += 1 << order;
                at += 1 << order;
                continue;
            }
            // A block in use, or its stale record inside a larger one: either way, none of its pages heads a free
            // block.
            let flags = page.flags.get();
            let step = if page._refcount.get() == 0 { 1 } else { 1 << ((flags & PG_ORDER_MASK) >> PG_ORDER_SHIFT) };
            if flags & PageFlag::Lru.mask() != 0 {
                moved.movable += step;
            }
            at += step;
        }
        moved
    }

    /// Sets the type of the page block of `pfn` and moves its free blocks along (`set_pageblock_migratetype` and
    /// `move_freepages_block`); gives the number of pages moved.
    pub(crate) fn convert_pageblock(&self, pfn: u32, to: MigrateType) -> u64 {
        self.mm.frames.set_migratetype(pfn as u64, to);
        self.move_freepages_block(pfn, to).free
    }

    /// `reserve_highatomic_pageblock`: sets the page block of a high-order atomic allocation aside for more of them.
    pub(crate) fn reserve_highatomic_pageblock(&self, pfn: u32) {
        let share = self.state.managed_pages.get() / 100;
        let limit = share.next_multiple_of(PAGEBLOCK_NR_PAGES);
        let reserved = &self.state.nr_reserved_highatomic;
        if share < PAGEBLOCK_NR_PAGES || reserved.get() >= limit {
            return;
        }
        if self.mm.frames.migratetype(pfn as u64).index() < MIGRATE_PCPTYPES {
            reserved.bump(PAGEBLOCK_NR_PAGES);
            update_alloc_mark(self.state);
            self.convert_pageblock(pfn, MigrateType::HighAtomic);
        }
    }

    /// Gives one reserved page block back for allocations of `to` (the zone's part of
    /// `unreserve_highatomic_pageblock`). True if that made pages available.
    pub(crate) fn unreserve_highatomic_pageblock(&self, to: MigrateType) -> bool {
        for order in 0..MAX_ORDER {
            let pfn = self.state.free_area[order].free_list[MigrateType::HighAtomic.index()].first.get();
            if pfn == 0 {
                continue;
            }
            if self.mm.frames.migratetype(pfn as u64) == MigrateType::HighAtomic {
                let reserved = &self.state.nr_reserved_highatomic;
                reserved.set(reserved.get().saturating_sub(PAGEBLOCK_NR_PAGES));
                update_alloc_mark(self.state);
            }
            if self.convert_pageblock(pfn, to) != 0 {
                return true;
            }
        }
        false
    }
}
