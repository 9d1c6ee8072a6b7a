//! Allocating from and freeing to a pageset whose lock is held.

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page_flags::PG_NOTZERO;
use pagevisor_shared::region::zone::{NR_PCP_LISTS, PCP_LOW_ORDERS, PcpState};
use pagevisor_shared::zone::ZoneIndex;

use super::order_to_pindex;
use crate::Mm;
use crate::buddy::AllocFlags;
use crate::list;
use crate::platform::Platform;
use crate::sync::Plain;

/// How often `free_factor` may double a batch (`CONFIG_PCP_BATCH_SCALE_MAX`).
const PCP_BATCH_SCALE_MAX: u32 = 5;

/// Whether blocks of `order` do not stay on the pageset now (`free_high`): those of order 1 to 3 fragment, so none are
/// kept while frees come without allocations.
#[inline(always)]
pub(crate) fn keeps_none(pcp: &PcpState, order: u32) -> bool {
    order != 0 && order < PCP_LOW_ORDERS as u32 && pcp.free_factor.get() != 0
}

/// `nr_pcp_free`: how many pages to free from a pageset that reached `high`. Frees double, up to all but a batch, as
/// long as nothing is allocated in between.
pub(super) fn nr_pcp_free(pcp: &PcpState, high: u32, free_high: bool) -> u32 {
    if free_high {
        return pcp.count.get();
    }
    let batch = pcp.batch.get();
    // A pageset that is not to keep anything.
    if high < batch {
        return 1;
    }
    let (min_nr_free, max_nr_free) = (batch, high - batch);
    let factor = pcp.free_factor.get();
    let scaled = batch.saturating_mul(1 << factor.min(31));
    if scaled < max_nr_free && factor < PCP_BATCH_SCALE_MAX {
        pcp.free_factor.set(factor + 1);
    }
    // Linux's clamp: the upper bound wins.
    scaled.max(min_nr_free).min(max_nr_free)
}

impl<P: Platform> Mm<P> {
    /// Takes a block off the pageset, refilled if need be (`__rmqueue_pcplist`). The pageset's lock is held.
    pub(crate) fn rmqueue_pcplist_locked(
        &self,
        index: ZoneIndex,
        pcp: &PcpState,
        order: u32,
        migratetype: MigrateType,
        flags: AllocFlags,
    ) -> Option<u32> {
        let list = &pcp.lists[order_to_pindex(migratetype, order).min(NR_PCP_LISTS - 1)];
        if list.first.get() == 0 && !self.refill_pageset(index, pcp, order, migratetype, flags) {
            return None;
        }
        let pfn = list.first.get();
        list::pcp_pop_head(list, pfn, self.memmap().page(pfn));
        pcp.count.drop_by(1 << order);
        Some(pfn)
    }

    /// Refills an empty list of the pageset, whose lock is held; false when the zone has nothing for it
    /// (`rmqueue_bulk`).
    pub(crate) fn refill_pageset(
        &self,
        index: ZoneIndex,
        pcp: &PcpState,
        order: u32,
        migratetype: MigrateType,
        flags: AllocFlags,
    ) -> bool {
        let list = &pcp.lists[order_to_pindex(migratetype, order).min(NR_PCP_LISTS - 1)];
        let mut batch = pcp.batch.get();
        // Scaled to the order, but for pagesets that are not to keep pages.
        if batch > 1 {
            batch = (batch >> order).max(2);
        }
        let taken = self.lock_zone(index).rmqueue_bulk(order, batch, list, migratetype, flags);
        pcp.count.bump(taken << order);
        taken != 0
    }

    /// Puts a block on the pageset, and empties part of it if it is full (`free_unref_page_commit`). The pageset's
    /// lock is held. `block_type` is the type of the block's page block, not `Isolate`.
    #[inline]
    pub(crate) fn free_unref_page_commit(
        &self,
        index: ZoneIndex,
        pcp: &PcpState,
        pfn: u32,
        order: u32,
        block_type: MigrateType,
    ) {
        // Pages of reserved blocks are kept with the movable ones; they find back by the type kept in the page.
        let list_type = if block_type.index() < 3 { block_type } else { MigrateType::Movable };
        let pindex = order_to_pindex(list_type, order).min(NR_PCP_LISTS - 1);
        let page = self.memmap().page(pfn);
        page.index.set(block_type.index() as u32);
        list::pcp_push_head(self.memmap(), &pcp.lists[pindex], pfn, page);
        let count = pcp.count.get() + (1 << order);
        pcp.count.set(count);
        let free_high = keeps_none(pcp, order);
        if free_high || count >= pcp.high.get() {
            self.shrink_pageset(index, pcp, pindex, free_high);
        }
    }

    /// Frees part of a pageset that is full.
    #[cold]
    #[inline(never)]
    pub(crate) fn shrink_pageset(&self, index: ZoneIndex, pcp: &PcpState, pindex: usize, free_high: bool) {
        let high = if free_high { 0 } else { pcp.high.get() };
        let count = nr_pcp_free(pcp, high, free_high);
        self.lock_zone(index).free_pcppages_bulk(pcp, count, pindex);
    }

    /// What the head of a block looks like on a pageset list: no flag but the order and that its content is not
    /// known.
    #[inline(always)]
    pub(crate) const fn pcp_flags(order: u32) -> u32 {
        PG_NOTZERO | order << pagevisor_shared::page_flags::PG_ORDER_SHIFT
    }
}
