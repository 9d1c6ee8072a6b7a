//! What memory there is: memblock's tables, sections, page blocks.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::records::RangeRecord;
use pagevisor_shared::region::zone::SECTION_MIXED;
use pagevisor_shared::units::{
    MAX_PHYSMEM_BITS, NodeId, PAGE_SHIFT, PAGEBLOCK_NR_PAGES, PAGES_PER_SECTION, PFN_SECTION_SHIFT, SECTION_SIZE_BITS,
};
use pagevisor_shared::zone::{MAX_DMA_PFN, MAX_DMA32_PFN, ZoneIndex, ZoneType};

use super::Verifier;
use super::report::Place;
use super::rule::Rule;
use super::spans::Spans;
use crate::state::StateError;

/// Page blocks in a section.
const BLOCKS_PER_SECTION: u64 = PAGES_PER_SECTION / PAGEBLOCK_NR_PAGES;
/// Most sections a machine can have.
const MAX_SECTIONS: u64 = 1 << (MAX_PHYSMEM_BITS - SECTION_SIZE_BITS);

/// Memory of one zone.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub frames: Range<u64>,
    pub zone: ZoneIndex,
}

/// Which memory there is.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Frames of memory, by zone, in order of frame.
    pub parts: Vec<Part>,
    /// Frames of memory.
    pub present: Spans,
    /// Frames that were reserved at boot.
    pub reserved: Spans,
    /// Frames of the sections with memory.
    pub sections: Spans,
    /// The page-block table.
    blocks: Vec<u8>,
}

/// A record of memblock, as bytes.
fn bytes(record: &RangeRecord) -> Range<u64> {
    let base = record.base.load(Relaxed);
    base..base.saturating_add(record.size.load(Relaxed))
}

/// The whole frames in a range of bytes.
fn inward(bytes: &Range<u64>) -> Range<u64> {
    bytes.start.div_ceil(1 << PAGE_SHIFT)..bytes.end >> PAGE_SHIFT
}

/// All frames that a range of bytes touches.
fn outward(bytes: &Range<u64>) -> Range<u64> {
    bytes.start >> PAGE_SHIFT..bytes.end.div_ceil(1 << PAGE_SHIFT)
}

impl Memory {
    /// The zone of a frame of memory.
    pub fn zone_of(&self, pfn: u64) -> Option<ZoneIndex> {
        let behind = self.parts.partition_point(|part| part.frames.start <= pfn);
        let part = self.parts.get(behind.checked_sub(1)?)?;
        part.frames.contains(&pfn).then_some(part.zone)
    }

    /// The frames of a zone.
    pub fn of_zone(&self, zone: usize) -> Spans {
        Spans::new(self.parts.iter().filter(|part| part.zone.index() == zone).map(|part| part.frames.clone()))
    }

    /// The migrate type of the page block of a frame; `Movable` where nothing is known.
    pub fn migratetype(&self, pfn: u64) -> MigrateType {
        let byte = self.blocks.get((pfn / PAGEBLOCK_NR_PAGES) as usize).copied().unwrap_or(0);
        MigrateType::of_block(byte)
    }
}

impl Verifier<'_> {
    /// Reads memblock's tables, the section table and the page-block table.
    pub(super) fn read_memory(&mut self) -> Result<(), StateError> {
        let backing = Spans::new(self.view.memory().ranges().iter().map(inward));
        self.read_ranges(&backing);
        let reserved = self.read_reserved();
        self.memory.reserved = reserved.intersection(&self.memory.present);
        let section = |frames: Range<u64>| {
            frames.start & !(PAGES_PER_SECTION - 1)..frames.end.next_multiple_of(PAGES_PER_SECTION)
        };
        self.memory.sections = Spans::new(self.memory.present.iter().map(section));
        self.checked.pages = self.memory.present.len();
        self.check_totals();
        self.check_sections()?;
        self.read_blocks()
    }

    fn read_ranges(&mut self, backing: &Spans) {
        let nodes = self.region.nr_nodes();
        let (mut last, mut parts) = (0, Vec::new());
        for (index, record) in self.region.memory().iter().enumerate() {
            let bytes = bytes(record);
            let place = Place::Pfn(bytes.start >> PAGE_SHIFT);
            if bytes.is_empty() || bytes.start < last {
                let evidence =
                    format_args!("range {index}, {:#x}-{:#x}, is not above {last:#x}", bytes.start, bytes.end);
                self.findings.add(Rule::MemblockMemory, place, evidence);
                continue;
            }
            last = bytes.end;
            let node = record.node.load(Relaxed);
            let Some(node) = NodeId::new(node as usize).filter(|node| node.index() < nodes) else {
                let evidence = format_args!("range {index} is of node {node}, of {nodes}");
                self.findings.add(Rule::MemblockMemory, place, evidence);
                continue;
            };
            let frames = inward(&bytes);
            for gap in backing.gaps(frames.clone()) {
                let evidence = format_args!("{} frames of range {index} are no memory", gap.end - gap.start);
                self.findings.add(Rule::MemblockBacking, Place::Pfn(gap.start), evidence);
            }
            for frames in backing.within(frames) {
                self.split_by_zone(node, frames, &mut parts);
            }
        }
        self.memory.present = Spans::new(parts.iter().map(|part: &Part| part.frames.clone()));
        self.memory.parts = parts;
    }

    /// Splits memory of a node where its zones meet.
    fn split_by_zone(&self, node: NodeId, frames: Range<u64>, parts: &mut Vec<Part>) {
        let movable = self.region.zone(node, ZoneType::Movable).filter(|zone| zone.spanned_pages.load(Relaxed) != 0);
        // What is movable is taken off the end of a node's memory, whatever zones it would be in.
        let movable = movable.map_or(u64::MAX, |zone| zone.zone_start_pfn.load(Relaxed));
        let limits = [
            (ZoneType::Dma, 0, MAX_DMA_PFN),
            (ZoneType::Dma32, MAX_DMA_PFN, MAX_DMA32_PFN),
            (ZoneType::Normal, MAX_DMA32_PFN, u64::MAX),
        ];
        let limits = limits.map(|(kind, low, high)| (kind, low.min(movable), high.min(movable)));
        for (kind, low, high) in limits.into_iter().chain([(ZoneType::Movable, movable, u64::MAX)]) {
            let frames = frames.start.max(low)..frames.end.min(high);
            if frames.start < frames.end {
                parts.push(Part { frames, zone: ZoneIndex::of(node, kind) });
            }
        }
    }

    fn read_reserved(&mut self) -> Spans {
        let mut last = 0;
        let mut spans = Vec::new();
        for (index, record) in self.region.reserved().iter().enumerate() {
            let bytes = bytes(record);
            if bytes.is_empty() || bytes.start < last {
                let evidence =
                    format_args!("range {index}, {:#x}-{:#x}, is not above {last:#x}", bytes.start, bytes.end);
                self.findings.add(Rule::MemblockReserved, Place::Pfn(bytes.start >> PAGE_SHIFT), evidence);
            }
            last = last.max(bytes.end);
            spans.push(outward(&bytes));
        }
        Spans::new(spans)
    }

    fn check_totals(&mut self) {
        let end = self.memory.present.iter().last().map_or(0, |last| last.end);
        let header = self.region.header();
        let pages = header.pages_total.load(Relaxed);
        let sections = end.div_ceil(PAGES_PER_SECTION);
        let found = &mut self.findings;
        found.equal(Rule::MemblockTotals, Place::Machine, "max_pfn", self.roots.max_pfn, end);
        found.equal(Rule::MemblockTotals, Place::Machine, "the number of sections", self.roots.nr_sections, sections);
        found.equal(Rule::MemblockTotals, Place::Machine, "pages_total", pages, self.memory.present.len());
    }

    /// Sections to look at: no more than the memory has, whatever the guest says.
    fn sections(&self) -> u64 {
        let end = self.memory.sections.iter().last().map_or(0, |last| last.end);
        self.roots.nr_sections.min(end >> PFN_SECTION_SHIFT).min(MAX_SECTIONS)
    }

    /// Compares the section table with what follows from the memory.
    fn check_sections(&mut self) -> Result<(), StateError> {
        let count = self.sections();
        let mut table = vec![0; count as usize * 2];
        if !self.read(self.roots.sections, &mut table)? {
            let evidence = format_args!("the table of {count} entries at {:#x} is not in memory", self.roots.sections);
            self.findings.add(Rule::SectionTable, Place::Machine, evidence);
            return Ok(());
        }
        let expected = self.section_entries(count);
        for ((number, entry), expected) in (0u64..).zip(table.as_chunks().0).zip(expected) {
            let entry = u16::from_le_bytes(*entry);
            if entry != expected {
                let evidence = format_args!("the entry of section {number} is {entry:#x}, not {expected:#x}");
                self.findings.add(Rule::SectionTable, Place::Pfn(number << PFN_SECTION_SHIFT), evidence);
            }
        }
        Ok(())
    }

    /// The section table as it must be: a section that is memory of one zone from end to end names it.
    fn section_entries(&self, count: u64) -> Vec<u16> {
        let mut expected = vec![0; count as usize];
        for part in &self.memory.parts {
            let (first, last) = (part.frames.start >> PFN_SECTION_SHIFT, (part.frames.end - 1) >> PFN_SECTION_SHIFT);
            for section in first..=last {
                let start = section << PFN_SECTION_SHIFT;
                let whole = part.frames.start <= start && start + PAGES_PER_SECTION <= part.frames.end;
                if let Some(entry) = expected.get_mut(section as usize) {
                    *entry = if whole { part.zone.0 + 1 } else { SECTION_MIXED };
                }
            }
        }
        expected
    }

    fn read_blocks(&mut self) -> Result<(), StateError> {
        let mut blocks = vec![0; (self.sections() * BLOCKS_PER_SECTION) as usize];
        if !self.read(self.roots.pageblocks, &mut blocks)? {
            let evidence = format_args!("the table at {:#x} is not in memory", self.roots.pageblocks);
            self.findings.add(Rule::PageblockType, Place::Machine, evidence);
            return Ok(());
        }
        for (block, byte) in (0u64..).zip(&blocks) {
            if MigrateType::decode_block(*byte).is_none() {
                let evidence = format_args!("the page block's byte {byte:#x} names no migrate type");
                self.findings.add(Rule::PageblockType, Place::Pfn(block * PAGEBLOCK_NR_PAGES), evidence);
            }
        }
        self.memory.blocks = blocks;
        Ok(())
    }
}
