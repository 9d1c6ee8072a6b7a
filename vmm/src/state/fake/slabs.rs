//! Slab caches of the guest made by hand.

use std::mem::offset_of;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::layout::PAGE_OFFSET;
use pagevisor_shared::page::{encode_next, encode_prev};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::region::zone::ListHead;
use pagevisor_shared::slab::{
    self, ArrayCache, FreelistPlace, FreelistWords, KmemCache, KmemCacheNode, SlabFlags, SlabWord,
};
use pagevisor_shared::units::NodeId;

use super::{FakeGuest, MIB, PFN4G};

/// Where the descriptors are, a page each.
pub(crate) const DESCRIPTORS: u64 = 50 * MIB;
/// Where arrays are, a page each.
const ARRAYS: u64 = 51 * MIB;
/// Where lists off the slab are, 64 bytes each.
const FREELISTS: u64 = 52 * MIB;

/// Address of physical memory in the direct map.
pub(crate) const fn direct(gpa: u64) -> u64 {
    PAGE_OFFSET + gpa
}

/// A slab to be.
#[derive(Clone, Default)]
pub(crate) struct FakeSlab {
    pub node: usize,
    pub pfn: u32,
    pub colour: u16,
    /// Numbers of the objects that are free, in the order in which they will be used.
    pub free: Vec<u16>,
}

/// A cache to be.
#[derive(Clone)]
pub(crate) struct FakeCache {
    pub number: u16,
    pub name: &'static str,
    pub flags: SlabFlags,
    pub size: u32,
    /// From the start of a buffer to the object in it.
    pub obj_offset: u32,
    pub num: u32,
    pub order: u32,
    pub tunables: [u32; 3],
    pub slabs: Vec<FakeSlab>,
    /// Objects in CPUs' arrays.
    pub cpus: [Vec<u64>; 2],
    /// Objects in nodes' shared arrays.
    pub shared: [Vec<u64>; 3],
    /// Objects of node 1 that node 0 keeps.
    pub alien: Vec<u64>,
}

impl FakeCache {
    pub fn new(number: u16, name: &'static str, size: u32, num: u32, order: u32) -> Self {
        Self {
            number,
            name,
            flags: SlabFlags::NONE,
            size,
            obj_offset: 0,
            num,
            order,
            tunables: [120, 60, 8],
            slabs: Vec::new(),
            cpus: Default::default(),
            shared: Default::default(),
            alien: Vec::new(),
        }
    }

    /// Physical address of the descriptor.
    pub fn gpa(&self) -> u64 {
        DESCRIPTORS + u64::from(self.number) * 4096
    }

    /// Physical address of the lists of a node.
    pub fn node_gpa(&self, node: usize) -> u64 {
        self.gpa() + slab::node_offset(2, node) as u64
    }

    /// Address of an object's buffer.
    pub fn object(&self, slab: usize, number: u16) -> u64 {
        let slab = &self.slabs[slab];
        direct(u64::from(slab.pfn) << 12) + u64::from(slab.colour) * 64 + u64::from(number) * u64::from(self.size)
    }

    /// What arrays hold for the objects in these buffers.
    fn pointers(&self, buffers: &[u64]) -> Vec<u64> {
        buffers.iter().map(|buffer| buffer + u64::from(self.obj_offset)).collect()
    }
}

/// A few kinds of caches, with slabs in all states and objects in all kinds of arrays.
pub(crate) fn caches() -> Vec<FakeCache> {
    let every = |num: u16| (0..num).collect::<Vec<u16>>();
    let mut small = FakeCache::new(2, "kmalloc-64", 64, 64, 0);
    small.flags = SlabFlags::OBJFREELIST;
    small.slabs = vec![
        FakeSlab { node: 0, pfn: 0x3102, colour: 0, free: (10..64).collect() },
        FakeSlab { node: 0, pfn: 0x3103, ..FakeSlab::default() },
        FakeSlab { node: 0, pfn: 0x3104, colour: 0, free: every(64) },
        FakeSlab { node: 1, pfn: PFN4G + 0x900, colour: 0, free: vec![7, 3] },
    ];
    small.cpus = [vec![small.object(0, 0), small.object(0, 9)], vec![small.object(3, 0)]];
    small.shared = [vec![small.object(1, 63)], vec![], vec![]];
    small.alien = vec![small.object(3, 1), small.object(3, 2)];
    let mut plain = FakeCache::new(1, "kmem_cache", 896, 4, 0);
    plain.slabs = vec![FakeSlab { node: 0, pfn: 0x3100, colour: 2, free: vec![3] }];
    plain.tunables = [54, 27, 8];
    let mut large = FakeCache::new(3, "kmalloc-2k", 2048, 4, 1);
    large.flags = SlabFlags::OFF_SLAB;
    large.tunables = [24, 12, 8];
    large.slabs = vec![FakeSlab { node: 0, pfn: 0x3106, colour: 0, free: vec![2] }];
    let empty = FakeCache::new(4, "scullc", 4000, 1, 0);
    let mut tiny = FakeCache::new(5, "kmalloc-8", 8, 512, 0);
    tiny.flags = SlabFlags::LINKED;
    tiny.slabs = vec![FakeSlab { node: 0, pfn: 0x3109, colour: 0, free: vec![500, 2, 300] }];
    vec![plain, small, large, empty, tiny]
}

impl FakeGuest {
    /// A guest with free memory, slab caches and areas of its address space.
    pub fn with_slabs() -> Self {
        let guest = Self::used();
        caches().iter().for_each(|cache| guest.install(cache));
        guest.map_areas();
        guest
    }

    /// Writes a cache into memory, and its descriptor's address into the table.
    pub fn install(&self, cache: &FakeCache) {
        let at = |offset: usize| cache.gpa() + offset as u64;
        let freelist_size = if cache.flags == SlabFlags::NONE { cache.num.next_multiple_of(8) } else { 0 };
        for (offset, value) in [
            (offset_of!(KmemCache, flags), cache.flags.bits()),
            (offset_of!(KmemCache, id), cache.number.into()),
            (offset_of!(KmemCache, size), cache.size),
            (offset_of!(KmemCache, object_size), cache.size - cache.obj_offset),
            (offset_of!(KmemCache, obj_offset), cache.obj_offset),
            (offset_of!(KmemCache, num), cache.num),
            (offset_of!(KmemCache, gfporder), cache.order),
            (offset_of!(KmemCache, limit), cache.tunables[0]),
            (offset_of!(KmemCache, batchcount), cache.tunables[1]),
            (offset_of!(KmemCache, shared), cache.tunables[2]),
            (offset_of!(KmemCache, colour_off), 64),
            (offset_of!(KmemCache, freelist_size), freelist_size),
        ] {
            self.memory.write_u32(at(offset), value);
        }
        self.memory.write_u64(at(offset_of!(KmemCache, serial)), cache.number.into());
        self.memory.write(at(offset_of!(KmemCache, name)), cache.name.as_bytes());
        let base = ARRAYS + u64::from(cache.number) * (16 << 12);
        for (cpu, objects) in (0u64..).zip(&cache.cpus) {
            self.array(at(slab::cpu_cache_offset(cpu as usize)), base + cpu * 4096, &cache.pointers(objects));
        }
        for node in 0..3 {
            self.install_node(cache, node, freelist_size);
            let place = cache.node_gpa(node) + offset_of!(KmemCacheNode, shared) as u64;
            self.array(place, base + (2 + node as u64) * 4096, &cache.pointers(&cache.shared[node]));
        }
        if !cache.alien.is_empty() {
            let record = base + 8 * 4096;
            self.memory.write_u64(cache.node_gpa(0) + offset_of!(KmemCacheNode, alien) as u64, direct(record));
            self.array(record + size_of::<ArrayCache>() as u64, base + 9 * 4096, &cache.pointers(&cache.alien));
        }
        self.region().slab_caches()[usize::from(cache.number)].store(direct(cache.gpa()), Relaxed);
    }

    fn array(&self, at: u64, entry: u64, objects: &[u64]) {
        for (offset, value) in [
            (offset_of!(ArrayCache, avail), objects.len() as u32),
            (offset_of!(ArrayCache, limit), 120),
            (offset_of!(ArrayCache, batchcount), 60),
        ] {
            self.memory.write_u32(at + offset as u64, value);
        }
        self.memory.write_u64(at + offset_of!(ArrayCache, entry) as u64, direct(entry));
        (0..).zip(objects).for_each(|(number, object)| self.memory.write_u64(entry + number * 8, *object));
    }

    fn install_node(&self, cache: &FakeCache, node: usize, freelist_size: u32) {
        let [mut partial, mut full, mut free] = [const { Vec::new() }; 3];
        let mut free_objects = 0;
        for slab in cache.slabs.iter().filter(|slab| slab.node == node) {
            self.install_slab(cache, slab, freelist_size);
            let left = slab.free.len() as u32;
            free_objects += u64::from(left);
            let list = if left == 0 {
                &mut full
            } else if left == cache.num {
                &mut free
            } else {
                &mut partial
            };
            list.push(slab.pfn);
        }
        let at = |offset: usize| cache.node_gpa(node) + offset as u64;
        self.memory
            .write_u64(at(offset_of!(KmemCacheNode, total_slabs)), (partial.len() + full.len() + free.len()) as u64);
        self.memory.write_u64(at(offset_of!(KmemCacheNode, free_slabs)), free.len() as u64);
        self.memory.write_u64(at(offset_of!(KmemCacheNode, free_objects)), free_objects);
        self.slab_list(at(offset_of!(KmemCacheNode, slabs_partial)), &partial);
        self.slab_list(at(offset_of!(KmemCacheNode, slabs_full)), &full);
        self.slab_list(at(offset_of!(KmemCacheNode, slabs_free)), &free);
    }

    /// Links slabs to a list whose head is at `at`.
    pub fn slab_list(&self, at: u64, slabs: &[u32]) {
        let ends = [(offset_of!(ListHead, first), slabs.first()), (offset_of!(ListHead, last), slabs.last())];
        for (offset, pfn) in ends {
            self.memory.write_u32(at + offset as u64, pfn.copied().unwrap_or(0));
        }
        for (position, &pfn) in slabs.iter().enumerate() {
            let before = position.checked_sub(1).map_or(0, |before| slabs[before]);
            self.set_meta(pfn, 4, encode_next(pfn, slabs.get(position + 1).copied().unwrap_or(0)));
            self.set_meta(pfn, 5, encode_prev(pfn, before));
        }
    }

    fn install_slab(&self, cache: &FakeCache, slab: &FakeSlab, freelist_size: u32) {
        let start = u64::from(slab.pfn) << 12;
        let colour = u64::from(slab.colour) * 64;
        let active = cache.num as usize - slab.free.len();
        let linked = cache.flags == SlabFlags::LINKED;
        let (place, list) = if cache.flags == SlabFlags::OFF_SLAB {
            let list = FREELISTS + u64::from(slab.pfn & 0xff) * 64;
            (FreelistPlace::OffSlab(list), list)
        } else if cache.flags == SlabFlags::OBJFREELIST {
            let object = slab.free.first().copied();
            let at = u64::from(object.unwrap_or(0)) * u64::from(cache.size) + u64::from(cache.obj_offset);
            (FreelistPlace::Object(object), start + colour + at)
        } else if linked {
            for (position, object) in slab.free.iter().enumerate() {
                let next = slab.free.get(position + 1).map_or(0, |next| next + 1);
                let at = u64::from(*object) * u64::from(cache.size) + u64::from(cache.obj_offset);
                self.memory.write(start + colour + at, &next.to_le_bytes());
            }
            (FreelistPlace::Linked(slab.free.first().copied()), 0)
        } else {
            (FreelistPlace::OnSlab, start + (4096 << cache.order) - u64::from(freelist_size))
        };
        for (entry, object) in (active as u64..).zip(&slab.free).filter(|_| !linked) {
            self.memory.write(list + entry, &[*object as u8]);
        }
        let words = FreelistWords::new(slab.colour, place);
        let node = NodeId::new(slab.node).unwrap();
        for page in 0..1 << cache.order {
            self.set_meta(slab.pfn + page, 6, SlabWord::new(cache.number, node, page != 0).0);
            self.set_meta(slab.pfn + page, 7, if page == 0 { words.index } else { page });
        }
        self.set_meta(slab.pfn, 0, PageFlag::Slab.mask());
        self.set_meta(slab.pfn, 1, 1);
        self.set_meta(slab.pfn, 2, active as u32);
        self.set_meta(slab.pfn, 3, words.private);
    }
}
