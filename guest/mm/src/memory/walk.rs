//! What an address of a program is mapped to, found as the processor finds it.

use core::sync::atomic::Ordering::Acquire;

use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::{PAGE_SIZE, PhysAddr, VirtAddr};

use super::pte::Pte;
use crate::Mm;
use crate::mmap::{MmapRead, Space, Vma, VmaRead, vma_at};
use crate::pgtable::Mapping;
use crate::platform::Platform;

/// An area that stays as it is, one way or the other.
pub(crate) enum AreaGuard<'a, P: Platform> {
    /// The area is locked.
    Area(VmaRead<'a, P>),
    /// The space is.
    Space {
        /// The lock.
        _held: MmapRead<'a, P>,
        /// The area.
        vma: Vma,
    },
}

impl<P: Platform> AreaGuard<'_, P> {
    /// The area.
    pub(crate) fn vma(&self) -> Vma {
        match self {
            Self::Area(held) => held.vma(),
            Self::Space { vma, .. } => *vma,
        }
    }
}

impl<P: Platform> Mm<P> {
    /// The area of `space` that holds `addr`, which stays as it is meanwhile.
    pub(crate) fn area_guard(&self, space: Space, addr: VirtAddr) -> Option<AreaGuard<'_, P>> {
        if let Some(held) = self.lock_vma(space, addr) {
            return Some(AreaGuard::Area(held));
        }
        let _held = self.mmap_read_lock(space);
        let vma = vma_at(space, addr.raw())?;
        Some(AreaGuard::Space { _held, vma })
    }

    /// Walks the page tables of `space`. `None` where nothing is mapped, and where no area is. What is mapped without access
    /// is found, too; the entry tells.
    pub fn walk_user(&self, space: Space, addr: VirtAddr) -> Option<Mapping> {
        let guard = self.area_guard(space, addr)?;
        let entry = self.entry_at(space, guard.vma(), addr)?;
        let offset = addr.raw() & (PAGE_SIZE - 1);
        Some(Mapping { phys: PhysAddr::new(entry.address(0).raw() + offset), entry, rest: PAGE_SIZE - offset })
    }

    /// The entry that keeps the page at `addr` of `vma`, which stays as it is meanwhile (`follow_page`).
    pub(crate) fn entry_at(&self, space: Space, vma: Vma, addr: VirtAddr) -> Option<Entry> {
        if addr.raw() < vma.start() || vma.end() <= addr.raw() {
            return None;
        }
        let table = self.page_table(space.record(), addr.raw())?;
        let pte = Pte(table.word(addr.raw()).load(Acquire));
        pte.keeps_page().then_some(Entry(pte.0))
    }
}
