//! Memory that comes to the buddy allocator from memblock.

use core::ops::Range;
use core::sync::atomic::Ordering::Release;

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page_flags::PG_NOTZERO;
use pagevisor_shared::region::records::RangeRecord;
use pagevisor_shared::units::{MAX_ORDER, MAX_ORDER_NR_PAGES, PAGE_SHIFT, PAGEBLOCK_ORDER, Pfn, PhysAddr};
use pagevisor_shared::zone::ZoneIndex;

use super::free::Placement;
use super::lock::{Block, LockedZone};
use crate::Mm;
use crate::list;
use crate::platform::Platform;
use crate::sync::{self, Plain};

impl<P: Platform> Mm<P> {
    /// Hands frames `[start, end)` of a zone over, in the largest blocks they make (`__free_pages_memory`). `used` is
    /// where memory may have been written.
    pub(crate) fn free_boot_range(&self, index: ZoneIndex, start: u64, end: u64, used: &Range<PhysAddr>) {
        let zone = self.lock_zone(index);
        zone.state.managed_pages.bump(end - start);
        zone.mod_free_pages_boot((end - start) as i64);
        let used = used.start.raw() >> PAGE_SHIFT..used.end.raw().div_ceil(1 << PAGE_SHIFT);
        let mut pfn = start;
        while pfn < end {
            let order = pfn.trailing_zeros().min((end - pfn).ilog2()).min(MAX_ORDER as u32 - 1);
            if order == MAX_ORDER as u32 - 1 {
                let stop = pfn + ((end - pfn) & !(MAX_ORDER_NR_PAGES - 1));
                zone.append_untouched(pfn, stop, &used);
                pfn = stop;
                continue;
            }
            let written = pfn < used.end && used.start < pfn + (1 << order);
            let notzero = if written { PG_NOTZERO } else { 0 };
            let block = Block { pfn: pfn as u32, order, notzero, migratetype: MigrateType::Movable };
            zone.free_one_page(block, Placement::Tail);
            pfn += 1 << order;
        }
    }

    /// Gives frames `[start, end)` that were reserved at boot to the page allocator (`free_reserved_area`); gives how
    /// many it took. Frames that are not reserved boot memory are left alone. The caller no longer uses them.
    pub fn free_reserved_area(&self, start: Pfn, end: Pfn) -> u64 {
        let mut freed = 0;
        while let Some(range) = self.unreserve(start.raw(), end.raw()) {
            freed += range.end - range.start;
            self.free_unreserved(range);
        }
        freed
    }

    /// Puts frames that were reserved until now on the free lists.
    fn free_unreserved(&self, range: Range<u64>) {
        let mut pfn = range.start;
        while pfn < range.end {
            let order = pfn.trailing_zeros().min((range.end - pfn).ilog2()).min(PAGEBLOCK_ORDER);
            // Zones meet at multiples of a page block, or where nodes do: page by page there.
            let order = if self.frames.is_mixed(pfn) { 0 } else { order };
            if let Some(index) = self.page_zone(Pfn::new(pfn)) {
                let migratetype = self.frames.migratetype(pfn);
                let zone = self.lock_zone(index);
                zone.state.managed_pages.bump(1 << order);
                let block = Block { pfn: pfn as u32, order, notzero: PG_NOTZERO, migratetype };
                zone.free_one_page(block, Placement::Auto);
                zone.mod_free_pages_of(1 << order, migratetype);
            }
            pfn += 1 << order;
        }
    }

    /// Takes the first whole frames of `[start, end)` that are reserved out of the table of reserved memory.
    pub(crate) fn unreserve(&self, start: u64, end: u64) -> Option<Range<u64>> {
        let header = self.region.header();
        sync::lock(&self.reserved_lock, || self.platform.relax());
        let slots = self.region.reserved_slots();
        let mut count = header.nr_reserved.get() as usize;
        let mut found = None;
        for (index, slot) in self.region.reserved().iter().enumerate() {
            let (base, top) = (slot.base.get(), slot.base.get() + slot.size.get());
            let first = base.div_ceil(1 << PAGE_SHIFT).max(start);
            let stop = (top >> PAGE_SHIFT).min(end);
            let (keep_low, keep_high) = (first << PAGE_SHIFT > base, stop << PAGE_SHIFT < top);
            if first >= stop || keep_low && keep_high && count == slots.len() {
                continue;
            }
            if keep_low && keep_high {
                shift_up(slots, index, count);
                count += 1;
                slots[index + 1].base.set(stop << PAGE_SHIFT);
                slots[index + 1].size.set(top - (stop << PAGE_SHIFT));
            }
            if keep_low {
                slot.size.set((first << PAGE_SHIFT) - base);
            } else if keep_high {
                slot.base.set(stop << PAGE_SHIFT);
                slot.size.set(top - (stop << PAGE_SHIFT));
            } else {
                shift_down(slots, index, count);
                count -= 1;
            }
            found = Some(first..stop);
            break;
        }
        header.nr_reserved.store(count as u32, Release);
        sync::unlock(&self.reserved_lock);
        found
    }
}

/// Copies a record.
fn copy(from: &RangeRecord, to: &RangeRecord) {
    to.base.set(from.base.get());
    to.size.set(from.size.get());
    to.node.set(from.node.get());
    to.flags.set(from.flags.get());
}

/// Doubles record `index` of the first `count`, which are not all there are.
fn shift_up(slots: &[RangeRecord], index: usize, count: usize) {
    for at in (index..count).rev() {
        copy(&slots[at], &slots[at + 1]);
    }
}

/// Removes record `index` of the first `count`.
fn shift_down(slots: &[RangeRecord], index: usize, count: usize) {
    for at in index + 1..count {
        copy(&slots[at], &slots[at - 1]);
    }
}

impl<P: Platform> LockedZone<'_, P> {
    /// Appends the blocks of the largest order in `[start, end)` without touching them: zero metadata links each to
    /// the next. Only the ends are written, and those whose content may have been.
    fn append_untouched(&self, start: u64, end: u64, used: &Range<u64>) {
        let area = &self.state.free_area[MAX_ORDER - 1];
        let kind = MigrateType::Movable.index();
        let last = end - MAX_ORDER_NR_PAGES;
        list::push_tail_chain(self.memmap, &area.free_list[kind], start as u32, last as u32);
        area.nr_free[kind].bump((end - start) / MAX_ORDER_NR_PAGES);
        let mut head = start.max(used.start) & !(MAX_ORDER_NR_PAGES - 1);
        while head < end.min(used.end) {
            self.memmap.page(head as u32).flags.set(PG_NOTZERO);
            head += MAX_ORDER_NR_PAGES;
        }
    }
}
