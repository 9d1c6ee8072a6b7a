//! Freeing.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::units::{Order, PAGE_SHIFT, PAGE_SIZE, VirtAddr};
use pagevisor_shared::vmalloc::VmFlags;

use crate::Mm;
use crate::page_alloc::allocated_order;
use crate::platform::{Level, Platform};
use crate::raw::{AreaRef, VmRef};
use crate::sync::Plain;

/// Of areas that nobody can free: one that waits to be freed has been freed, and chunks of per-CPU memory have their own way.
const NOBODYS: VmFlags = VmFlags::DEFERRED.with(VmFlags::PERCPU);

fn flags_of(vm: VmRef) -> VmFlags {
    VmFlags(vm.flags.get())
}

impl<P: Platform> Mm<P> {
    /// Frees what [`Self::vmalloc`] and its relatives gave, or unmaps what [`Self::vmap`] did (`vfree`). May be called from
    /// interrupts: it is then done later. Address 0 is nothing; a wrong one is reported.
    #[inline(never)]
    pub fn vfree(&self, addr: VirtAddr) {
        if addr.raw() == 0 {
            return;
        }
        if self.platform.in_interrupt() {
            return self.vfree_atomic(addr);
        }
        self.vfree_deferred();
        let freeable = VmFlags::ALLOC.with(VmFlags::MAP);
        self.unmap_area(addr, "vfree", |flags| flags.intersects(freeable) && !flags.intersects(NOBODYS));
    }

    /// As [`Self::vfree`], later in any case (`vfree_atomic`).
    pub fn vfree_atomic(&self, addr: VirtAddr) {
        if addr.raw() == 0 {
            return;
        }
        let busy = self.lock_busy();
        let found = busy.find(addr.raw()).filter(|area| area.start() == addr.raw()).and_then(AreaRef::vm);
        let ours = |vm: &VmRef| flags_of(*vm).contains(VmFlags::ALLOC) && !flags_of(*vm).intersects(NOBODYS);
        let vm = found.filter(ours);
        if let Some(vm) = vm {
            vm.flags.set(flags_of(vm).with(VmFlags::DEFERRED).0);
            vm.next.set(self.vmalloc.deferred.get());
            self.vmalloc.deferred.set(addr.raw());
        }
        drop(busy);
        if vm.is_none() {
            self.report_bad_vm(addr, "vfree");
        }
    }

    /// Frees what was put off (`delayed_vfree_work`). Whoever comes by may call it; from interrupts it does nothing.
    #[inline]
    pub fn vfree_deferred(&self) {
        if self.vmalloc.deferred.get() != 0 && !self.platform.in_interrupt() {
            self.vfree_all_deferred();
        }
    }

    #[cold]
    fn vfree_all_deferred(&self) {
        loop {
            let addr = VirtAddr::new(self.vmalloc.deferred.get());
            let next = |vm: VmRef| {
                // Under the lock: this one is still the first, so the list goes on behind it.
                let first = self.vmalloc.deferred.get() == addr.raw();
                if first {
                    self.vmalloc.deferred.set(vm.next.get());
                }
                first
            };
            match self.unlink_vmap_area(addr, next) {
                Some((area, vm)) => self.release_unlinked(area, vm),
                None if self.vmalloc.deferred.get() == 0 => return,
                None => {}
            }
        }
    }

    /// Unmaps what [`Self::vmap`] mapped (`vunmap`). The pages stay their owner's.
    pub fn vunmap(&self, addr: VirtAddr) {
        if addr.raw() != 0 {
            self.unmap_area(addr, "vunmap", |flags| flags.contains(VmFlags::MAP));
        }
    }

    /// Frees the area at `addr` if it is of the kind that `wanted` wants; reports it otherwise.
    #[inline]
    fn unmap_area(&self, addr: VirtAddr, call: &str, wanted: impl Fn(VmFlags) -> bool) {
        match self.unlink_vmap_area(addr, |vm| wanted(flags_of(vm))) {
            Some((area, vm)) => self.release_unlinked(area, vm),
            None => self.report_bad_vm(addr, call),
        }
    }

    /// Reports an address that is no area's.
    #[cold]
    pub(super) fn report_bad_vm(&self, addr: VirtAddr, call: &str) {
        let addr = addr.raw();
        match addr % PAGE_SIZE {
            0 => {
                self.platform.log(Level::Warning, format_args!("Trying to {call}() nonexistent vm area ({addr:016x})"))
            }
            _ => self.platform.log(Level::Warning, format_args!("Trying to {call}() bad address ({addr:016x})")),
        }
        self.platform.dump_stack();
    }

    /// Frees an area whose making has failed, with what it has.
    #[cold]
    pub(super) fn release_vm_area(&self, area: AreaRef, vm: VmRef) {
        if let Some((area, _)) = self.unlink_vmap_area(VirtAddr::new(area.start()), |found| found.addr() == vm.addr()) {
            self.release_unlinked(area, vm);
        }
    }

    /// Unmaps an area that is in no tree any more, gives its pages back if they are its own, and leaves the addresses to
    /// the next purge (`__vunmap`).
    #[inline]
    pub(super) fn release_unlinked(&self, area: AreaRef, vm: VmRef) {
        let pages = u64::from(vm.nr_pages.get());
        let (start, end) = (area.start(), area.start() + (pages << PAGE_SHIFT));
        if flags_of(vm).contains(VmFlags::ALLOC) {
            self.region.header().nr_vmalloc_pages.fetch_sub(pages, Relaxed);
            // One page is the most frequent of all sizes.
            if pages == 1
                && let Some(page) = self.unmap_single(start)
            {
                self.free_page(page);
                return self.free_vmap_area_lazy(area);
            }
            let memmap = self.memmap();
            self.unmap_range(
                start,
                end,
                |first| 1 << allocated_order(memmap.page(first.raw() as u32).flags.get()),
                |first, pages| self.free_pages(first, Order::new(pages.ilog2()).unwrap_or_default()),
            );
        } else {
            self.unmap_range(start, end, |_| 1, |_, _| {});
        }
        self.free_vmap_area_lazy(area);
    }
}
