//! Address spaces of user programs as they lie in guest memory (`linux/mm_types.h`, `linux/fs.h`, `linux/rmap.h`).
//!
//! An [`MmStruct`] is an address space; its [`VmArea`]s are the nodes of a red-black tree ordered by address, and are on
//! a list in the same order. What a page of user memory belongs to is an [`AnonVma`] or an [`AddressSpace`]: its metadata
//! names it by number ([`MappingId`]), and the table of numbers leads to it ([`MappingTable`]).
//!
//! Each record is an object of a slab cache of Linux's name (`mm_struct`, `vm_area_struct`, `anon_vma`, ...). Links are
//! the guest's virtual addresses, in the direct map; 0 ends a list and stands for nothing.

mod mapping;
mod mm_struct;
pub mod uapi;
mod vma;

pub use mapping::{AddressSpace, AnonVma, AnonVmaChain, MAPPING_SHIFT, MappedFile, MappingId, MappingTable, PageNode};
pub use mm_struct::{MmCounter, MmStruct, NR_MM_COUNTERS};
pub use vma::{VmArea, VmaFlags};
