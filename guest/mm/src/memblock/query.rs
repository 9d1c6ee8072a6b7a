//! Questions about addresses and sizes.

use pagevisor_shared::units::{Pfn, PhysAddr};

use super::grow::table_bytes;
use super::iter::PfnRange;
use super::region::Region;
use super::{Kind, Level, Memblock, capped_end};

impl Memblock {
    /// The memory regions, ascending.
    pub fn memory(&self) -> &[Region] {
        self.memory.regions()
    }

    /// The reserved regions, ascending.
    pub fn reserved(&self) -> &[Region] {
        self.reserved.regions()
    }

    /// Slots of a table (`memblock_type.max`): 128, doubled each time it was full.
    pub const fn capacity(&self, kind: Kind) -> usize {
        self.table(kind).capacity()
    }

    /// Where a table lies that outgrew its array: the reserved range and its size, whole pages. To be freed with
    /// the rest once nobody uses memblock any more (`memblock_discard`).
    pub fn table_range(&self, kind: Kind) -> Option<(PhysAddr, u64)> {
        self.table(kind).placed().map(|(addr, slots)| (PhysAddr::new(addr), table_bytes(slots)))
    }

    /// Whether searches go from low addresses up (`memblock_bottom_up`).
    pub const fn bottom_up(&self) -> bool {
        self.bottom_up
    }

    /// The bound of allocations that name none (`memblock_get_current_limit`).
    pub const fn current_limit(&self) -> PhysAddr {
        PhysAddr::new(self.current_limit)
    }

    /// Bytes of memory (`memblock_phys_mem_size`).
    pub const fn phys_mem_size(&self) -> u64 {
        self.memory.total()
    }

    /// Bytes reserved (`memblock_reserved_size`).
    pub const fn reserved_size(&self) -> u64 {
        self.reserved.total()
    }

    /// The hull of all memory that was reserved once and is free again: its content is not known to be zero. Empty
    /// when there is none.
    pub fn used_range(&self) -> core::ops::Range<PhysAddr> {
        PhysAddr::new(self.used.start)..PhysAddr::new(self.used.end)
    }

    /// Lowest address of memory, 0 if there is none (`memblock_start_of_DRAM`).
    pub fn start_of_dram(&self) -> PhysAddr {
        self.memory().first().map_or(PhysAddr::new(0), Region::base)
    }

    /// End of the highest memory, 0 if there is none (`memblock_end_of_DRAM`).
    pub fn end_of_dram(&self) -> PhysAddr {
        self.memory().last().map_or(PhysAddr::new(0), Region::end)
    }

    /// Whether `addr` is memory (`memblock_is_memory`).
    pub fn is_memory(&self, addr: PhysAddr) -> bool {
        self.memory.search(addr.raw()).is_some()
    }

    /// Whether `addr` is memory that belongs into the direct map (`memblock_is_map_memory`).
    pub fn is_map_memory(&self, addr: PhysAddr) -> bool {
        self.memory.search(addr.raw()).is_some_and(|index| !self.memory()[index].is_nomap())
    }

    /// Whether `addr` is reserved (`memblock_is_reserved`).
    pub fn is_reserved(&self, addr: PhysAddr) -> bool {
        self.reserved.search(addr.raw()).is_some()
    }

    /// Whether one memory region holds the whole range (`memblock_is_region_memory`).
    pub fn is_region_memory(&self, base: PhysAddr, size: u64) -> bool {
        let end = capped_end(base, size);
        self.memory.search(base.raw()).is_some_and(|index| self.memory()[index].end().raw() >= end)
    }

    /// Whether any byte of the range is reserved (`memblock_is_region_reserved`).
    pub fn is_region_reserved(&self, base: PhysAddr, size: u64) -> bool {
        self.overlaps_region(Kind::Reserved, base, size)
    }

    /// Whether any byte of the range is in the table (`memblock_overlaps_region`).
    pub fn overlaps_region(&self, kind: Kind, base: PhysAddr, size: u64) -> bool {
        self.table(kind).overlaps(base.raw(), capped_end(base, size))
    }

    /// The region that holds frame `pfn`, and its node (`memblock_search_pfn_nid`).
    pub fn search_pfn_nid(&self, pfn: Pfn) -> Option<PfnRange> {
        let region = self.memory()[self.memory.search(pfn.addr().raw())?];
        let (start, end) = (Pfn::containing(region.base()), region.end_pfn());
        Some(PfnRange { start, end, nid: region.nid() })
    }

    /// Writes both tables to the log, under `memblock=debug` (`memblock_dump_all`).
    pub fn dump_all(&self) {
        if !self.debug {
            return;
        }
        let (memory, reserved) = (self.phys_mem_size(), self.reserved_size());
        self.say(Level::Info, format_args!("MEMBLOCK configuration:"));
        self.say(Level::Info, format_args!(" memory size = {memory:#018x} reserved size = {reserved:#018x}"));
        for kind in [Kind::Memory, Kind::Reserved] {
            let (name, regions) = (kind.name(), self.table(kind).regions());
            self.say(Level::Info, format_args!(" {name}.cnt  = {:#x}", regions.len()));
            for (index, region) in regions.iter().enumerate() {
                self.say(Level::Info, format_args!(" {name}[{index:#x}]\t{region}"));
            }
        }
    }
}
