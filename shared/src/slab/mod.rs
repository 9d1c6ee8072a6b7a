//! Slab caches (`mm/slab.c`, `mm/slab.h`) as they lie in guest memory.
//!
//! A cache's descriptor is itself an object of the cache of caches, which never gives a slab back: whatever address of
//! a descriptor somebody still has, there is a descriptor there. It has a fixed part, [`KmemCache`], then the array of
//! each CPU, then the lists of each node:
//!
//! ```text
//! 0               KmemCache
//! cpu_cache(c)    ArrayCache of CPU c
//! node(c, n)      KmemCacheNode of node n
//! ```
//!
//! Addresses are the guest's virtual ones, in the direct map. The region's table [`crate::region::Table::Slab`]
//! holds the addresses of the descriptors by the caches' numbers; number 0 is nobody's.
//!
//! Of a slab's pages, the metadata says: `mapping` of each is a [`SlabWord`], which tells cache and node and whether the
//! page is the slab's first. `index` of the others is their distance to the first, in pages. Of the first,
//! `_mapcount` is `active`, the number of objects handed out, and `index` and `private` are [`FreelistWords`]; it is
//! linked on one of its node's lists by `next` and `prev`, and has `PG_slab` set.

mod cache;
mod flags;
mod page;

pub use cache::{
    ALIEN_LIMIT, ArrayCache, KmemCache, KmemCacheNode, MAX_CACHES, NAME_BYTES, cache_size, cpu_cache_offset,
    node_offset,
};
pub use flags::SlabFlags;
pub use page::{FreelistPlace, FreelistWords, SlabWord};

/// Written behind and before an object that is free (`RED_INACTIVE`).
pub const RED_INACTIVE: u64 = 0x09F9_1102_9D74_E35B;
/// Written behind and before an object in use (`RED_ACTIVE`).
pub const RED_ACTIVE: u64 = 0xD841_56C5_6356_88C0;
/// Fills an object that is in use and not yet written (`POISON_INUSE`).
pub const POISON_INUSE: u8 = 0x5a;
/// Fills a free object (`POISON_FREE`).
pub const POISON_FREE: u8 = 0x6b;
/// The last byte of a poisoned object (`POISON_END`).
pub const POISON_END: u8 = 0xa5;
