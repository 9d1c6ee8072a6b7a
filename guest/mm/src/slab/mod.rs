//! The slab allocator and `kmalloc` (`mm/slab.c`, `mm/slab_common.c`).
//!
//! A cache ([`Cache`], made by [`Mm::kmem_cache_create`]) hands out objects of one size. It gets them from slabs, blocks
//! of pages cut into objects. Each CPU has an array of free objects, from which nearly all allocations are served and
//! to which nearly all frees go; each node has lists of slabs, an array that its CPUs share, and arrays of other nodes'
//! objects on their way home. What all of it looks like in memory is laid down in [`pagevisor_shared::slab`].
//!
//! | file | what |
//! |---|---|
//! | `fast` | the short ways: this CPU's array, nothing else |
//! | `alloc`, `free` | the general ways: refilling and flushing arrays, other nodes |
//! | `bulk` | many objects at once |
//! | `kmalloc` | memory of any size |
//! | `node` | a node's lists of slabs, locked |
//! | `page` | a slab and its list of free objects |
//! | `grow` | slabs from the page allocator and back |
//! | `several` | the same, for several at once |
//! | `whole` | slabs that are one object |
//! | `arrays` | making, changing and emptying arrays |
//! | `reap` | giving back what nobody uses |
//! | `debug` | red zones, poison, last users |
//! | `watch` | what looks at every object: failures, events, clearing |
//! | `pooled` | the pattern in objects that a pool has laid aside |
//! | `layout` | how objects lie in slabs |
//! | `create`, `boot` | caches, and the first of them |
//!
//! Objects are named by their addresses in the direct map. What lies in an object is its owner's; only `unsafe` code
//! reaches it. Freeing what was not allocated never does more than a report where it can be noticed.
//!
//! # Locks, by rank
//!
//! 1. `Slab::lock` (`slab_mutex`): caches come and go, tunables change, arrays' gates are shut. Not from interrupts.
//! 2. a CPU's array ([`ArrayCache::lock`]): only ever tried where an interrupt may call; if it is held, the node's lists
//!    serve instead. Whoever holds it may allocate pages, but never reclaims.
//! 3. an array of other nodes' objects, with interrupts off.
//! 4. a node's lists ([`KmemCacheNode::list_lock`]), with interrupts off, and its shared array with them. No pages are
//!    allocated or freed under it.
//!
//! [`ArrayCache::lock`]: pagevisor_shared::slab::ArrayCache::lock
//! [`KmemCacheNode::list_lock`]: pagevisor_shared::slab::KmemCacheNode::list_lock

mod alloc;
mod arrays;
mod boot;
mod bulk;
mod create;
mod debug;
mod fast;
mod free;
mod grow;
mod kmalloc;
mod layout;
mod node;
mod page;
mod pooled;
mod reap;
mod several;
mod watch;
mod whole;

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::region::RegionRef;
use pagevisor_shared::slab::{ArrayCache, KmemCache, KmemCacheNode, MAX_CACHES, SlabFlags, SlabWord};
use pagevisor_shared::units::{CpuId, NodeId, PAGE_SHIFT, Pfn, PhysAddr, VirtAddr};
use pagevisor_shared::vmstat::NodeStat;

pub use crate::raw::Cache;

use crate::Mm;
use crate::platform::Platform;
use crate::raw::{CacheSlot, DirectMap, Shape, SlabMemory};
use crate::sync::{Gated, Plain};
use kmalloc::{KMALLOC_CLASSES, KMALLOC_TYPES};
pub use kmalloc::{KMALLOC_MAX_CACHE_SIZE, KMALLOC_MAX_SIZE, ZERO_SIZE_PTR};
pub use pooled::Pooled;
pub(crate) use reap::Reaper;

/// Why there is no such cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheError {
    /// No name, no size, more than [`KMALLOC_MAX_SIZE`], or an alignment that is no power of two (`-EINVAL`).
    Invalid,
    /// No slab holds an object of that size (`-E2BIG`).
    TooBig,
    /// No memory for the descriptor, or no number for it (`-ENOMEM`).
    Memory,
}

impl CacheError {
    /// Linux's error number.
    pub const fn errno(self) -> i32 {
        match self {
            Self::Invalid => -22,
            Self::TooBig => -7,
            Self::Memory => -12,
        }
    }
}

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid name, size or alignment",
            Self::TooBig => "objects larger than a slab",
            Self::Memory => "no memory for a descriptor",
        })
    }
}

impl core::error::Error for CacheError {}

/// Stands for a table that a region has no room for: no cache gets a number.
static NO_TABLE: [AtomicU64; MAX_CACHES] = [const { AtomicU64::new(u64::MAX) }; MAX_CACHES];

/// What the slab allocator keeps beside the descriptors.
#[derive(Debug)]
pub(crate) struct Slab {
    memory: SlabMemory,
    /// Descriptors' addresses by number.
    table: &'static [AtomicU64; MAX_CACHES],
    shape: Shape,
    /// Bit 0 is set once caches' arrays can be allocated (`slab_state`).
    up: AtomicU32,
    /// `slab_mutex`.
    lock: AtomicU32,
    /// Caches made so far.
    serial: AtomicU64,
    /// The cache of caches (`kmem_cache`).
    caches: CacheSlot,
    /// The caches of `kmalloc`, by type and size class (`kmalloc_caches`).
    kmalloc: [[CacheSlot; KMALLOC_CLASSES]; KMALLOC_TYPES],
    /// The last report of `kfree` was made then; reports are counted, not repeated.
    bad_frees: AtomicU32,
}

impl Slab {
    /// No cache yet.
    pub(crate) fn new(map: DirectMap, region: &RegionRef<'static>) -> Self {
        Self {
            memory: SlabMemory::expose(map),
            table: region.slab_caches().first_chunk().unwrap_or(&NO_TABLE),
            shape: Shape { nr_cpus: region.nr_cpus(), nr_nodes: region.nodes().len() },
            up: AtomicU32::new(0),
            lock: AtomicU32::new(0),
            serial: AtomicU64::new(0),
            caches: CacheSlot::new(),
            kmalloc: [const { [const { CacheSlot::new() }; KMALLOC_CLASSES] }; KMALLOC_TYPES],
            bad_frees: AtomicU32::new(0),
        }
    }
}

/// The lock of a CPU's array, for all but the short ways. Its gate is shut while something watches.
#[inline(always)]
const fn gated(array: &ArrayCache) -> Gated<'_, AtomicU32> {
    Gated { gate: &array.lock, shut: &array.hot, slow: &array.hot_lock }
}

impl<P: Platform> Mm<P> {
    /// The memory of slabs.
    #[inline(always)]
    fn slab_memory(&self) -> SlabMemory {
        self.slab.memory
    }

    /// Whether it is the cache of caches.
    pub(crate) fn is_cache_of_caches(&self, cache: Cache) -> bool {
        cache == self.slab.caches.any()
    }

    /// The cache with number `id`.
    #[inline(always)]
    fn cache_by_id(&self, id: u16) -> Option<Cache> {
        Cache::at(self.slab_memory(), self.slab.table[id as usize % MAX_CACHES].get())
    }

    /// The cache whose descriptor is at `addr`, which [`Cache::addr`] gave.
    pub(crate) fn cache_at(&self, addr: VirtAddr) -> Option<Cache> {
        Cache::at(self.slab_memory(), addr.raw())
    }

    /// All caches, by number.
    pub fn kmem_caches(&self) -> impl Iterator<Item = Cache> {
        (1..self.slab.table.len()).filter_map(|id| self.cache_by_id(id as u16))
    }

    /// The cache of that name; the first if there are more.
    pub fn kmem_cache_find(&self, name: &str) -> Option<Cache> {
        self.kmem_caches().find(|cache| cache.is_named(name))
    }

    /// The cache that the object at `addr` belongs to (`virt_to_cache`); `None` if `addr` is in no slab.
    pub fn virt_to_cache(&self, addr: VirtAddr) -> Option<Cache> {
        let (_, word) = self.virt_to_slab(addr)?;
        self.cache_by_id(word.cache())
    }

    /// The descriptor of a cache: its sizes, tunables and counters.
    pub fn kmem_cache_record(&self, cache: Cache) -> &'static KmemCache {
        cache.record()
    }

    /// The array of CPU `cpu`. For looking.
    pub fn kmem_cache_array(&self, cache: Cache, cpu: CpuId) -> &'static ArrayCache {
        cache.array_of(self.slab.shape, cpu.index())
    }

    /// The lists of `node`. For looking.
    pub fn kmem_cache_node(&self, cache: Cache, node: NodeId) -> &'static KmemCacheNode {
        cache.node(self.slab.shape, node.index())
    }

    /// The lists of the node of `number`, which is below the number of nodes.
    #[inline]
    fn slab_node(&self, cache: Cache, number: usize) -> &'static KmemCacheNode {
        cache.node(self.slab.shape, number)
    }

    /// What each descriptor has room for.
    pub(crate) fn slab_shape(&self) -> Shape {
        self.slab.shape
    }

    /// The objects in an array.
    pub(crate) fn array_entries(&self, array: &ArrayCache) -> &'static [AtomicU64] {
        let avail = array.avail.get();
        if avail == 0 { &[] } else { self.slab_memory().words(array.entry.get(), avail as usize) }
    }

    /// The number of the frame at `addr`, if that is one.
    #[inline(always)]
    fn pfn_of(&self, addr: VirtAddr) -> u64 {
        let base = self.direct_map().at(PhysAddr::new(0)).addr() as u64;
        addr.raw().wrapping_sub(base) >> PAGE_SHIFT
    }

    /// The frame that `addr` is in, if there is memory.
    #[inline(always)]
    fn frame_of(&self, addr: VirtAddr) -> Option<u32> {
        let pfn = self.pfn_of(addr);
        if self.frames.zone_of(pfn) == u16::MAX { None } else { Some(pfn as u32) }
    }

    /// What the metadata of the page at `addr` says about a slab; nothing where there is no memory.
    #[inline(always)]
    fn slab_word(&self, addr: VirtAddr) -> Option<SlabWord> {
        let page = self.frames.page_of(self.memmap(), self.pfn_of(addr))?;
        Some(SlabWord(page.mapping.get()))
    }

    /// The first frame of the slab that `addr` is in, and what its metadata says (`virt_to_slab`).
    #[inline]
    pub(crate) fn virt_to_slab(&self, addr: VirtAddr) -> Option<(u32, SlabWord)> {
        let pfn = self.pfn_of(addr);
        let page = self.frames.page_of(self.memmap(), pfn)?;
        let word = SlabWord(page.mapping.get());
        if !word.is_slab() {
            return None;
        }
        if !word.is_tail() {
            return Some((pfn as u32, word));
        }
        let first = (pfn as u32).wrapping_sub(page.index.get());
        self.page_zone(Pfn::new(first as u64))?;
        let word = SlabWord(self.memmap().page(first).mapping.get());
        (word.is_slab() && !word.is_tail()).then_some((first, word))
    }
}

impl Cache {
    /// Its name, as far as there is room for it.
    fn is_named(self, name: &str) -> bool {
        create::name_words(name).iter().zip(&self.record().name).all(|(word, held)| held.get() == *word)
    }

    /// The counter of its pages.
    pub(crate) fn vmstat(self) -> NodeStat {
        grow::vmstat_of(self.flags())
    }

    /// What was asked for, and what was chosen.
    pub(crate) fn flags(self) -> SlabFlags {
        SlabFlags::from_bits_truncate(self.record().flags.get())
    }
}
