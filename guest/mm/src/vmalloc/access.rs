//! Reading and writing vmalloc memory by way of the page tables and the direct map, as `/dev/kmem` did (`vread`,
//! `vwrite`): for who runs where the addresses mean nothing to the processor.
#![allow(unsafe_code, reason = "copies what is in pages of areas")]

use pagevisor_shared::units::{PAGE_SHIFT, PhysAddr, VirtAddr};
use pagevisor_shared::vmalloc::VmFlags;

use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

impl<P: Platform> Mm<P> {
    /// Reads the bytes at `addr`; false, with some of them read perhaps, if they are not all in an area of memory.
    pub fn vread(&self, addr: VirtAddr, to: &mut [u8]) -> bool {
        let mut rest = to;
        self.each_part(addr, rest.len(), |phys, len| {
            let Some((now, later)) = core::mem::take(&mut rest).split_at_mut_checked(len) else { return };
            // SAFETY: memory of an area that is not freed meanwhile, inside one page. Who else uses it is the owner's
            // business; bytes are valid with any content.
            unsafe { self.direct_map().copy_to(phys, now) };
            rest = later;
        })
    }

    /// Writes the bytes at `addr`; false, with some of them written perhaps, if they are not all in an area of memory that
    /// [`Self::vmalloc`] or a relative gave.
    pub fn vwrite(&self, addr: VirtAddr, from: &[u8]) -> bool {
        let mut rest = from;
        self.each_part(addr, rest.len(), |phys, len| {
            let Some((now, later)) = rest.split_at_checked(len) else { return };
            // SAFETY: as in `vread`. Pages of these areas hold nothing but what their owner writes.
            unsafe { self.direct_map().copy_in(phys, now) };
            rest = later;
        })
    }

    /// Calls `each` with address and length of the parts of memory behind `len` bytes at `addr`, each inside a page.
    fn each_part(&self, addr: VirtAddr, len: usize, mut each: impl FnMut(PhysAddr, usize)) -> bool {
        let (mut virt, mut left) = (addr.raw(), len as u64);
        while left > 0 {
            // Under the lock, so that it is not freed meanwhile; page by page, as interrupts are off.
            let busy = self.lock_busy();
            let vm = busy.find(virt).and_then(|area| area.vm());
            let inside = vm.is_some_and(|vm| {
                let flags = VmFlags(vm.flags.get());
                flags.contains(VmFlags::ALLOC)
                    && !flags.contains(VmFlags::UNINITIALIZED)
                    && virt - vm.addr.get() < u64::from(vm.nr_pages.get()) << PAGE_SHIFT
            });
            let mapping = if inside { self.walk_kernel(VirtAddr::new(virt)) } else { None };
            let Some(mapping) = mapping else { return false };
            let now = left.min(mapping.rest);
            each(mapping.phys, now as usize);
            virt += now;
            left -= now;
        }
        true
    }
}
