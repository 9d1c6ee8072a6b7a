//! Whether a zone has enough free pages for an allocation.

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::{MIGRATE_PCPTYPES, MigrateType};
use pagevisor_shared::region::zone::ZoneState;
use pagevisor_shared::units::MAX_ORDER;
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::{Watermark, ZoneType};

use crate::buddy::AllocFlags;
use crate::sync::Plain;

/// Whether an ordinary list holds a block of at least `order`. Asked without the lock: the answer may be old.
#[inline(always)]
pub(super) fn has_free_block(zone: &ZoneState, order: u32) -> bool {
    let lists = zone.free_area.get(order as usize..MAX_ORDER).unwrap_or(&[]);
    // Linux looks from the smallest up; the answer is the same, and the largest blocks are the likeliest.
    lists.iter().rev().any(|area| {
        area.free_list[MigrateType::Movable.index()].first.get() != 0
            || area.free_list[MigrateType::Unmovable.index()].first.get() != 0
            || area.free_list[MigrateType::Reclaimable.index()].first.get() != 0
    })
}

const _: () = assert!(MIGRATE_PCPTYPES == 3);

/// Free pages that the allocation cannot use (`__zone_watermark_unusable_free`).
#[inline(always)]
fn unusable_free(zone: &ZoneState, order: u32, flags: AllocFlags) -> i64 {
    let mut unusable = (1i64 << order) - 1;
    if !flags.intersects(AllocFlags::RESERVES) {
        unusable += zone.nr_reserved_highatomic.get() as i64;
    }
    if !flags.intersects(AllocFlags::CMA) {
        unusable += zone.vm_stat[ZoneStat::NrFreeCma.index()].get().max(0);
    }
    unusable
}

/// `__zone_watermark_ok`: whether `free` pages are above `mark` and what is kept from the allocation, with a block of
/// at least `order` among them.
pub(super) fn zone_watermark_ok(
    zone: &ZoneState,
    order: u32,
    mark: u64,
    highest: ZoneType,
    flags: AllocFlags,
    free: i64,
) -> bool {
    let mut min = mark as i64;
    let free = free - unusable_free(zone, order, flags);
    if flags.intersects(AllocFlags::RESERVES) {
        // `__GFP_HIGH` may use half of the reserve, and a quarter of the rest if it cannot block.
        if flags.intersects(AllocFlags::MIN_RESERVE) {
            min -= min / 2;
            if flags.intersects(AllocFlags::NON_BLOCK) {
                min -= min / 4;
            }
        }
        // Victims of the OOM killer will free memory soon.
        if flags.intersects(AllocFlags::OOM) {
            min -= min / 2;
        }
    }
    if free <= min + zone.lowmem_reserve[highest.index()].get() as i64 {
        return false;
    }
    if order == 0 || has_free_block(zone, order) {
        return true;
    }
    let has_block = |kind: MigrateType| {
        zone.free_area.iter().skip(order as usize).any(|area| area.free_list[kind.index()].first.get() != 0)
    };
    flags.intersects(AllocFlags::CMA) && has_block(MigrateType::Cma)
        || flags.intersects(AllocFlags::HIGHATOMIC.with(AllocFlags::OOM)) && has_block(MigrateType::HighAtomic)
}

/// `zone_watermark_fast`: as [`zone_watermark_ok`] with the zone's count of free pages.
#[inline]
pub(super) fn zone_watermark_fast(
    zone: &ZoneState,
    order: u32,
    mark: u64,
    highest: ZoneType,
    flags: AllocFlags,
    gfp: Gfp,
) -> bool {
    let free = zone.vm_stat[ZoneStat::NrFreePages.index()].get().max(0);
    if order == 0 {
        let usable = free - free.min(unusable_free(zone, 0, flags));
        if usable > (mark + zone.lowmem_reserve[highest.index()].get()) as i64 {
            return true;
        }
    }
    if zone_watermark_ok(zone, order, mark, highest, flags, free) {
        return true;
    }
    // The boost is not meant for atomic single pages at the min watermark.
    let ignore_boost = order == 0
        && gfp.contains(Gfp::ATOMIC)
        && zone.watermark_boost.get() != 0
        && flags.watermark() == Watermark::Min as usize;
    ignore_boost && zone_watermark_ok(zone, order, zone.watermark[Watermark::Min as usize].get(), highest, flags, free)
}

/// A zone's watermark with its boost (`wmark_pages`).
#[inline(always)]
pub(super) fn wmark_pages(zone: &ZoneState, which: usize) -> u64 {
    zone.watermark[which].get() + zone.watermark_boost.get()
}
