//! Mapping what exists already: somebody's pages (`vmap`), devices (`ioremap`).

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::pgtable::{CacheMode, PMD_SIZE, Protection};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, Pfn, PhysAddr, VirtAddr};
use pagevisor_shared::vmalloc::VmFlags;

use crate::Mm;
use crate::pgtable::{Backing, Reservation};
use crate::platform::{Level, Platform};
use crate::sync::Plain;

/// First physical address that no x86-64 processor has.
const PHYS_END: u64 = 1 << 52;

impl<P: Platform> Mm<P> {
    /// Maps `pages`, which stay the caller's, at consecutive addresses (`vmap`). To be undone by [`Self::vunmap`].
    pub fn vmap(&self, pages: &[Pfn], protection: Protection) -> Option<VirtAddr> {
        let bytes = (pages.len() as u64) << PAGE_SHIFT;
        if pages.is_empty() || pages.len() as u64 > self.region.header().pages_total.get() {
            return None;
        }
        let (area, vm) = self.new_vm_area(bytes, PAGE_SIZE, VmFlags::MAP, Gfp::KERNEL, self.platform.caller())?;
        let mut at = Reservation::new(area.start());
        let mapped = pages.iter().all(|page| {
            let backing = Backing { phys: page.addr(), bytes: PAGE_SIZE };
            self.map_small(&mut at, area.start() + bytes, backing, protection, Gfp::KERNEL)
        });
        self.end_mapping(&at);
        vm.nr_pages.set(((at.virt() - area.start()) >> PAGE_SHIFT) as u32);
        if !mapped {
            self.release_vm_area(area, vm);
            return None;
        }
        Some(VirtAddr::new(area.start()))
    }

    /// Maps `size` bytes of a device at `phys`, uncached (`ioremap`). To be undone by [`Self::iounmap`].
    pub fn ioremap(&self, phys: PhysAddr, size: u64) -> Option<VirtAddr> {
        self.ioremap_mode(phys, size, CacheMode::UncachedMinus)
    }

    /// As [`Self::ioremap`], uncached whatever range registers say (`ioremap_uc`).
    pub fn ioremap_uc(&self, phys: PhysAddr, size: u64) -> Option<VirtAddr> {
        self.ioremap_mode(phys, size, CacheMode::Uncached)
    }

    /// As [`Self::ioremap`], but writes may be gathered (`ioremap_wc`).
    pub fn ioremap_wc(&self, phys: PhysAddr, size: u64) -> Option<VirtAddr> {
        self.ioremap_mode(phys, size, CacheMode::WriteCombining)
    }

    /// As [`Self::ioremap`], cached (`ioremap_cache`).
    pub fn ioremap_cache(&self, phys: PhysAddr, size: u64) -> Option<VirtAddr> {
        self.ioremap_mode(phys, size, CacheMode::WriteBack)
    }

    /// Maps `size` bytes of a device at `phys`, cached as `mode` says (`__ioremap_caller`). RAM is refused.
    // A function of its own: inlined into its only caller, nothing would show where the memory stack was entered.
    #[inline(never)]
    pub fn ioremap_mode(&self, phys: PhysAddr, size: u64, mode: CacheMode) -> Option<VirtAddr> {
        let last = phys.raw().checked_add(size.checked_sub(1)?)?;
        if last >= PHYS_END {
            self.platform.log(Level::Warning, format_args!("ioremap: invalid physical address {:x}", phys.raw()));
            return None;
        }
        if self.is_ram(phys.raw(), last) {
            let what = format_args!("ioremap on RAM at {:#018x} - {last:#018x}", phys.raw());
            self.platform.log(Level::Warning, what);
            self.platform.dump_stack();
            return None;
        }
        let first = phys.raw() & !(PAGE_SIZE - 1);
        let bytes = (last - first + 1).next_multiple_of(PAGE_SIZE);
        // Aligned to its size, so that as much as possible goes by large pages (`IOREMAP_MAX_ORDER`).
        let align = bytes.checked_next_power_of_two()?.clamp(PAGE_SIZE, PMD_SIZE);
        let (area, vm) = self.new_vm_area(bytes, align, VmFlags::IOREMAP, Gfp::KERNEL, self.platform.caller())?;
        vm.phys_addr.set(first);
        let mut at = Reservation::new(area.start());
        let mapped = self.map_device(&mut at, first, bytes, Protection::KERNEL.cached(mode));
        self.end_mapping(&at);
        vm.nr_pages.set(((at.virt() - area.start()) >> PAGE_SHIFT) as u32);
        if !mapped {
            self.release_vm_area(area, vm);
            return None;
        }
        Some(VirtAddr::new(area.start() + (phys.raw() - first)))
    }

    /// Maps a device, by large pages where they fit (`ioremap_page_range`).
    fn map_device(&self, at: &mut Reservation, phys: u64, bytes: u64, protection: Protection) -> bool {
        let (start, end) = (at.virt(), at.virt() + bytes);
        while at.virt() < end {
            let (now, left) = (phys + (at.virt() - start), end - at.virt());
            let aligned = (at.virt() | now) & (PMD_SIZE - 1) == 0;
            if aligned && left >= PMD_SIZE && self.map_large(at, PhysAddr::new(now), protection, Gfp::KERNEL) {
                continue;
            }
            // Up to where large ones may fit.
            let stop = left.min(PMD_SIZE - (at.virt() & (PMD_SIZE - 1)));
            let backing = Backing { phys: PhysAddr::new(now), bytes: stop };
            if !self.map_small(at, end, backing, protection, Gfp::KERNEL) {
                return false;
            }
        }
        true
    }

    /// Whether there is memory from `start` up to and including `last`.
    fn is_ram(&self, start: u64, last: u64) -> bool {
        self.region.memory().iter().any(|range| {
            let base = range.base.get();
            base <= last && start < base.saturating_add(range.size.get())
        })
    }

    /// Undoes [`Self::ioremap`] and its relatives, whose address `addr` is (`iounmap`).
    pub fn iounmap(&self, addr: VirtAddr) {
        let first = VirtAddr::new(addr.raw() & !(PAGE_SIZE - 1));
        match self.unlink_vmap_area(first, |vm| VmFlags(vm.flags.get()).contains(VmFlags::IOREMAP)) {
            Some((area, vm)) => self.release_unlinked(area, vm),
            None => {
                self.platform.log(Level::Err, format_args!("iounmap: bad address {:016x}", addr.raw()));
                self.platform.dump_stack();
            }
        }
    }
}
