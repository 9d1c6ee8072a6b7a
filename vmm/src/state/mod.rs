//! A stranger's view of a guest: its state region and its memory, neither of them trusted.
//!
//! ```text
//! StateView
//!   region()    the allocator's live counters, checked once when opened    (region.rs)
//!   memory()    bytes by guest-physical address                            (memory.rs)
//!   walk(va)    the guest's page tables, from the roots in the region      (walk.rs)
//!   sections()  which memory exists, and in which zone; page blocks        (sections.rs)
//!   memmap()    page metadata by frame, through those page tables          (memmap.rs)
//!   free lists and per-CPU lists, link by link                             (lists.rs, free.rs)
//!   slab caches, their slabs and objects                                   (slab/)
//!   areas of the kernel's address space                                    (vmalloc.rs)
//!   tasks, programs' address spaces, their areas and page tables           (task.rs, space.rs)
//! ```
//!
//! Whatever is read may be anything: the guest is hostile, or runs on while we look, or died in the middle of a
//! change. Lengths, offsets, indices and enums are checked, loops are bounded by what the machine has, and damage
//! is a value ([`Corrupt`], [`ListFault`]) that says where it was and what was found there.
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod digest;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod free;
mod lists;
mod memmap;
mod memory;
mod open;
mod owners;
mod percpu;
mod region;
mod sections;
pub mod slab;
mod space;
mod task;
#[cfg(test)]
mod tests;
mod vmalloc;
mod walk;

use std::fs::File;

use pagevisor_shared::layout::VMEMMAP_START;
use pagevisor_shared::region::{GuestState, RegionRef};

pub use error::{Corrupt, StateError};
pub use free::{FreeListFault, FreeWalk, Patience, ZoneWalk};
pub use lists::{ListFault, ListFaultKind, ListWalk, PcpWalk};
pub use memmap::{Memmap, PageMeta};
pub use memory::{Backing, GuestMemory, MemfdMemory};
pub use owners::Owned;
pub use percpu::{PercpuAddress, PercpuUse};
pub use region::RegionMapping;
pub use sections::{PageOwner, Sections};
pub use space::{AreaInfo, Areas, FileInfo, SpaceInfo, USER_END, UserPage};
pub use task::{TaskInfo, TaskShares, Tasks};
pub use vmalloc::{VmInfo, VmallocArea, VmallocAreas};
pub use walk::{PageSize, TableStep, Translation};

/// A guest's state region and memory.
#[derive(Debug)]
pub struct StateView {
    region: RegionMapping,
    memory: Box<dyn GuestMemory>,
    /// Whether it is a guest's memory, not a copy of it.
    live: bool,
}

impl StateView {
    /// Maps the state region in `region` and reads the rest of the guest through `memory`.
    ///
    /// # Errors
    /// When the region cannot be mapped, or is not laid out (yet) as this version of the contract has it.
    pub fn open(region: &File, memory: Box<dyn GuestMemory>) -> Result<Self, StateError> {
        Ok(Self { region: RegionMapping::open(region)?, memory, live: true })
    }

    /// The state in a dump: `region` is the content of the state region.
    ///
    /// # Errors
    /// When the region is not laid out as this version of the contract has it.
    pub fn of_dump(region: &[u8], memory: Box<dyn GuestMemory>) -> Result<Self, StateError> {
        Ok(Self { region: RegionMapping::of_bytes(region)?, memory, live: false })
    }

    /// A copy of the state region.
    pub fn region_bytes(&self) -> Vec<u8> {
        self.region.bytes()
    }

    /// The state region.
    pub fn region(&self) -> RegionRef<'_> {
        self.region.region()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &dyn GuestMemory {
        &*self.memory
    }

    /// Whether the guest may change what is being read.
    pub fn is_running(&self) -> bool {
        self.live && !matches!(self.region().state(), Some(GuestState::Off | GuestState::Panicked))
    }

    /// Guest-virtual address of the byte at `offset` in the state region.
    pub fn region_address(&self, offset: u64) -> u64 {
        self.roots().region_virt.wrapping_add(offset)
    }

    /// Guest-virtual address of the metadata of frame `pfn`.
    pub fn page_address(&self, pfn: u64) -> u64 {
        VMEMMAP_START.wrapping_add(pfn.wrapping_mul(pagevisor_shared::page::PAGE_STRUCT_SIZE))
    }

    /// The frame whose metadata is at `address`, if it is such an address.
    pub fn page_at(&self, address: u64) -> Option<u64> {
        let offset = address.checked_sub(VMEMMAP_START)?;
        let frames = 1 << (pagevisor_shared::units::MAX_PHYSMEM_BITS - pagevisor_shared::units::PAGE_SHIFT);
        let pfn = offset / pagevisor_shared::page::PAGE_STRUCT_SIZE;
        (offset % pagevisor_shared::page::PAGE_STRUCT_SIZE == 0 && pfn < frames).then_some(pfn)
    }

    /// The guest's roots as they are now.
    pub(crate) fn roots(&self) -> Roots {
        Roots::load(&self.region())
    }
}

/// [`pagevisor_shared::region::Roots`], read once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Roots {
    pub pgd: u64,
    pub page_offset: u64,
    pub sections: u64,
    pub nr_sections: u64,
    pub pageblocks: u64,
    pub max_pfn: u64,
    pub region_virt: u64,
    pub node_data: u64,
    pub page_owner: u64,
    pub stacks: u64,
    pub nr_stacks: u64,
}

impl Roots {
    fn load(region: &RegionRef<'_>) -> Self {
        use std::sync::atomic::Ordering::Relaxed;
        let roots = &region.header().roots;
        Self {
            pgd: roots.pgd.load(Relaxed),
            page_offset: roots.page_offset.load(Relaxed),
            sections: roots.sections.load(Relaxed),
            nr_sections: roots.nr_sections.load(Relaxed),
            pageblocks: roots.pageblocks.load(Relaxed),
            max_pfn: roots.max_pfn.load(Relaxed),
            region_virt: roots.region_virt.load(Relaxed),
            node_data: roots.node_data.load(Relaxed),
            page_owner: roots.page_owner.load(Relaxed),
            stacks: roots.stacks.load(Relaxed),
            nr_stacks: roots.nr_stacks.load(Relaxed),
        }
    }
}
