//! Which memory exists and in which zone it lies: the section table, memblock's ranges, the page-block table.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::{MIGRATE_TYPES, MigrateType};
use pagevisor_shared::region::records::RangeRecord;
use pagevisor_shared::region::zone::SECTION_MIXED;
use pagevisor_shared::report::counters;
use pagevisor_shared::units::{
    MAX_PHYSMEM_BITS, NodeId, PAGE_SHIFT, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER, PAGES_PER_SECTION, PFN_SECTION_SHIFT,
    SECTION_SIZE_BITS,
};
use pagevisor_shared::zone::{ZoneIndex, ZoneType};

use super::StateView;
use super::error::{Corrupt, StateError};

/// Most sections a machine can have.
const MAX_SECTIONS: u64 = 1 << (MAX_PHYSMEM_BITS - SECTION_SIZE_BITS);
/// Bytes of the page-block table that are read at a time.
const BLOCK_CHUNK: usize = 64 << 10;

/// What a frame of a present section is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageOwner {
    /// Memory that the allocator was given or may be given.
    Memory,
    /// Memory that was reserved at boot: kernel image, memory map, page tables.
    Reserved,
    /// No memory.
    Hole,
}

/// A range of frames.
#[derive(Clone, Copy, Debug)]
struct Frames {
    start: u64,
    end: u64,
    node: u32,
}

/// The section table and memblock's ranges, copied out of the guest once.
#[derive(Debug)]
pub struct Sections {
    entries: Vec<u16>,
    memory: Vec<Frames>,
    reserved: Vec<Frames>,
    /// First frame of ZONE_MOVABLE by node; `u64::MAX` on a node without it.
    movable: Vec<u64>,
    zones: usize,
}

impl StateView {
    /// Reads the section table and memblock's ranges.
    ///
    /// # Errors
    /// [`Corrupt`] when the table lies outside memory or is too long to be one.
    pub fn sections(&self) -> Result<Sections, StateError> {
        let roots = self.roots();
        if roots.nr_sections > MAX_SECTIONS {
            return Err(Corrupt { what: "number of sections", at: roots.sections, found: roots.nr_sections }.into());
        }
        let mut bytes = vec![0; roots.nr_sections as usize * 2];
        self.memory().read(roots.sections, &mut bytes)?;
        let region = self.region();
        let movable_start = |node| {
            let zone = region.zone(NodeId::new(node)?, ZoneType::Movable)?;
            (zone.spanned_pages.load(Relaxed) != 0).then(|| zone.zone_start_pfn.load(Relaxed))
        };
        Ok(Sections {
            entries: bytes.as_chunks().0.iter().map(|entry| u16::from_le_bytes(*entry)).collect(),
            memory: frames(region.memory(), Round::Inward),
            reserved: frames(region.reserved(), Round::Outward),
            movable: (0..region.nr_nodes()).map(|node| movable_start(node).unwrap_or(u64::MAX)).collect(),
            zones: region.zones().len(),
        })
    }

    /// The migrate type of the page block of frame `pfn`; `Movable` for a type that there is not.
    ///
    /// # Errors
    /// [`Corrupt`] when the page-block table lies outside memory.
    pub fn migratetype_of(&self, pfn: u64) -> Result<MigrateType, StateError> {
        let mut byte = [0];
        self.memory().read(self.roots().pageblocks.saturating_add(pfn >> PAGEBLOCK_ORDER), &mut byte)?;
        Ok(MigrateType::decode_block(byte[0]).unwrap_or(MigrateType::Movable))
    }

    /// Page blocks of `zone` by migrate type, as `/proc/pagetypeinfo` counts them.
    ///
    /// # Errors
    /// [`Corrupt`] when the page-block table lies outside memory.
    pub fn block_counts(&self, sections: &Sections, zone: ZoneIndex) -> Result<[u64; MIGRATE_TYPES], StateError> {
        let mut counts = [0; MIGRATE_TYPES];
        let region = self.region();
        let Some(record) = region.zones().get(zone.index()) else { return Ok(counts) };
        let start = record.zone_start_pfn.load(Relaxed);
        let end = start.saturating_add(record.spanned_pages.load(Relaxed)).min(sections.end_pfn());
        let table = self.roots().pageblocks;
        let mut chunk = Vec::new();
        let mut chunk_start = 0;
        for pfn in (start..end).step_by(PAGEBLOCK_NR_PAGES as usize) {
            if sections.zone_of(pfn) != Some(zone) {
                continue;
            }
            let block = pfn >> PAGEBLOCK_ORDER;
            if chunk.is_empty() || block - chunk_start >= chunk.len() as u64 {
                let blocks = ((end - 1) >> PAGEBLOCK_ORDER) + 1 - block;
                chunk.resize(blocks.min(BLOCK_CHUNK as u64) as usize, 0);
                chunk_start = block;
                self.memory().read(table.saturating_add(block), &mut chunk)?;
            }
            let byte = chunk.get((block - chunk_start) as usize).copied().unwrap_or(0);
            // Linux counts no block of a type it does not know either.
            if let Some(count) = MigrateType::decode_block(byte).and_then(|kind| counts.get_mut(kind.index())) {
                *count += 1;
            }
        }
        Ok(counts)
    }
}

/// What becomes of a page that a range covers in part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    Inward,
    Outward,
}

/// Ranges in order of address; what is out of order or empty is left out, so that they can be searched.
fn frames(records: &[RangeRecord], round: Round) -> Vec<Frames> {
    let mut ranges: Vec<Frames> = Vec::new();
    for record in records {
        let (base, size) = (record.base.load(Relaxed), record.size.load(Relaxed));
        let behind = base.saturating_add(size);
        let (down, up) = (|addr: u64| addr >> PAGE_SHIFT, |addr: u64| addr.div_ceil(1 << PAGE_SHIFT));
        let (start, end) = if round == Round::Inward { (up(base), down(behind)) } else { (down(base), up(behind)) };
        let start = ranges.last().map_or(start, |last| start.max(last.end));
        if start < end {
            ranges.push(Frames { start, end, node: record.node.load(Relaxed) });
        }
    }
    ranges
}

fn holds(ranges: &[Frames], pfn: u64) -> bool {
    let behind = ranges.partition_point(|range| range.start <= pfn);
    behind.checked_sub(1).and_then(|index| ranges.get(index)).is_some_and(|range| pfn < range.end)
}

impl Sections {
    /// Number of entries of the section table.
    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Whether there is no section at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// First frame above all sections.
    pub fn end_pfn(&self) -> u64 {
        self.len() << PFN_SECTION_SHIFT
    }

    /// Numbers of the sections that exist.
    pub fn present(&self) -> impl Iterator<Item = u64> + '_ {
        (0u64..).zip(&self.entries).filter(|(_, entry)| **entry != 0).map(|(number, _)| number)
    }

    /// Whether frame `pfn` lies in a section that exists (`pfn_valid`).
    pub fn is_present(&self, pfn: u64) -> bool {
        self.entry(pfn) != 0
    }

    fn entry(&self, pfn: u64) -> u16 {
        self.entries.get((pfn >> PFN_SECTION_SHIFT) as usize).copied().unwrap_or(0)
    }

    /// The zone of frame `pfn` (`page_zone`). Frames of a hole belong to the zone of the next memory above them, and
    /// to that of the last memory if there is none, as Linux initialises them.
    pub fn zone_of(&self, pfn: u64) -> Option<ZoneIndex> {
        let zone = match self.entry(pfn) {
            0 => return None,
            SECTION_MIXED => {
                let next = self.memory.partition_point(|range| range.end <= pfn);
                let range = self.memory.get(next).or(self.memory.last())?;
                let inside = pfn.clamp(range.start, range.end.saturating_sub(1));
                let movable = self.movable.get(range.node as usize).is_some_and(|start| *start <= inside);
                let kind = if movable { ZoneType::Movable } else { ZoneType::of_frame(inside) };
                ZoneIndex::of(NodeId::new(range.node as usize)?, kind)
            }
            entry => ZoneIndex(entry - 1),
        };
        (zone.index() < self.zones).then_some(zone)
    }

    /// What frame `pfn` is.
    pub fn owner(&self, pfn: u64) -> PageOwner {
        if !holds(&self.memory, pfn) {
            PageOwner::Hole
        } else if holds(&self.reserved, pfn) {
            PageOwner::Reserved
        } else {
            PageOwner::Memory
        }
    }

    /// First frame of section `number`.
    pub const fn first_pfn(number: u64) -> u64 {
        number.wrapping_mul(PAGES_PER_SECTION)
    }
}

impl StateView {
    /// Nodes that are online.
    pub(crate) fn online_nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        counters::online_nodes(&self.region()).iter()
    }
}
