//! Tables of words in pages that the stack allocated for itself.

use core::slice;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn};

use super::DirectMap;

/// A block of pages as words, once there is one.
#[derive(Debug)]
pub(crate) struct PageWords {
    /// The first frame; 0 for none.
    pfn: AtomicU32,
    order: AtomicU32,
}

impl PageWords {
    /// No block yet.
    pub(crate) const fn new() -> Self {
        Self { pfn: AtomicU32::new(0), order: AtomicU32::new(0) }
    }

    /// Keeps the words in the block of `order` at `pfn`.
    ///
    /// # Safety
    /// The caller has allocated the block and gives it up for good: nobody frees it or uses it otherwise.
    pub(crate) unsafe fn adopt(&self, pfn: Pfn, order: Order) {
        self.order.store(order.raw(), Ordering::Relaxed);
        // Release: who sees the block sees its size.
        self.pfn.store(pfn.raw() as u32, Ordering::Release);
    }

    /// The words; none as long as there is no block.
    pub(crate) fn get(&self, map: DirectMap) -> &'static [AtomicU64] {
        let pfn = self.pfn.load(Ordering::Acquire);
        if pfn == 0 {
            return &[];
        }
        let words = ((PAGE_SIZE / 8) << self.order.load(Ordering::Relaxed)) as usize;
        // SAFETY: whoever called `adopt` gave up a block of RAM of that size for good, RAM lies inside the direct map
        // for the life of the program (promise of `Platform`), pages are aligned, and atomics are valid with any
        // content.
        unsafe { slice::from_raw_parts(map.at(Pfn::new(pfn as u64).addr()).cast(), words) }
    }
}

/// The words of the page at `pfn`.
///
/// # Safety
/// The caller has allocated the page and gives it up for good: nobody frees it or uses it otherwise.
#[inline]
pub(crate) unsafe fn table_words(map: DirectMap, pfn: Pfn) -> &'static [AtomicU64] {
    // SAFETY: a page of RAM (the caller's promise), valid with any content.
    unsafe { map.words(pfn) }
}

/// A page of frame numbers.
#[derive(Debug)]
pub(crate) struct FrameList(Pfn);

impl FrameList {
    /// Frame numbers that it has room for.
    pub(crate) const CAPACITY: usize = PAGE_SIZE as usize / 4;

    /// In the page at `pfn`, which the caller has allocated and uses for this only.
    pub(crate) const fn new(pfn: Pfn) -> Self {
        Self(pfn)
    }

    /// The page.
    pub(crate) const fn pfn(&self) -> Pfn {
        self.0
    }

    /// The frame numbers.
    #[inline]
    pub(crate) fn slots(&self, map: DirectMap) -> &'static [AtomicU32] {
        // SAFETY: a page of RAM, which lies inside the direct map for the life of the program (promise of `Platform`);
        // atomics are valid with any content.
        unsafe { slice::from_raw_parts(map.at(self.0.addr()).cast(), Self::CAPACITY) }
    }
}
