//! Descriptors: a cache, the arrays of its CPUs, the lists of its nodes.

use core::mem::size_of;
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::region::zone::ListHead;

/// Most caches, the one that nobody has included.
pub const MAX_CACHES: usize = 512;
/// Bytes for a cache's name; a shorter one ends with a zero.
pub const NAME_BYTES: usize = 32;
/// Objects of one other node that a node keeps before it sends them home.
pub const ALIEN_LIMIT: u32 = 12;

/// A cache (`struct kmem_cache`). Sizes in bytes.
///
/// Invariants: a cache with a number has `num` objects in each slab of `1 << gfporder` pages;
/// `num * size + freelist_size` (if the list is on the slab) `+ colour * colour_off` is at most the size of a slab.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct KmemCache {
    /// [`super::SlabFlags`].
    pub flags: AtomicU32,
    /// The cache's number.
    pub id: AtomicU32,
    /// From one object to the next.
    pub size: AtomicU32,
    /// What the creator asked for (`kmem_cache_size`).
    pub object_size: AtomicU32,
    /// `reciprocal_buffer_size`, 2^32 / `size` rounded up: `(x * this) >> 32` is `x / size` for any multiple `x` of `size`
    /// in a slab. For other `x` in large buffers it may be one more.
    pub reciprocal_size: AtomicU32,
    /// Objects of a slab.
    pub num: AtomicU32,
    /// Order of a slab.
    pub gfporder: AtomicU32,
    /// GFP flags that every slab is allocated with.
    pub allocflags: AtomicU32,
    /// Default of the CPUs' arrays: most objects.
    pub limit: AtomicU32,
    /// Default of the CPUs' arrays: objects moved at a time.
    pub batchcount: AtomicU32,
    /// A node's shared array has room for this many times `batchcount`.
    pub shared: AtomicU32,
    /// Alignment of objects.
    pub align: AtomicU32,
    /// From a buffer's start to the object in it.
    pub obj_offset: AtomicU32,
    /// Bytes of a slab's list of free objects.
    pub freelist_size: AtomicU32,
    /// Number of colours.
    pub colour: AtomicU32,
    /// Distance from one colour to the next.
    pub colour_off: AtomicU32,
    /// Address of the constructor; 0 for none.
    pub ctor: AtomicU64,
    /// Counts up with each cache that is created, so that they can be put in order.
    pub serial: AtomicU64,
    /// Number of the cache that off-slab lists of free objects come from; 0 for none.
    pub freelist_cache: AtomicU32,
    /// Held while the arrays are changed or the cache is destroyed.
    pub lock: AtomicU32,
    /// The name, UTF-8, as little-endian words, filled up with zeros.
    pub name: [AtomicU64; NAME_BYTES / 8],
    /// Slabs added, ever.
    pub grown: AtomicU64,
    /// Slabs given back, ever.
    pub reaped: AtomicU64,
    /// Errors reported.
    pub errors: AtomicU64,
    /// Allocations from another node than the CPU's.
    pub node_allocs: AtomicU64,
    /// Objects of another node freed.
    pub node_frees: AtomicU64,
    /// Of those, the ones that found the node's array of them full.
    pub node_overflow: AtomicU64,
    /// Most objects in use that were seen when a slab was added.
    pub high_mark: AtomicU64,
    /// CPUs that moved objects between their arrays and slabs since their node had last no slab, a bit each.
    pub used_by: AtomicU64,
}

/// An array of free objects (`struct array_cache`): a CPU's own, a node's shared one, or one of objects of another
/// node.
///
/// Invariant, when nobody holds it: the first `avail` words at `entry` are addresses of objects of the cache, free,
/// each in one array and one place only; `avail <= limit`, and there is room for `limit` words. The object that is used
/// next is the last.
///
/// Whoever holds `lock` holds the array. While `hot` is set, `lock` stays 1, so that the short ways fail and all goes
/// the general way, where instrumentation is; the array is then held by who holds `hot_lock`. See
/// [`crate::region::zone::PcpState`], which works alike.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct ArrayCache {
    /// 0 free, 1 held, or closed while `hot` is set.
    pub lock: AtomicU32,
    /// Objects in it.
    pub avail: AtomicU32,
    /// Most objects in it; 0 as long as there is no memory for it.
    pub limit: AtomicU32,
    /// Objects moved at a time.
    pub batchcount: AtomicU32,
    /// Address of the array, words of addresses; 0 for none.
    pub entry: AtomicU64,
    /// The [`super::SlabWord`] of the first pages of the slabs whose objects it takes: the cache, and the node, for a
    /// CPU's array the nearest with memory. 0 as long as there is no memory for the array.
    pub home: AtomicU32,
    /// It was refilled, or objects were taken from it if it is a shared one, since somebody last looked.
    pub touched: AtomicU32,
    /// Everything takes the general way while this is not 0: the cache is debugged, or something watches
    /// ([`crate::region::zone::hot`]).
    pub hot: AtomicU32,
    /// Held by whoever works on the array while `hot` is set.
    pub hot_lock: AtomicU32,
    /// Allocations that found it empty.
    pub allocmiss: AtomicU64,
    /// Frees that found it full.
    pub freemiss: AtomicU64,
}

/// The slabs of a cache on one node (`struct kmem_cache_node`).
///
/// Invariants, when nobody holds `list_lock`: every slab of the node is on one list: `slabs_full` without free objects,
/// `slabs_free` with all of them free, `slabs_partial` otherwise. `total_slabs` is the number of slabs on all lists and
/// `free_slabs` that on `slabs_free`; `free_objects` is the number of objects that slabs have left, those in arrays not
/// among them.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct KmemCacheNode {
    /// Held, with interrupts off, by who changes the lists.
    pub list_lock: AtomicU32,
    /// Odd while they are being changed.
    pub seq: AtomicU32,
    /// Slabs with some objects left.
    pub slabs_partial: ListHead,
    /// Slabs with none left.
    pub slabs_full: ListHead,
    /// Slabs with all of them.
    pub slabs_free: ListHead,
    /// Slabs on all lists.
    pub total_slabs: AtomicU64,
    /// Slabs on `slabs_free`.
    pub free_slabs: AtomicU64,
    /// Objects that slabs have left.
    pub free_objects: AtomicU64,
    /// With more of them left, free slabs go back to the page allocator.
    pub free_limit: AtomicU32,
    /// Colour of the next slab.
    pub colour_next: AtomicU32,
    /// Address of the [`ArrayCache`]s of other nodes' objects, by node; 0 as long as there is none.
    pub alien: AtomicU64,
    /// A slab of `slabs_free` was used since somebody last looked.
    pub free_touched: AtomicU32,
    /// When somebody will look whether it has slabs to spare, in milliseconds since boot (`next_reap`); 0 when nobody has
    /// looked yet.
    pub next_reap: AtomicU32,
    /// Objects of this node for all its CPUs.
    pub shared: ArrayCache,
}

impl KmemCache {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            flags: AtomicU32::new(0),
            id: AtomicU32::new(0),
            size: AtomicU32::new(0),
            object_size: AtomicU32::new(0),
            reciprocal_size: AtomicU32::new(0),
            num: AtomicU32::new(0),
            gfporder: AtomicU32::new(0),
            allocflags: AtomicU32::new(0),
            limit: AtomicU32::new(0),
            batchcount: AtomicU32::new(0),
            shared: AtomicU32::new(0),
            align: AtomicU32::new(0),
            obj_offset: AtomicU32::new(0),
            freelist_size: AtomicU32::new(0),
            colour: AtomicU32::new(0),
            colour_off: AtomicU32::new(0),
            ctor: AtomicU64::new(0),
            serial: AtomicU64::new(0),
            freelist_cache: AtomicU32::new(0),
            lock: AtomicU32::new(0),
            name: [const { AtomicU64::new(0) }; NAME_BYTES / 8],
            grown: AtomicU64::new(0),
            reaped: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            node_allocs: AtomicU64::new(0),
            node_frees: AtomicU64::new(0),
            node_overflow: AtomicU64::new(0),
            high_mark: AtomicU64::new(0),
            used_by: AtomicU64::new(0),
        }
    }
}

impl ArrayCache {
    /// All zero.
    pub const fn new() -> Self {
        Self {
            lock: AtomicU32::new(0),
            avail: AtomicU32::new(0),
            limit: AtomicU32::new(0),
            batchcount: AtomicU32::new(0),
            entry: AtomicU64::new(0),
            home: AtomicU32::new(0),
            touched: AtomicU32::new(0),
            hot: AtomicU32::new(0),
            hot_lock: AtomicU32::new(0),
            allocmiss: AtomicU64::new(0),
            freemiss: AtomicU64::new(0),
        }
    }
}

const _: () = assert!(size_of::<KmemCache>() == 192 && size_of::<ArrayCache>() == 64);
const _: () = assert!(size_of::<KmemCacheNode>() == 192);

/// Bytes from the start of a descriptor to the array of CPU `cpu`.
#[inline(always)]
pub const fn cpu_cache_offset(cpu: usize) -> usize {
    size_of::<KmemCache>() + cpu * size_of::<ArrayCache>()
}

/// Bytes from the start of a descriptor to the lists of node `node`, on a machine of `nr_cpus` CPUs.
#[inline(always)]
pub const fn node_offset(nr_cpus: usize, node: usize) -> usize {
    cpu_cache_offset(nr_cpus) + node * size_of::<KmemCacheNode>()
}

/// Bytes of a descriptor on a machine of that size.
#[inline]
pub const fn cache_size(nr_cpus: usize, nr_nodes: usize) -> usize {
    node_offset(nr_cpus, nr_nodes)
}
