//! The free lists of a zone.

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page::{PG_BUDDY, Page};
use pagevisor_shared::page_flags::{PG_CLEARING, PG_NOTZERO};
use pagevisor_shared::region::zone::ZoneState;
use pagevisor_shared::units::{MAX_ORDER, PAGEBLOCK_ORDER, Pfn};

use super::Checker;
use crate::Mm;
use crate::list;
use crate::platform::Platform;
use crate::sync::Plain;

/// Whether `page` is an untouched head inside a run of the largest blocks.
fn is_untouched(page: &Page, order: u32) -> bool {
    order as usize == MAX_ORDER - 1 && page._mapcount.get() == 0 && page.private.get() == 0 && page.index.get() == 0
}

impl Checker<'_, '_> {
    /// Walks all free lists.
    pub(super) fn free_lists<P: Platform>(&mut self, mm: &Mm<P>, zone: &ZoneState) {
        for (order, area) in zone.free_area.iter().enumerate() {
            for kind in MigrateType::ALL {
                let (head, expected) = (&area.free_list[kind.index()], area.nr_free[kind.index()].get());
                let (mut pfn, mut previous, mut count) = (head.first.get(), 0, 0);
                while pfn != 0 && count <= expected {
                    let page = mm.memmap().page(pfn);
                    self.equal("backward link", pfn as u64, list::prev(pfn, page) as u64, previous as u64);
                    self.free_block(mm, pfn, order as u32, kind);
                    count += 1;
                    previous = pfn;
                    pfn = list::next(pfn, page);
                }
                self.equal("blocks on a free list", 0, count, expected);
                self.equal("last block of a free list", 0, head.last.get() as u64, previous as u64);
                let pages = count << order;
                self.pages.free += pages;
                if kind == MigrateType::Isolate {
                    self.pages.isolated += pages;
                }
                if kind == MigrateType::Cma {
                    self.pages.cma += pages;
                }
            }
        }
    }

    /// Checks the head of a free block.
    fn free_block<P: Platform>(&mut self, mm: &Mm<P>, pfn: u32, order: u32, kind: MigrateType) {
        let page = mm.memmap().page(pfn);
        let at = pfn as u64;
        self.equal("alignment of a free block", at, at & ((1 << order) - 1), 0);
        for frame in [at, at + (1 << order) - 1] {
            let zone = mm.page_zone(Pfn::new(frame)).map_or(u16::MAX, |zone| zone.0);
            self.equal("zone of a free block", frame, zone as u64, self.zone.0 as u64);
        }
        self.equal("references to a free block", at, page._refcount.get() as u64, 0);
        let flags = page.flags.get() & !PG_NOTZERO;
        // Only what is not zero is cleared.
        let flags = if page.flags.get() & PG_NOTZERO != 0 { flags & !PG_CLEARING } else { flags };
        self.equal("flags of a free block", at, flags as u64, 0);
        if !is_untouched(page, order) {
            self.equal("mark of a free block", at, page._mapcount.get() as u64, PG_BUDDY as u64);
            self.equal("order in a free block", at, page.private.get() as u64, order as u64);
            self.equal("list type in a free block", at, page.index.get() as u64, kind.block_byte() as u64);
        }
        let block = mm.frames.migratetype(at);
        for special in [MigrateType::Isolate, MigrateType::Cma] {
            let (list, block) = (u64::from(kind == special), u64::from(block == special));
            self.equal("isolated or contiguous area's free block", at, list, block);
        }
        if (order as usize) < MAX_ORDER - 1 {
            let buddy = pfn ^ (1 << order);
            let other = mm.memmap().page(buddy);
            let free = other._mapcount.get() == PG_BUDDY && other.private.get() == order;
            let same_zone = mm.page_zone(Pfn::new(buddy as u64)) == Some(self.zone);
            let (mine, its) = (mm.frames.migratetype(at), mm.frames.migratetype(buddy as u64));
            let kept_apart = order >= PAGEBLOCK_ORDER && mine != its && (mine.index() > 2 || its.index() > 2);
            if free && same_zone && !kept_apart {
                self.report("free buddies that are not merged", at, order as u64, order as u64 + 1);
            }
        }
    }
}
