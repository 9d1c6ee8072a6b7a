//! Damage to per-CPU memory.

use std::mem::offset_of;

use pagevisor::state::Patience;
use pagevisor::verify::Rule;
use pagevisor_shared::percpu::{ChunkLayout, PCPU_BLOCK_BITS, PcpuChunk, PcpuRoot};
use pagevisor_shared::vmalloc::{VmFlags, VmStruct};

use super::Bench;
use super::mutations::Mutation;
use crate::at;

/// The dynamic chunk's maps.
fn layout(bench: &Bench<'_>) -> ChunkLayout {
    ChunkLayout::new(bench.field(bench.chunk(), at!(PcpuChunk, nr_pages)) as usize)
}

/// Flips a bit of one of the dynamic chunk's maps.
fn flip(bench: &Bench<'_>, map: usize, bit: usize) {
    let at = bench.chunk() + (map + bit / 64 * 8) as u64;
    bench.set_word(at, bench.word(at) ^ 1 << (bit % 64));
}

/// The first bit that is the chunk's own.
fn own(bench: &Bench<'_>) -> usize {
    bench.field(bench.chunk(), at!(PcpuChunk, start_offset)) as usize / 4
}

pub const PERCPU: &[Mutation] = &[
    ("per-CPU memory that is locked", Rule::PercpuRoot, |bench| {
        bench.set_field(bench.pcpu(), at!(PcpuRoot, lock), 1);
    }),
    ("units that overlap", Rule::PercpuRoot, |bench| {
        let units = bench.pcpu() + offset_of!(PcpuRoot, unit_off) as u64;
        bench.set_word(units, bench.word(units + 8) + 64);
    }),
    ("per-CPU memory that is nowhere", Rule::PercpuRoot, |bench| {
        bench.set(&bench.region.header().roots.percpu, 0xffff_0000);
    }),
    ("a chunk on another list", Rule::PercpuChunks, |bench| {
        bench.change_field(bench.chunk(), at!(PcpuChunk, slot), |slot| slot - 1);
    }),
    ("a chunk that links back to elsewhere", Rule::PercpuChunks, |bench| {
        bench.set_field(bench.chunk(), at!(PcpuChunk, prev), 0x1000);
    }),
    ("a chunk that the list of all leaves out", Rule::PercpuChunks, |bench| {
        let first = bench.field(bench.pcpu(), at!(PcpuRoot, chunks));
        bench.set_field(first, at!(PcpuChunk, all_next), 0);
    }),
    ("a slot that is marked as empty", Rule::PercpuChunks, |bench| {
        bench.set_field(bench.pcpu(), at!(PcpuRoot, slot_mask), 0);
    }),
    ("an allocation without a start", Rule::PercpuMaps, |bench| {
        flip(bench, layout(bench).bound_map, own(bench));
    }),
    ("an allocation that is not counted", Rule::PercpuMaps, |bench| {
        bench.change_field(bench.chunk(), at!(PcpuChunk, nr_alloc), |count| count - 1);
    }),
    ("static variables that are free", Rule::PercpuMaps, |bench| flip(bench, layout(bench).alloc_map, 0)),
    ("free bytes too many", Rule::PercpuFreeBytes, |bench| {
        bench.change_field(bench.chunk(), at!(PcpuChunk, free_bytes), |bytes| bytes + 4);
    }),
    ("a largest free area that is none", Rule::PercpuHints, |bench| {
        bench.change_field(bench.chunk(), at!(PcpuChunk, md.contig_hint), |bits| bits - 1);
    }),
    ("a largest free area elsewhere", Rule::PercpuHints, |bench| {
        bench.change_field(bench.chunk(), at!(PcpuChunk, md.contig_hint_start), |start| start + 1);
    }),
    ("a free area that nobody knows", Rule::PercpuHints, |bench| {
        let size = bench.field(bench.chunk(), at!(PcpuChunk, nr_pages)) as usize;
        bench.set_field(bench.chunk(), at!(PcpuChunk, md.first_free), (size * PCPU_BLOCK_BITS) as u64);
    }),
    ("a page of a chunk that is not counted", Rule::PercpuPopulated, |bench| {
        bench.change_field(bench.chunk(), at!(PcpuChunk, nr_populated), |pages| pages - 1);
    }),
    ("an empty page too many", Rule::PercpuPopulated, |bench| {
        bench.change_field(bench.pcpu(), at!(PcpuRoot, nr_empty_pop_pages), |pages| pages + 1);
    }),
    ("a chunk in memory that nobody gave it", Rule::PercpuMapped, |bench| {
        bench.change_field(bench.chunk(), at!(PcpuChunk, base_addr), |base| base + (64 << 20));
    }),
    ("units that are on each other's nodes", Rule::PercpuNode, |bench| {
        let units = bench.pcpu() + offset_of!(PcpuRoot, unit_off) as u64;
        let [first, second] = [units, units + 8].map(|at| bench.word(at));
        bench.set_word(units, second);
        bench.set_word(units + 8, first);
    }),
    ("per-CPU pages that are not counted", Rule::PercpuPages, |bench| {
        bench.change(&bench.region.header().nr_percpu_pages, |pages| pages - 1);
    }),
];

/// Where CPU `cpu`'s unit is of a chunk that was added later.
fn unit(bench: &Bench<'_>, cpu: u64) -> u64 {
    let unit = bench.word(bench.pcpu() + offset_of!(PcpuRoot, unit_off) as u64 + cpu * 8);
    bench.field(bench.chunk(), at!(PcpuChunk, base_addr)).wrapping_add(unit)
}

/// The first page of CPU `cpu`'s unit of such a chunk: where its entry is, and the entry.
fn first_page_of(bench: &Bench<'_>, cpu: u64) -> (u64, u64) {
    bench.leaf(unit(bench, cpu))
}

/// That of CPU 0.
fn first_page(bench: &Bench<'_>) -> (u64, u64) {
    first_page_of(bench, 0)
}

/// Where the area of CPU `cpu`'s unit has its record.
fn unit_area(bench: &Bench<'_>, cpu: u64) -> u64 {
    let areas = bench.view.vmalloc_areas(Patience::default()).expect("sound areas");
    let at = unit(bench, cpu);
    let area = areas.busy.iter().find(|area| (area.start..area.end).contains(&at)).expect("a unit is in an area");
    area.vm.expect("it says so").address
}

/// Damage that only chunks have which were added later: their units are mapped.
pub const ADDED: &[Mutation] = &[
    ("a page of a unit that is not mapped", Rule::PercpuMapped, |bench| {
        let (at, entry) = first_page(bench);
        bench.poke(at, &(entry & !1).to_le_bytes());
    }),
    ("a page that a unit has twice", Rule::PercpuMapped, |bench| {
        let (at, entry) = first_page(bench);
        bench.poke(at + 8, &entry.to_le_bytes());
    }),
    ("a page of a unit that is free memory", Rule::PercpuMapped, |bench| {
        let (at, entry) = first_page(bench);
        let free = u64::from(bench.free(1, |free| free.order > 0).pfn) << 12;
        bench.poke(at, &(entry & 0xfff0_0000_0000_0fff | free).to_le_bytes());
    }),
    ("pages that are on each other's nodes", Rule::PercpuNode, |bench| {
        let [(first_at, first), (second_at, second)] = [0, 1].map(|cpu| first_page_of(bench, cpu));
        bench.poke(first_at, &second.to_le_bytes());
        bench.poke(second_at, &first.to_le_bytes());
    }),
    ("an area that names another chunk", Rule::PercpuArea, |bench| {
        let other = bench.field(bench.pcpu(), at!(PcpuRoot, first_chunk));
        bench.set_field(unit_area(bench, 0), at!(VmStruct, chunk), other);
    }),
    ("an area that does not say it is for units", Rule::PercpuArea, |bench| {
        bench.change_field(unit_area(bench, 1), at!(VmStruct, flags), |flags| flags & !u64::from(VmFlags::PERCPU.0));
    }),
];
