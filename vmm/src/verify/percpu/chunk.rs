//! A chunk, its maps, and what is known of them.

use std::mem::offset_of;

use pagevisor_shared::percpu::{
    ChunkLayout, PCPU_BLOCK_BITS, PCPU_MAX_UNIT_PAGES, PCPU_MIN_ALLOC_SIZE, PcpuBlock, PcpuChunk,
};
use pagevisor_shared::units::PAGE_SIZE;

use super::Root;
use crate::state::StateError;
use crate::state::slab::Record;
use crate::verify::Verifier;
use crate::verify::report::Place;
use crate::verify::rule::Rule;

/// What is known of the free areas of a block or a chunk. Fields as in [`PcpuBlock`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub contig_hint: u32,
    contig_hint_start: u32,
    scan_hint: u32,
    left_free: u32,
    right_free: u32,
    first_free: u32,
    nr_bits: u32,
}

impl Known {
    fn of(record: Record<'_>) -> Self {
        Self {
            contig_hint: record.u32(offset_of!(PcpuBlock, contig_hint)),
            contig_hint_start: record.u32(offset_of!(PcpuBlock, contig_hint_start)),
            scan_hint: record.u32(offset_of!(PcpuBlock, scan_hint)),
            left_free: record.u32(offset_of!(PcpuBlock, left_free)),
            right_free: record.u32(offset_of!(PcpuBlock, right_free)),
            first_free: record.u32(offset_of!(PcpuBlock, first_free)),
            nr_bits: record.u32(offset_of!(PcpuBlock, nr_bits)),
        }
    }
}

/// A chunk as it was read. Fields as in [`PcpuChunk`].
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub address: u64,
    pub next: u64,
    pub prev: u64,
    pub base: u64,
    pub slot: u32,
    nr_pages: u32,
    pub nr_populated: u32,
    pub nr_empty: u32,
    free_bytes: u32,
    /// Bits that are the chunk's own.
    own: std::ops::Range<usize>,
    pub immutable: bool,
    pub isolated: bool,
    nr_alloc: u32,
    pub all_next: u64,
    pub all_prev: u64,
    pub md: Known,
    /// The record and its maps.
    bytes: Vec<u8>,
    layout: ChunkLayout,
}

/// Free runs of a part of a map.
#[derive(Default)]
struct Runs {
    longest: u32,
    /// Length of the longest run but for that one.
    second: u32,
    first: Option<u32>,
    free: u32,
    /// Whether there is a run as the hint says.
    hinted: bool,
}

impl Chunk {
    fn bit(&self, map: usize, bit: usize) -> bool {
        self.bytes.get(map + bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 != 0)
    }

    fn is_taken(&self, bit: usize) -> bool {
        self.bit(self.layout.alloc_map, bit)
    }

    fn is_populated(&self, page: usize) -> bool {
        self.bit(self.layout.populated, page)
    }

    /// Pages of a unit that have memory.
    pub fn populated_pages(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.nr_pages as usize).filter(|page| self.is_populated(*page)).map(|page| page as u64)
    }

    fn block(&self, index: usize) -> Known {
        let start = self.layout.blocks + index * size_of::<PcpuBlock>();
        Known::of(Record(&self.bytes).part(start, size_of::<PcpuBlock>()))
    }

    /// Free runs of the `bits` bits from `base` on.
    fn runs(&self, known: &Known, base: usize, bits: usize) -> Runs {
        let mut runs = Runs::default();
        let mut at = 0;
        while at < bits {
            let len = (at..bits).take_while(|bit| !self.is_taken(base + bit)).count();
            let (start, length) = (at as u32, len as u32);
            if length != 0 {
                runs.first = runs.first.or(Some(start));
                runs.free += length;
                runs.hinted |= start == known.contig_hint_start && length == known.contig_hint;
                runs.second = runs.second.max(length.min(runs.longest));
                runs.longest = runs.longest.max(length);
            }
            at += len.max(1);
        }
        runs
    }
}

impl Verifier<'_> {
    /// Reads the chunk at `address`; `None` when there is none that its units have room for.
    pub(super) fn read_chunk(&self, root: &Root, address: u64) -> Result<Option<Chunk>, StateError> {
        let Some(gpa) = self.direct(address).filter(|gpa| gpa.is_multiple_of(64)) else { return Ok(None) };
        let mut head = [0; size_of::<PcpuChunk>()];
        if !self.read(gpa, &mut head)? {
            return Ok(None);
        }
        let nr_pages = Record(&head).u32(offset_of!(PcpuChunk, nr_pages));
        if nr_pages == 0 || nr_pages as usize > PCPU_MAX_UNIT_PAGES || u64::from(nr_pages) * PAGE_SIZE > root.unit_size
        {
            return Ok(None);
        }
        let layout = ChunkLayout::new(nr_pages as usize);
        let mut bytes = vec![0; layout.size];
        if !self.read(gpa, &mut bytes)? {
            return Ok(None);
        }
        let record = Record(&bytes);
        let (u32_at, u64_at) = (|offset| record.u32(offset), |offset| record.u64(offset));
        let (before, behind) = (u32_at(offset_of!(PcpuChunk, start_offset)), u32_at(offset_of!(PcpuChunk, end_offset)));
        let base = u64_at(offset_of!(PcpuChunk, base_addr));
        let hidden = u64::from(before) + u64::from(behind);
        if hidden >= u64::from(nr_pages) * PAGE_SIZE || !base.is_multiple_of(PAGE_SIZE) {
            return Ok(None);
        }
        let bits = |bytes: u32| bytes as usize / PCPU_MIN_ALLOC_SIZE as usize;
        let own = bits(before)..nr_pages as usize * PCPU_BLOCK_BITS - bits(behind);
        let md = record.part(offset_of!(PcpuChunk, md), size_of::<PcpuBlock>());
        Ok(Some(Chunk {
            address,
            next: u64_at(offset_of!(PcpuChunk, next)),
            prev: u64_at(offset_of!(PcpuChunk, prev)),
            base,
            slot: u32_at(offset_of!(PcpuChunk, slot)),
            nr_pages,
            nr_populated: u32_at(offset_of!(PcpuChunk, nr_populated)),
            nr_empty: u32_at(offset_of!(PcpuChunk, nr_empty_pop_pages)),
            free_bytes: u32_at(offset_of!(PcpuChunk, free_bytes)),
            own,
            immutable: u32_at(offset_of!(PcpuChunk, immutable)) != 0,
            isolated: u32_at(offset_of!(PcpuChunk, isolated)) != 0,
            nr_alloc: u32_at(offset_of!(PcpuChunk, nr_alloc)),
            all_next: u64_at(offset_of!(PcpuChunk, all_next)),
            all_prev: u64_at(offset_of!(PcpuChunk, all_prev)),
            md: Known::of(md),
            layout,
            bytes,
        }))
    }

    /// Compares a chunk's maps with what is known of them.
    pub(super) fn check_chunk_maps(&mut self, chunk: &Chunk) {
        let place = Place::Virtual(chunk.address);
        let pages = chunk.nr_pages as usize;
        let mut empty = 0;
        for index in 0..pages {
            let (known, base) = (chunk.block(index), index * PCPU_BLOCK_BITS);
            let runs = self.check_known(chunk, &known, Some(index), base, PCPU_BLOCK_BITS);
            let whole = runs.free as usize == PCPU_BLOCK_BITS;
            if !chunk.is_populated(index) && !whole {
                let evidence = format_args!("allocations in page {index}, which has no memory");
                self.findings.add(Rule::PercpuMaps, place, evidence);
            }
            empty += u32::from(whole && chunk.is_populated(index));
        }
        let runs = self.check_known(chunk, &chunk.md, None, 0, pages * PCPU_BLOCK_BITS);
        let left = u64::from(runs.free) * PCPU_MIN_ALLOC_SIZE;
        self.findings.equal(Rule::PercpuFreeBytes, place, "free_bytes", u64::from(chunk.free_bytes), left);
        let populated = chunk.populated_pages().count() as u32;
        self.findings.equal(Rule::PercpuPopulated, place, "nr_populated", chunk.nr_populated, populated);
        self.findings.equal(Rule::PercpuPopulated, place, "nr_empty_pop_pages", chunk.nr_empty, empty);
        self.check_allocations(chunk);
    }

    /// Compares what is known of a block, or of the whole chunk, with the map.
    fn check_known(&mut self, chunk: &Chunk, known: &Known, block: Option<usize>, base: usize, bits: usize) -> Runs {
        let runs = chunk.runs(known, base, bits);
        let first = runs.first.unwrap_or(bits as u32);
        let edge = |mut bits_from: Box<dyn Iterator<Item = usize>>| {
            bits_from.position(|bit| chunk.is_taken(base + bit)).unwrap_or(bits) as u32
        };
        let edges = block.is_none()
            || known.left_free == edge(Box::new(0..bits)) && known.right_free == edge(Box::new((0..bits).rev()));
        let right = known.nr_bits as usize == bits
            && known.contig_hint == runs.longest
            && (runs.hinted || runs.longest == 0)
            && known.scan_hint >= runs.second
            && known.first_free <= first
            && edges;
        if !right {
            let of = block.map_or("all of it".to_owned(), |index| format!("page {index}"));
            let evidence = format_args!(
                "{of}: the largest free areas have {} and {} bits, the first is at {first}; known is {known:?}",
                runs.longest, runs.second
            );
            self.findings.add(Rule::PercpuHints, Place::Virtual(chunk.address), evidence);
        }
        runs
    }

    /// Every run of taken bits starts with an allocation, there are as many as counted, and what belongs to others looks
    /// taken.
    fn check_allocations(&mut self, chunk: &Chunk) {
        let place = Place::Virtual(chunk.address);
        let (mut allocations, mut last) = (0, false);
        for bit in chunk.own.clone() {
            let (taken, starts) = (chunk.is_taken(bit), chunk.bit(chunk.layout.bound_map, bit));
            if taken && !last && !starts {
                let evidence = format_args!("bit {bit} is taken, but no allocation starts there");
                self.findings.add(Rule::PercpuMaps, place, evidence);
            }
            allocations += u32::from(taken && starts);
            last = taken;
        }
        self.findings.equal(Rule::PercpuMaps, place, "nr_alloc", chunk.nr_alloc, allocations);
        let all = chunk.nr_pages as usize * PCPU_BLOCK_BITS;
        if let Some(bit) = (0..chunk.own.start).chain(chunk.own.end..all).find(|bit| !chunk.is_taken(*bit)) {
            let evidence = format_args!("bit {bit} belongs to somebody else, but is not taken");
            self.findings.add(Rule::PercpuMaps, place, evidence);
        }
    }
}
