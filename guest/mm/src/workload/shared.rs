//! Tables and shared words of workloads, in pages of their own.
#![allow(unsafe_code, reason = "the tables lie in pages of their own")]

use core::sync::atomic::AtomicU64;

use pagevisor_shared::command::OpError;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn};

use crate::Mm;
use crate::platform::Platform;

/// A block of words, zero at first; freed when dropped.
#[derive(Debug)]
pub(super) struct SharedPages<'a, P: Platform> {
    mm: &'a Mm<P>,
    block: Option<(Pfn, Order)>,
}

impl<'a, P: Platform> SharedPages<'a, P> {
    /// A block of `order`, if one is wanted.
    ///
    /// # Errors
    /// [`OpError::NoMemory`] when there is none.
    pub(super) fn new(mm: &'a Mm<P>, order: Option<u32>) -> Result<Self, OpError> {
        let Some(order) = order else { return Ok(Self { mm, block: None }) };
        let order = Order::new(order).map_err(|_| OpError::NoMemory)?;
        let gfp = Gfp::KERNEL | Gfp::ZERO | Gfp::NOWARN;
        let pfn = mm.alloc_pages(gfp, order).ok_or(OpError::NoMemory)?;
        Ok(Self { mm, block: Some((pfn, order)) })
    }

    /// A block of at least `words` words.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn of_words(mm: &'a Mm<P>, words: u64) -> Result<Self, OpError> {
        let order = Order::for_bytes(8 * words.max(1)).ok_or(OpError::NoMemory)?;
        Self::new(mm, Some(order.raw()))
    }

    /// The block that [`Self::leave`] gave, which nobody else uses.
    pub(super) fn left(mm: &'a Mm<P>, block: (Pfn, Order)) -> Self {
        Self { mm, block: Some(block) }
    }

    /// Leaves the block to the caller: it is not freed.
    pub(super) fn leave(&mut self) -> Option<(Pfn, Order)> {
        self.block.take()
    }

    /// Whether there is no block.
    pub(super) fn is_empty(&self) -> bool {
        self.block.is_none()
    }

    /// The words of page `number`; none where there is no such page.
    pub(super) fn page(&self, number: u64) -> &[AtomicU64] {
        match self.block {
            // SAFETY: the page was allocated for this, and is given back when this is gone.
            Some((pfn, order)) if number < order.pages() => unsafe { self.mm.direct_map().words(pfn.add(number)) },
            _ => &[],
        }
    }

    /// Word `at` of all.
    #[inline]
    pub(super) fn word(&self, at: u64) -> &AtomicU64 {
        const WORDS: u64 = PAGE_SIZE / 8;
        // Only numbers that the block was made for come here.
        static NONE: AtomicU64 = AtomicU64::new(0);
        self.page(at / WORDS).get((at % WORDS) as usize).unwrap_or(&NONE)
    }
}

impl<P: Platform> Drop for SharedPages<'_, P> {
    fn drop(&mut self) {
        if let Some((pfn, order)) = self.block {
            self.mm.free_pages(pfn, order);
        }
    }
}

/// Writes the first word of each of the first `lines` lines of the page at `pfn`, or reads it.
///
/// # Safety
/// The page is the caller's.
pub(super) unsafe fn touch<P: Platform>(mm: &Mm<P>, pfn: Pfn, lines: u32, write: bool) {
    use crate::sync::Plain;
    // SAFETY: the caller's page is RAM.
    let words = unsafe { mm.direct_map().words(pfn) };
    for word in words.iter().step_by(8).take(lines as usize) {
        if write {
            word.set(pfn.raw());
        } else {
            core::hint::black_box(word.get());
        }
    }
}

/// Reads or writes one word of the page at `pfn`.
///
/// # Safety
/// As for [`touch`].
pub(super) unsafe fn access<P: Platform>(mm: &Mm<P>, pfn: Pfn, word: usize, write: bool) {
    use crate::sync::Plain;
    // SAFETY: the caller's page is RAM.
    let words = unsafe { mm.direct_map().words(pfn) };
    let Some(word) = words.get(word) else { return };
    if write {
        word.set(pfn.raw());
    } else {
        core::hint::black_box(word.get());
    }
}
