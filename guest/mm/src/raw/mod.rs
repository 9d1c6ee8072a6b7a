//! The rooms where `unsafe` may live: physical memory, page metadata, and the tables that lie in guest memory.
//!
//! Everything else in the crate is `deny(unsafe_code)`. Each file states the promise it rests on.
#![allow(unsafe_code, reason = "guest memory is reached through pointers")]

mod anon;
mod area;
mod content;
mod frames;
mod locked;
mod memmap;
mod owned;
mod page_tree;
mod percpu;
mod pgtable;
mod record;
mod slab;
mod table;
mod user_memory;
mod user_table;
mod vma;
mod window;
mod words;

pub(crate) use anon::{AnonFamily, Chain, first_chain, set_family_at, set_first_chain};
pub(crate) use area::{AreaBytes, AreaCache, AreaRef, AreaWord, VmRef};
pub(crate) use content::Owned;
pub use frames::{FrameTables, Home};
pub(crate) use locked::{RwSem, SpinLock};
pub use memmap::Memmap;
pub(crate) use owned::MmVec;
pub use owned::{KBox, KVec, NoMemory};
pub use page_tree::FileMapping;
pub(crate) use page_tree::{TreeNodeRef, set_mapping_at};
pub(crate) use percpu::{Chunk, Maps, boot_records, boot_unit, zero_units};
pub(crate) use pgtable::{LastTable, Table};
pub(crate) use record::RecordCache;
pub use record::{Handle, Record};
pub use slab::Cache;
pub(crate) use slab::{CacheSlot, Shape, SlabMemory, construct, constructor};
pub(crate) use table::BootTable;
pub(crate) use user_memory::UserMemory;
pub(crate) use user_table::{PageTable, Pgd, UserTable};
pub use vma::{STACK_GUARD_GAP, Space, Vma};
pub use window::DirectMap;
pub(crate) use words::{FrameList, PageWords, table_words};
