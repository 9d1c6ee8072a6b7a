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
#[derive(Clone, Debug)]
pub struct FreeRanges<'a> {
    memory: core::slice::Iter<'a, Region>,
    reserved: &'a [Region],
    /// Reserved regions not yet passed, all above `at`.
    left: &'a [Region],
    filter: Filter,
    window: (u64, u64),
    /// The memory region the walk is in: what remains of it, and its node.
    at: u64,
    stop: u64,
    nid: Option<NodeId>,
}

impl Iterator for FreeRanges<'_> {
    type Item = MemRange;

    fn next(&mut self) -> Option<MemRange> {
        loop {
            while self.at < self.stop {
                let start = self.at;
                let end = match self.left.split_first() {
                    Some((next, rest)) if next.base_raw() < self.stop => {
                        self.left = rest;
                        self.at = next.end_raw();
                        next.base_raw()
                    }
                    _ => {
                        self.at = self.stop;
                        self.stop
                    }
                };
                if start < end {
                    return Some(MemRange { start: PhysAddr::new(start), end: PhysAddr::new(end), nid: self.nid });
                }
            }
            let filter = self.filter;
            let region = self.memory.find(|region| filter.takes(region))?;
            self.at = region.base_raw().max(self.window.0);
            self.stop = region.end_raw().min(self.window.1);
            self.nid = region.nid();
            let passed = self.reserved.partition_point(|r| r.end_raw() <= self.at);
            self.left = &self.reserved[passed..];
        }
    }
}

/// The free ranges inside a window of addresses, highest first (`__next_mem_range_rev`).
#[derive(Clone, Debug)]
pub struct FreeRangesRev<'a> {
    memory: core::slice::Iter<'a, Region>,
    reserved: &'a [Region],
    /// Reserved regions not yet passed, all below `at`.
    left: &'a [Region],
    filter: Filter,
    window: (u64, u64),
    /// The memory region the walk is in: what remains of it, and its node.
    at: u64,
    stop: u64,
    nid: Option<NodeId>,
}

impl Iterator for FreeRangesRev<'_> {
    type Item = MemRange;

    fn next(&mut self) -> Option<MemRange> {
        loop {
            while self.at > self.stop {
                let end = self.at;
                let start = match self.left.split_last() {
                    Some((next, rest)) if next.end_raw() > self.stop => {
                        self.left = rest;
                        self.at = next.base_raw();
                        next.end_raw()
                    }
                    _ => {
                        self.at = self.stop;
                        self.stop
                    }
                };
                if start < end {
                    return Some(MemRange { start: PhysAddr::new(start), end: PhysAddr::new(end), nid: self.nid });
                }
            }
            let filter = self.filter;
            let region = self.memory.rfind(|region| filter.takes(region))?;
            self.at = region.end_raw().min(self.window.1);
            self.stop = region.base_raw().max(self.window.0);
            self.nid = region.nid();
            let below = self.reserved.partition_point(|r| r.base_raw() < self.at);
            self.left = &self.reserved[..below];
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

    pub(super) fn free_within(
        &self,
        (start, end): (u64, u64),
        nid: Option<NodeId>,
        flags: MemblockFlags,
    ) -> FreeRanges<'_> {
        FreeRanges {
            memory: self.memory_within(start, end),
            reserved: self.reserved.regions(),
            left: &[],
            filter: self.filter(nid, flags),
            window: (start, end),
            at: 0,
            stop: 0,
            nid: None,
        }
    }

    pub(super) fn free_within_rev(
        &self,
        (start, end): (u64, u64),
        nid: Option<NodeId>,
        flags: MemblockFlags,
    ) -> FreeRangesRev<'_> {
        FreeRangesRev {
            memory: self.memory_within(start, end),
            reserved: self.reserved.regions(),
            left: &[],
            filter: self.filter(nid, flags),
            window: (start, end),
            at: 0,
            stop: 0,
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
        self.free_within_rev((0, u64::MAX), nid, flags)
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
        self.free_within(window, Some(nid), MemblockFlags::NONE)
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
