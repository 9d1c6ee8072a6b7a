//! Contiguous memory areas (`mm/cma.c`): ranges set aside at boot, lent to movable pages until somebody needs them in
//! one piece.
//!
//! An area is a range of whole page blocks and a bitmap with a bit for each page that is allocated from it. The range
//! is reserved in memblock ([`cma_declare_contiguous`]) and becomes an area once the page allocator works
//! ([`Mm::cma_init_reserved_mem`]).

use core::ops::Range;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::event::EventKind;
use pagevisor_shared::units::{NodeId, Order, PAGE_SIZE, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER, Pfn, PhysAddr};

use super::ContigError;
use super::isolation::overlap;
use crate::Mm;
use crate::buddy::Placement;
use crate::memblock::{AllocError, Memblock};
use crate::platform::Platform;
use crate::raw::PageWords;
use crate::sync::{self, Plain};
use crate::zone::update_alloc_mark;

pub use pagevisor_shared::region::records::MAX_CMA_AREAS;
/// Areas are whole page blocks (`CMA_MIN_ALIGNMENT_BYTES`).
pub const CMA_MIN_ALIGNMENT: u64 = PAGEBLOCK_NR_PAGES * PAGE_SIZE;

/// Names of areas that were given none.
const NAMES: [&str; MAX_CMA_AREAS] = [
    "cma0", "cma1", "cma2", "cma3", "cma4", "cma5", "cma6", "cma7", "cma8", "cma9", "cma10", "cma11", "cma12", "cma13",
    "cma14", "cma15", "cma16", "cma17", "cma18", "cma19",
];

/// An area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CmaArea(usize);

impl CmaArea {
    /// Its number, from 0.
    pub const fn number(self) -> usize {
        self.0
    }
}

/// What is known of an area.
#[derive(Debug)]
struct Area {
    start: AtomicU64,
    /// Pages; 0 as long as it is not in use.
    count: AtomicU64,
    /// Guards the bitmap.
    lock: AtomicU32,
    bitmap: PageWords,
}

impl Area {
    /// No area yet.
    const fn new() -> Self {
        let (start, count) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { start, count, lock: AtomicU32::new(0), bitmap: PageWords::new() }
    }
}

/// All areas of the machine.
#[derive(Debug)]
pub(crate) struct CmaAreas {
    areas: [Area; MAX_CMA_AREAS],
    /// Areas in use, the first of `areas`.
    used: AtomicU32,
    /// One allocation at a time isolates page blocks (`cma_mutex`), or makes an area.
    mutex: AtomicU32,
}

impl CmaAreas {
    /// No area.
    pub(crate) const fn new() -> Self {
        Self { areas: [const { Area::new() }; MAX_CMA_AREAS], used: AtomicU32::new(0), mutex: AtomicU32::new(0) }
    }
}

/// The memory wanted for an area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CmaRequest {
    /// Bytes; rounded up to page blocks.
    pub size: u64,
    /// The lowest address it may have, rounded up to a page block; 0 for no wish.
    pub base: PhysAddr,
    /// Where it must end at the latest; 0 for no limit.
    pub limit: PhysAddr,
    /// It must be at `base` and nowhere else.
    pub fixed: bool,
    /// The node it is to be on if possible.
    pub node: Option<NodeId>,
}

impl CmaRequest {
    /// An area of `size` bytes anywhere.
    pub const fn of_size(size: u64) -> Self {
        Self { size, base: PhysAddr::new(0), limit: PhysAddr::new(0), fixed: false, node: None }
    }
}

/// Reserves memory for an area; from 4 GiB up where there is room and no other wish (`cma_declare_contiguous_nid`).
///
/// # Errors
/// [`AllocError`] when there is no such memory.
pub fn cma_declare_contiguous(memblock: &mut Memblock, request: CmaRequest) -> Result<Range<PhysAddr>, AllocError> {
    const HIGH: u64 = 4 << 30;
    let CmaRequest { size, base, limit, fixed, node } = request;
    let short = AllocError { size, align: CMA_MIN_ALIGNMENT, nid: node, from: base, max_addr: limit };
    let size = size.max(1).checked_next_multiple_of(CMA_MIN_ALIGNMENT).ok_or(short)?;
    let base = base.raw().checked_next_multiple_of(CMA_MIN_ALIGNMENT).ok_or(short)?;
    let end = memblock.end_of_dram().raw();
    let limit = if limit.raw() == 0 || limit.raw() > end { end } else { limit.raw() };
    let limit = PhysAddr::new(limit & !(CMA_MIN_ALIGNMENT - 1));
    if base.checked_add(size).is_none_or(|top| top > limit.raw()) {
        return Err(short);
    }
    if fixed && base != 0 {
        // An unaligned place was rounded, so it is not the one asked for.
        let start = PhysAddr::new(base);
        if start != request.base || memblock.is_region_reserved(start, size) || !memblock.is_region_memory(start, size)
        {
            return Err(short);
        }
        memblock.reserve(start, size).map_err(|_| short)?;
        return Ok(start..PhysAddr::new(base + size));
    }
    let mut above = None;
    // Low memory is for devices that reach no other; and just above 4 GiB it does not split the rest.
    if !memblock.bottom_up() && base == 0 && end >= HIGH + size {
        memblock.set_bottom_up(true);
        let start = PhysAddr::new(HIGH);
        above = memblock.phys_alloc_range_nid(size, CMA_MIN_ALIGNMENT, start, limit, node, false).ok();
        memblock.set_bottom_up(false);
    }
    let start = match above {
        Some(start) => start,
        None => memblock.phys_alloc_range_nid(size, CMA_MIN_ALIGNMENT, PhysAddr::new(base), limit, node, false)?,
    };
    Ok(start..PhysAddr::new(start.raw() + size))
}

/// The first `count` clear bits of `map`, of `total` bits, at or above `start`, such that their index plus `offset` is a
/// multiple of `align` (`bitmap_find_next_zero_area_off`).
fn find_clear(map: &[AtomicU64], total: u64, start: u64, count: u64, align: u64, offset: u64) -> Option<u64> {
    let is_set = |bit: u64| map.get(bit as usize / 64).is_none_or(|word| word.get() >> (bit % 64) & 1 != 0);
    let mut first = (start + offset).next_multiple_of(align) - offset;
    while first.checked_add(count)? <= total {
        match (first..first + count).rev().find(|&bit| is_set(bit)) {
            None => return Some(first),
            Some(last) => first = (last + 1 + offset).next_multiple_of(align) - offset,
        }
    }
    None
}

/// Sets or clears bits of `map`.
fn write_bits(map: &[AtomicU64], bits: Range<u64>, set: bool) {
    for bit in bits {
        if let Some(word) = map.get(bit as usize / 64) {
            let mask = 1 << (bit % 64);
            word.set(if set { word.get() | mask } else { word.get() & !mask });
        }
    }
}

impl<P: Platform> Mm<P> {
    /// Makes an area of `range`, which was reserved at boot, and lends its pages out (`cma_init_reserved_mem`,
    /// `cma_activate_area`). What follows from the zones' sizes is computed anew.
    ///
    /// # Errors
    /// [`ContigError::Invalid`] when the range is not whole page blocks of one zone, all reserved at boot;
    /// [`ContigError::Busy`] when there is no room for another area or its bitmap.
    pub fn cma_init_reserved_mem(&self, range: &Range<PhysAddr>) -> Result<CmaArea, ContigError> {
        self.cma_init_named(range, None)
    }

    /// As [`Self::cma_init_reserved_mem`], with a name for the area; without one, its number makes it.
    ///
    /// # Errors
    /// As there.
    pub fn cma_init_named(&self, range: &Range<PhysAddr>, name: Option<&str>) -> Result<CmaArea, ContigError> {
        let (start, end) = (range.start.raw(), range.end.raw());
        if !start.is_multiple_of(CMA_MIN_ALIGNMENT) || !end.is_multiple_of(CMA_MIN_ALIGNMENT) {
            return Err(ContigError::Invalid);
        }
        let frames = Pfn::containing(range.start)..Pfn::containing(range.end);
        let index = self.zone_of_range(&frames)?;
        let (first, stop) = (frames.start.raw(), frames.end.raw());
        if !self.is_memory_of(index, first, stop) || overlap(self.region.reserved(), first, stop) != end - start {
            return Err(ContigError::Invalid);
        }
        let area = self.cma_new_area(&frames, name).ok_or(ContigError::Busy)?;
        for block in (first..stop).step_by(PAGEBLOCK_NR_PAGES as usize) {
            while self.unreserve(block, block + PAGEBLOCK_NR_PAGES).is_some() {}
            let zone = self.lock_zone(index);
            zone.state.managed_pages.bump(PAGEBLOCK_NR_PAGES);
            zone.state.cma_pages.bump(PAGEBLOCK_NR_PAGES);
            update_alloc_mark(zone.state);
            self.frames.set_migratetype(block, MigrateType::Cma);
            drop(zone);
            self.free_one_page(index, block as u32, PAGEBLOCK_ORDER, Placement::Auto);
        }
        self.recompute_reserves();
        Ok(area)
    }

    /// Enters an area of `frames`, of which nothing is allocated, and tells the host of it. `None` when there is no room
    /// for another area or its bitmap.
    pub(super) fn cma_new_area(&self, frames: &Range<Pfn>, name: Option<&str>) -> Option<CmaArea> {
        let (first, count) = (frames.start.raw(), frames.end.raw() - frames.start.raw());
        sync::lock(&self.cma.mutex, || self.platform.relax());
        let result = self.add_area(first, count);
        sync::unlock(&self.cma.mutex);
        let area = result?;
        if let Some(record) = self.region.cmas().get(area.0) {
            record.set_name(name.unwrap_or(NAMES[area.0 % MAX_CMA_AREAS]));
            record.base_pfn.set(first);
            // Release: the host that sees pages sees the rest.
            record.count.store(count, Release);
        }
        Some(area)
    }

    /// The area numbered `number`, in the order in which they were made.
    pub fn cma_area_numbered(&self, number: usize) -> Option<CmaArea> {
        (number < self.cma.used.load(Acquire) as usize).then_some(CmaArea(number))
    }

    /// Enters an area with an empty bitmap; the caller holds the mutex.
    #[allow(unsafe_code, reason = "the bitmap lies in pages of its own")]
    fn add_area(&self, start: u64, count: u64) -> Option<CmaArea> {
        let number = self.cma.used.get() as usize;
        let area = self.cma.areas.get(number)?;
        let order = Order::for_bytes(count.div_ceil(64) * 8)?;
        let bitmap = self.alloc_pages(Gfp::KERNEL | Gfp::ZERO, order)?;
        // SAFETY: the block was just allocated, and this is the last that is said of it.
        unsafe { area.bitmap.adopt(bitmap, order) };
        area.start.set(start);
        area.count.set(count);
        // Release: who sees the area's number sees what it is.
        self.cma.used.store(number as u32 + 1, Release);
        Some(CmaArea(number))
    }

    /// The frames of each area.
    pub(crate) fn cma_ranges(&self) -> impl Iterator<Item = Range<Pfn>> {
        (0..self.cma.used.load(Acquire) as usize).map(|number| self.cma_range(CmaArea(number)))
    }

    /// The frames of an area.
    pub fn cma_range(&self, area: CmaArea) -> Range<Pfn> {
        let known = self.cma_area(area).map_or((0, 0), |area| (area.start.get(), area.count.get()));
        Pfn::new(known.0)..Pfn::new(known.0 + known.1)
    }

    fn cma_area(&self, area: CmaArea) -> Option<&Area> {
        let used = self.cma.used.load(Acquire) as usize;
        self.cma.areas.get(area.0).filter(|_| area.0 < used)
    }

    /// Allocates `count` pages side by side from an area, the first a multiple of `2^align` frames (`cma_alloc`); gives
    /// the first. Pages lent out that cannot be moved are passed over.
    pub fn cma_alloc(&self, area: CmaArea, count: u64, align: Order) -> Option<Pfn> {
        let number = area.0;
        let area = self.cma_area(area)?;
        if count == 0 || count > area.count.get() {
            return None;
        }
        let (name, order) = (number as u64, align.raw() as u64);
        self.trace_cma(EventKind::CmaAllocStart, None, [count, order, name]);
        let (map, align) = (area.bitmap.get(self.direct_map()), align.pages());
        let offset = area.start.get() & (align - 1);
        let mut from = 0;
        loop {
            sync::lock(&area.lock, || self.platform.relax());
            let found = find_clear(map, area.count.get(), from, count, align, offset);
            if let Some(bit) = found {
                write_bits(map, bit..bit + count, true);
            }
            sync::unlock(&area.lock);
            let Some(bit) = found else {
                self.trace_cma(EventKind::CmaAllocFinish, None, [count, order, name]);
                return None;
            };
            let first = Pfn::new(area.start.get() + bit);
            sync::lock(&self.cma.mutex, || self.platform.relax());
            let taken = self.alloc_contig_range(&(first..first.add(count)), MigrateType::Cma);
            sync::unlock(&self.cma.mutex);
            if taken.is_ok() {
                self.count_used(number, count as i64);
                self.trace_cma(EventKind::CmaAllocFinish, Some(first), [count, order, name]);
                return Some(first);
            }
            self.clear_bits(area, bit..bit + count);
            // Again a bit further on.
            from = bit + align;
        }
    }

    /// Gives `count` pages from `first` on, which [`Self::cma_alloc`] took from the area, back to it (`cma_release`).
    /// False, and nothing is done, when they are not all allocated from the area.
    pub fn cma_release(&self, area: CmaArea, first: Pfn, count: u64) -> bool {
        let number = area.0;
        let Some(area) = self.cma_area(area) else { return false };
        let Some(bit) = first.raw().checked_sub(area.start.get()) else { return false };
        if bit.checked_add(count).is_none_or(|end| end > area.count.get()) {
            return false;
        }
        let map = area.bitmap.get(self.direct_map());
        let is_set = |bit: u64| map.get(bit as usize / 64).is_some_and(|word| word.get() >> (bit % 64) & 1 != 0);
        if !(bit..bit + count).all(is_set) {
            return false;
        }
        self.free_contig_range(&(first..first.add(count)));
        self.clear_bits(area, bit..bit + count);
        self.count_used(number, -(count as i64));
        self.trace_cma(EventKind::CmaRelease, Some(first), [count, 0, number as u64]);
        true
    }

    /// Counts pages allocated from an area, for the host.
    fn count_used(&self, number: usize, pages: i64) {
        if let Some(record) = self.region.cmas().get(number) {
            record.used.fetch_add(pages as u64, Relaxed);
        }
    }

    /// Marks pages of an area as not allocated (`cma_clear_bitmap`).
    fn clear_bits(&self, area: &Area, bits: Range<u64>) {
        sync::lock(&area.lock, || self.platform.relax());
        write_bits(area.bitmap.get(self.direct_map()), bits, false);
        sync::unlock(&area.lock);
    }
}
