//! Per-CPU page lists: pages a CPU frees and allocates again without the zone's lock.
//!
//! Each CPU has a pageset per zone, with a list for each of the orders 0 to 3 and the three ordinary migrate types,
//! and one for order 9. Lists are refilled and emptied in batches. The pageset's lock is only ever tried on the hot
//! paths: if it is held (by an allocation this one interrupted, or by a CPU that drains all pagesets) the zone's
//! lists serve instead.

mod drain;
mod lists;

use core::sync::atomic::AtomicU32;

pub(crate) use lists::keeps_none;
use pagevisor_shared::migrate::{MIGRATE_PCPTYPES, MigrateType};
use pagevisor_shared::region::zone::{NR_PCP_LISTS, PCP_LOW_ORDERS, PcpState};
use pagevisor_shared::units::PAGEBLOCK_ORDER;

use crate::sync::Gated;

/// The lock of a pageset, for all but the short ways. Its gate is shut while instrumentation is on.
#[inline(always)]
pub(crate) const fn gated(pcp: &PcpState) -> Gated<'_, AtomicU32> {
    Gated { gate: &pcp.lock, shut: &pcp.hot, slow: &pcp.hot_lock }
}

/// Whether blocks of `order` are kept on pagesets (`pcp_allowed_order`).
#[inline(always)]
pub const fn pcp_allowed_order(order: u32) -> bool {
    order < PCP_LOW_ORDERS as u32 || order == PAGEBLOCK_ORDER
}

/// The list for blocks of `order` of a type that has lists (`order_to_pindex`). Order 9 has one for all types.
#[inline(always)]
pub const fn order_to_pindex(migratetype: MigrateType, order: u32) -> usize {
    if order >= PCP_LOW_ORDERS as u32 {
        NR_PCP_LISTS - 1
    } else {
        MIGRATE_PCPTYPES * order as usize + migratetype.index()
    }
}

/// The order of the blocks on list `pindex` (`pindex_to_order`).
#[inline(always)]
pub const fn pindex_to_order(pindex: usize) -> u32 {
    if pindex == NR_PCP_LISTS - 1 { PAGEBLOCK_ORDER } else { (pindex / MIGRATE_PCPTYPES) as u32 }
}
