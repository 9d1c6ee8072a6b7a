//! Records in the direct map: slab caches, areas, chunks of per-CPU memory.

use std::sync::atomic::Ordering::SeqCst;

use pagevisor::state::slab::{NodeSlabs, SlabCache};
use pagevisor_shared::layout::PAGE_OFFSET;
use pagevisor_shared::percpu::{PcpuChunk, PcpuRoot};
use pagevisor_shared::vmalloc::{VmStruct, VmapArea};

use super::{Bench, Field};

/// Offset and size in bytes of a field.
pub type At = (usize, usize);

/// A field of a record, by its type and name, of 4 or 8 bytes.
#[macro_export]
macro_rules! at {
    ($record:ty, $field:ident $(. $inner:ident)?) => {{
        // The size follows from the distance of what the field's type has.
        const fn size_of_field<R, F>(_: fn(&R) -> &F) -> usize {
            size_of::<F>()
        }
        (
            std::mem::offset_of!($record, $field $(. $inner)?),
            size_of_field::<$record, _>(|record| &record.$field $(. $inner)?),
        )
    }};
}

impl Bench<'_> {
    /// Guest-physical address of what is at `address` in the direct map.
    pub fn gpa(&self, address: u64) -> u64 {
        address.checked_sub(PAGE_OFFSET).expect("an address of the direct map")
    }

    /// The word at an address of the direct map.
    pub fn word(&self, address: u64) -> u64 {
        self.peek_u64(self.gpa(address))
    }

    pub fn set_word(&self, address: u64, value: u64) {
        self.poke(self.gpa(address), &value.to_le_bytes());
    }

    /// A field of the record at `address`.
    pub fn field(&self, address: u64, (offset, size): At) -> u64 {
        self.word(address + offset as u64) & u64::MAX >> (64 - 8 * size)
    }

    pub fn set_field(&self, address: u64, (offset, size): At, value: u64) {
        self.poke(self.gpa(address) + offset as u64, &value.to_le_bytes()[..size]);
    }

    pub fn change_field(&self, address: u64, at: At, change: impl FnOnce(u64) -> u64) {
        self.set_field(address, at, change(self.field(address, at)));
    }

    pub fn change_meta(&self, pfn: u32, field: Field, change: impl FnOnce(u32) -> u32) {
        let page = self.meta(pfn);
        let words =
            [page.flags, page.refcount, page.mapcount, page.private, page.next, page.prev, page.mapping, page.index];
        self.set_meta(pfn, field, change(words[field as usize]));
    }

    /// The first cache and node that `wanted` accepts, small numbers first.
    pub fn slabs(&self, wanted: impl Fn(&SlabCache, &NodeSlabs) -> bool) -> (SlabCache, NodeSlabs) {
        let mut caches = self.view.slab_caches().unwrap().caches;
        caches.sort_by_key(|cache| cache.id);
        let nodes = caches.iter().flat_map(|cache| cache.nodes.iter().map(move |node| (cache, node)));
        let found = nodes.into_iter().find(|(cache, node)| wanted(cache, node));
        found.map(|(cache, node)| (cache.clone(), node.clone())).expect("no such slabs in this guest")
    }

    /// A cache with a slab, and that.
    pub fn any_slab(&self, wanted: impl Fn(&SlabCache) -> bool) -> (SlabCache, u32) {
        let first = |node: &NodeSlabs| {
            let lists = [node.slabs_partial, node.slabs_full, node.slabs_free];
            lists.into_iter().map(|(first, _)| first).find(|first| *first != 0)
        };
        let (cache, node) = self.slabs(|cache, node| first(node).is_some() && wanted(cache));
        (cache, first(&node).unwrap())
    }

    /// A cache with a partial slab, and that.
    pub fn partial(&self, wanted: impl Fn(&SlabCache) -> bool) -> (SlabCache, u32) {
        let (cache, node) = self.slabs(|cache, node| node.slabs_partial.0 != 0 && wanted(cache));
        (cache, node.slabs_partial.0)
    }

    /// A cache of which a CPU's array has at least `objects`, and the address of that array; not the cache of caches.
    pub fn array(&self, objects: u32) -> (SlabCache, u64) {
        let full = |cache: &SlabCache| cache.cpus.iter().position(|array| array.avail >= objects);
        let (cache, _) = self.slabs(|cache, _| cache.id > 1 && full(cache).is_some());
        let cpu = full(&cache).unwrap();
        let address = cache.address + pagevisor_shared::slab::cpu_cache_offset(cpu) as u64;
        (cache, address)
    }

    /// Addresses of the records of areas in use, or of free ones, in order.
    pub fn areas(&self, first: u64) -> Vec<u64> {
        let next = |at: &u64| {
            let next = self.field(*at, at!(VmapArea, next));
            (next != 0).then_some(next)
        };
        std::iter::successors((first != 0).then_some(first), next).collect()
    }

    pub fn busy(&self) -> Vec<u64> {
        self.areas(self.region.header().roots.vmalloc.busy.first.load(SeqCst))
    }

    pub fn free_areas(&self) -> Vec<u64> {
        self.areas(self.region.header().roots.vmalloc.free.first.load(SeqCst))
    }

    /// The first area in use with those flags and at least so many pages: its start and the address of its record.
    pub fn area_of(&self, flags: u64, pages: u64) -> (u64, u64) {
        let vm = |area: &u64| self.field(*area, at!(VmapArea, max_or_vm));
        let good = |vm: &u64| {
            self.field(*vm, at!(VmStruct, flags)) & flags != 0 && self.field(*vm, at!(VmStruct, nr_pages)) >= pages
        };
        let vm = self.busy().iter().map(vm).find(good).expect("no such area in this guest");
        (self.field(vm, at!(VmStruct, addr)), vm)
    }

    /// Address of the root of per-CPU memory.
    pub fn pcpu(&self) -> u64 {
        self.region.header().roots.percpu.load(SeqCst)
    }

    /// Addresses of all chunks of per-CPU memory.
    pub fn chunks(&self) -> Vec<u64> {
        let next = |at: &u64| Some(self.field(*at, at!(PcpuChunk, all_next))).filter(|next| *next != 0);
        std::iter::successors(Some(self.field(self.pcpu(), at!(PcpuRoot, chunks))), next).collect()
    }

    /// Address of a chunk of dynamic per-CPU memory: one that was added later if there is one.
    pub fn chunk(&self) -> u64 {
        let added = |chunk: &u64| self.field(*chunk, at!(PcpuChunk, immutable)) == 0;
        let first = || self.field(self.pcpu(), at!(PcpuRoot, first_chunk));
        self.chunks().into_iter().find(added).unwrap_or_else(first)
    }
}
