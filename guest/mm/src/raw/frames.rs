//! The tables by frame: which zone a frame lies in, and the migrate type of its page block.
//!
//! Two of them are the host's too (`sections` and `pageblocks` of the region's roots). Two are the allocator's own:
//!
//! - a `u16` for each 16 MiB chunk, the zone's index plus one. Zone limits (16 MiB, 4 GiB) are chunk limits; only where
//!   two nodes meet inside a chunk is the entry [`MIXED`], and the memory ranges must be asked;
//! - a `u16` for each page block, its *home*: zone and migrate type in one word, so that one load tells a free on which
//!   pageset list the page goes. It is filled in when a page of the block is first freed, so boot need not.

use core::slice;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU64};

use pagevisor_shared::migrate::{MIGRATE_PCPTYPES, MigrateType};
use pagevisor_shared::page::Page;
use pagevisor_shared::region::zone::SECTION_MIXED;
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, PAGEBLOCK_ORDER, PFN_SECTION_SHIFT, PhysAddr};
use pagevisor_shared::zone::ZoneIndex;

use super::Memmap;
use crate::memblock::{AllocError, Memblock};
use crate::platform::Platform;
use crate::sync::Plain;

/// log2 of the pages in a chunk.
const CHUNK_SHIFT: u32 = 24 - PAGE_SHIFT;
/// Entry of a chunk in which zones meet.
const MIXED: u16 = u16::MAX;

/// The tables. All are in zeroed guest memory that memblock reserved for good.
#[derive(Clone, Copy, Debug)]
pub struct FrameTables {
    /// Zone index + 1 by chunk; 0 absent.
    chunks: &'static [AtomicU16],
    /// Zone index + 1 by section.
    sections: &'static [AtomicU16],
    /// [`MigrateType::block_byte`] by page block; at least one for every frame of `chunks`.
    blocks: &'static [AtomicU8],
    /// [`Home`] by page block.
    homes: &'static [AtomicU16],
}

/// Zone index plus one and, in the low two bits, the migrate type of a page block; 0 when not known, or when frees to
/// it take the general way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Home(u16);

impl Home {
    /// Of no page block.
    pub const UNKNOWN: Self = Self(0);

    /// The zone's index; not that of a zone when the home is not known.
    #[inline(always)]
    pub const fn zone(self) -> usize {
        ((self.0 >> 2) as usize).wrapping_sub(1)
    }

    /// The number of the migrate type, one of those with lists of their own.
    #[inline(always)]
    pub const fn migratetype(self) -> usize {
        (self.0 & 3) as usize
    }
}

impl FrameTables {
    /// Bytes of the chunk, section and page-block tables and of the homes, for frames below `max_pfn`.
    const fn sizes(max_pfn: u64) -> [u64; 4] {
        let sections = max_pfn.div_ceil(1 << PFN_SECTION_SHIFT);
        [
            (sections << (PFN_SECTION_SHIFT - CHUNK_SHIFT)) * 2,
            sections * 2,
            sections << (PFN_SECTION_SHIFT - PAGEBLOCK_ORDER),
            (sections << (PFN_SECTION_SHIFT - PAGEBLOCK_ORDER)) * 2,
        ]
    }

    /// Takes the tables from memblock, for all the memory it knows. Empty at first: no frame is in a zone.
    ///
    /// # Errors
    /// [`AllocError`] when there is no room for them.
    pub(crate) fn allocate<P: Platform>(platform: &P, memblock: &mut Memblock) -> Result<Self, AllocError> {
        let [chunks, sections, blocks, homes] = Self::sizes(memblock.end_of_dram().raw().div_ceil(1 << PAGE_SHIFT));
        let at_sections = chunks.next_multiple_of(64);
        let at_blocks = (at_sections + sections).next_multiple_of(64);
        let at_homes = (at_blocks + blocks).next_multiple_of(64);
        let bottom_up = memblock.bottom_up();
        memblock.set_bottom_up(true);
        // Out of ZONE_DMA, beside the page metadata.
        let base = memblock.alloc_from(at_homes + homes, PAGE_SIZE, PhysAddr::new(16 << 20));
        memblock.set_bottom_up(bottom_up);
        let base = base?;
        // SAFETY: memblock has just reserved and cleared that much RAM at `base`, nobody frees it, and RAM lies
        // inside the direct map for the life of the program (promise of `Platform`). Each table starts at a multiple
        // of 64 inside it, and atomics are valid with any content.
        unsafe {
            let base = platform.direct_map().add(base.raw() as usize);
            Ok(Self {
                chunks: slice::from_raw_parts(base.cast().as_ptr(), chunks as usize / 2),
                sections: slice::from_raw_parts(base.add(at_sections as usize).cast().as_ptr(), sections as usize / 2),
                blocks: slice::from_raw_parts(base.add(at_blocks as usize).cast().as_ptr(), blocks as usize),
                homes: slice::from_raw_parts(base.add(at_homes as usize).cast().as_ptr(), homes as usize / 2),
            })
        }
    }

    /// Entries in the section table.
    pub const fn nr_sections(&self) -> usize {
        self.sections.len()
    }

    /// Records that `[start, end)` belongs to `zone`. Ranges come in order of address.
    pub(crate) fn mark(&self, start: u64, end: u64, zone: ZoneIndex) {
        let mark = |table: &[AtomicU16], shift: u32, mixed: u16, partial: bool| {
            let (first, last) = (start >> shift, (end - 1) >> shift);
            for index in [first, last] {
                let Some(entry) = table.get(index as usize) else { return };
                let whole = start <= index << shift && (index + 1) << shift <= end;
                let known = entry.get();
                let same = known == zone.0 + 1;
                entry.set(if (known == 0 || same) && (whole || !partial) { zone.0 + 1 } else { mixed });
            }
            // What is between is this range's alone.
            if let Some(between) = table.get(first as usize + 1..last as usize) {
                fill(between, zone.0 + 1);
            }
        };
        mark(self.chunks, CHUNK_SHIFT, MIXED, false);
        mark(self.sections, PFN_SECTION_SHIFT, SECTION_MIXED, true);
    }

    /// The zone index of frame `pfn` if its chunk is in one zone. `u16::MAX` where there is no memory,
    /// `u16::MAX - 1` where zones meet: neither is a zone, so a table look-up by it fails.
    #[inline(always)]
    pub fn zone_of(&self, pfn: u64) -> u16 {
        match self.chunks.get((pfn >> CHUNK_SHIFT) as usize) {
            Some(entry) => entry.get().wrapping_sub(1),
            None => u16::MAX,
        }
    }

    /// Metadata of frame `pfn`, if its chunk has memory.
    #[inline(always)]
    pub(crate) fn page_of(&self, memmap: Memmap, pfn: u64) -> Option<&'static Page> {
        let entry = self.chunks.get((pfn >> CHUNK_SHIFT) as usize)?;
        // A plain load, which the compiler can make part of a comparison.
        // SAFETY: written while booting only, before another CPU is there.
        if unsafe { entry.as_ptr().read() } == 0 {
            return None;
        }
        // SAFETY: chunks end where memory does, and a frame number has 32 bits.
        Some(unsafe { memmap.page_in_memory(pfn) })
    }

    /// Whether zones meet in the chunk of frame `pfn`.
    #[inline(always)]
    pub fn is_mixed(&self, pfn: u64) -> bool {
        self.zone_of(pfn) == MIXED - 1
    }

    /// Whether the section of frame `pfn` has memory, so that its metadata is mapped (`pfn_valid`).
    #[inline]
    pub fn is_present(&self, pfn: u64) -> bool {
        self.sections.get((pfn >> PFN_SECTION_SHIFT) as usize).is_some_and(|entry| entry.get() != 0)
    }

    /// The byte of the page block of `pfn`, a frame below the end of memory.
    #[inline(always)]
    pub fn block_byte(&self, pfn: u64) -> u8 {
        match self.blocks.get((pfn >> PAGEBLOCK_ORDER) as usize) {
            Some(byte) => byte.get(),
            None => 0,
        }
    }

    /// The migrate type of the page block of `pfn` (`get_pageblock_migratetype`).
    #[inline(always)]
    pub fn migratetype(&self, pfn: u64) -> MigrateType {
        MigrateType::of_block(self.block_byte(pfn))
    }

    /// Sets the migrate type of the page block of `pfn`. The holder of the zone's lock calls it.
    #[inline]
    pub(crate) fn set_migratetype(&self, pfn: u64, kind: MigrateType) {
        if let Some(byte) = self.blocks.get((pfn >> PAGEBLOCK_ORDER) as usize) {
            byte.set(kind.block_byte());
        }
        // The home is worked out anew by the next free.
        if let Some(home) = self.homes.get((pfn >> PAGEBLOCK_ORDER) as usize) {
            home.set(0);
        }
    }

    /// The home of the page block of `pfn`; `None` beyond all memory.
    #[inline(always)]
    pub(crate) fn home(&self, pfn: u64) -> Option<Home> {
        Some(Home(self.homes.get((pfn >> PAGEBLOCK_ORDER) as usize)?.get()))
    }

    /// Fills in the home of the page block of `pfn`, if the block is in one zone and of an ordinary type. The holder of
    /// the zone's lock calls it.
    pub(crate) fn settle(&self, pfn: u64) {
        let (zone, kind) = (self.zone_of(pfn), self.migratetype(pfn));
        if zone < MIXED - 1
            && kind.index() < MIGRATE_PCPTYPES
            && let Some(home) = self.homes.get((pfn >> PAGEBLOCK_ORDER) as usize)
        {
            home.set((zone + 1) << 2 | kind.index() as u16);
        }
    }
}

/// Writes `value` to all `entries`, 32 at a time: a terabyte has 65536 chunks.
fn fill(entries: &[AtomicU16], value: u16) {
    // SAFETY: plain words that are valid with any content, whatever the width they are written by; boot is alone.
    let (head, words, tail) = unsafe { entries.align_to::<AtomicU64>() };
    head.iter().chain(tail).for_each(|entry| entry.set(value));
    let value = u64::from(value) * 0x0001_0001_0001_0001;
    let (lines, rest) = words.as_chunks::<8>();
    for line in lines {
        line.iter().for_each(|word| word.set(value));
    }
    rest.iter().for_each(|word| word.set(value));
}

impl FrameTables {
    /// Where the chunk, section and page-block tables are.
    pub(crate) fn addrs<P: Platform>(&self, platform: &P) -> [PhysAddr; 3] {
        let base = platform.direct_map().as_ptr().addr();
        let addr = |table: usize| PhysAddr::new((table - base) as u64);
        [addr(self.chunks.as_ptr().addr()), addr(self.sections.as_ptr().addr()), addr(self.blocks.as_ptr().addr())]
    }
}
