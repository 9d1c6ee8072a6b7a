//! Records of a zone and of its per-CPU page lists.

use core::sync::atomic::{AtomicI32, AtomicI64, AtomicU32, AtomicU64};

use crate::migrate::{MIGRATE_PCPTYPES, MIGRATE_TYPES};
use crate::units::MAX_ORDER;
use crate::vmstat::{NR_VM_NUMA_EVENT_ITEMS, NR_VM_ZONE_STAT_ITEMS};
use crate::zone::{MAX_NR_ZONES, NR_WMARK};

/// Entry of the section table for a section in which zones or nodes meet.
pub const SECTION_MIXED: u16 = u16::MAX;

/// Ends of a list of pages, as frame numbers; 0 and 0 when empty (frame 0 is never on a list). The links between
/// are in the page metadata.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ListHead {
    /// First frame.
    pub first: AtomicU32,
    /// Last frame.
    pub last: AtomicU32,
}

/// Free blocks of one order (`struct free_area`).
#[repr(C)]
#[derive(Debug, Default)]
pub struct FreeArea {
    /// Free blocks by migrate type, linked through their heads.
    pub free_list: [ListHead; MIGRATE_TYPES],
    /// Number of blocks on each list. Linux keeps the sum of them as `nr_free`.
    pub nr_free: [AtomicU64; MIGRATE_TYPES],
}

/// A zone (`struct zone`). Sizes in pages unless said otherwise.
///
/// Invariants, whenever `seq` is even:
/// - `free_area[o].nr_free[t]` is the length of `free_area[o].free_list[t]`;
/// - the sum of `nr_free << order` is `vm_stat[nr_free_pages]` plus the CPUs' pending deltas of it
///   ([`PcpState::vm_stat_diff`]);
/// - every block on a list is aligned to its order, inside the zone, and its buddy is not a free block of the same
///   order.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct ZoneState {
    /// Odd while the holder of `lock` changes free lists and counters.
    pub seq: AtomicU32,
    /// The zone lock: 0 free, else held.
    pub lock: AtomicU32,
    /// Node the zone belongs to.
    pub node: AtomicU32,
    /// Its [`crate::zone::ZoneType`].
    pub zone_type: AtomicU32,
    /// Free blocks by order.
    pub free_area: [FreeArea; MAX_ORDER],
    /// Page counters, by [`crate::vmstat::ZoneStat`]; CPUs hold back up to a threshold each.
    pub vm_stat: [AtomicI64; NR_VM_ZONE_STAT_ITEMS],
    /// Watermarks by [`crate::zone::Watermark`], without the boost.
    pub watermark: [AtomicU64; NR_WMARK],
    /// Boost on top of the watermarks.
    pub watermark_boost: AtomicU64,
    /// Pages set aside for high-order atomic allocations.
    pub nr_reserved_highatomic: AtomicU64,
    /// Low watermark, boost, [`Self::nr_reserved_highatomic`] and [`Self::cma_pages`] together: with more free pages than this, an ordinary
    /// allocation that prefers the zone need not look further.
    pub alloc_mark: AtomicI64,
    /// Pages kept from allocations that could have used a higher zone, by that zone's type.
    pub lowmem_reserve: [AtomicU64; MAX_NR_ZONES],
    /// First frame.
    pub zone_start_pfn: AtomicU64,
    /// From the first to the last page, holes included.
    pub spanned_pages: AtomicU64,
    /// Pages that exist.
    pub present_pages: AtomicU64,
    /// Pages the allocator was given.
    pub managed_pages: AtomicU64,
    /// Pages in contiguous memory areas.
    pub cma_pages: AtomicU64,
    /// `high` of the zone's pagesets.
    pub pageset_high: AtomicU32,
    /// `batch` of the zone's pagesets.
    pub pageset_batch: AtomicU32,
    /// Below this many free pages the CPUs' pending deltas must be counted in.
    pub percpu_drift_mark: AtomicU64,
    /// NUMA events folded from the CPUs, by [`crate::vmstat::NumaStat`].
    pub vm_numa_event: [AtomicU64; NR_VM_NUMA_EVENT_ITEMS],
}

/// Orders below this have per-CPU lists of their own (`PAGE_ALLOC_COSTLY_ORDER + 1`).
pub const PCP_LOW_ORDERS: usize = 4;
/// Lists of a pageset (`NR_PCP_LISTS`): orders 0 to 3 by migrate type, and one for order 9.
pub const NR_PCP_LISTS: usize = MIGRATE_PCPTYPES * PCP_LOW_ORDERS + 1;

/// Per-CPU pages of a zone (`struct per_cpu_pages` and `struct per_cpu_zonestat`).
///
/// Invariants, when nobody holds it: `count` is the number of pages (not blocks) on all lists; list
/// `order * MIGRATE_PCPTYPES + type` holds blocks of that order, the last list those of order 9. Unlike on a zone's
/// free lists, the backward link of a list's first page is not kept up, nor the last page of an empty list.
///
/// Whoever holds `lock` holds the pageset, unless `hot` is set: then `lock` stays 1, which sends all allocations and
/// frees the general way, where instrumentation is, and the pageset is held by who holds `hot_lock`. So the short way
/// pays nothing for what could be watching it.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct PcpState {
    /// Held by whoever works on the lists: 0 free, 1 held, or closed while `hot` is set.
    pub lock: AtomicU32,
    /// Pages on the lists.
    pub count: AtomicU32,
    /// Above it pages go back to the buddy allocator.
    pub high: AtomicU32,
    /// Pages moved at a time.
    pub batch: AtomicU32,
    /// Scales how many are freed at once (`free_factor`).
    pub free_factor: AtomicU32,
    /// `stat_threshold`: how much of a zone counter a CPU may hold back.
    pub stat_threshold: AtomicU32,
    /// The lists.
    pub lists: [ListHead; NR_PCP_LISTS],
    /// Pending deltas of the zone's [`ZoneState::vm_stat`].
    pub vm_stat_diff: [AtomicI32; NR_VM_ZONE_STAT_ITEMS],
    /// Instrumentation in effect, as [`hot`] bits; 0 for none.
    pub hot: AtomicU32,
    /// NUMA events not folded yet.
    pub vm_numa_event: [AtomicU64; NR_VM_NUMA_EVENT_ITEMS],
    /// Held by whoever works on the lists while `hot` is set: 0 free, 1 held.
    pub hot_lock: AtomicU32,
    /// Padding.
    pub reserved: AtomicU32,
}

/// Bits of [`PcpState::hot`]: what looks at every allocation and free.
pub mod hot {
    /// Something does. Set whenever another bit is.
    pub const ON: u32 = 1;
    /// Events are recorded.
    pub const EVENTS: u32 = 1 << 1;
    /// Allocations may be made to fail (`fail_page_alloc`).
    pub const FAIL_PAGE_ALLOC: u32 = 1 << 2;
    /// Who allocated and freed each page is noted (`page_owner`).
    pub const PAGE_OWNER: u32 = 1 << 3;
    /// Free pages hold a pattern (`page_poison`).
    pub const POISON: u32 = 1 << 4;
    /// Pages and objects are cleared when they are allocated (`init_on_alloc`).
    pub const INIT_ON_ALLOC: u32 = 1 << 5;
    /// Pages and objects are cleared when they are freed (`init_on_free`).
    pub const INIT_ON_FREE: u32 = 1 << 6;
    /// Events about objects are recorded.
    pub const SLAB_EVENTS: u32 = 1 << 7;
    /// Allocations of objects may be made to fail (`failslab`).
    pub const FAILSLAB: u32 = 1 << 8;

    /// What looks at pages: pagesets have no other bits, but for [`ON`].
    pub const PAGES: u32 = EVENTS | FAIL_PAGE_ALLOC | PAGE_OWNER | POISON | INIT_ON_ALLOC | INIT_ON_FREE;
    /// What looks at objects: arrays of slab caches ([`crate::slab::ArrayCache::hot`]) have no other bits, but for [`ON`].
    pub const OBJECTS: u32 = INIT_ON_ALLOC | INIT_ON_FREE | SLAB_EVENTS | FAILSLAB;

    /// The bits in effect of those of `which`, with [`ON`] if there are any.
    #[inline]
    pub const fn among(bits: u32, which: u32) -> u32 {
        let bits = bits & which & !ON;
        if bits == 0 { 0 } else { bits | ON }
    }
}

impl ListHead {
    /// An empty list.
    pub const fn new() -> Self {
        Self { first: AtomicU32::new(0), last: AtomicU32::new(0) }
    }
}

impl FreeArea {
    /// No free block.
    pub const fn new() -> Self {
        Self {
            free_list: [const { ListHead::new() }; MIGRATE_TYPES],
            nr_free: [const { AtomicU64::new(0) }; MIGRATE_TYPES],
        }
    }
}

impl ZoneState {
    /// A zone without a page: all zero.
    pub const fn new() -> Self {
        const fn zero<const N: usize>() -> [AtomicU64; N] {
            [const { AtomicU64::new(0) }; N]
        }
        Self {
            seq: AtomicU32::new(0),
            lock: AtomicU32::new(0),
            node: AtomicU32::new(0),
            zone_type: AtomicU32::new(0),
            free_area: [const { FreeArea::new() }; MAX_ORDER],
            vm_stat: [const { AtomicI64::new(0) }; NR_VM_ZONE_STAT_ITEMS],
            watermark: zero(),
            watermark_boost: AtomicU64::new(0),
            nr_reserved_highatomic: AtomicU64::new(0),
            alloc_mark: AtomicI64::new(0),
            lowmem_reserve: zero(),
            zone_start_pfn: AtomicU64::new(0),
            spanned_pages: AtomicU64::new(0),
            present_pages: AtomicU64::new(0),
            managed_pages: AtomicU64::new(0),
            cma_pages: AtomicU64::new(0),
            pageset_high: AtomicU32::new(0),
            pageset_batch: AtomicU32::new(0),
            percpu_drift_mark: AtomicU64::new(0),
            vm_numa_event: zero(),
        }
    }
}

impl PcpState {
    /// A pageset without a page: all zero.
    pub const fn new() -> Self {
        Self {
            lock: AtomicU32::new(0),
            count: AtomicU32::new(0),
            high: AtomicU32::new(0),
            batch: AtomicU32::new(0),
            free_factor: AtomicU32::new(0),
            stat_threshold: AtomicU32::new(0),
            lists: [const { ListHead::new() }; NR_PCP_LISTS],
            vm_stat_diff: [const { AtomicI32::new(0) }; NR_VM_ZONE_STAT_ITEMS],
            hot: AtomicU32::new(0),
            vm_numa_event: [const { AtomicU64::new(0) }; NR_VM_NUMA_EVENT_ITEMS],
            hot_lock: AtomicU32::new(0),
            reserved: AtomicU32::new(0),
        }
    }
}
