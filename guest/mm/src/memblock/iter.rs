//! Walks over the ranges memblock knows: memory, reserved, and memory that is not reserved.

use pagevisor_shared::units::{NodeId, Pfn, PhysAddr};

use super::Memblock;
use super::region::{MemblockFlags, Region};

/// A range of addresses with the node it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemRange {
    /// Its first byte.
    pub start: PhysAddr,
    /// The first byte after it.
    pub end: PhysAddr,
    /// Its node, if it was given one.
    pub nid: Option<NodeId>,
}

impl MemRange {
    /// The lowest place in it for `size` bytes aligned to `align`, a power of two.
    pub(super) fn lowest_fit(&self, size: u64, align: u64) -> Option<PhysAddr> {
        let place = self.start.raw().checked_next_multiple_of(align)?;
        let room = self.end.raw().checked_sub(place)?;
        (room > 0 && room >= size).then(|| PhysAddr::new(place))
    }

    /// The highest place in it for `size` bytes aligned to `align`, a power of two.
    pub(super) fn highest_fit(&self, size: u64, align: u64) -> Option<PhysAddr> {
        let place = self.end.raw().checked_sub(size)? & !(align - 1);
        (place >= self.start.raw()).then(|| PhysAddr::new(place))
    }
}

/// A range of whole frames with the node it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PfnRange {
    /// Its first frame.
    pub start: Pfn,
    /// The first frame after it.
    pub end: Pfn,
    /// Its node, if it was given one.
    pub nid: Option<NodeId>,
}

/// Which memory regions a walk takes (`should_skip_region`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    pub(super) nid: Option<NodeId>,
    pub(super) flags: MemblockFlags,
    pub(super) movable_node: bool,
}

impl Filter {
    #[inline]
    fn takes(&self, region: &Region) -> bool {
        if self.nid.is_some() && self.nid != region.nid() {
            return false;
        }
        // Most regions have no flag, and most walks ask for none.
        if region.flags() == MemblockFlags::NONE {
            return !self.flags.contains(MemblockFlags::MIRROR);
        }
        let asked = |flag| self.flags.contains(flag);
        (asked(MemblockFlags::HOTPLUG) || !self.movable_node || !region.is_hotpluggable())
            && (!asked(MemblockFlags::MIRROR) || region.is_mirror())
            && (asked(MemblockFlags::NOMAP) || !region.is_nomap())
            && (asked(MemblockFlags::DRIVER_MANAGED) || !region.is_driver_managed())
    }
}

/// The free ranges inside a window of addresses, lowest first (`__next_mem_range`).
pub type FreeRanges<'a> = FreeWalk<'a, false>;

/// The free ranges inside a window of addresses, highest first (`__next_mem_range_rev`).
pub type FreeRangesRev<'a> = FreeWalk<'a, true>;

/// A walk over the free ranges inside a window of addresses, down from its end if `DOWN`.
#[derive(Clone, Debug)]
pub struct FreeWalk<'a, const DOWN: bool> {
    memory: core::slice::Iter<'a, Region>,
    reserved: &'a [Region],
    /// Reserved regions not yet passed.
    left: &'a [Region],
    filter: Filter,
    window: (u64, u64),
    /// The memory region the walk is in: what remains of it, and its node.
    low: u64,
    high: u64,
    nid: Option<NodeId>,
}

impl<const DOWN: bool> FreeWalk<'_, DOWN> {
    /// Takes the part of what remains that lies before the next reserved region, as the walk goes; that behind it is
    /// what remains then.
    #[inline]
    fn step(&mut self) -> (u64, u64) {
        let next = if DOWN { self.left.split_last() } else { self.left.split_first() };
        let inside = |hole: &Region| if DOWN { hole.end_raw() > self.low } else { hole.base_raw() < self.high };
        match next {
            Some((hole, rest)) if inside(hole) => {
                self.left = rest;
                let (below, above) = ((self.low, hole.base_raw()), (hole.end_raw(), self.high));
                let (near, far) = if DOWN { (above, below) } else { (below, above) };
                (self.low, self.high) = far;
                near
            }
            _ => {
                let near = (self.low, self.high);
                self.low = self.high;
                near
            }
        }
    }
}

impl<const DOWN: bool> Iterator for FreeWalk<'_, DOWN> {
    type Item = MemRange;

    fn next(&mut self) -> Option<MemRange> {
        loop {
            while self.low < self.high {
                let (start, end) = self.step();
                if start < end {
                    return Some(MemRange { start: PhysAddr::new(start), end: PhysAddr::new(end), nid: self.nid });
                }
            }
            let filter = self.filter;
            let takes = |region: &&Region| filter.takes(region);
            let region = if DOWN { self.memory.rfind(takes) } else { self.memory.find(takes) }?;
            self.low = region.base_raw().max(self.window.0);
            self.high = region.end_raw().min(self.window.1);
            self.nid = region.nid();
            self.left = if DOWN {
                &self.reserved[..self.reserved.partition_point(|r| r.base_raw() < self.high)]
            } else {
                &self.reserved[self.reserved.partition_point(|r| r.end_raw() <= self.low)..]
            };
        }
    }
}

impl Memblock {
    fn filter(&self, nid: Option<NodeId>, flags: MemblockFlags) -> Filter {
        Filter { nid, flags, movable_node: self.movable_node }
    }

    /// The memory regions that reach into `[start, end)`.
    fn memory_within(&self, start: u64, end: u64) -> core::slice::Iter<'_, Region> {
        let regions = &self.memory.regions()[self.memory.first_ending_above(start)..];
        match regions.last() {
            Some(last) if last.base_raw() >= end => regions[..regions.partition_point(|r| r.base_raw() < end)].iter(),
            _ => regions.iter(),
        }
    }

    /// The memory inside a window of addresses that is not reserved.
    pub(super) fn free_within<const DOWN: bool>(
        &self,
        (start, end): (u64, u64),
        nid: Option<NodeId>,
        flags: MemblockFlags,
    ) -> FreeWalk<'_, DOWN> {
        FreeWalk {
            memory: self.memory_within(start, end),
            reserved: self.reserved.regions(),
            left: &[],
            filter: self.filter(nid, flags),
            window: (start, end),
            low: 0,
            high: 0,
            nid: None,
        }
    }

    /// Memory that is not reserved, lowest first, of node `nid` or of all (`for_each_free_mem_range`).
    ///
    /// Left out unless `flags` asks for them: `NOMAP`, driver-managed, and (while movable nodes are asked for)
    /// hot-pluggable regions. With `MIRROR` only mirrored memory is taken.
    pub fn free_mem_ranges(&self, nid: Option<NodeId>, flags: MemblockFlags) -> FreeRanges<'_> {
        self.free_within((0, u64::MAX), nid, flags)
    }

    /// As [`Self::free_mem_ranges`], highest first (`for_each_free_mem_range_reverse`).
    pub fn free_mem_ranges_rev(&self, nid: Option<NodeId>, flags: MemblockFlags) -> FreeRangesRev<'_> {
        self.free_within((0, u64::MAX), nid, flags)
    }

    /// Whole free frames of node `nid` inside `[zone_start, zone_end)`
    /// (`for_each_free_mem_pfn_range_in_zone`).
    pub fn free_mem_pfn_ranges_in_zone(
        &self,
        nid: NodeId,
        zone_start: Pfn,
        zone_end: Pfn,
    ) -> impl Iterator<Item = PfnRange> {
        let window = (zone_start.addr().raw(), zone_end.addr().raw());
        self.free_within::<false>(window, Some(nid), MemblockFlags::NONE)
            .map(|r| PfnRange { start: Pfn::at_or_above(r.start), end: Pfn::containing(r.end), nid: r.nid })
            .filter(|r| r.start < r.end)
    }

    /// Memory that may be mapped, reserved or not (`for_each_mem_range`): all but `NOMAP` regions.
    pub fn mem_ranges(&self) -> impl DoubleEndedIterator<Item = MemRange> {
        let filter = self.filter(None, MemblockFlags::HOTPLUG | MemblockFlags::DRIVER_MANAGED);
        self.memory.regions().iter().filter(move |r| filter.takes(r)).map(whole)
    }

    /// What is reserved (`for_each_reserved_mem_range`).
    pub fn reserved_mem_ranges(&self) -> impl DoubleEndedIterator<Item = MemRange> {
        self.reserved.regions().iter().map(whole)
    }

    /// Whole frames of memory of node `nid`, or of all, reserved or not (`for_each_mem_pfn_range`).
    pub fn mem_pfn_ranges(&self, nid: Option<NodeId>) -> impl DoubleEndedIterator<Item = PfnRange> {
        self.memory
            .regions()
            .iter()
            .filter(move |r| nid.is_none() || nid == r.nid())
            .map(|r| PfnRange { start: r.start_pfn(), end: r.end_pfn(), nid: r.nid() })
            .filter(|r| r.start < r.end)
    }
}

fn whole(region: &Region) -> MemRange {
    MemRange { start: region.base(), end: region.end(), nid: region.nid() }
}
