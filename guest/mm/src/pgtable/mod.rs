//! The kernel's page tables, as far as the vmalloc space goes (`mm/vmalloc.c`, `arch/x86/mm`).
//!
//! Tables come from the page allocator as they are needed. Their pages have the type `PG_table` and count as
//! `NR_PAGETABLE`; `private` is the number of entries that are in use or promised to somebody who is about to fill
//! them. A table with none goes back when the addresses behind it are purged ([`crate::vmalloc`]), so that no processor
//! still remembers it. Top-level entries stay once there is one: all address spaces share them.
//!
//! # Who may do what
//! The words of a range of addresses are written by whoever has that range to itself. Tables are added, and empty ones
//! taken out, under one lock, with interrupts off. Nothing is allocated under it.

mod lookup;
mod map;
mod table;
mod unmap;

pub use lookup::Mapping;
pub(crate) use map::{Backing, Reservation};
pub(crate) use table::{TableChain, TableLock};
