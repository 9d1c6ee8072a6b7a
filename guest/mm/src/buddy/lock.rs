//! A zone whose lock is held, and its free lists.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page::{PG_BUDDY, Page};
use pagevisor_shared::region::seq;
use pagevisor_shared::region::zone::{FreeArea, ZoneState};
use pagevisor_shared::units::MAX_ORDER;
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::ZoneIndex;

use crate::Mm;
use crate::list;
use crate::platform::{IrqFlags, Platform};
use crate::raw::Memmap;
use crate::sync::{self, Plain};

/// A zone with its lock held and interrupts off; its sequence counter is odd as long as this lives.
pub(crate) struct LockedZone<'a, P: Platform> {
    pub(crate) mm: &'a Mm<P>,
    pub(crate) state: &'static ZoneState,
    pub(crate) index: ZoneIndex,
    pub(crate) memmap: Memmap,
    irq: IrqFlags,
}

impl<P: Platform> fmt::Debug for LockedZone<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LockedZone").field(&self.index).finish()
    }
}

impl<P: Platform> Mm<P> {
    /// Takes the lock of zone `index` (`spin_lock_irqsave(&zone->lock)`).
    ///
    /// # Panics
    /// When the machine has no such zone: an index is made only for zones there are.
    #[inline]
    pub(crate) fn lock_zone(&self, index: ZoneIndex) -> LockedZone<'_, P> {
        let state = &self.zones[index.index()];
        let irq = self.platform.irq_save();
        sync::lock(&state.lock, || self.platform.relax());
        seq::write_begin(&state.seq);
        LockedZone { mm: self, state, index, memmap: self.memmap(), irq }
    }
}

impl<P: Platform> Drop for LockedZone<'_, P> {
    #[inline]
    fn drop(&mut self) {
        seq::write_end(&self.state.seq);
        sync::unlock(&self.state.lock);
        self.mm.platform.irq_restore(self.irq);
    }
}

/// A free block taken off its list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) pfn: u32,
    pub(crate) order: u32,
    /// [`pagevisor_shared::page_flags::PG_NOTZERO`], or 0 when its content is known to be zero.
    pub(crate) notzero: u32,
    /// The type of the list it was on.
    pub(crate) migratetype: MigrateType,
}

impl<P: Platform> LockedZone<'_, P> {
    /// Marks a block as free (`set_buddy_order`) and puts it on the list of its type, first or last
    /// (`add_to_free_list`, `add_to_free_list_tail`).
    #[inline(always)]
    pub(super) fn add_to_free_list(&self, block: Block, tail: bool) {
        let page = self.memmap.page(block.pfn);
        page.flags.set(block.notzero);
        page._mapcount.set(PG_BUDDY);
        page.private.set(block.order);
        page.index.set(block.migratetype.block_byte() as u32);
        let area = &self.state.free_area[(block.order as usize).min(MAX_ORDER - 1)];
        let list = &area.free_list[block.migratetype.index()];
        if tail {
            list::push_tail(self.memmap, list, block.pfn);
        } else {
            list::push_head(self.memmap, list, block.pfn, page);
        }
        area.nr_free[block.migratetype.index()].bump(1);
    }

    /// Takes a block off the list of `migratetype` and clears its mark (`del_page_from_free_list`).
    #[inline(always)]
    pub(super) fn del_page_from_free_list(&self, pfn: u32, page: &Page, order: u32, migratetype: MigrateType) {
        self.del_page_from_area(&self.state.free_area[order as usize % MAX_ORDER], pfn, page, migratetype);
    }

    /// As [`Self::del_page_from_free_list`], of the blocks of one order.
    #[inline(always)]
    pub(super) fn del_page_from_area(&self, area: &FreeArea, pfn: u32, page: &Page, migratetype: MigrateType) {
        list::remove(self.memmap, &area.free_list[migratetype.index()], pfn, page);
        area.nr_free[migratetype.index()].drop_by(1);
        page._mapcount.set(0);
        page.private.set(0);
    }

    /// Moves a free block to the end of the list of `to` (`move_to_free_list`).
    pub(super) fn move_to_free_list(&self, pfn: u32, order: u32, to: MigrateType) {
        let page = self.memmap.page(pfn);
        let from = list_type(page);
        let area = &self.state.free_area[order as usize % MAX_ORDER];
        list::remove(self.memmap, &area.free_list[from.index()], pfn, page);
        area.nr_free[from.index()].drop_by(1);
        // A head inside an untouched run gets its mark now, since it leaves the run.
        page._mapcount.set(PG_BUDDY);
        page.private.set(order);
        page.index.set(to.block_byte() as u32);
        list::push_tail(self.memmap, &area.free_list[to.index()], pfn);
        area.nr_free[to.index()].bump(1);
    }

    /// Adds to the zone's free pages (`__mod_zone_freepage_state`).
    #[inline(always)]
    pub(crate) fn mod_free_pages(&self, delta: i64) {
        let cpu = self.mm.platform.this_cpu();
        self.mm.mod_zone_page_state_irqoff(cpu, self.index, ZoneStat::NrFreePages, delta);
    }

    /// As [`Self::mod_free_pages`], of page blocks of `kind`: those of contiguous memory areas are also counted by
    /// themselves.
    #[inline(always)]
    pub(crate) fn mod_free_pages_of(&self, delta: i64, kind: MigrateType) {
        self.mod_free_pages(delta);
        if kind == MigrateType::Cma {
            self.mod_free_cma(delta);
        }
    }

    /// Adds to the zone's free pages in contiguous memory areas.
    #[cold]
    pub(super) fn mod_free_cma(&self, delta: i64) {
        let cpu = self.mm.platform.this_cpu();
        self.mm.mod_zone_page_state_irqoff(cpu, self.index, ZoneStat::NrFreeCma, delta);
    }

    /// As [`Self::mod_free_pages`], before there are records of CPUs.
    pub(super) fn mod_free_pages_boot(&self, delta: i64) {
        self.state.vm_stat[ZoneStat::NrFreePages.index()].fetch_add(delta, Relaxed);
    }
}

/// The type of the list that the free block at `page` is on.
#[inline(always)]
pub(super) fn list_type(page: &Page) -> MigrateType {
    MigrateType::of_block(page.index.get() as u8)
}
