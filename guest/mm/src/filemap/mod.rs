//! Files' pages: the page cache, and memory that is a file's (`mm/filemap.c`, `mm/shmem.c`, `mm/truncate.c`).
//!
//! A [`FileMapping`] is what a file has in memory: a tree of pages by their place in the file. A file here has no other
//! place than memory, so pages that are missing are zero, and those that are there stay until the file is cut or goes.
//!
//! | file | what |
//! |---|---|
//! | `tree` | pages by their index |
//! | `cache` | pages come and go, and their locks |
//! | `mapping` | files' records come and go, and those of who has them open |
//! | `io` | reading and writing |
//! | `allocate` | pages before anybody writes |
//! | `truncate` | files are cut, and who maps them loses the pages |
//! | `limit` | how much file systems may hold |
//! | `seal` | what a file must not suffer any more |
//!
//! # Counts
//! A page in the tree holds a reference for it, and one for each entry of a page table that keeps it. Its
//! [`mapping`](pagevisor_shared::page::Page::mapping) is 0 once it is out of the tree.
//!
//! # Locks, by rank
//! 1. [`AddressSpace::i_rwsem`], which sleeps: who writes to the file or cuts it.
//! 2. A page's (`PG_locked`), which sleeps: as long as it is held the page stays in its file, or out of it. Entries that
//!    keep a file's page are made under it, so that a page which was cut off is not mapped again.
//! 3. [`AddressSpace::i_mmap_lock`]: which areas map the file, and where they lie.
//! 4. Locks of page tables.
//! 5. [`AddressSpace::lock`], with interrupts off: the tree.
//!
//! [`AddressSpace::i_rwsem`]: pagevisor_shared::mm_types::AddressSpace::i_rwsem
//! [`AddressSpace::i_mmap_lock`]: pagevisor_shared::mm_types::AddressSpace::i_mmap_lock
//! [`AddressSpace::lock`]: pagevisor_shared::mm_types::AddressSpace::lock

mod allocate;
mod cache;
mod io;
mod limit;
mod mapping;
mod seal;
mod tree;
mod truncate;

use pagevisor_shared::mm_types::{AddressSpace, MappedFile, PageNode};

pub use crate::raw::FileMapping;
pub(crate) use cache::{Wanted, mark_dirty, pages_of};
pub use mapping::MappingKind;

use crate::raw::RecordCache;

/// Pages that a file can have: a page's index has 32 bits.
pub const MAX_PAGES: u64 = 1 << 32;

/// Where the records come from.
#[derive(Debug)]
pub(crate) struct FileCaches {
    mappings: RecordCache<AddressSpace>,
    files: RecordCache<MappedFile>,
    nodes: RecordCache<PageNode>,
    limits: limit::Limits,
}

impl FileCaches {
    pub(crate) const fn new() -> Self {
        Self {
            mappings: RecordCache::new(),
            files: RecordCache::new(),
            nodes: RecordCache::new(),
            limits: limit::Limits::new(),
        }
    }
}
