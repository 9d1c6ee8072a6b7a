//! Programs' memory: page tables, faults, pages (`mm/memory.c`, `mm/rmap.c`, `arch/x86/mm`).
//!
//! [`Mm::handle_mm_fault`] brings in the page that an access wants. The first read of private memory maps the zero page,
//! the first write a page of zeros from the CPU's own node; pages known to be zero are not cleared again. After a fork
//! parent and child map the same pages, which neither may write to; who does gets a copy, unless nobody else is left.
//!
//! | file | what |
//! |---|---|
//! | `tables` | page tables come and go; their locks |
//! | `pte` | entries that keep pages |
//! | `fault` | faults: which area, which way |
//! | `anon` | the first touch of private memory |
//! | `file` | pages of files |
//! | `cow` | writes to pages that others may see |
//! | `copy` | fork |
//! | `zap` | pages are unmapped |
//! | `gather` | and freed once no processor remembers them |
//! | `protect` | `mprotect` |
//! | `remap` | `mremap` |
//! | `mlock` | pages of locked areas |
//! | `gup` | pages brought in for somebody else: reading and writing other programs' memory |
//! | `rmap` | who maps a page |
//! | `anon_vma` | families of anonymous pages |
//! | `pages` | which pages there are, for those who ask |
//! | `mapping_table` | numbers of what pages belong to |
//!
//! # Who may do what
//! Entries of a page table are changed under its lock, a word in the metadata of the table's page; what hardware sets in
//! them meanwhile is not lost. Tables are added under [`MmStruct::page_table_lock`]. Who adds an entry, or follows tables,
//! holds the area ([`crate::mmap`]) or the space's lock; tables go only where there is no area. All these locks are held
//! with interrupts on, and no interrupt handler takes one.
//!
//! # Counts
//! Each entry that keeps a page counts in its `_mapcount`, and holds a reference. Entries with
//! [`SPECIAL`](pagevisor_shared::pgtable::Entry::SPECIAL), as those of the zero page, do neither.
//!
//! [`Mm::handle_mm_fault`]: crate::Mm::handle_mm_fault
//! [`MmStruct::page_table_lock`]: pagevisor_shared::mm_types::MmStruct::page_table_lock

mod anon;
mod anon_vma;
mod copy;
mod cow;
mod fault;
mod file;
mod gather;
mod gup;
mod mapping_table;
mod mlock;
mod pages;
mod protect;
mod pte;
mod remap;
mod rmap;
mod tables;
mod walk;
mod zap;
mod zero;

use core::sync::atomic::AtomicU32;

pub use fault::{FaultFlags, FaultKind, FaultResult, SegvCode};
pub use pages::UserPage;
#[cfg(feature = "hosted")]
pub(crate) use pte::Pte;
#[cfg(feature = "hosted")]
pub(crate) use rmap::{is_anon, is_exclusive, mm_counter};

use anon_vma::AnonCaches;
use mapping_table::Numbers;

/// What this layer needs beside records and tables.
#[derive(Debug)]
pub(crate) struct Memory {
    numbers: Numbers,
    anon: AnonCaches,
    /// Held by who makes the zero page.
    zero_lock: AtomicU32,
}

impl Memory {
    pub(crate) const fn new() -> Self {
        Self { numbers: Numbers::new(), anon: AnonCaches::new(), zero_lock: AtomicU32::new(0) }
    }
}
