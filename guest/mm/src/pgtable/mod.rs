//! Page tables: the kernel's, as far as the vmalloc space goes (`mm/vmalloc.c`, `arch/x86/mm`), and those of address
//! spaces, each below a root of its own (`mm/memory.c`, `mm/pagewalk.c`).
//!
//! Tables come from the page allocator as they are needed. Their pages have the type `PG_table` and count as
//! `NR_PAGETABLE`; `private` is the number of entries that are in use or promised to somebody who is about to fill
//! them. A table with none goes back when nobody remembers the addresses behind it any more: the kernel's when they are
//! purged ([`crate::vmalloc`]), others by [`Mm::free_tables`].
//!
//! # The kernel's half
//! Every root has the kernel's upper half, a copy of the kernel's root made once ([`Mm::pgd_alloc`]). That is enough for
//! ever, since no top-level entry there changes afterwards: boot makes those of the direct map, of page metadata, the
//! state region and the kernel image for all the memory there is, and the vmalloc space gets all of its own, 64 pages,
//! before the first area or the first copy is made ([`Mm::vmalloc_range`] and all others by way of `vmalloc_init`; in
//! Linux `preallocate_vmalloc_pages`). Nothing needs to be synchronized later, and no processor meets a missing entry
//! (`vmalloc_fault`). They cost 256 KiB, as in Linux, one block of memory that is known to be zero: boot touches nothing
//! of it but the metadata.
//!
//! # Address spaces
//! | call | Linux |
//! |---|---|
//! | [`Mm::pgd_alloc`], [`Mm::pgd_free`] | `pgd_alloc`, `pgd_free`: a root ([`PageTables`]) and all below it |
//! | [`Mm::set_entry`] | `pte_alloc` and `set_pte_at`, `pmd_alloc` and `set_pmd_at`: maps a page, small or large, or notes where it went (an entry that is not present) |
//! | [`Mm::lookup_entry`] | `follow_pte`: what an address is mapped to |
//! | [`Mm::walk_page_range`] | `walk_page_range`: every page of a range, each a [`Leaf`] |
//! | [`Leaf::take`], [`Leaf::update`], [`Leaf::protect`] | `ptep_get_and_clear` (`zap_pte_range`), `ptep_modify_prot_*` (`change_pte_range`) |
//! | [`Leaf::test_and_clear_young`], [`Leaf::clean`] | `ptep_test_and_clear_young`, `page_mkclean` |
//! | [`Mm::split_large`] | `split_huge_pmd` |
//! | [`Mm::free_pgtables`], [`Mm::free_tables`] | `free_pgtables`: takes out tables that have become empty; frees them once all processors have forgotten them |
//!
//! Whose the pages are that are mapped, and what processors remember, is the caller's business: nothing here counts
//! mappings or flushes. Entries are changed by locked operations, so that nothing is lost of what processors note in
//! them at the same time. In tables of address spaces every level lets ring 3 in; what the last entry says decides.
//!
//! # Who may do what
//! The words of a range of the kernel's addresses are written by whoever has that range to itself. Tables are added, and
//! empty ones taken out, under one lock, with interrupts off. Those of an address space, and which entries are clear,
//! change under a lock of its own (`page_table_lock`, without split ones), which is not taken from interrupts; the two
//! are not taken together. Nothing is allocated under either.
//!
//! [`Mm::pgd_alloc`]: crate::Mm::pgd_alloc
//! [`Mm::pgd_free`]: crate::Mm::pgd_free
//! [`Mm::set_entry`]: crate::Mm::set_entry
//! [`Mm::lookup_entry`]: crate::Mm::lookup_entry
//! [`Mm::walk_page_range`]: crate::Mm::walk_page_range
//! [`Mm::split_large`]: crate::Mm::split_large
//! [`Mm::free_pgtables`]: crate::Mm::free_pgtables
//! [`Mm::free_tables`]: crate::Mm::free_tables
//! [`Mm::vmalloc_range`]: crate::Mm::vmalloc_range

mod lookup;
mod map;
mod space;
mod table;
mod unmap;
mod walk;

pub use lookup::Mapping;
pub(crate) use map::{Backing, Reservation};
pub use space::{MapError, PageTables};
pub use table::TableChain;
pub(crate) use table::TableLock;
pub use walk::Leaf;
