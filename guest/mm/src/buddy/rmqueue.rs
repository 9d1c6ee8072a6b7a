//! Taking a block (`__rmqueue`, `__rmqueue_smallest`, `expand`).

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page_flags::PG_NOTZERO;
use pagevisor_shared::units::MAX_ORDER;
use pagevisor_shared::vmstat::ZoneStat;

use super::fallback::AllocFlags;
use super::lock::{Block, LockedZone};
use crate::platform::Platform;
use crate::sync::Plain;

impl<P: Platform> LockedZone<'_, P> {
    /// Takes the smallest block that is large enough off the lists of `migratetype`, whole.
    #[inline(always)]
    pub(super) fn take_smallest(&self, order: u32, migratetype: MigrateType) -> Option<Block> {
        for (current, area) in self.state.free_area.iter().enumerate().skip(order as usize) {
            let pfn = area.free_list[migratetype.index()].first.get();
            if pfn != 0 {
                let page = self.memmap.page(pfn);
                let notzero = page.flags.get() & PG_NOTZERO;
                self.del_page_from_area(area, pfn, page, migratetype);
                return Some(Block { pfn, order: current as u32, notzero, migratetype });
            }
        }
        None
    }

    /// Gives the upper halves of `block` back to its lists until it has `order` (`expand`).
    #[inline]
    fn expand(&self, block: Block, order: u32) -> Block {
        let mut high = block.order.min(MAX_ORDER as u32 - 1);
        while high > order {
            high -= 1;
            self.add_to_free_list(Block { pfn: block.pfn + (1 << high), order: high, ..block }, false);
        }
        Block { order, ..block }
    }

    /// `__rmqueue_smallest`: a block of `order` from the lists of `migratetype`.
    #[inline]
    pub(crate) fn rmqueue_smallest(&self, order: u32, migratetype: MigrateType) -> Option<Block> {
        let block = self.expand(self.take_smallest(order, migratetype)?, order);
        self.trace_zone_locked(block, 1);
        Some(block)
    }

    /// As [`Self::take`], with a short way for what is there.
    #[inline(always)]
    pub(super) fn take_fast(&self, order: u32, migratetype: MigrateType, flags: AllocFlags) -> Option<Block> {
        let own = if flags.intersects(AllocFlags::CMA) { None } else { self.take_smallest(order, migratetype) };
        if own.is_some() { own } else { self.take(order, migratetype, flags) }
    }

    /// `__rmqueue` without the last step: a block of at least `order`, from other types' lists when its own are empty.
    #[inline(never)]
    pub(super) fn take(&self, order: u32, migratetype: MigrateType, flags: AllocFlags) -> Option<Block> {
        let lent = flags.intersects(AllocFlags::CMA);
        if lent
            && self.is_mostly_cma()
            && let Some(block) = self.take_smallest(order, MigrateType::Cma)
        {
            return Some(block);
        }
        loop {
            if let Some(block) = self.take_smallest(order, migratetype) {
                return Some(block);
            }
            if lent && let Some(block) = self.take_smallest(order, MigrateType::Cma) {
                return Some(block);
            }
            if !self.rmqueue_fallback(order, migratetype, flags) {
                return None;
            }
        }
    }

    /// Whether over half of the zone's free pages are in contiguous memory areas: then movable pages come from there,
    /// so that the rest lasts for others.
    #[inline]
    fn is_mostly_cma(&self) -> bool {
        let count = |item: ZoneStat| self.state.vm_stat[item.index()].get();
        count(ZoneStat::NrFreeCma) > count(ZoneStat::NrFreePages).max(0) / 2
    }

    /// `__rmqueue`: a block of `order` for an allocation of `migratetype`.
    #[inline]
    pub(crate) fn rmqueue(&self, order: u32, migratetype: MigrateType, flags: AllocFlags) -> Option<Block> {
        let block = self.expand(self.take(order, migratetype, flags)?, order);
        self.trace_zone_locked(block, 1);
        Some(block)
    }
}
