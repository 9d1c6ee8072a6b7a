//! How [`Layout::place`](super::Layout::place) goes about it.

use super::{
    ACPI_TABLES, BOOT_MEMORY, DEVICE_HOLE, DMA_END, DMA32_END, E820, E820Kind, HUGE_PAGE, LEGACY_HOLE, MAX_MAP_ENTRIES,
    MAX_RAM_RANGES, PHYS_END, RamRange,
};
use crate::topology::{AddrRange, Fault, Memory, MemoryKey, Subject, Topology, TopologyError};

/// Addresses that a part of the topology has been given.
struct Claim {
    range: AddrRange,
    node: usize,
}

/// The addresses still to be given away: disjoint, not empty, in order.
struct Free(Vec<AddrRange>);

impl Free {
    fn new() -> Self {
        Self(vec![AddrRange::between(0, DEVICE_HOLE.start), AddrRange::between(DEVICE_HOLE.end(), PHYS_END)])
    }

    /// Bytes free inside `window`.
    fn left(&self, window: AddrRange) -> u64 {
        self.0.iter().map(|free| intersection(*free, window).size).sum()
    }

    /// Takes `range` out.
    fn remove(&mut self, range: AddrRange) {
        self.0 = self.0.iter().flat_map(|free| without(*free, range)).collect();
    }

    /// Takes the lowest `amount` bytes inside `window`, in as many pieces as it needs.
    fn take(&mut self, mut amount: u64, window: AddrRange) -> Vec<AddrRange> {
        let mut taken = Vec::new();
        for free in &self.0 {
            let room = intersection(*free, window);
            let piece = AddrRange { start: room.start, size: room.size.min(amount) };
            if piece.size > 0 {
                amount -= piece.size;
                taken.push(piece);
            }
        }
        for piece in &taken {
            self.remove(*piece);
        }
        taken
    }
}

fn intersection(a: AddrRange, b: AddrRange) -> AddrRange {
    AddrRange::between(a.start.max(b.start), a.end().min(b.end()))
}

/// What remains of `range` when `hole` is cut out.
fn without(range: AddrRange, hole: AddrRange) -> impl Iterator<Item = AddrRange> {
    let below = AddrRange::between(range.start, range.end().min(hole.start));
    let above = AddrRange::between(range.start.max(hole.end()), range.end());
    [below, above].into_iter().filter(|part| part.size > 0)
}

/// Where the RAM of `topology` is.
pub(super) fn ram(topology: &Topology) -> Result<Vec<RamRange>, TopologyError> {
    let mut free = Free::new();
    let mut claims = Vec::new();
    claim_ranges(topology, &mut free, &mut claims)?;
    for key in MemoryKey::ZONES {
        claim_zone(topology, key, &mut free, &mut claims)?;
    }
    claim_plain(topology, &mut free, &mut claims)?;
    let ram = pieces(claims);
    if ram.len() > MAX_RAM_RANGES {
        return Err(Fault::TooManyPieces(ram.len()).about(Subject::Machine));
    }
    let mut missing = vec![BOOT_MEMORY];
    for range in &ram {
        missing = missing.into_iter().flat_map(|part| without(part, range.range())).collect();
    }
    if missing.is_empty() { Ok(ram) } else { Err(Fault::NoBootMemory(BOOT_MEMORY).about(Subject::Machine)) }
}

fn claim_ranges(topology: &Topology, free: &mut Free, claims: &mut Vec<Claim>) -> Result<(), TopologyError> {
    for (node, ranges) in topology.nodes.iter().enumerate().filter_map(|(id, node)| match &node.memory {
        Memory::Ranges(ranges) => Some((id, ranges)),
        _ => None,
    }) {
        for (index, &range) in ranges.iter().enumerate() {
            let subject = Subject::Memory { node, key: MemoryKey::Range, index };
            if let Some(earlier) = claims.iter().find(|claim| claim.range.overlaps(&range)) {
                return Err(Fault::Overlap { range, other: earlier.range, node: earlier.node }.about(subject));
            }
            free.remove(range);
            claim(vec![range], node, subject, claims)?;
        }
    }
    Ok(())
}

fn claim_zone(
    topology: &Topology,
    key: MemoryKey,
    free: &mut Free,
    claims: &mut Vec<Claim>,
) -> Result<(), TopologyError> {
    let (zone, window) = match key {
        MemoryKey::Dma => ("DMA", AddrRange::between(0, DMA_END)),
        MemoryKey::Dma32 => ("DMA32", AddrRange::between(DMA_END, DEVICE_HOLE.start)),
        _ => ("Normal", AddrRange::between(DMA32_END, PHYS_END)),
    };
    for (node, amount) in topology.nodes.iter().enumerate().filter_map(|(id, node)| match &node.memory {
        Memory::Zones(zones) => Some((id, zones.get(key))),
        _ => None,
    }) {
        let subject = Subject::Memory { node, key, index: 0 };
        let left = free.left(window);
        if amount > left {
            return Err(Fault::ZoneFull { zone, asked: amount, left, capacity: window.size }.about(subject));
        }
        claim(free.take(amount, window), node, subject, claims)?;
    }
    Ok(())
}

fn claim_plain(topology: &Topology, free: &mut Free, claims: &mut Vec<Claim>) -> Result<(), TopologyError> {
    let all = AddrRange::between(0, PHYS_END);
    for (node, entry) in topology.nodes.iter().enumerate() {
        let Memory::Plain(amount) = entry.memory else { continue };
        let subject = Subject::Memory { node, key: MemoryKey::Mem, index: 0 };
        let left = free.left(all);
        if amount > left {
            return Err(Fault::SpaceFull { asked: amount, left }.about(subject));
        }
        claim(free.take(amount, all), node, subject, claims)?;
    }
    Ok(())
}

/// Records what a subject has been given, and refuses it if none of that is RAM.
fn claim(ranges: Vec<AddrRange>, node: usize, subject: Subject, claims: &mut Vec<Claim>) -> Result<(), TopologyError> {
    if let Some(first) = ranges.first().filter(|_| ranges.iter().all(|range| LEGACY_HOLE.contains(range))) {
        return Err(Fault::InLegacyHole(*first).about(subject));
    }
    claims.extend(ranges.into_iter().map(|range| Claim { range, node }));
    Ok(())
}

/// The claims as RAM: the legacy hole cut out, in order, neighbours of one node joined, with places in the files.
fn pieces(mut claims: Vec<Claim>) -> Vec<RamRange> {
    claims.sort_by_key(|claim| claim.range.start);
    let mut ram: Vec<RamRange> = Vec::new();
    let mut file_ends = std::collections::HashMap::new();
    for claim in claims {
        for part in without(claim.range, LEGACY_HOLE) {
            let file_end: &mut u64 = file_ends.entry(claim.node).or_default();
            match ram.last_mut() {
                Some(last) if last.node == claim.node && last.end() == part.start => {
                    last.size += part.size;
                    *file_end += part.size;
                }
                _ => {
                    let backing_offset = file_end.next_multiple_of(HUGE_PAGE) + part.start % HUGE_PAGE;
                    *file_end = backing_offset + part.size;
                    ram.push(RamRange { node: claim.node, start: part.start, size: part.size, backing_offset });
                }
            }
        }
    }
    ram
}

/// See [`super::Layout::firmware`].
pub(super) fn firmware(ram: &[RamRange]) -> Vec<AddrRange> {
    let mut low = vec![AddrRange::between(0, LEGACY_HOLE.start)];
    for range in ram {
        low = low.into_iter().flat_map(|part| without(part, range.range())).collect();
    }
    low.push(ACPI_TABLES);
    low
}

/// The memory map of `ram`, with the state region in it.
pub(super) fn memory_map(ram: &[RamRange], state: AddrRange) -> Result<Vec<E820>, TopologyError> {
    let reserved = |range: AddrRange| E820 { start: range.start, size: range.size, kind: E820Kind::Reserved };
    let low = firmware(ram).into_iter().filter(|range| range.end() <= LEGACY_HOLE.start);
    let mut entries: Vec<E820> = low.chain([LEGACY_HOLE, state]).map(reserved).collect();
    entries.extend(ram.iter().map(|range| E820 { start: range.start, size: range.size, kind: E820Kind::Ram }));
    entries.sort_by_key(|entry| entry.start);
    entries.dedup_by(|next, last| {
        let joined = last.kind == next.kind && last.start + last.size == next.start;
        if joined {
            last.size += next.size;
        }
        joined
    });
    if entries.len() > MAX_MAP_ENTRIES {
        return Err(Fault::TooManyMapEntries(entries.len()).about(Subject::Machine));
    }
    Ok(entries)
}
