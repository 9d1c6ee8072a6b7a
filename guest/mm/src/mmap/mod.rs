//! Address spaces of programs (`mm/mmap.c` and its neighbours): what is mapped where, and with what meaning. What lies
//! below, page tables and pages, is somebody else's.
//!
//! A [`Space`] is an address space, a [`Vma`] an area of one. Both are handles of records that stay records for ever
//! ([`crate::raw`]), so who comes too late finds an old one and notices. The areas of a space are in a red-black tree that
//! knows the largest gap below each of its nodes, and on a list.
//!
//! | file | what |
//! |---|---|
//! | `space` | spaces come and go |
//! | `lock` | their locks |
//! | `account` | what is promised, and limits |
//! | `special` | areas that the kernel makes for a program |
//! | `stack` | stacks grow |
//! | `fork` | a space becomes two |
//! | `map`, `unmap` | `mmap`, `munmap` |
//! | `gap` | where there is room |
//! | `adjust` | areas split and merge |
//! | `brk`, `protect`, `remap`, `advise`, `pin` | `brk`, `mprotect`, `mremap`, `madvise`, `mlock` |
//! | `query` | `mincore`, `msync` |
//! | `file` | areas of files |
//! | `areas` | finding areas, and changing which there are |
//!
//! # Locks, by rank
//!
//! 1. [`MmStruct::mmap_lock`], which sleeps: who writes may change which areas there are, who reads finds them unchanged.
//! 2. [`VmArea::vm_lock`]: who is counted there works on the area (a fault) without the former. Who is going to change or
//!    remove the area waits for them, and nobody else gets in until the writer of the space is done
//!    ([`crate::rwsem`]).
//! 3. [`MmStruct::tree_lock`], for the moment in which the tree or the bounds of an area change; [`MmStruct::seq`] is odd
//!    meanwhile. Who looks for an area without the first lock looks again if it has changed.
//! 4. [`MmStruct::page_table_lock`] and the locks of page tables.
//!
//! [`MmStruct::mmap_lock`]: pagevisor_shared::mm_types::MmStruct::mmap_lock
//! [`MmStruct::tree_lock`]: pagevisor_shared::mm_types::MmStruct::tree_lock
//! [`MmStruct::seq`]: pagevisor_shared::mm_types::MmStruct::seq
//! [`MmStruct::page_table_lock`]: pagevisor_shared::mm_types::MmStruct::page_table_lock
//! [`VmArea::vm_lock`]: pagevisor_shared::mm_types::VmArea::vm_lock

mod account;
mod adjust;
mod advise;
mod areas;
mod brk;
mod file;
mod fork;
mod gap;
mod lock;
mod map;
mod pin;
mod protect;
mod query;
mod remap;
mod settings;
mod space;
mod special;
mod stack;
mod unmap;

use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::mm_types::{MmStruct, VmArea};
use pagevisor_shared::units::PAGE_SIZE;

pub use crate::raw::{STACK_GUARD_GAP, Space, Vma};
pub use account::Limits;
#[cfg(feature = "hosted")]
pub(crate) use adjust::could_be_one;
pub use areas::AreaInfo;
pub(crate) use areas::{vma_at, vma_at_or_above};
pub use file::{AreaFile, MappedFileRef};
pub use lock::{MmapRead, MmapWrite, VmaRead};

pub use map::MmapRequest;
pub use remap::MremapRequest;

use crate::raw::RecordCache;
use crate::tree::Tree;

/// The page of an address (`PAGE_MASK`).
const PAGE_MASK: u64 = !(PAGE_SIZE - 1);

/// The areas of a space.
pub(crate) type VmaTree = Tree<Vma, true>;

/// What address spaces need beside their records.
#[derive(Debug)]
pub(crate) struct Mmap {
    spaces: RecordCache<MmStruct>,
    areas: RecordCache<VmArea>,
    /// Guards the list of spaces.
    list_lock: AtomicU32,
    /// Spaces made so far.
    made: AtomicU64,
    /// Files without a name that there were.
    unnamed: AtomicU64,
}

impl Mmap {
    pub(crate) const fn new() -> Self {
        Self {
            spaces: RecordCache::new(),
            areas: RecordCache::new(),
            list_lock: AtomicU32::new(0),
            made: AtomicU64::new(0),
            unnamed: AtomicU64::new(0),
        }
    }
}
