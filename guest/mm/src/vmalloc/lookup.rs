//! Finding out about areas.

use pagevisor_shared::layout::{VMALLOC_END, VMALLOC_START};
use pagevisor_shared::units::{PhysAddr, VirtAddr};
use pagevisor_shared::vmalloc::VmFlags;

use crate::Mm;
use crate::platform::Platform;
use crate::raw::AreaRef;
use crate::sync::Plain;

/// An area in use, as it was when somebody looked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmArea {
    /// First byte.
    pub addr: VirtAddr,
    /// Bytes, the guard page included.
    pub size: u64,
    /// What it is.
    pub flags: VmFlags,
    /// Pages that are mapped.
    pub nr_pages: u32,
    /// Physical address, for devices.
    pub phys: PhysAddr,
    /// Who made it.
    pub caller: u64,
}

impl<P: Platform> Mm<P> {
    /// Whether `addr` is in the vmalloc space (`is_vmalloc_addr`).
    #[inline]
    pub const fn is_vmalloc_addr(addr: VirtAddr) -> bool {
        VMALLOC_START <= addr.raw() && addr.raw() <= VMALLOC_END
    }

    /// How many areas are in use, and how many free ones there are, those to be purged not among them.
    pub fn vmalloc_areas(&self) -> (usize, usize) {
        let count = |first: Option<AreaRef>| core::iter::successors(first, |area| area.next()).count();
        let busy = count(self.lock_busy().first());
        (busy, count(self.lock_free().first()))
    }

    /// The area that holds `addr` (`find_vm_area`).
    pub fn find_vm_area(&self, addr: VirtAddr) -> Option<VmArea> {
        let busy = self.lock_busy();
        let vm = busy.find(addr.raw())?.vm()?;
        Some(VmArea {
            addr: VirtAddr::new(vm.addr.get()),
            size: vm.size.get(),
            flags: VmFlags(vm.flags.get()),
            nr_pages: vm.nr_pages.get(),
            phys: PhysAddr::new(vm.phys_addr.get()),
            caller: vm.caller.get(),
        })
    }
}
