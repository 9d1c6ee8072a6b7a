//! The rooms where `unsafe` may live: physical memory, page metadata, and the tables that lie in guest memory.
//!
//! Everything else in the crate is `deny(unsafe_code)`. Each file states the promise it rests on.
#![allow(unsafe_code, reason = "guest memory is reached through pointers")]

mod area;
mod content;
mod frames;
mod locked;
mod memmap;
mod owned;
mod percpu;
mod pgtable;
mod slab;
mod table;
mod window;
mod words;

pub(crate) use area::{AreaBytes, AreaCache, AreaRef, AreaWord, VmRef};
pub(crate) use content::Owned;
pub use frames::{FrameTables, Home};
pub(crate) use locked::{RwSem, SpinLock};
pub use memmap::Memmap;
pub(crate) use owned::MmVec;
pub use owned::{KBox, KVec, NoMemory};
pub(crate) use percpu::{Chunk, Maps, boot_records, boot_unit, zero_units};
pub(crate) use pgtable::{LastTable, Root, Space, Table};
pub use slab::Cache;
pub(crate) use slab::{CacheSlot, Shape, SlabMemory, construct, constructor};
pub(crate) use table::BootTable;
pub use window::DirectMap;
pub(crate) use words::PageWords;
