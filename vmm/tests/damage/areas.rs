//! Damage to the vmalloc space and to page tables.

use pagevisor::verify::Rule;
use pagevisor_shared::page::PG_TABLE;
use pagevisor_shared::vmalloc::{RB_BLACK, VmFlags, VmStruct, VmapArea};
use pagevisor_shared::vmstat::NodeStat;

use super::mutations::Mutation;
use super::{Bench, Field};
use crate::at;

const PAGE: u64 = 0x1000;
const ALLOC: u64 = VmFlags::ALLOC.0 as u64;
const IOREMAP: u64 = VmFlags::IOREMAP.0 as u64;

/// An area in use that has a parent.
fn child(bench: &Bench<'_>) -> u64 {
    let has_parent = |area: &u64| bench.field(*area, at!(VmapArea, parent)) & !RB_BLACK != 0;
    bench.busy().into_iter().find(has_parent).expect("an area below another")
}

/// The frame of the page table for an area by small pages.
fn table(bench: &Bench<'_>) -> u32 {
    let (start, _) = bench.area_of(ALLOC, 1);
    (bench.entry(start, 0).0 >> 12) as u32
}

pub const AREAS: &[Mutation] = &[
    ("areas that are locked", Rule::VmallocLock, |bench| {
        bench.set(&bench.region.header().roots.vmalloc.busy.lock, 1);
    }),
    ("free areas that are locked", Rule::VmallocLock, |bench| {
        bench.set(&bench.region.header().roots.vmalloc.free.lock, 1);
    }),
    ("areas to be purged that are being changed", Rule::VmallocLock, |bench| {
        bench.change(&bench.region.header().roots.vmalloc.purge.seq, |seq| seq + 1);
    }),
    ("a purge that goes on", Rule::VmallocLock, |bench| {
        bench.set(&bench.region.header().roots.vmalloc.purge_lock, 1);
    }),
    ("a child that is no area", Rule::VmapTree, |bench| {
        bench.set_field(child(bench), at!(VmapArea, left), 0x1234_5000);
    }),
    ("an area with another parent", Rule::VmapTree, |bench| {
        bench.change_field(child(bench), at!(VmapArea, parent), |parent| parent ^ 0x1000);
    }),
    ("a tree that goes round", Rule::VmapTree, |bench| {
        let area = child(bench);
        bench.set_field(area, at!(VmapArea, right), area);
    }),
    ("an area of the other colour", Rule::VmapBalance, |bench| {
        bench.change_field(child(bench), at!(VmapArea, parent), |parent| parent ^ RB_BLACK);
    }),
    ("an area that ends before it starts", Rule::VmapOrder, |bench| {
        let area = child(bench);
        let start = bench.field(area, at!(VmapArea, va_start));
        bench.set_field(area, at!(VmapArea, va_end), start - PAGE);
    }),
    ("an area that overlaps the next", Rule::VmapTiling, |bench| {
        bench.change_field(bench.busy()[0], at!(VmapArea, va_end), |end| end + PAGE);
    }),
    ("addresses that are neither free nor in use", Rule::VmapTiling, |bench| {
        let last = *bench.free_areas().last().unwrap();
        bench.change_field(last, at!(VmapArea, va_end), |end| end - PAGE);
    }),
    ("an area that the list leaves out", Rule::VmapList, |bench| {
        let areas = bench.busy();
        bench.set_field(areas[0], at!(VmapArea, next), areas[2]);
    }),
    ("a list that starts later", Rule::VmapList, |bench| {
        bench.set(&bench.region.header().roots.vmalloc.busy.first, bench.busy()[1]);
    }),
    ("a free area that hides how large it is", Rule::VmapMaxSize, |bench| {
        bench.change_field(bench.free_areas()[0], at!(VmapArea, max_or_vm), |size| size - PAGE);
    }),
    ("pages to be purged that nobody has", Rule::VmapLazy, |bench| {
        bench.change(&bench.region.header().roots.vmalloc.lazy_nr, |pages| pages + 1);
    }),
    ("an area that its record does not know", Rule::VmapRecord, |bench| {
        bench.change_field(bench.area_of(ALLOC, 1).1, at!(VmStruct, addr), |start| start + PAGE);
    }),
    ("an area of two kinds", Rule::VmapRecord, |bench| {
        bench.change_field(bench.area_of(ALLOC, 1).1, at!(VmStruct, flags), |flags| flags | IOREMAP);
    }),
    ("an area whose record is nowhere", Rule::VmapRecord, |bench| {
        bench.set_field(child(bench), at!(VmapArea, max_or_vm), 0x40);
    }),
    ("a page of an area that is not mapped", Rule::VmapMapped, |bench| {
        let (at, entry) = bench.leaf(bench.area_of(ALLOC, 2).0 + PAGE);
        bench.poke(at, &(entry & !1).to_le_bytes());
    }),
    ("a guard page that is mapped", Rule::VmapMapped, |bench| {
        let (start, vm) = bench.area_of(ALLOC, 1);
        let pages = bench.field(vm, at!(VmStruct, nr_pages));
        let (at, entry) = bench.leaf(start + (pages - 1) * PAGE);
        bench.poke(at + 8, &(entry + PAGE).to_le_bytes());
    }),
    ("a page that two areas have", Rule::VmapBacking, |bench| {
        let (start, _) = bench.area_of(ALLOC, 3);
        let (_, entry) = bench.leaf(start);
        let (at, _) = bench.leaf(start + 2 * PAGE);
        bench.poke(at, &entry.to_le_bytes());
    }),
    ("an area with a slab's page", Rule::VmapBacking, |bench| {
        let (at, entry) = bench.leaf(bench.area_of(ALLOC, 1).0);
        let slab = u64::from(bench.partial(|_| true).1) << 12;
        bench.poke(at, &(entry & 0xfff0_0000_0000_0fff | slab).to_le_bytes());
    }),
    ("an area with a free page", Rule::FreePageMapped, |bench| {
        let (at, entry) = bench.leaf(bench.area_of(ALLOC, 1).0);
        let free = u64::from(bench.free(1, |free| free.order > 0).pfn) << 12;
        bench.poke(at, &(entry & 0xfff0_0000_0000_0fff | free).to_le_bytes());
    }),
    ("a device that is elsewhere", Rule::VmapBacking, |bench| {
        let (at, entry) = bench.leaf(bench.area_of(IOREMAP, 1).0);
        bench.poke(at, &(entry + PAGE).to_le_bytes());
    }),
    ("a page of an area that is not counted", Rule::VmallocPages, |bench| {
        bench.change(&bench.region.header().nr_vmalloc_pages, |pages| pages - 1);
    }),
    ("a page table that says it is none", Rule::PageTableType, |bench| {
        bench.set_meta(table(bench), Field::Mapcount, 0);
    }),
    ("a page that says it is a page table", Rule::PageTableType, |bench| {
        bench.set_meta(bench.in_use_of(0).0, Field::Mapcount, PG_TABLE);
    }),
    ("an entry of a page table that is not counted", Rule::PageTableEntries, |bench| {
        bench.change_meta(table(bench), Field::Private, |entries| entries - 1);
    }),
    ("a page table that is not counted", Rule::PageTableStat, |bench| {
        let counter = &bench.region.nodes()[0].vm_stat[NodeStat::NrPageTablePages.index()];
        bench.change(counter, |tables| tables - 1);
    }),
];
