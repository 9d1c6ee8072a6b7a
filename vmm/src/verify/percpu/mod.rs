//! Per-CPU memory: the root, the chunks with their lists and maps, and what is mapped in them.

mod chunk;
mod nodes;

use std::collections::HashMap;
use std::mem::offset_of;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::NR_CPUS;
use pagevisor_shared::layout::VMALLOC_START;
use pagevisor_shared::percpu::{PCPU_MAX_SLOTS, PCPU_MAX_UNIT_PAGES, PCPU_MIN_ALLOC_SIZE, PcpuRoot, size_to_slot};
use pagevisor_shared::units::PAGE_SIZE;

use super::Verifier;
use super::report::Place;
use super::rule::Rule;
use super::spans::Spans;
use crate::state::StateError;
use crate::state::slab::Record;
use chunk::Chunk;
use nodes::Excuses;

/// A CPU's unit of a chunk, as addresses.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub addresses: Range<u64>,
    /// Address of the chunk's record.
    pub chunk: u64,
}

/// Most chunks that are believed.
const MAX_CHUNKS: usize = 1 << 14;
/// `slot` of a chunk that is on no list.
const NO_SLOT: u32 = u32::MAX;

/// The root as it was read. Fields as in [`PcpuRoot`].
#[derive(Clone, Debug)]
struct Root {
    address: u64,
    lock: u32,
    seq: u32,
    slot_mask: u32,
    nr_slots: u32,
    /// First of the slots for chunks that are being emptied, for those without allocations, and the one behind.
    special: [u32; 3],
    base: u64,
    unit_size: u64,
    /// Bytes of the first chunk's units.
    first_size: u64,
    nr_units: u32,
    nr_populated: u64,
    nr_empty: u64,
    nr_chunks: u32,
    chunks: u64,
    reserved_chunk: u64,
    slots: Vec<u64>,
    /// By CPU.
    units: Vec<u64>,
    /// Bytes of the largest group of units.
    largest_group: u64,
}

impl Root {
    fn of(address: u64, bytes: &[u8], cpus: usize) -> Self {
        let record = Record(bytes);
        let list = |offset: usize, count: usize| (0..count).map(|at| record.u64(offset + at * 8)).collect();
        let (u32_at, u64_at) = (|offset| record.u32(offset), |offset| record.u64(offset));
        let sizes = [
            u64_at(offset_of!(PcpuRoot, static_size)),
            u64_at(offset_of!(PcpuRoot, reserved_size)),
            u64_at(offset_of!(PcpuRoot, dyn_size)),
        ];
        Self {
            address,
            lock: u32_at(offset_of!(PcpuRoot, lock)),
            seq: u32_at(offset_of!(PcpuRoot, seq)),
            slot_mask: u32_at(offset_of!(PcpuRoot, slot_mask)),
            nr_slots: u32_at(offset_of!(PcpuRoot, nr_slots)),
            special: [
                u32_at(offset_of!(PcpuRoot, sidelined_slot)),
                u32_at(offset_of!(PcpuRoot, free_slot)),
                u32_at(offset_of!(PcpuRoot, to_depopulate_slot)),
            ],
            base: u64_at(offset_of!(PcpuRoot, base_addr)),
            unit_size: u64_at(offset_of!(PcpuRoot, unit_size)),
            first_size: sizes.into_iter().fold(0, u64::saturating_add),
            nr_units: u32_at(offset_of!(PcpuRoot, nr_units)),
            nr_populated: u64_at(offset_of!(PcpuRoot, nr_populated)),
            nr_empty: u64_at(offset_of!(PcpuRoot, nr_empty_pop_pages)),
            nr_chunks: u32_at(offset_of!(PcpuRoot, nr_chunks)),
            chunks: u64_at(offset_of!(PcpuRoot, chunks)),
            reserved_chunk: u64_at(offset_of!(PcpuRoot, reserved_chunk)),
            slots: list(offset_of!(PcpuRoot, slots), PCPU_MAX_SLOTS),
            units: list(offset_of!(PcpuRoot, unit_off), cpus.min(NR_CPUS)),
            largest_group: list(offset_of!(PcpuRoot, group_sizes), NR_CPUS).into_iter().max().unwrap_or(0),
        }
    }

    /// The slot of a chunk whose largest free area has `bits` bits.
    fn slot_of(&self, bits: u32) -> u32 {
        let bytes = u64::from(bits) * PCPU_MIN_ALLOC_SIZE;
        match bits {
            0 => 0,
            _ if bytes == self.unit_size => self.special[1],
            _ => size_to_slot(bytes as u32),
        }
    }
}

impl Verifier<'_> {
    /// Checks all of per-CPU memory, and notes where in the vmalloc space it is.
    pub(super) fn check_percpu(&mut self) -> Result<(), StateError> {
        let region = self.region.clone();
        let address = region.header().roots.percpu.load(Relaxed);
        if address == 0 {
            return Ok(());
        }
        let mut bytes = vec![0; size_of::<PcpuRoot>()];
        let there = match self.direct(address) {
            Some(gpa) if gpa.is_multiple_of(64) => self.read(gpa, &mut bytes)?,
            _ => false,
        };
        let root = Root::of(address, &bytes, region.nr_cpus());
        if !there || !self.check_percpu_root(&root) {
            let evidence = format_args!("there is no per-CPU memory to be looked at");
            self.findings.add(Rule::PercpuRoot, Place::Virtual(address), evidence);
            return Ok(());
        }
        let chunks = self.read_chunks(&root)?;
        self.checked.chunks = chunks.len() as u64;
        for chunk in &chunks {
            self.check_chunk_maps(chunk);
        }
        self.check_slots(&root, &chunks);
        self.check_chunk_totals(&root, &chunks);
        self.check_units(&root, &chunks);
        Ok(())
    }

    /// Checks sizes; `false` when nothing follows from them.
    fn check_percpu_root(&mut self, root: &Root) -> bool {
        let place = Place::Virtual(root.address);
        if root.lock != 0 || root.seq & 1 != 0 {
            let evidence = format_args!("lock is {}, seq {}", root.lock, root.seq);
            self.findings.add(Rule::PercpuRoot, place, evidence);
        }
        let most = PCPU_MAX_UNIT_PAGES as u64 * PAGE_SIZE;
        let whole = root.unit_size.is_multiple_of(PAGE_SIZE) && (PAGE_SIZE..=most).contains(&root.unit_size);
        let first = size_to_slot(root.unit_size.min(most) as u32) + 1;
        let slots = root.special == [first, first + 1, first + 2] && root.nr_slots == first + 3;
        let fits = root.first_size <= root.unit_size
            && root.nr_units as usize >= root.units.len()
            && self.direct(root.base).is_some_and(|gpa| gpa.is_multiple_of(PAGE_SIZE));
        if !whole || !slots || !fits {
            let evidence = format_args!(
                "{} units of {:#x} bytes for {} CPUs at {:#x}, {:#x} of each the first chunk's; {} slots, {:?} special",
                root.nr_units,
                root.unit_size,
                root.units.len(),
                root.base,
                root.first_size,
                root.nr_slots,
                root.special
            );
            self.findings.add(Rule::PercpuRoot, place, evidence);
        }
        let mut units = root.units.clone();
        units.sort_unstable();
        if let Some(pair) = units.windows(2).find(|pair| matches!(pair, [a, b] if b - a < root.unit_size)) {
            let evidence = format_args!("units at {pair:#x?} overlap");
            self.findings.add(Rule::PercpuRoot, place, evidence);
        }
        whole && slots && fits
    }

    /// Reads the chunks along the list of all of them.
    fn read_chunks(&mut self, root: &Root) -> Result<Vec<Chunk>, StateError> {
        let mut chunks: Vec<Chunk> = Vec::new();
        let (mut address, mut before) = (root.chunks, 0);
        while address != 0 {
            let place = Place::Virtual(address);
            if chunks.len() >= MAX_CHUNKS || chunks.iter().any(|chunk| chunk.address == address) {
                let evidence = format_args!("the list of all chunks comes back to this one, or has no end");
                self.findings.add(Rule::PercpuChunks, place, evidence);
                break;
            }
            let Some(chunk) = self.read_chunk(root, address)? else {
                let evidence = format_args!("there is no chunk, or none that fits into its units");
                self.findings.add(Rule::PercpuChunks, place, evidence);
                break;
            };
            if chunk.all_prev != before {
                let evidence = format_args!("links back to {:#x}, reached from {before:#x}", chunk.all_prev);
                self.findings.add(Rule::PercpuChunks, place, evidence);
            }
            (before, address) = (address, chunk.all_next);
            chunks.push(chunk);
        }
        if chunks.len() as u64 != u64::from(root.nr_chunks) {
            let evidence = format_args!("nr_chunks is {}, on the list are {}", root.nr_chunks, chunks.len());
            self.findings.add(Rule::PercpuChunks, Place::Virtual(root.address), evidence);
        }
        Ok(chunks)
    }

    /// Follows the lists of the slots: each chunk is on the one where it belongs.
    fn check_slots(&mut self, root: &Root, chunks: &[Chunk]) {
        let by_address: HashMap<u64, &Chunk> = chunks.iter().map(|chunk| (chunk.address, chunk)).collect();
        let mut listed = HashMap::new();
        for (slot, head) in (0u32..).zip(&root.slots) {
            if (root.slot_mask >> slot & 1 != 0) != (*head != 0) {
                let evidence = format_args!("the mask is {:#x}, slot {slot} starts with {head:#x}", root.slot_mask);
                self.findings.add(Rule::PercpuChunks, Place::Virtual(root.address), evidence);
            }
            let (mut address, mut before) = (*head, 0);
            while address != 0 {
                let place = Place::Virtual(address);
                let chunk = by_address.get(&address).filter(|_| listed.insert(address, slot).is_none());
                let Some(chunk) = chunk else {
                    let evidence = format_args!("on the list of slot {slot}, but no chunk, or on a list already");
                    self.findings.add(Rule::PercpuChunks, place, evidence);
                    break;
                };
                if chunk.prev != before || chunk.slot != slot {
                    let evidence = format_args!(
                        "on the list of slot {slot}, by its record on {}; links back to {:#x}, reached from {before:#x}",
                        chunk.slot, chunk.prev
                    );
                    self.findings.add(Rule::PercpuChunks, place, evidence);
                }
                (before, address) = (address, chunk.next);
            }
        }
        for chunk in chunks {
            let expected = if chunk.address == root.reserved_chunk {
                NO_SLOT
            } else if chunk.isolated {
                // Either of those for chunks that are being emptied.
                if chunk.slot == root.special[0] { root.special[0] } else { root.special[2] }
            } else {
                root.slot_of(chunk.md.contig_hint)
            };
            let on = listed.get(&chunk.address).copied().unwrap_or(NO_SLOT);
            if chunk.slot != expected || on != expected {
                let evidence = format_args!(
                    "slot is {:#x}, it is on {on:#x}, its largest free area of {} bits belongs on {expected:#x}",
                    chunk.slot, chunk.md.contig_hint
                );
                self.findings.add(Rule::PercpuChunks, Place::Virtual(chunk.address), evidence);
            }
        }
    }

    fn check_chunk_totals(&mut self, root: &Root, chunks: &[Chunk]) {
        let (found, place) = (&mut self.findings, Place::Virtual(root.address));
        let grown = chunks.iter().filter(|chunk| !chunk.immutable).map(|chunk| u64::from(chunk.nr_populated));
        let populated = root.first_size.div_ceil(PAGE_SIZE) + grown.sum::<u64>();
        found.equal(Rule::PercpuPopulated, place, "nr_populated", root.nr_populated, populated);
        let counts = |chunk: &&Chunk| chunk.address != root.reserved_chunk && !chunk.isolated;
        let empty = chunks.iter().filter(counts).map(|chunk| u64::from(chunk.nr_empty)).sum();
        found.equal(Rule::PercpuPopulated, place, "nr_empty_pop_pages", root.nr_empty, empty);
        let pages = self.region.header().nr_percpu_pages.load(Relaxed);
        let expected = root.nr_populated.saturating_mul(root.nr_units.into());
        self.findings.equal(Rule::PercpuPages, Place::Machine, "nr_percpu_pages", pages, expected);
    }

    /// All CPUs' pages of what has memory are mapped, and nobody else's.
    fn check_units(&mut self, root: &Root, chunks: &[Chunk]) {
        let (mut own, mut places): (Vec<Range<u64>>, Vec<Range<u64>>) = (Vec::new(), Vec::new());
        let mut excuses = Excuses::default();
        for chunk in chunks {
            for (cpu, unit) in root.units.iter().enumerate() {
                let start = chunk.base.wrapping_add(*unit);
                if !chunk.immutable {
                    let addresses = start..start.saturating_add(root.unit_size);
                    self.units.push(Unit { addresses, chunk: chunk.address });
                }
                for page in chunk.populated_pages() {
                    let address = start.wrapping_add(page * PAGE_SIZE);
                    let pfn = self.frame_behind(address);
                    let theirs = if chunk.immutable { &self.memory.reserved } else { &self.in_use };
                    match pfn {
                        Some(pfn) if theirs.contains(pfn) && !self.slab_frames.contains(pfn) => {
                            own.extend((!chunk.immutable).then_some(pfn..pfn + 1));
                            self.check_unit_node((root, chunk), cpu, address, pfn, &mut excuses);
                        }
                        _ => {
                            let evidence = format_args!("a page with per-CPU memory is mapped to frame {pfn:x?}");
                            self.findings.add(Rule::PercpuMapped, Place::Virtual(address), evidence);
                        }
                    }
                    if address >= VMALLOC_START {
                        places.push(address / PAGE_SIZE..address / PAGE_SIZE + 1);
                    }
                }
            }
        }
        own.sort_unstable_by_key(|frames| frames.start);
        for pair in own.windows(2) {
            if let [first, second] = pair
                && first == second
            {
                let evidence = format_args!("the frame is mapped as per-CPU memory twice");
                self.findings.add(Rule::PercpuMapped, Place::Pfn(first.start), evidence);
            }
        }
        self.percpu_pages = Spans::new(places);
    }

    /// The frame that is mapped at an address of the direct map or the vmalloc space.
    fn frame_behind(&self, address: u64) -> Option<u64> {
        let mapping = self.tables.within(address, address.checked_add(1)?).next();
        if let Some(mapping) = mapping {
            return Some(mapping.gpa / PAGE_SIZE);
        }
        // The direct map is filled as it is used.
        self.direct(address).filter(|_| address < VMALLOC_START).map(|gpa| gpa / PAGE_SIZE)
    }
}
