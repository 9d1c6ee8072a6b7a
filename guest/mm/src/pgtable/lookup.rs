//! What an address is mapped to, found as the processor finds it.

use pagevisor_shared::pgtable::{Entry, level_size};
use pagevisor_shared::units::{Pfn, PhysAddr, VirtAddr};

use crate::Mm;
use crate::platform::Platform;
use crate::raw::Table;

/// A mapping of an address in the vmalloc space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// What is behind the address, to the byte.
    pub phys: PhysAddr,
    /// The entry that maps it.
    pub entry: Entry,
    /// Bytes from the address to the end of the page, small or large.
    pub rest: u64,
}

impl<P: Platform> Mm<P> {
    /// Walks the kernel's page tables; `None` where nothing is mapped and outside the vmalloc space.
    pub fn walk_kernel(&self, addr: VirtAddr) -> Option<Mapping> {
        let (virt, map) = (addr.raw(), self.direct_map());
        // No table on the way is taken out meanwhile.
        let _held = self.lock_tables();
        let mut table = Table::root(self.platform);
        while let Some(next) = table.next(map, virt) {
            table = next;
        }
        let (entry, level) = (table.get(virt), table.level());
        // A leaf of the levels above could only be somebody else's.
        if level > 1 || !entry.is_leaf(level) {
            return None;
        }
        let offset = virt & (level_size(level) - 1);
        let phys = PhysAddr::new(entry.address(level).raw() + offset);
        Some(Mapping { phys, entry, rest: level_size(level) - offset })
    }

    /// The frame behind an address of the vmalloc space (`vmalloc_to_page`, `vmalloc_to_pfn`).
    pub fn vmalloc_to_page(&self, addr: VirtAddr) -> Option<Pfn> {
        Some(Pfn::containing(self.walk_kernel(addr)?.phys))
    }
}
