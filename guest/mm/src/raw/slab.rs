//! Slab caches' descriptors, and the memory of slabs.
//!
//! The promise it rests on: every address that [`crate::slab`] passes in, or keeps in a descriptor, in an array or in
//! the region's table of caches, is one that it took from the page allocator itself for a slab, for an array or for a
//! descriptor, and has not given back. Descriptors are never given back. What somebody owns of that memory, an object
//! that is in use, is not touched but at the owner's request: clearing, filling and copying are part of handing out
//! and taking back.

use core::ptr::NonNull;
use core::slice;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU16, AtomicU64, Ordering};

use pagevisor_shared::page::Page;
use pagevisor_shared::slab::{ArrayCache, KmemCache, KmemCacheNode, cpu_cache_offset, node_offset};
use pagevisor_shared::units::{PAGE_SHIFT, VirtAddr};

use super::{DirectMap, Memmap};
use crate::platform::Platform;
use crate::sync::Plain;

/// CPUs and nodes that each descriptor has room for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) nr_cpus: usize,
    pub(crate) nr_nodes: usize,
}

/// A slab cache (`struct kmem_cache *`): what [`crate::Mm::kmem_cache_create`] gives.
///
/// It stays what it is for the life of the program, even when the cache is destroyed: then nothing can be allocated
/// from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cache(NonNull<KmemCache>);

// SAFETY: what is behind the pointer is made of atomics, mapped for the life of the program and for every CPU.
unsafe impl Send for Cache {}
// SAFETY: it never changes, and what is behind the pointer is made of atomics.
unsafe impl Sync for Cache {}

impl Cache {
    /// The descriptor at `addr`, which has room for what the machine's [`Shape`] asks.
    #[inline(always)]
    pub(crate) fn at(memory: SlabMemory, addr: u64) -> Option<Self> {
        if addr == 0 {
            return None;
        }
        NonNull::new(memory.at(addr).cast()).map(Self)
    }

    /// The fixed part.
    #[inline(always)]
    pub(crate) fn record(self) -> &'static KmemCache {
        // SAFETY: a descriptor, which is made of atomics and stays for the life of the program.
        unsafe { self.0.as_ref() }
    }

    /// Its address.
    #[inline(always)]
    pub(crate) fn addr(self) -> VirtAddr {
        VirtAddr::new(self.0.addr().get() as u64)
    }

    #[inline(always)]
    fn part<T>(self, offset: usize) -> &'static T {
        // SAFETY: callers give offsets of parts that the descriptor has: it was made for the machine's shape. All parts
        // are made of atomics and are aligned as the descriptor is.
        unsafe { &*self.0.as_ptr().cast::<u8>().add(offset).cast() }
    }

    /// The array of the CPU that executes.
    #[inline(always)]
    pub(crate) fn array<P: Platform>(self, platform: &P) -> &'static ArrayCache {
        // Of a CPU that there is (promise of `Platform::slab_array`).
        self.part(platform.slab_array())
    }

    /// The lists of the nearest node with memory of the CPU that executes.
    #[inline(always)]
    pub(crate) fn lists<P: Platform>(self, platform: &P) -> &'static KmemCacheNode {
        // Of a node that there is: `Mm::cpu_local` worked it out for the machine's shape.
        self.part(platform.this_cpu().slab_lists())
    }

    /// The array of CPU `cpu`.
    pub(crate) fn array_of(self, shape: Shape, cpu: usize) -> &'static ArrayCache {
        self.part(cpu_cache_offset(cpu.min(shape.nr_cpus - 1)))
    }

    /// The lists of node `node`.
    #[inline]
    pub(crate) fn node(self, shape: Shape, node: usize) -> &'static KmemCacheNode {
        self.part(node_offset(shape.nr_cpus, node.min(shape.nr_nodes - 1)))
    }
}

/// A cache without objects: whoever allocates from it gets none.
#[repr(C, align(64))]
struct NoCache(KmemCache, [ArrayCache; pagevisor_shared::NR_CPUS]);

static NO_CACHE: NoCache = NoCache(KmemCache::new(), [const { ArrayCache::new() }; pagevisor_shared::NR_CPUS]);

/// A place for a cache that is set once. At first it holds a cache without objects, so that there always is one.
#[derive(Debug)]
pub(crate) struct CacheSlot(AtomicPtr<KmemCache>);

impl CacheSlot {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new((&raw const NO_CACHE).cast::<KmemCache>().cast_mut()))
    }

    pub(crate) fn set(&self, cache: Cache) {
        // Release: who sees the cache sees its descriptor.
        self.0.store(cache.0.as_ptr(), Ordering::Release);
    }

    /// The cache that was set.
    #[inline]
    pub(crate) fn get(&self) -> Option<Cache> {
        let cache = self.any();
        (cache.0.as_ptr().cast_const() != (&raw const NO_CACHE).cast()).then_some(cache)
    }

    /// The cache; one without objects as long as none is set.
    #[inline(always)]
    pub(crate) fn any(&self) -> Cache {
        // The address leads to the descriptor, and no processor reads that before it has the address.
        // SAFETY: never null: it is the address of a static or of a descriptor.
        Cache(unsafe { NonNull::new_unchecked(self.0.load(Ordering::Relaxed)) })
    }
}

/// The memory of slabs, by virtual address. There is one where the direct map's provenance was exposed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlabMemory(());

impl SlabMemory {
    /// Exposes the direct map's provenance.
    pub(crate) fn expose(map: DirectMap) -> Self {
        map.base().as_ptr().expose_provenance();
        Self(())
    }

    #[inline(always)]
    fn at(self, addr: u64) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(addr as usize)
    }

    /// Words at `addr`, a multiple of 8.
    #[inline(always)]
    pub(crate) fn words(self, addr: u64, len: usize) -> &'static [AtomicU64] {
        // SAFETY: memory of a slab or of an array (promise of this room), in the direct map; atomics are valid with any
        // content.
        unsafe { slice::from_raw_parts(self.at(addr).cast(), len) }
    }

    /// Bytes at `addr`.
    #[inline(always)]
    pub(crate) fn bytes(self, addr: u64, len: usize) -> &'static [AtomicU8] {
        // SAFETY: as for `words`.
        unsafe { slice::from_raw_parts(self.at(addr).cast(), len) }
    }

    /// The byte at `addr`.
    #[inline(always)]
    pub(crate) fn byte(self, addr: u64) -> &'static AtomicU8 {
        // SAFETY: as for `words`.
        unsafe { &*self.at(addr).cast() }
    }

    /// Writes four bytes at `addr`, which is any address, the lowest first.
    #[inline(always)]
    pub(crate) fn set_four(self, addr: u64, bytes: u32) {
        // SAFETY: as for `words`; whoever reads them holds the lock that the writer holds.
        unsafe { self.at(addr).cast::<u32>().write_unaligned(bytes.to_le()) }
    }

    /// Whether four words of an array whose lock is held, or of nobody else's, are these.
    #[inline(always)]
    pub(crate) fn are_four(self, words: &[AtomicU64; 4], expected: [u64; 4]) -> bool {
        // Plain loads, which the compiler can make part of comparisons.
        // SAFETY: who writes to an array's words holds its lock, too.
        words.iter().zip(expected).all(|(word, expected)| unsafe { word.as_ptr().read() } == expected)
    }

    /// Two bytes at `addr`, a multiple of 2.
    #[inline(always)]
    pub(crate) fn half(self, addr: u64) -> &'static AtomicU16 {
        // SAFETY: as for `words`.
        unsafe { &*self.at(addr).cast() }
    }

    /// Word `index` of an array, which is below its limit.
    #[inline(always)]
    pub(crate) fn entry(self, array: &ArrayCache, index: u32) -> &'static AtomicU64 {
        // SAFETY: there is room for `limit` words at `entry` (invariant of `ArrayCache`).
        unsafe { &*self.at(array.entry.get()).cast::<AtomicU64>().add(index as usize) }
    }

    /// The number and the metadata of the page that holds the start of an object of an array, where the direct map begins at
    /// `base`.
    #[inline(always)]
    pub(crate) fn page_of(self, memmap: Memmap, base: u64, object: u64) -> (u32, &'static Page) {
        let pfn = object.wrapping_sub(base) >> PAGE_SHIFT;
        // SAFETY: what arrays hold is memory of slabs (promise of this room), all of which is in the direct map: its frames
        // have numbers of 32 bits.
        (pfn as u32, unsafe { memmap.page_in_memory(pfn) })
    }

    /// The last of the `avail` objects of an array, at least one and at most its limit.
    #[inline(always)]
    pub(crate) fn last_entry(self, array: &ArrayCache, avail: u32) -> &'static AtomicU64 {
        // SAFETY: there is room for `limit` words at `entry` (invariant of `ArrayCache`).
        unsafe { &*self.at(array.entry.get()).cast::<AtomicU64>().add(avail as usize).sub(1) }
    }

    /// How many objects an array whose lock is held has room for.
    #[inline(always)]
    pub(crate) fn limit(self, array: &ArrayCache) -> u32 {
        // A plain load, which the compiler can make part of a comparison.
        // SAFETY: who changes it holds the lock, too.
        unsafe { array.limit.as_ptr().read() }
    }

    /// The word of the first pages of the slabs whose objects an array takes. The array's lock is held.
    #[inline(always)]
    pub(crate) fn home(self, array: &ArrayCache) -> u32 {
        // SAFETY: as for `limit`.
        unsafe { array.home.as_ptr().read() }
    }

    /// The array caches at `addr`.
    pub(crate) fn arrays(self, addr: u64, len: usize) -> &'static [ArrayCache] {
        // SAFETY: memory that was taken for so many of them, zeroed, at a multiple of 64 (promise of this room).
        unsafe { slice::from_raw_parts(self.at(addr).cast(), len) }
    }

    /// Fills `len` bytes with `byte`.
    #[inline]
    pub(crate) fn fill(self, addr: VirtAddr, len: usize, byte: u8) {
        // SAFETY: an object, or a descriptor or array that is being made, that nobody else uses now.
        unsafe { self.at(addr.raw()).write_bytes(byte, len) };
    }

    /// Copies `len` bytes from one object to another.
    pub(crate) fn copy(self, to: VirtAddr, from: VirtAddr, len: usize) {
        // SAFETY: two objects of at least that size, that nobody else uses now.
        unsafe { self.at(to.raw()).copy_from_nonoverlapping(self.at(from.raw()), len) };
    }
}

/// Calls the constructor at address `ctor`, which is not 0, for an object.
pub(crate) fn construct(ctor: u64, object: VirtAddr) {
    let ctor = core::ptr::with_exposed_provenance::<()>(ctor as usize);
    // SAFETY: the address was made from a function of this type by `constructor`.
    let ctor: fn(VirtAddr) = unsafe { core::mem::transmute(ctor) };
    ctor(object);
}

/// The address of a constructor; 0 for none.
pub(crate) fn constructor(ctor: Option<fn(VirtAddr)>) -> u64 {
    ctor.map_or(0, |ctor| (ctor as *const ()).expose_provenance() as u64)
}
