//! The search for a free range (`memblock_find_in_range_node`).

use pagevisor_shared::units::{NodeId, PAGE_SIZE, PhysAddr};

use super::region::MemblockFlags;
use super::{MEMBLOCK_ALLOC_ACCESSIBLE, Memblock};

impl Memblock {
    /// A free range of `size` bytes, aligned to the power of two `align`, inside `[start, end)`, on node `nid` or on
    /// any: the lowest one when searching bottom-up, else the highest.
    ///
    /// [`MEMBLOCK_ALLOC_ACCESSIBLE`] as `end` means the current limit. Page 0 is never given out.
    pub fn find_in_range_node(
        &self,
        size: u64,
        align: u64,
        start: PhysAddr,
        end: PhysAddr,
        nid: Option<NodeId>,
        flags: MemblockFlags,
    ) -> Option<PhysAddr> {
        assert!(align.is_power_of_two(), "memblock: alignment {align:#x} is not a power of two");
        let end = if end == MEMBLOCK_ALLOC_ACCESSIBLE { self.current_limit } else { end.raw() };
        let start = start.raw().max(PAGE_SIZE);
        let window = (start, end.max(start));
        if self.bottom_up {
            // __memblock_find_range_bottom_up
            self.free_within::<false>(window, nid, flags).find_map(|range| range.lowest_fit(size, align))
        } else {
            // __memblock_find_range_top_down
            self.free_within::<true>(window, nid, flags).find_map(|range| range.highest_fit(size, align))
        }
    }

    /// As [`Self::find_in_range_node`] on any node; tries mirrored memory first where there is some
    /// (`memblock_find_in_range`).
    pub fn find_in_range(&self, start: PhysAddr, end: PhysAddr, size: u64, align: u64) -> Option<PhysAddr> {
        let flags = self.choose_flags();
        let found = self.find_in_range_node(size, align, start, end, None, flags);
        if found.is_some() || !flags.contains(MemblockFlags::MIRROR) {
            return found;
        }
        self.warn_no_mirror(size);
        self.find_in_range_node(size, align, start, end, None, MemblockFlags::NONE)
    }

    /// Flags of an allocation's first attempt (`choose_memblock_flags`).
    pub(super) const fn choose_flags(&self) -> MemblockFlags {
        if self.has_some_mirror { MemblockFlags::MIRROR } else { MemblockFlags::NONE }
    }

    pub(super) fn warn_no_mirror(&self, size: u64) {
        self.warn(format_args!("Could not allocate {size:#018x} bytes of mirrored memory"));
    }
}
