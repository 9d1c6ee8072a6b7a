//! A recount of per-CPU memory: maps against what is known of them, lists against counters.

use core::fmt;

use pagevisor_shared::percpu::{PCPU_BLOCK_BITS, PCPU_MIN_ALLOC_SIZE, PcpuBlock, PcpuRoot};

use crate::Mm;
use crate::percpu::{NO_SLOT, all_chunks, slot_list, slot_of};
use crate::platform::Platform;
use crate::raw::{Chunk, Maps};
use crate::sync::Plain;

/// Something about per-CPU memory that is not as it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkViolation {
    /// What is wrong.
    pub what: &'static str,
    /// Address of the chunk's record; 0 for all of them.
    pub chunk: u64,
    /// The block, or 0 where it is about the whole chunk.
    pub block: usize,
    /// What was found.
    pub found: u64,
    /// What was expected.
    pub expected: u64,
}

impl fmt::Display for ChunkViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, chunk, block, found, expected } = self;
        write!(f, "chunk {chunk:#x}, block {block}: {what}: found {found:#x}, expected {expected:#x}")
    }
}

/// Receives violations.
pub type ChunkSink<'a> = &'a mut dyn FnMut(ChunkViolation);

/// Most chunks that are looked at.
const MAX_CHUNKS: usize = 1 << 16;

/// Runs of free bits in order.
#[derive(Default)]
struct Runs {
    longest: u32,
    second: u32,
    first: Option<u32>,
    /// Free bits.
    free: u32,
}

impl Runs {
    fn add(&mut self, start: u32, len: u32) {
        self.first = self.first.or(Some(start));
        self.free += len;
        if len > self.longest {
            self.second = self.longest;
            self.longest = len;
        } else {
            self.second = self.second.max(len);
        }
    }
}

struct Checker<'a> {
    sink: ChunkSink<'a>,
    chunk: u64,
    block: usize,
}

impl Checker<'_> {
    fn equal(&mut self, what: &'static str, found: u64, expected: u64) {
        if found != expected {
            (self.sink)(ChunkViolation { what, chunk: self.chunk, block: self.block, found, expected });
        }
    }

    /// Checks what is known of `bits` bits of the map from `base` on; gives the free runs.
    fn known(&mut self, maps: &Maps, md: &PcpuBlock, base: usize, bits: usize) -> Runs {
        let set = |bit: usize| maps.alloc[(base + bit) / 64].get() >> ((base + bit) % 64) & 1 != 0;
        let mut runs = Runs::default();
        let (mut at, mut longest_is_there) = (0, false);
        while at < bits {
            let len = (at..bits).take_while(|&bit| !set(bit)).count();
            if len != 0 {
                runs.add(at as u32, len as u32);
                longest_is_there |= at as u32 == md.contig_hint_start.get() && len as u32 == md.contig_hint.get();
            }
            at += len.max(1);
        }
        self.equal("bits", md.nr_bits.get().into(), bits as u64);
        self.equal("largest free run", md.contig_hint.get().into(), runs.longest.into());
        self.equal("place of the largest free run", u64::from(longest_is_there || runs.longest == 0), 1);
        let bound = md.scan_hint.get();
        self.equal(
            "bound on other free runs",
            bound.clamp(runs.second, runs.longest.max(runs.second)).into(),
            bound.into(),
        );
        let first = runs.first.unwrap_or(bits as u32);
        self.equal("first free bit", md.first_free.get().min(first).into(), md.first_free.get().into());
        runs
    }

    fn blocks(&mut self, maps: &Maps) -> u32 {
        let mut empty = 0;
        for (index, md) in maps.blocks.iter().enumerate() {
            self.block = index;
            let base = index * PCPU_BLOCK_BITS;
            let runs = self.known(maps, md, base, PCPU_BLOCK_BITS);
            let set = |bit: &usize| maps.alloc[(base + bit) / 64].get() >> (bit % 64) & 1 != 0;
            let left = (0..PCPU_BLOCK_BITS).find(set).unwrap_or(PCPU_BLOCK_BITS);
            let right = (0..PCPU_BLOCK_BITS).rev().find(set).map_or(PCPU_BLOCK_BITS, |bit| PCPU_BLOCK_BITS - 1 - bit);
            self.equal("free bits at the start", md.left_free.get().into(), left as u64);
            self.equal("free bits at the end", md.right_free.get().into(), right as u64);
            let populated = maps.populated[index / 64].get() >> (index % 64) & 1 != 0;
            if !populated && runs.free as usize != PCPU_BLOCK_BITS {
                self.equal("allocations without memory", PCPU_BLOCK_BITS as u64 - u64::from(runs.free), 0);
            }
            empty += u32::from(populated && runs.free as usize == PCPU_BLOCK_BITS);
        }
        self.block = 0;
        empty
    }

    /// Counts the areas that are allocated, and checks that each has its start.
    fn areas(&mut self, chunk: Chunk, maps: &Maps) -> u32 {
        let all = maps.blocks.len() * PCPU_BLOCK_BITS;
        let unit = PCPU_MIN_ALLOC_SIZE as usize;
        let (start, end) = (chunk.start_offset.get() as usize / unit, all - chunk.end_offset.get() as usize / unit);
        let test = |map: &[core::sync::atomic::AtomicU64], bit: usize| map[bit / 64].get() >> (bit % 64) & 1 != 0;
        let mut areas = 0;
        for bit in start..end {
            let (taken, bound) = (test(maps.alloc, bit), test(maps.bound, bit));
            if taken && !bound && (bit == start || !test(maps.alloc, bit - 1)) {
                self.equal("start of an allocation", 0, 1);
            }
            if !taken && bound {
                self.equal("start of an allocation", 1, 0);
            }
            areas += u32::from(taken && bound);
        }
        for hidden in (0..start).chain(end..all) {
            if !test(maps.alloc, hidden) {
                self.equal("what belongs to others", hidden as u64, 0);
            }
        }
        areas
    }

    fn chunk(&mut self, root: &PcpuRoot, chunk: Chunk) {
        self.chunk = chunk.addr();
        let maps = chunk.maps();
        let empty = self.blocks(&maps);
        let runs = self.known(&maps, &chunk.md, 0, maps.blocks.len() * PCPU_BLOCK_BITS);
        let areas = self.areas(chunk, &maps);
        let populated: u32 = maps.populated.iter().map(|word| word.get().count_ones()).sum();
        self.equal("allocations", chunk.nr_alloc.get().into(), areas.into());
        self.equal("pages with memory", chunk.nr_populated.get().into(), populated.into());
        self.equal("empty pages", chunk.nr_empty_pop_pages.get().into(), empty.into());
        self.equal("free bytes", chunk.free_bytes.get().into(), u64::from(runs.free) * PCPU_MIN_ALLOC_SIZE);
        let slot = chunk.slot.get();
        if chunk.addr() == root.reserved_chunk.get() {
            self.equal("slot of the reserved chunk", slot.into(), NO_SLOT.into());
        } else if chunk.isolated.get() == 0 {
            self.equal("slot", slot.into(), slot_of(root, chunk).into());
        }
    }
}

/// Recounts per-CPU memory and reports what is not as it must be. Exact while nobody uses it.
pub fn verify_percpu<P: Platform>(mm: &Mm<P>, sink: ChunkSink<'_>) {
    let Some(root) = mm.percpu_root() else { return };
    let mut checker = Checker { sink, chunk: 0, block: 0 };
    let (mut chunks, mut empty, mut listed) = (0, 0, 0);
    for chunk in all_chunks(root).take(MAX_CHUNKS) {
        checker.chunk(root, chunk);
        chunks += 1;
        listed += u32::from(chunk.slot.get() != NO_SLOT);
        if chunk.addr() != root.reserved_chunk.get() && chunk.isolated.get() == 0 {
            empty += u64::from(chunk.nr_empty_pop_pages.get());
        }
    }
    checker.chunk = 0;
    checker.equal("chunks", root.nr_chunks.get().into(), chunks);
    checker.equal("empty pages of all chunks", root.nr_empty_pop_pages.get(), empty);
    let mut on_lists = 0;
    for (slot, head) in root.slots.iter().enumerate() {
        let mut before = 0;
        for chunk in slot_list(head.get()).take(MAX_CHUNKS) {
            checker.chunk = chunk.addr();
            checker.equal("slot of the list", chunk.slot.get().into(), slot as u64);
            checker.equal("link backwards", chunk.prev.get(), before);
            before = chunk.addr();
            on_lists += 1;
        }
        checker.chunk = 0;
        checker.equal("mark of the slot", u64::from(root.slot_mask.get() >> slot & 1), u64::from(head.get() != 0));
    }
    checker.equal("chunks on lists", on_lists, listed.into());
}
