//! Where the records of areas come from: pages cut into pieces of 64 bytes, which go round.
#![allow(unsafe_code, reason = "cuts pages of its own into records")]

use core::mem::size_of;
use core::ptr::with_exposed_provenance;
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, PAGE_SIZE, VirtAddr};
use pagevisor_shared::vmalloc::{VmStruct, VmapArea};

use crate::Mm;
use crate::platform::Platform;
use crate::raw::{AreaRef, VmRef};
use crate::sync::{self, Plain};

/// Bytes of a record of either kind.
const RECORD: u64 = 64;
const _: () = assert!(size_of::<VmapArea>() as u64 == RECORD && size_of::<VmStruct>() as u64 == RECORD);

/// Records that nobody uses, linked by their first words.
#[derive(Debug)]
pub(super) struct Records {
    lock: AtomicU32,
    first: AtomicU64,
}

impl Records {
    pub(super) const fn new() -> Self {
        Self { lock: AtomicU32::new(0), first: AtomicU64::new(0) }
    }
}

/// The first word of the record at `addr`.
///
/// # Safety
/// There is a record, and nobody uses it.
unsafe fn link(addr: u64) -> &'static AtomicU64 {
    let word: *const AtomicU64 = with_exposed_provenance(addr as usize);
    // SAFETY: the caller's promise: records are RAM in the direct map, for ever.
    unsafe { &*word }
}

impl<P: Platform> Mm<P> {
    fn new_record(&self, gfp: Gfp) -> Option<VirtAddr> {
        let pool = &self.vmalloc.records;
        loop {
            let irq = self.platform.irq_save();
            sync::lock(&pool.lock, || self.platform.relax());
            let first = pool.first.get();
            if first != 0 {
                // SAFETY: what is on the list is a record without a user.
                pool.first.set(unsafe { link(first) }.get());
            }
            sync::unlock(&pool.lock);
            self.platform.irq_restore(irq);
            if first != 0 {
                return Some(VirtAddr::new(first));
            }
            let page = self.alloc_pages(gfp, Order::ZERO)?;
            let base = self.direct_map().at(page.addr()).expose_provenance() as u64;
            (0..PAGE_SIZE / RECORD).for_each(|index| self.free_record(VirtAddr::new(base + index * RECORD)));
        }
    }

    fn free_record(&self, addr: VirtAddr) {
        let pool = &self.vmalloc.records;
        let irq = self.platform.irq_save();
        sync::lock(&pool.lock, || self.platform.relax());
        // SAFETY: whoever gives a record back does not use it any more.
        unsafe { link(addr.raw()) }.set(pool.first.get());
        pool.first.set(addr.raw());
        sync::unlock(&pool.lock);
        self.platform.irq_restore(irq);
    }

    /// A record of an area.
    #[inline]
    pub(super) fn new_area(&self, gfp: Gfp) -> Option<AreaRef> {
        let addr = self.new_record(gfp)?;
        // SAFETY: a record that nobody else uses until `free_area`.
        Some(unsafe { AreaRef::adopt(addr) })
    }

    /// Gives back a record that nothing links to.
    #[inline]
    pub(super) fn free_area(&self, area: AreaRef) {
        self.free_record(area.addr());
    }

    /// A record of what an area is used for.
    #[inline]
    pub(super) fn new_vm(&self, gfp: Gfp) -> Option<VmRef> {
        let addr = self.new_record(gfp)?;
        // SAFETY: a record that nobody else uses until `free_vm`.
        Some(unsafe { VmRef::adopt(addr) })
    }

    /// Gives back a record that nothing links to.
    #[inline]
    pub(super) fn free_vm(&self, vm: VmRef) {
        self.free_record(vm.addr());
    }
}
