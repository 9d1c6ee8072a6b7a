//! The kernel's page tables, as far as the vmalloc space goes (`mm/vmalloc.c`, `arch/x86/mm`). Those of address spaces are
//! [`crate::memory`]'s.
//!
//! Tables come from the page allocator as they are needed. Their pages have the type `PG_table` and count as
//! `NR_PAGETABLE`; `private` is the number of entries that are in use or promised to somebody who is about to fill
//! them. A table with none goes back when the addresses behind it are purged ([`crate::vmalloc`]), so that no processor
//! still remembers it.
//!
//! # The kernel's half
//! Every root has the kernel's upper half, a copy of the kernel's root made once (`pgd_alloc`). That is enough for
//! ever, since no top-level entry there changes afterwards: boot makes those of the direct map, of page metadata, the
//! state region and the kernel image for all the memory there is, and the vmalloc space gets all of its own, 64 pages,
//! before the first area or the first copy is made ([`Mm::vmalloc_range`] and all others by way of `vmalloc_init`; in
//! Linux `preallocate_vmalloc_pages`). Nothing needs to be synchronized later, and no processor meets a missing entry
//! (`vmalloc_fault`). They cost 256 KiB, as in Linux, one block of memory that is known to be zero: boot touches nothing
//! of it but the metadata.
//!
//! # Who may do what
//! The words of a range of the kernel's addresses are written by whoever has that range to itself. Tables are added, and
//! empty ones taken out, under one lock, with interrupts off. Nothing is allocated under it.
//!
//! [`Mm::vmalloc_range`]: crate::Mm::vmalloc_range

mod lookup;
mod map;
mod table;
mod unmap;

pub use lookup::Mapping;
pub(crate) use map::{Backing, Reservation};
pub(crate) use table::{TableChain, TableLock};
