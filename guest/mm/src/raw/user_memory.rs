//! The content of pages that programs use.
//!
//! The promise it rests on: whoever reads or writes such a page holds a reference to it, or has just allocated it; it was
//! allocated for a program's memory or for a file's. Programs change it at any time, so what is read may be anything.

use pagevisor_shared::units::{PAGE_SIZE, Pfn, PhysAddr};

use super::DirectMap;

/// Bytes of pages that programs use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UserMemory(DirectMap);

impl UserMemory {
    /// Those that `map` reaches.
    #[inline(always)]
    pub(crate) const fn new(map: DirectMap) -> Self {
        Self(map)
    }

    /// Copies the page at `from` to the one at `to`, another one (`copy_user_highpage`).
    #[inline]
    pub(crate) fn copy_page(self, to: Pfn, from: Pfn) {
        let (source, target) = (self.0.at(from.addr()), self.0.at(to.addr()));
        // SAFETY: two pages of RAM, which the direct map makes readable and writable; the caller has them (promise of this
        // room), and they are not the same.
        unsafe { target.copy_from_nonoverlapping(source, PAGE_SIZE as usize) };
    }

    /// Bytes of `len` at `offset` of a page.
    fn within(pfn: Pfn, offset: u64, len: usize) -> (PhysAddr, usize) {
        let offset = offset.min(PAGE_SIZE);
        (PhysAddr::new(pfn.addr().raw() + offset), len.min((PAGE_SIZE - offset) as usize))
    }

    /// Reads bytes of the page at `pfn` from `offset` on, as far as the page goes; gives how many.
    pub(crate) fn read(self, pfn: Pfn, offset: u64, to: &mut [u8]) -> usize {
        let (addr, len) = Self::within(pfn, offset, to.len());
        // SAFETY: inside a page that the caller has (promise of this room).
        unsafe { self.0.copy_to(addr, &mut to[..len]) };
        len
    }

    /// Writes bytes of the page at `pfn` from `offset` on, as far as the page goes; gives how many.
    pub(crate) fn write(self, pfn: Pfn, offset: u64, from: &[u8]) -> usize {
        let (addr, len) = Self::within(pfn, offset, from.len());
        // SAFETY: as in `read`.
        unsafe { self.0.copy_in(addr, &from[..len]) };
        len
    }
}
