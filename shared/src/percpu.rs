//! Per-CPU memory (`mm/percpu.c`) as it lies in guest memory.
//!
//! Every CPU has a *unit* in every *chunk*, all at the same offsets: unit `u` of a chunk is at the chunk's `base_addr`
//! plus `PcpuRoot::unit_off` of its CPU. So a per-CPU pointer is one number for all CPUs:
//!
//! ```text
//! pointer                        address in unit 0 - PcpuRoot::base_addr
//! address of CPU c's instance    pointer + PcpuRoot::base_addr + unit_off[c]
//! GS base of CPU c               PcpuRoot::base_addr + unit_off[c]
//! ```
//!
//! (all wrapping), and the first chunk's units begin with the static variables, whose link addresses start at 0.
//!
//! A chunk's record, a [`PcpuChunk`], lies in the direct map, and its maps right behind it ([`ChunkLayout`]): a
//! [`PcpuBlock`] for each 4 KiB of a unit, which pages have memory, and two bits for each 4 bytes of a unit.

use core::mem::size_of;
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::NR_CPUS;
use crate::units::PAGE_SIZE;

/// What a bit of a chunk's maps stands for, in bytes (`PCPU_MIN_ALLOC_SIZE`).
pub const PCPU_MIN_ALLOC_SIZE: u64 = 4;
/// The largest allocation, in bytes, and the smallest unit (`PCPU_MIN_UNIT_SIZE`).
pub const PCPU_MIN_UNIT_SIZE: u64 = 32 << 10;
/// Bits of a block, which is a page (`PCPU_BITMAP_BLOCK_BITS`).
pub const PCPU_BLOCK_BITS: usize = (PAGE_SIZE / PCPU_MIN_ALLOC_SIZE) as usize;
/// Bytes of the first chunk kept for the variables of modules (`PERCPU_MODULE_RESERVE`).
pub const PERCPU_MODULE_RESERVE: u64 = 8 << 10;
/// Bytes of the first chunk for dynamic allocations (`PERCPU_DYNAMIC_RESERVE`).
pub const PERCPU_DYNAMIC_RESERVE: u64 = 28 << 10;
/// The least of these (`PERCPU_DYNAMIC_EARLY_SIZE`).
pub const PERCPU_DYNAMIC_EARLY_SIZE: u64 = 20 << 10;
/// Most pages of a unit: 2 MiB of them.
pub const PCPU_MAX_UNIT_PAGES: usize = 512;
/// Slots there is room for, more than the largest unit needs.
pub const PCPU_MAX_SLOTS: usize = 32;

/// Slots are by powers of two from 16 bytes on (`PCPU_SLOT_BASE_SHIFT`).
const PCPU_SLOT_BASE_SHIFT: u32 = 5;

/// The slot of chunks whose largest free area has `bytes` (`__pcpu_size_to_slot`).
#[inline(always)]
pub const fn size_to_slot(bytes: u32) -> u32 {
    // `fls(bytes)` is at least 1 for what is asked.
    let highbit = 32 - bytes.leading_zeros();
    if highbit + 2 <= PCPU_SLOT_BASE_SHIFT { 1 } else { highbit + 2 - PCPU_SLOT_BASE_SHIFT }
}

/// Free areas of a block, or of a whole chunk, in bits from its start (`struct pcpu_block_md`).
///
/// Invariants, when nobody holds the lock: the largest free run is `contig_hint` bits long and starts at
/// `contig_hint_start`; no other free run is longer than `scan_hint`; nothing in front of `first_free` is free. Of a
/// block, `left_free` and `right_free` bits are free from its start and up to its end; of a chunk they mean nothing.
#[repr(C)]
#[derive(Debug, Default)]
pub struct PcpuBlock {
    /// Bits of the largest free run.
    pub contig_hint: AtomicU32,
    /// Where it starts.
    pub contig_hint_start: AtomicU32,
    /// Bits that no other free run exceeds.
    pub scan_hint: AtomicU32,
    /// Free bits from the start on.
    pub left_free: AtomicU32,
    /// Free bits up to the end.
    pub right_free: AtomicU32,
    /// No bit in front of it is free.
    pub first_free: AtomicU32,
    /// Bits in all.
    pub nr_bits: AtomicU32,
    /// Padding.
    pub reserved: AtomicU32,
}

/// A chunk (`struct pcpu_chunk`). Addresses are virtual; those of chunk records lie in the direct map.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct PcpuChunk {
    /// The next chunk of the slot; 0 for none.
    pub next: AtomicU64,
    /// The previous one; 0 for none.
    pub prev: AtomicU64,
    /// Where the unit at offset 0 starts: of what the chunk manages, which begins on a page.
    pub base_addr: AtomicU64,
    /// The slot it is on; `u32::MAX` for none.
    pub slot: AtomicU32,
    /// Pages of a unit that the chunk manages.
    pub nr_pages: AtomicU32,
    /// Of these, how many have memory, for all CPUs.
    pub nr_populated: AtomicU32,
    /// Of these, how many hold no allocation.
    pub nr_empty_pop_pages: AtomicU32,
    /// Free bytes of a unit.
    pub free_bytes: AtomicU32,
    /// Bytes at the start that belong to somebody else.
    pub start_offset: AtomicU32,
    /// Bytes at the end that belong to somebody else.
    pub end_offset: AtomicU32,
    /// 1: its pages stay as they are (the first chunk).
    pub immutable: AtomicU32,
    /// 1: taken off the slots that serve allocations, to be depopulated.
    pub isolated: AtomicU32,
    /// Allocations in it.
    pub nr_alloc: AtomicU32,
    /// The next of all chunks; 0 for none.
    pub all_next: AtomicU64,
    /// The previous of all chunks; 0 for none.
    pub all_prev: AtomicU64,
    /// The frames behind its pages: a 32-bit word for each page of a unit and CPU, at index `page * CPUs + cpu`; 0 for none.
    /// The address is 0 for the first chunk, which is in the direct map.
    pub pages: AtomicU64,
    /// Free areas of the whole chunk.
    pub md: PcpuBlock,
}

/// What there is of per-CPU memory; the header's roots tell where it is.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct PcpuRoot {
    /// Held, with interrupts off, by who changes any of this (`pcpu_lock`).
    pub lock: AtomicU32,
    /// Odd while it is being changed.
    pub seq: AtomicU32,
    /// Bit `s` is set while slot `s` has a chunk.
    pub slot_mask: AtomicU32,
    /// Number of slots (`pcpu_nr_slots`): by the size of the largest free area, then `sidelined_slot` and on.
    pub nr_slots: AtomicU32,
    /// The slot of chunks that are being emptied (`pcpu_sidelined_slot`).
    pub sidelined_slot: AtomicU32,
    /// The slot of chunks without any allocation (`pcpu_free_slot`).
    pub free_slot: AtomicU32,
    /// The slot of chunks that wait to be depopulated (`pcpu_to_depopulate_slot`).
    pub to_depopulate_slot: AtomicU32,
    /// Something is to be balanced (`pcpu_schedule_balance_work`).
    pub balance_pending: AtomicU32,
    /// The address that pointers count from: the lowest unit of the first chunk (`pcpu_base_addr`).
    pub base_addr: AtomicU64,
    /// Bytes from one unit of a group to the next, and so the most that a unit has (`pcpu_unit_size`).
    pub unit_size: AtomicU64,
    /// Bytes of static variables at the start of the first chunk's units.
    pub static_size: AtomicU64,
    /// Bytes behind them for modules.
    pub reserved_size: AtomicU64,
    /// Bytes behind these for dynamic allocations.
    pub dyn_size: AtomicU64,
    /// Units, those without a CPU included (`pcpu_nr_units`).
    pub nr_units: AtomicU32,
    /// Groups of CPUs, a node each (`pcpu_nr_groups`).
    pub nr_groups: AtomicU32,
    /// Pages of a unit that have memory, over all chunks (`pcpu_nr_populated`).
    pub nr_populated: AtomicU64,
    /// Of these, those that hold no dynamic allocation (`pcpu_nr_empty_pop_pages`).
    pub nr_empty_pop_pages: AtomicU64,
    /// Chunks, those of the first chunk's parts included.
    pub nr_chunks: AtomicU32,
    /// Held by who adds or takes away chunks or pages (`pcpu_alloc_mutex`).
    pub alloc_mutex: AtomicU32,
    /// Padding.
    pub reserved: AtomicU32,
    /// An allocation from within an interrupt has failed since somebody last looked (`pcpu_atomic_alloc_failed`).
    pub atomic_alloc_failed: AtomicU32,
    /// The first of all [`PcpuChunk`]s; 0 for none.
    pub chunks: AtomicU64,
    /// The chunk of the reserved part; 0 for none. It is on no slot (`pcpu_reserved_chunk`).
    pub reserved_chunk: AtomicU64,
    /// The chunk of the dynamic part (`pcpu_first_chunk`).
    pub first_chunk: AtomicU64,
    /// The first chunk of each slot; 0 for none (`pcpu_chunk_lists`).
    pub slots: [AtomicU64; PCPU_MAX_SLOTS],
    /// Where the CPUs' units are, from `base_addr` on (`pcpu_unit_offsets`).
    pub unit_off: [AtomicU64; NR_CPUS],
    /// Bytes from `base_addr` to the first unit of each group.
    pub group_offsets: [AtomicU64; NR_CPUS],
    /// Units of each group, times `unit_size`.
    pub group_sizes: [AtomicU64; NR_CPUS],
}

const _: () = assert!(size_of::<PcpuBlock>() == 32 && size_of::<PcpuChunk>() == 128);

/// Where a chunk's maps are, in bytes from the start of its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkLayout {
    /// [`PcpuBlock`] by page of a unit.
    pub blocks: usize,
    /// A bit for each page of a unit: set if it has memory.
    pub populated: usize,
    /// A bit for each 4 bytes of a unit: set if they are allocated.
    pub alloc_map: usize,
    /// A bit for each 4 bytes: set where an allocation starts. It ends where the next one starts, or where nothing is
    /// allocated.
    pub bound_map: usize,
    /// Bytes in all.
    pub size: usize,
}

impl ChunkLayout {
    /// The layout for units of `nr_pages` pages, at most [`PCPU_MAX_UNIT_PAGES`].
    #[inline(always)]
    pub const fn new(nr_pages: usize) -> Self {
        let blocks = size_of::<PcpuChunk>();
        let populated = blocks + nr_pages * size_of::<PcpuBlock>();
        let alloc_map = populated + nr_pages.div_ceil(64) * 8;
        let bound_map = alloc_map + nr_pages * PCPU_BLOCK_BITS / 8;
        let size = bound_map + nr_pages * PCPU_BLOCK_BITS / 8;
        Self { blocks, populated, alloc_map, bound_map, size }
    }
}

impl PcpuRoot {
    /// The per-CPU pointer of what unit 0 has at `addr`.
    #[inline]
    pub const fn pointer(base_addr: u64, addr: u64) -> u64 {
        addr.wrapping_sub(base_addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_linux() {
        let expected = [(4, 1), (8, 1), (15, 1), (16, 2), (31, 2), (32, 3), (4096, 10), (32 << 10, 13), (2 << 20, 19)];
        for (bytes, slot) in expected {
            assert_eq!(size_to_slot(bytes), slot, "{bytes} bytes");
        }
        // The largest unit and the three slots behind it.
        assert!(size_to_slot((PCPU_MAX_UNIT_PAGES as u64 * PAGE_SIZE) as u32) + 4 <= PCPU_MAX_SLOTS as u32);
    }

    #[test]
    fn maps_do_not_overlap() {
        for pages in [1, 3, 8, 64, 512] {
            let layout = ChunkLayout::new(pages);
            assert_eq!(layout.blocks, 128);
            assert_eq!(layout.populated, 128 + 32 * pages);
            assert!(layout.alloc_map >= layout.populated + pages.div_ceil(8));
            assert_eq!(layout.bound_map - layout.alloc_map, pages * 128);
            assert_eq!(layout.size - layout.bound_map, pages * 128);
        }
    }
}
