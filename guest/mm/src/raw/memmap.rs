//! The memory map: page metadata by frame number.

use core::ptr::NonNull;

use pagevisor_shared::page::Page;

use crate::platform::Platform;

/// Metadata of all frames. A copy of the window's base; every address is derived from it.
///
/// Sound for **every** frame number: a list link is 32 bits, the window spans 2^32 records
/// ([`Platform::vmemmap`]'s promise), and a [`Page`] is made of atomics that are valid whatever they hold. A wrong
/// frame number reads the wrong record, or faults where nothing is mapped; it reaches nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Memmap {
    base: NonNull<Page>,
}

// SAFETY: what is behind the pointer is made of atomics, mapped for the life of the program and for every CPU.
unsafe impl Send for Memmap {}
// SAFETY: it never changes, and what is behind the pointer is made of atomics.
unsafe impl Sync for Memmap {}

impl Memmap {
    /// The memory map of `platform`.
    #[inline(always)]
    pub fn new<P: Platform>(platform: &P) -> Self {
        Self { base: platform.vmemmap() }
    }

    /// Metadata of frame `pfn` (`pfn_to_page`).
    #[inline(always)]
    pub fn page(self, pfn: u32) -> &'static Page {
        // SAFETY: the window that starts at `base` spans 2^32 records (promise of `Platform::vmemmap`), so the
        // address is inside it; records are atomics, zero at first, and stay for the life of the program.
        unsafe { self.base.add(pfn as usize).as_ref() }
    }

    /// As [`Self::page`], without bringing the number to 32 bits.
    ///
    /// # Safety
    /// The number is below 2^32.
    #[inline(always)]
    pub(super) unsafe fn page_in_memory(self, pfn: u64) -> &'static Page {
        // SAFETY: as for `page`; the caller knows that the number is small enough.
        unsafe { self.base.add(pfn as usize).as_ref() }
    }
}
