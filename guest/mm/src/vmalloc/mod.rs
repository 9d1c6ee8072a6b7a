//! Virtually contiguous memory (`mm/vmalloc.c`): areas of the kernel's address space, backed by pages that need not be
//! neighbours, by somebody's pages, or by devices.
//!
//! An area is carved out of the lowest free one that is large enough, which the tree of free areas finds in O(log n)
//! (`tree`); behind it stays a page without memory. [`Mm::vmalloc`] fills it with the largest blocks that can be had
//! at once and that fit, each remembered by nothing but the page tables: freeing walks them and gives each block back as
//! it was allocated (its order is in its page metadata). Whole 2 MiB go by large pages.
//!
//! Freeing unmaps at once and gives the memory back, but the addresses only when enough of them have gathered
//! ([`Mm::lazy_max_pages`]): then all processors are told once to forget them ([`Mm::purge_vmap_areas`]), the page tables
//! that have become empty go, and the areas join the free tree. From interrupts freeing is put off till somebody comes by
//! who may wait for other processors.
//!
//! # Locks
//! Each tree has its own, as in Linux 6.1, and an area that goes from one tree to another is nobody's but its carrier's
//! in between. So searching for a free area holds up neither frees nor lookups. In the order they are taken in:
//!
//! | lock | guards | taken |
//! |---|---|---|
//! | `purge_lock` (`vmap_purge_lock`) | that one CPU purges at a time | with interrupts on; others are waited for, and memory is freed, under it |
//! | `free.lock` (`free_vmap_area_lock`), `busy.lock` (`vmap_area_lock`), `purge.lock` (`purge_vmap_area_lock`) | tree and list of free areas, of those in use (and the deferred ones), of those to be purged | with interrupts off; none of the three under another |
//! | that of the page tables ([`crate::pgtable`]) | which tables there are | with interrupts off; under `busy.lock` only to look what is mapped |
//!
//! That of per-CPU memory ([`crate::percpu`]) is taken in front of `busy.lock`, to find the chunk of an address.
//!
//! Nothing is allocated or freed under any but the first. Who changes a tree keeps its sequence counter odd meanwhile,
//! so that the host can tell that it read one state of it.
//!
//! [`Mm::vmalloc`]: crate::Mm::vmalloc
//! [`Mm::lazy_max_pages`]: crate::Mm::lazy_max_pages
//! [`Mm::purge_vmap_areas`]: crate::Mm::purge_vmap_areas

mod access;
mod alloc;
mod area;
mod free;
mod io;
mod kvmalloc;
mod lazy;
mod lookup;
mod percpu;

use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::layout::{VMALLOC_END, VMALLOC_START};

pub use alloc::VmallocRequest;
pub use lookup::VmArea;
pub(crate) use percpu::Group;

use crate::raw::{AreaCache, AreaRef};
use crate::tree::Tree;

/// A tree of areas.
pub(crate) type AreaTree<const AUGMENTED: bool> = Tree<AreaRef, AUGMENTED>;

/// Addresses behind the vmalloc space.
const SPACE_END: u64 = VMALLOC_END + 1;
/// First address of it.
const SPACE_START: u64 = VMALLOC_START;

/// What is not in the state region.
#[derive(Debug)]
pub(crate) struct Vmalloc {
    /// The records of areas.
    records: AreaCache,
    /// 1 once there are records and a free area.
    ready: AtomicU32,
    /// Held by who sees to that.
    init_lock: AtomicU32,
    /// Address of the area that was last put off; 0 for none. The next one is in its record.
    deferred: AtomicU64,
}

impl Vmalloc {
    pub(crate) const fn new() -> Self {
        Self {
            records: AreaCache::new(),
            ready: AtomicU32::new(0),
            init_lock: AtomicU32::new(0),
            deferred: AtomicU64::new(0),
        }
    }
}
