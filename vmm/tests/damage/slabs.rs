//! Damage to slab caches.

use std::mem::offset_of;

use pagevisor::verify::Rule;
use pagevisor_shared::layout::{KERNEL_PHYS, PAGE_OFFSET};
use pagevisor_shared::page::encode_next;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::region::zone::ListHead;
use pagevisor_shared::slab::{ArrayCache, KmemCache, KmemCacheNode, SlabFlags};
use pagevisor_shared::vmstat::NodeStat;

use super::mutations::Mutation;
use super::{Bench, Field};
use crate::at;

fn listed(cache: &pagevisor::state::slab::SlabCache) -> bool {
    !cache.flags.contains(SlabFlags::LINKED)
}

/// Moves a list's head, so that the other is empty.
fn move_list(bench: &Bench<'_>, from: u64, to: u64) {
    let ends = bench.word(from);
    bench.set_word(from, 0);
    bench.set_word(to, ends);
}

const PARTIAL: u64 = offset_of!(KmemCacheNode, slabs_partial) as u64;
const FULL: u64 = offset_of!(KmemCacheNode, slabs_full) as u64;
const _: () = assert!(size_of::<ListHead>() == 8);

pub const SLABS: &[Mutation] = &[
    ("a cache that is in the table no more", Rule::SlabTable, |bench| bench.set(&bench.region.slab_caches()[5], 0)),
    ("a cache that is nowhere", Rule::SlabTable, |bench| bench.set(&bench.region.slab_caches()[5], 0xffff_0000)),
    ("a descriptor of another number", Rule::SlabDescriptor, |bench| {
        let (cache, _) = bench.slabs(|cache, _| cache.id == 4);
        bench.set_field(cache.address, at!(KmemCache, id), 77);
    }),
    ("a reciprocal that divides by something else", Rule::SlabDescriptor, |bench| {
        let (cache, _) = bench.slabs(|cache, _| cache.id == 4);
        bench.change_field(cache.address, at!(KmemCache, reciprocal_size), |word| word + 9);
    }),
    ("objects that a slab has no room for", Rule::SlabDescriptor, |bench| {
        let (cache, _) = bench.slabs(|cache, _| cache.id == 4);
        bench.change_field(cache.address, at!(KmemCache, colour), |colours| colours + 1000);
    }),
    ("slabs of many objects that are said to be one", Rule::SlabDescriptor, |bench| {
        let (cache, _) = bench.slabs(|cache, _| cache.id == 4);
        bench.change_field(cache.address, at!(KmemCache, flags), |flags| flags | u64::from(SlabFlags::WHOLE.bits()));
    }),
    ("slab lists that are locked", Rule::SlabLock, |bench| {
        let (_, node) = bench.slabs(|_, node| node.total_slabs != 0);
        bench.set_field(node.address, at!(KmemCacheNode, list_lock), 1);
    }),
    ("slab lists that are being changed", Rule::SlabLock, |bench| {
        let (_, node) = bench.slabs(|_, node| node.total_slabs != 0);
        bench.change_field(node.address, at!(KmemCacheNode, seq), |seq| seq + 1);
    }),
    ("an array that is locked", Rule::SlabLock, |bench| {
        bench.set_field(bench.array(1).1, at!(ArrayCache, lock), 1);
    }),
    ("a slab that links back to elsewhere", Rule::SlabListLink, |bench| {
        bench.change_meta(bench.partial(|_| true).1, Field::Prev, |prev| prev ^ 0x55);
    }),
    ("a list of slabs that goes round", Rule::SlabListLink, |bench| {
        let first = bench.partial(|_| true).1;
        bench.set_meta(first, Field::Next, encode_next(first, first));
    }),
    ("a list of slabs that ends elsewhere", Rule::SlabListLink, |bench| {
        let (_, node) = bench.slabs(|_, node| node.slabs_full.0 != 0);
        bench.set_field(node.address, (offset_of!(KmemCacheNode, slabs_full) + 4, 4), 1);
    }),
    ("a slab that leads out of memory", Rule::SlabListLink, |bench| {
        let first = bench.partial(|_| true).1;
        bench.set_meta(first, Field::Next, encode_next(first, 0xf000_0000));
    }),
    ("a slab without its flag", Rule::SlabListMember, |bench| {
        bench.change_meta(bench.partial(|_| true).1, Field::Flags, |flags| flags & !PageFlag::Slab.mask());
    }),
    ("a slab whose page says it is none", Rule::SlabListMember, |bench| {
        bench.set_meta(bench.partial(|_| true).1, Field::Mapping, 0);
    }),
    ("full slabs on the list of those that are not", Rule::SlabListPlace, |bench| {
        let (_, node) = bench.slabs(|_, node| node.slabs_full.0 != 0 && node.slabs_partial.0 == 0);
        move_list(bench, node.address + FULL, node.address + PARTIAL);
    }),
    ("a slab with an object more", Rule::SlabListPlace, |bench| {
        let (cache, pfn) = bench.partial(|_| true);
        bench.set_meta(pfn, Field::Mapcount, cache.num);
    }),
    ("a slab that is not counted", Rule::SlabCounters, |bench| {
        let (_, node) = bench.slabs(|_, node| node.total_slabs != 0);
        bench.change_field(node.address, at!(KmemCacheNode, total_slabs), |slabs| slabs - 1);
    }),
    ("a free slab too many", Rule::SlabCounters, |bench| {
        let (_, node) = bench.slabs(|_, node| node.total_slabs != 0);
        bench.change_field(node.address, at!(KmemCacheNode, free_slabs), |slabs| slabs + 1);
    }),
    ("a free object too many", Rule::SlabCounters, |bench| {
        let (_, node) = bench.slabs(|_, node| node.total_slabs != 0);
        bench.change_field(node.address, at!(KmemCacheNode, free_objects), |objects| objects + 1);
    }),
    ("a slab of another cache", Rule::SlabPageWord, |bench| {
        bench.change_meta(bench.partial(|_| true).1, Field::Mapping, |word| word ^ 1);
    }),
    ("a slab of another node", Rule::SlabPageWord, |bench| {
        bench.change_meta(bench.partial(|_| true).1, Field::Mapping, |word| word ^ 1 << 16);
    }),
    ("a page of a slab that is elsewhere in it", Rule::SlabPageWord, |bench| {
        let (_, pfn) = bench.any_slab(|cache| cache.order.raw() != 0);
        bench.change_meta(pfn + 1, Field::Index, |index| index + 1);
    }),
    ("a slab on the list of another node", Rule::SlabPageNode, |bench| {
        let (cache, node) = bench
            .slabs(|cache, node| node.node == 0 && node.slabs_partial.0 != 0 && cache.nodes[1].slabs_partial.0 == 0);
        move_list(bench, node.address + PARTIAL, cache.nodes[1].address + PARTIAL);
    }),
    ("a slab on no list", Rule::SlabPageStray, |bench| {
        let (_, node) = bench.slabs(|_, node| node.slabs_partial.0 != 0);
        bench.set_word(node.address + PARTIAL, 0);
    }),
    ("a page in use that says it is a slab's", Rule::SlabPageStray, |bench| {
        let (pfn, page) = bench.find_in_use(|page| page.flags & PageFlag::Slab.mask() == 0 && page.mapcount == 0);
        bench.set_meta(pfn, Field::Flags, page.flags | PageFlag::Slab.mask());
    }),
    ("a free object that there is not", Rule::SlabFreelist, |bench| {
        let (cache, pfn) = bench.partial(|cache| cache.flags.contains(SlabFlags::OBJFREELIST) && cache.num < 200);
        bench.poke(freelist(bench, &cache, pfn), &[cache.num as u8]);
    }),
    ("an object that is free twice", Rule::SlabFreelist, |bench| {
        let (cache, node) = bench.slabs(|cache, node| {
            let slab = node.slabs_partial.0;
            slab != 0 && cache.flags.contains(SlabFlags::OBJFREELIST) && cache.num - bench.meta(slab).mapcount >= 2
        });
        let at = freelist(bench, &cache, node.slabs_partial.0);
        let second = (bench.peek_u64(at) >> 8) as u8;
        bench.poke(at, &[second]);
    }),
    ("linked objects that make a circle", Rule::SlabFreelist, |bench| {
        let (cache, pfn) = bench.partial(|cache| !listed(cache));
        let first = bench.meta(pfn).private;
        let at = (u64::from(pfn) << 12) + u64::from(first - 1) * u64::from(cache.size);
        bench.poke(at, &(first as u16).to_le_bytes());
    }),
    ("a list of free objects in none of them", Rule::SlabFreelistPlace, |bench| {
        let (_, pfn) = bench.partial(|cache| cache.flags.contains(SlabFlags::OBJFREELIST));
        bench.set_meta(pfn, Field::Private, 0);
    }),
    ("a list of free objects in somebody's memory", Rule::SlabFreelistPlace, |bench| {
        let (_, pfn) = bench.any_slab(|cache| cache.flags.contains(SlabFlags::OFF_SLAB));
        bench.change_meta(pfn, Field::Private, |word| word + (4096 >> 3));
    }),
    ("a slab of a colour that there is not", Rule::SlabFreelistPlace, |bench| {
        let (_, pfn) = bench.partial(listed);
        bench.change_meta(pfn, Field::Index, |word| word + 0x1000);
    }),
    ("an array with more than it may have", Rule::SlabArrayLimit, |bench| {
        let (_, array) = bench.array(1);
        let limit = bench.field(array, at!(ArrayCache, limit));
        bench.set_field(array, at!(ArrayCache, avail), limit + 1);
    }),
    ("an array in the kernel's text", Rule::SlabArrayMemory, |bench| {
        bench.set_field(bench.array(1).1, at!(ArrayCache, entry), PAGE_OFFSET + KERNEL_PHYS);
    }),
    ("an array without memory", Rule::SlabArrayMemory, |bench| {
        bench.set_field(bench.array(1).1, at!(ArrayCache, entry), 8);
    }),
    ("an array that begins within an object", Rule::SlabArrayMemory, |bench| {
        bench.change_field(bench.array(1).1, at!(ArrayCache, entry), |entry| entry + 8);
    }),
    ("an array with what is no object", Rule::SlabArrayObject, |bench| {
        let entry = bench.field(bench.array(1).1, at!(ArrayCache, entry));
        bench.set_word(entry, bench.word(entry) + 4);
    }),
    ("an array with an object of another cache", Rule::SlabArrayObject, |bench| {
        let entry = bench.field(bench.array(1).1, at!(ArrayCache, entry));
        bench.set_word(entry, bench.slabs(|cache, _| cache.id == 1).0.address);
    }),
    ("an array of another node", Rule::SlabArrayNode, |bench| {
        bench.change_field(bench.array(1).1, at!(ArrayCache, home), |word| word ^ 1 << 16);
    }),
    ("an array with an object of another node", Rule::SlabArrayNode, |bench| {
        let (cache, node) = bench
            .slabs(|cache, node| node.alien != 0 && cache.cpus[0].avail != 0 && alien(bench, node.alien).is_some());
        let object = alien(bench, node.alien).unwrap();
        bench.set_word(cache.cpus[0].entry, object);
    }),
    ("an object twice in an array", Rule::SlabObjectTwice, |bench| {
        let entry = bench.field(bench.array(2).1, at!(ArrayCache, entry));
        bench.set_word(entry, bench.word(entry + 8));
    }),
    ("an object in an array and in its slab", Rule::SlabObjectTwice, |bench| {
        let (cache, node) =
            bench.slabs(|cache, node| node.slabs_partial.0 != 0 && !listed(cache) && cache.cpus[node.node].avail != 0);
        let slab = node.slabs_partial.0;
        let number = u64::from(bench.meta(slab).private - 1);
        let object = PAGE_OFFSET + (u64::from(slab) << 12) + number * u64::from(cache.size);
        bench.set_word(cache.cpus[node.node].entry, object);
    }),
    ("a page of a slab that is not counted", Rule::SlabStat, |bench| {
        let counter = &bench.region.nodes()[0].vm_stat[NodeStat::NrSlabReclaimable.index()];
        bench.change(counter, |pages| pages - 1);
    }),
    ("fewer pages than slabs have", Rule::SlabStat, |bench| {
        let counter = &bench.region.nodes()[0].vm_stat[NodeStat::NrSlabUnreclaimable.index()];
        bench.change(counter, |pages| pages - 10_000);
    }),
];

/// Where the number of the next free object of a slab is whose list lies in one of them.
fn freelist(bench: &Bench<'_>, cache: &pagevisor::state::slab::SlabCache, pfn: u32) -> u64 {
    let page = bench.meta(pfn);
    let colour = u64::from(page.index & 0xffff) * u64::from(cache.colour_off);
    let object = u64::from(page.private - 1) * u64::from(cache.size);
    (u64::from(pfn) << 12) + colour + object + u64::from(page.mapcount)
}

/// An object that a node keeps of another.
fn alien(bench: &Bench<'_>, arrays: u64) -> Option<u64> {
    let arrays = (0..2).map(|node| arrays + node * size_of::<ArrayCache>() as u64);
    let full = arrays.into_iter().find(|array| bench.field(*array, at!(ArrayCache, avail)) != 0)?;
    Some(bench.word(bench.field(full, at!(ArrayCache, entry))))
}
