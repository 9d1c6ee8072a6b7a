//! The direct map: the content of physical memory.

use core::ptr::NonNull;
use core::slice;
use core::sync::atomic::AtomicU64;

use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn, PhysAddr};

use crate::platform::Platform;

/// The mapping of all RAM.
#[derive(Clone, Copy, Debug)]
pub struct DirectMap {
    base: NonNull<u8>,
}

// SAFETY: only an address; what is done with it is up to the `unsafe` code that uses it.
unsafe impl Send for DirectMap {}
// SAFETY: it never changes.
unsafe impl Sync for DirectMap {}

impl DirectMap {
    /// The direct map of `platform`.
    #[inline(always)]
    pub fn new<P: Platform>(platform: &P) -> Self {
        Self { base: platform.direct_map() }
    }

    /// Virtual address of physical address 0.
    #[inline(always)]
    pub(super) fn base(self) -> NonNull<u8> {
        self.base
    }

    /// The virtual address of `addr` (`__va`). Who uses it answers for owning the memory there.
    #[inline(always)]
    pub fn at(self, addr: PhysAddr) -> *mut u8 {
        self.base.as_ptr().wrapping_add(addr.raw() as usize)
    }

    /// Clears the block of `order` at `pfn` (`clear_page`).
    ///
    /// # Safety
    /// The caller owns the block: it is RAM that was just taken off the free lists, and nobody else uses it.
    pub(crate) unsafe fn clear(self, pfn: Pfn, order: Order) {
        // SAFETY: the caller owns the block, which lies in RAM, which the direct map makes writable.
        unsafe { self.at(pfn.addr()).write_bytes(0, (PAGE_SIZE as usize) << order.raw()) };
    }

    /// Fills the block of `order` at `pfn` with `byte`.
    ///
    /// # Safety
    /// As for [`Self::clear`].
    pub(crate) unsafe fn fill(self, pfn: Pfn, order: Order, byte: u8) {
        // SAFETY: the caller owns the block, which lies in RAM, which the direct map makes writable.
        unsafe { self.at(pfn.addr()).write_bytes(byte, (PAGE_SIZE as usize) << order.raw()) };
    }

    /// The content of the page at `pfn`.
    ///
    /// # Safety
    /// The page is RAM. Its content may be anything and may change.
    pub(crate) unsafe fn words(self, pfn: Pfn) -> &'static [AtomicU64] {
        // SAFETY: RAM lies inside the direct map for the life of the program (promise of `Platform`), pages are
        // aligned, and atomics are valid with any content.
        unsafe { slice::from_raw_parts(self.at(pfn.addr()).cast(), PAGE_SIZE as usize / 8) }
    }

    /// Copies `len` bytes from `addr` on into words, as many as they have room for.
    ///
    /// # Safety
    /// All of them lie in RAM that the caller has to itself, and nobody else uses the words.
    pub(crate) unsafe fn copy_out(self, addr: PhysAddr, to: &[AtomicU64], len: usize) {
        let to_bytes = to.as_ptr().cast::<u8>().cast_mut();
        // SAFETY: RAM lies inside the direct map (promise of `Platform`); atomics may be written through a shared
        // reference, and nobody else uses either meanwhile.
        unsafe { to_bytes.copy_from_nonoverlapping(self.at(addr), len.min(8 * to.len())) };
    }

    /// Copies memory from `addr` on to `to`.
    ///
    /// # Safety
    /// It is RAM. Its content may be anything.
    pub(crate) unsafe fn copy_to(self, addr: PhysAddr, to: &mut [u8]) {
        // SAFETY: RAM lies inside the direct map (promise of `Platform`); nobody has a reference to `to` but the caller.
        unsafe { to.as_mut_ptr().copy_from_nonoverlapping(self.at(addr), to.len()) };
    }

    /// Copies `from` into memory, from `addr` on.
    ///
    /// # Safety
    /// As for [`Self::copy_out`].
    pub(crate) unsafe fn copy_in(self, addr: PhysAddr, from: &[u8]) {
        // SAFETY: RAM lies inside the direct map (promise of `Platform`), and nobody else uses it meanwhile.
        unsafe { self.at(addr).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
    }
}
