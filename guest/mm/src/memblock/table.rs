//! A sorted table of disjoint regions (`struct memblock_type`).
//!
//! Invariants after every public operation of memblock: ascending, disjoint, no empty region, no two neighbours that
//! could be one, `total` the sum of the sizes. Callers make room first; nothing here allocates.

use core::ops::Range;

use pagevisor_shared::units::NodeId;

use super::raw::GrownTable;
use super::region::{MemblockFlags, Region};

/// Slots a table starts with (`INIT_MEMBLOCK_REGIONS`).
pub const INIT_MEMBLOCK_REGIONS: usize = 128;

/// The table.
#[derive(Debug)]
pub(super) struct Table {
    first: [Region; INIT_MEMBLOCK_REGIONS],
    grown: Option<GrownTable>,
    len: usize,
    total: u64,
}

impl Table {
    /// An empty table.
    pub(super) const fn new() -> Self {
        Self { first: [Region::EMPTY; INIT_MEMBLOCK_REGIONS], grown: None, len: 0, total: 0 }
    }

    #[inline]
    const fn slots(&self) -> &[Region] {
        match &self.grown {
            Some(grown) => grown.slots(),
            None => &self.first,
        }
    }

    #[inline]
    const fn slots_mut(&mut self) -> &mut [Region] {
        match &mut self.grown {
            Some(grown) => grown.slots_mut(),
            None => &mut self.first,
        }
    }

    /// The regions.
    #[inline]
    pub(super) fn regions(&self) -> &[Region] {
        &self.slots()[..self.len]
    }

    /// The regions, to change in ways that keep them sorted, disjoint and of the same total.
    #[inline]
    pub(super) fn regions_mut(&mut self) -> &mut [Region] {
        let len = self.len;
        &mut self.slots_mut()[..len]
    }

    /// Number of slots.
    #[inline]
    pub(super) const fn capacity(&self) -> usize {
        self.slots().len()
    }

    /// Whether `more` regions fit.
    #[inline]
    pub(super) const fn has_room(&self, more: usize) -> bool {
        self.len + more <= self.capacity()
    }

    /// Sum of the sizes.
    #[inline]
    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    /// Moves into a larger table and returns the one it leaves, unless that was the array inside the structure.
    pub(super) fn move_to(&mut self, mut larger: GrownTable) -> Option<GrownTable> {
        larger.slots_mut()[..self.len].copy_from_slice(self.regions());
        self.grown.replace(larger)
    }

    /// Where the table lies and how many slots it has there, once it has outgrown the structure.
    pub(super) fn placed(&self) -> Option<(u64, usize)> {
        self.grown.as_ref().map(|grown| (grown.addr().raw(), grown.slots().len()))
    }

    /// Index of the first region that ends above `addr`. Asking beyond the last region, as one does who adds in
    /// address order, costs no search.
    #[inline]
    pub(super) fn first_ending_above(&self, addr: u64) -> usize {
        match self.regions().last() {
            Some(last) if last.end_raw() > addr => self.regions().partition_point(|r| r.end_raw() <= addr),
            _ => self.len,
        }
    }

    /// Index of the region that holds `addr` (`memblock_search`).
    pub(super) fn search(&self, addr: u64) -> Option<usize> {
        let index = self.first_ending_above(addr);
        self.regions().get(index).is_some_and(|r| r.base_raw() <= addr).then_some(index)
    }

    /// Whether a region shares a byte with `[base, end)`.
    pub(super) fn overlaps(&self, base: u64, end: u64) -> bool {
        self.regions().get(self.first_ending_above(base)).is_some_and(|r| r.overlaps(base, end))
    }

    /// The lowest part of `[base, end)` that no region covers, and the index where it belongs. `index` is that of the
    /// first region that ends above `base`.
    fn next_gap(&self, mut index: usize, mut base: u64, end: u64) -> Option<(usize, u64, u64)> {
        while base < end {
            let Some(region) = self.regions().get(index).filter(|r| r.base_raw() < end) else {
                return Some((index, base, end));
            };
            if base < region.base_raw() {
                return Some((index, base, region.base_raw()));
            }
            base = region.end_raw();
            index += 1;
        }
        None
    }

    /// How many regions adding `[base, end)` makes before merging.
    pub(super) fn count_new(&self, base: u64, end: u64) -> usize {
        let (mut index, mut base, mut count) = (self.first_ending_above(base), base, 0);
        while let Some((at, _, stop)) = self.next_gap(index, base, end) {
            (index, base) = (at, stop);
            count += 1;
        }
        count
    }

    /// Adds what of `[base, end)` is not covered yet; what is keeps its node and flags. Needs room for
    /// [`Self::count_new`] regions.
    pub(super) fn add(&mut self, base: u64, end: u64, nid: Option<NodeId>, flags: MemblockFlags) {
        let first = self.first_ending_above(base);
        let (mut index, mut base) = (first, base);
        while let Some((at, start, stop)) = self.next_gap(index, base, end) {
            self.insert(at, Region::between(start, stop, nid, flags));
            (index, base) = (at + 1, stop);
        }
        self.merge(first, index);
    }

    fn insert(&mut self, index: usize, region: Region) {
        let len = self.len;
        self.slots_mut().copy_within(index..len, index + 1);
        self.slots_mut()[index] = region;
        self.len += 1;
        self.total += region.size();
    }

    /// Takes out the regions `indices`.
    pub(super) fn remove(&mut self, indices: Range<usize>) {
        if indices.is_empty() {
            return;
        }
        let removed: u64 = self.regions()[indices.clone()].iter().map(Region::size).sum();
        let len = self.len;
        self.slots_mut().copy_within(indices.end..len, indices.start);
        self.len -= indices.len();
        self.total -= removed;
    }

    /// Merges compatible neighbours among the regions `first..end` and the one on either side of them
    /// (`memblock_merge_regions`, which looks at the whole table).
    pub(super) fn merge(&mut self, first: usize, end: usize) {
        let end = self.len.min(end + 1);
        let mut kept = first.saturating_sub(1);
        for index in kept + 1..end {
            let next = self.regions()[index];
            let regions = self.regions_mut();
            if regions[kept].continues_in(&next) {
                regions[kept].absorb(&next);
            } else {
                kept += 1;
                regions[kept] = next;
            }
        }
        if kept + 1 < end {
            let len = self.len;
            self.slots_mut().copy_within(end..len, kept + 1);
            self.len -= end - (kept + 1);
        }
    }

    /// Splits regions at `base` and at `end` and returns the indices of those inside (`memblock_isolate_range`).
    /// Needs room for two more.
    pub(super) fn isolate(&mut self, base: u64, end: u64) -> Range<usize> {
        let mut start = self.first_ending_above(base);
        start += usize::from(self.split(start, base));
        let stop = start + self.regions()[start..].partition_point(|r| r.base_raw() < end);
        if stop > start {
            self.split(stop - 1, end);
        }
        start..stop
    }

    /// Splits region `index` at `addr` if that lies inside it; the lower part keeps the index.
    fn split(&mut self, index: usize, addr: u64) -> bool {
        let Some(&region) = self.regions().get(index) else { return false };
        if addr <= region.base_raw() || region.end_raw() <= addr {
            return false;
        }
        let len = self.len;
        self.slots_mut().copy_within(index..len, index + 1);
        self.slots_mut()[index].cut(region.base_raw(), addr);
        self.slots_mut()[index + 1].cut(addr, region.end_raw());
        self.len += 1;
        true
    }

    /// Shrinks every region to multiples of `align`; those that hold none go.
    pub(super) fn trim(&mut self, align: u64) {
        let (mut kept, mut total) = (0, 0);
        for index in 0..self.len {
            let mut region = self.regions()[index];
            let end = region.end_raw() & !(align - 1);
            match region.base_raw().checked_next_multiple_of(align) {
                Some(base) if base < end => region.cut(base, end),
                _ => continue,
            }
            self.slots_mut()[kept] = region;
            kept += 1;
            total += region.size();
        }
        self.len = kept;
        self.total = total;
    }
}
