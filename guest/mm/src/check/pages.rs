//! Counters of a zone, and the sum over all its pages.

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::zone::ZoneState;
use pagevisor_shared::units::{PAGE_SHIFT, PAGEBLOCK_NR_PAGES, Pfn};
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::Watermark;

use super::Checker;
use crate::Mm;
use crate::page_alloc::allocated_order;
use crate::platform::Platform;
use crate::sync::Plain;

impl Checker<'_, '_> {
    /// Compares the zone's counters with what the lists hold.
    pub(super) fn counters<P: Platform>(&mut self, mm: &Mm<P>, zone: &ZoneState) {
        self.equal("sequence counter at rest", 0, (zone.seq.get() & 1) as u64, 0);
        self.equal("zone lock at rest", 0, zone.lock.get() as u64, 0);
        let free = mm.zone_page_state_snapshot(self.zone, ZoneStat::NrFreePages);
        let free_cma = mm.zone_page_state_snapshot(self.zone, ZoneStat::NrFreeCma);
        self.equal("nr_free_cma", 0, free_cma, self.pages.cma);
        let expected = self.pages.free - self.pages.isolated;
        self.equal("nr_free_pages", 0, free, expected);
        self.equal("room for managed pages", 0, (zone.managed_pages.get() > zone.present_pages.get()) as u64, 0);
        self.equal("room for present pages", 0, (zone.present_pages.get() > zone.spanned_pages.get()) as u64, 0);
        let low = zone.watermark[Watermark::Low as usize].get() + zone.watermark_boost.get();
        let mark = low + zone.nr_reserved_highatomic.get() + zone.cma_pages.get();
        self.equal("alloc_mark", 0, zone.alloc_mark.get() as u64, mark);
        let reserved = zone.nr_reserved_highatomic.get();
        self.equal("highatomic reserve in page blocks", 0, reserved % PAGEBLOCK_NR_PAGES, 0);
        let blocks = self.blocks_of(mm, zone, MigrateType::Cma) * PAGEBLOCK_NR_PAGES;
        self.equal("page blocks beyond the contiguous areas", 0, blocks.saturating_sub(zone.cma_pages.get()), 0);
        let blocks = self.blocks_of(mm, zone, MigrateType::HighAtomic) * PAGEBLOCK_NR_PAGES;
        self.equal("page blocks beyond the highatomic reserve", 0, blocks.saturating_sub(reserved), 0);
    }

    /// The page blocks of the zone that are of `kind`.
    fn blocks_of<P: Platform>(&self, mm: &Mm<P>, zone: &ZoneState, kind: MigrateType) -> u64 {
        let start = zone.zone_start_pfn.get();
        let blocks = (start..start + zone.spanned_pages.get()).step_by(PAGEBLOCK_NR_PAGES as usize);
        let mine = blocks.filter(|&pfn| mm.page_zone(Pfn::new(pfn)) == Some(self.zone));
        mine.filter(|&pfn| mm.frames.migratetype(pfn) == kind).count() as u64
    }

    /// Goes over all pages of the zone: each is reserved, free, on a pageset, or in use.
    pub(super) fn all_pages<P: Platform>(&mut self, mm: &Mm<P>, zone: &ZoneState) {
        let (mut present, mut reserved, mut used) = (0, 0, 0);
        for range in mm.region().memory() {
            let start = range.base.get().div_ceil(1 << PAGE_SHIFT);
            let end = (range.base.get() + range.size.get()) >> PAGE_SHIFT;
            for pfn in start..end {
                if mm.page_zone(Pfn::new(pfn)) != Some(self.zone) {
                    continue;
                }
                present += 1;
                let page = mm.memmap().page(pfn as u32);
                if mm.is_reserved(Pfn::new(pfn)) {
                    reserved += 1;
                    self.equal("references to a reserved page", pfn, page._refcount.get() as u64, 0);
                } else if page._refcount.get() != 0 {
                    used += 1u64 << allocated_order(page.flags.get());
                }
                if MigrateType::decode_block(mm.frames.block_byte(pfn)).is_none() {
                    self.report("type of a page block", pfn, mm.frames.block_byte(pfn) as u64, 0);
                }
            }
        }
        self.equal("present pages", 0, zone.present_pages.get(), present);
        self.equal("managed pages", 0, zone.managed_pages.get(), present - reserved);
        let accounted = reserved + self.pages.free + self.pages.pagesets + used;
        self.equal("pages reserved, free, on pagesets and in use", 0, accounted, present);
    }
}
