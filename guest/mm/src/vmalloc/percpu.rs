//! Addresses for chunks of per-CPU memory.

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};
use pagevisor_shared::vmalloc::VmFlags;

use crate::Mm;
use crate::platform::Platform;

impl<P: Platform> Mm<P> {
    /// Takes `bytes` of addresses for all units of a chunk (`pcpu_get_vm_areas`). Linux takes an area for each group of
    /// units, so that others may use what is between them; here it is one area from the first to the last.
    pub(crate) fn get_percpu_area(&self, bytes: u64, gfp: Gfp) -> Option<VirtAddr> {
        let (area, _) = self.new_vm_area(bytes, PAGE_SIZE, VmFlags::ALLOC, gfp, self.platform.caller())?;
        Some(VirtAddr::new(area.start()))
    }

    /// Gives back the addresses from `addr` on, behind which nothing is mapped any more (`pcpu_free_vm_areas`).
    pub(crate) fn free_percpu_area(&self, addr: VirtAddr) {
        if let Some((area, vm)) = self.unlink_vmap_area(addr, |_| true) {
            self.release_unlinked(area, vm);
        }
    }
}
