//! Damaged slab caches, areas and chunks of per-CPU memory, as the verifier sees them.

use std::mem::offset_of;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::layout::VMALLOC_START;
use pagevisor_shared::percpu::{ChunkLayout, PCPU_BLOCK_BITS, PcpuBlock, PcpuChunk, PcpuRoot, size_to_slot};
use pagevisor_shared::slab::{KmemCache, SlabFlags};
use pagevisor_shared::vmalloc::{RB_BLACK, VmapArea};

use super::{Random, cases};
use crate::state::fake::areas::AREAS;
use crate::state::fake::slabs::{DESCRIPTORS, caches, direct};
use crate::state::fake::{FakeGuest, MIB, meta_gpa};
use crate::verify::verify;

/// Where the records of per-CPU memory are.
const ROOT: u64 = 57 * MIB;
const CHUNK: u64 = ROOT + 0x4000;
/// Where the units are.
const UNITS: u64 = 40 * MIB;
const UNIT: u64 = 0x1_0000;
/// Pages of the chunk.
const PAGES: usize = 8;

/// Adds what only the verifier looks at.
fn complete_caches(guest: &FakeGuest) {
    for cache in caches() {
        let put = |offset: usize, value: u32| guest.memory.write_u32(cache.gpa() + offset as u64, value);
        let off_slab = cache.flags.contains(SlabFlags::OFF_SLAB);
        put(offset_of!(KmemCache, align), 8);
        put(offset_of!(KmemCache, reciprocal_size), (1u64 << 32).div_ceil(cache.size.into()) as u32);
        put(offset_of!(KmemCache, colour), if cache.number == 1 { 3 } else { 0 });
        put(offset_of!(KmemCache, freelist_cache), if off_slab { 2 } else { 0 });
        if cache.flags != SlabFlags::NONE {
            put(offset_of!(KmemCache, freelist_size), cache.num);
        }
    }
}

/// Makes a tree of the areas in use: the second is the root.
fn link_areas(guest: &FakeGuest) {
    let record = |number: u64| AREAS + number * 128;
    let put = |number: u64, offset: usize, value: u64| guest.memory.write_u64(record(number) + offset as u64, value);
    let root = direct(record(1));
    put(1, offset_of!(VmapArea, parent), RB_BLACK);
    for (child, link) in [(0, offset_of!(VmapArea, left)), (2, offset_of!(VmapArea, right))] {
        put(1, link, direct(record(child)));
        put(child, offset_of!(VmapArea, parent), root);
    }
    put(3, offset_of!(VmapArea, parent), RB_BLACK);
    put(4, offset_of!(VmapArea, parent), RB_BLACK);
    put(4, offset_of!(VmapArea, va_start), VMALLOC_START + 0x9000);
    put(4, offset_of!(VmapArea, va_end), VMALLOC_START + 0x10_0000);
    let region = guest.region();
    let roots = &region.header().roots.vmalloc;
    roots.busy.root.store(root, Relaxed);
    roots.purge.root.store(direct(record(3)), Relaxed);
    roots.free.root.store(direct(record(4)), Relaxed);
    roots.free.first.store(direct(record(4)), Relaxed);
}

/// Makes per-CPU memory of one chunk, all of it free.
fn make_percpu(guest: &FakeGuest) {
    let bytes = PAGES as u64 * 4096;
    let slot = size_to_slot(bytes as u32);
    let special = size_to_slot(UNIT as u32) + 1;
    let words = |at: u64, fields: &[(usize, u64)]| {
        fields.iter().for_each(|(offset, value)| guest.memory.write_u64(at + *offset as u64, *value));
    };
    let halves = |at: u64, fields: &[(usize, u32)]| {
        fields.iter().for_each(|(offset, value)| guest.memory.write_u32(at + *offset as u64, *value));
    };
    words(
        ROOT,
        &[
            (offset_of!(PcpuRoot, base_addr), direct(UNITS)),
            (offset_of!(PcpuRoot, unit_size), UNIT),
            (offset_of!(PcpuRoot, dyn_size), bytes),
            (offset_of!(PcpuRoot, nr_populated), PAGES as u64),
            (offset_of!(PcpuRoot, nr_empty_pop_pages), PAGES as u64),
            (offset_of!(PcpuRoot, chunks), direct(CHUNK)),
            (offset_of!(PcpuRoot, first_chunk), direct(CHUNK)),
            (offset_of!(PcpuRoot, slots) + slot as usize * 8, direct(CHUNK)),
            (offset_of!(PcpuRoot, unit_off) + 8, UNIT),
        ],
    );
    halves(
        ROOT,
        &[
            (offset_of!(PcpuRoot, slot_mask), 1 << slot),
            (offset_of!(PcpuRoot, nr_slots), special + 3),
            (offset_of!(PcpuRoot, sidelined_slot), special),
            (offset_of!(PcpuRoot, free_slot), special + 1),
            (offset_of!(PcpuRoot, to_depopulate_slot), special + 2),
            (offset_of!(PcpuRoot, nr_units), 2),
            (offset_of!(PcpuRoot, nr_chunks), 1),
        ],
    );
    words(CHUNK, &[(offset_of!(PcpuChunk, base_addr), direct(UNITS))]);
    let known = |at: u64, bits: u32| {
        let fields = [
            offset_of!(PcpuBlock, contig_hint),
            offset_of!(PcpuBlock, left_free),
            offset_of!(PcpuBlock, right_free),
            offset_of!(PcpuBlock, nr_bits),
        ];
        halves(at, &fields.map(|offset| (offset, bits)));
    };
    halves(
        CHUNK,
        &[
            (offset_of!(PcpuChunk, slot), slot),
            (offset_of!(PcpuChunk, nr_pages), PAGES as u32),
            (offset_of!(PcpuChunk, nr_populated), PAGES as u32),
            (offset_of!(PcpuChunk, nr_empty_pop_pages), PAGES as u32),
            (offset_of!(PcpuChunk, free_bytes), bytes as u32),
            (offset_of!(PcpuChunk, immutable), 1),
        ],
    );
    known(CHUNK + offset_of!(PcpuChunk, md) as u64, (PAGES * PCPU_BLOCK_BITS) as u32);
    let layout = ChunkLayout::new(PAGES);
    (0..PAGES).for_each(|page| known(CHUNK + (layout.blocks + page * 32) as u64, PCPU_BLOCK_BITS as u32));
    guest.memory.write(CHUNK + layout.populated as u64, &[0xff]);
    let region = guest.region();
    region.header().roots.percpu.store(direct(ROOT), Relaxed);
    region.header().nr_percpu_pages.store(2 * PAGES as u64, Relaxed);
}

/// Where to damage.
fn place(random: &mut Random, slabs: &[u32]) -> u64 {
    let slab = slabs[random.below(slabs.len() as u64) as usize];
    match random.below(12) {
        0 | 1 => AREAS + random.below(5 * 16) * 8,
        2 => ROOT + random.below(40) * 8,
        3 => CHUNK + random.below(16) * 8,
        4 => CHUNK + random.below(ChunkLayout::new(PAGES).size as u64 / 8) * 8,
        5 | 6 => DESCRIPTORS + (1 + random.below(5)) * 4096 + random.below(896 / 8) * 8,
        7 => 51 * MIB + 2 * (16 << 12) + random.below(10) * 4096 + random.below(16) * 8,
        8 => (u64::from(slab) << 12) + random.below(512) * 8,
        9 => 20 * MIB + random.below(9 * 512) * 8,
        _ => meta_gpa(slab) + random.below(4) * 8,
    }
}

#[test]
fn damaged_layers() {
    let guest = FakeGuest::with_slabs();
    complete_caches(&guest);
    link_areas(&guest);
    make_percpu(&guest);
    let whole = verify(&guest.view(), &[]).unwrap();
    assert_eq!((whole.checked.areas, whole.checked.chunks), (5, 1), "{:#?}", whole.findings);
    assert!(whole.checked.slabs > 5, "{:#?}", whole.findings);
    let slabs: Vec<u32> = caches().iter().flat_map(|cache| cache.slabs.iter().map(|slab| slab.pfn)).collect();
    cases("damaged layers", |random| {
        let damage: Vec<_> = (0..=random.below(3))
            .map(|_| {
                let gpa = place(random, &slabs);
                let old = guest.memory.read_u64(gpa);
                guest.memory.write_u64(gpa, random.edge(old));
                (gpa, old)
            })
            .collect();
        if let Ok(view) = guest.try_view() {
            drop(verify(&view, &[]).unwrap());
        }
        for (gpa, old) in damage.into_iter().rev() {
            guest.memory.write_u64(gpa, old);
        }
    });
    assert_eq!(verify(&guest.view(), &[]).unwrap().findings, whole.findings, "the damage was not mended");
}
