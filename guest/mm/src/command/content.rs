//! The content of pages that a handle stands for.
#![allow(unsafe_code, reason = "content is reached through the direct map")]

use core::sync::atomic::AtomicU64;

use pagevisor_shared::command::{Op, OpError};
use pagevisor_shared::units::{PAGE_SIZE, PhysAddr};

use super::handles::{Held, Slot};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// Words of a page.
const PAGE_WORDS: u64 = PAGE_SIZE / 8;

/// Pages that this CPU has to itself as long as it has this: the handle is locked.
#[derive(Debug)]
pub(super) struct Content<'a> {
    held: Held,
    _slot: &'a Slot,
}

impl<'a> Content<'a> {
    /// What `slot` stands for.
    pub(super) fn new(slot: &'a Slot, held: Held) -> Self {
        Self { held, _slot: slot }
    }

    /// The address of `len` bytes from `offset` on, which lie in the pages.
    fn at(&self, offset: u64, len: u64) -> Result<PhysAddr, OpError> {
        let (first, pages) = self.held.frames();
        if offset.checked_add(len).is_none_or(|end| end > pages * PAGE_SIZE) {
            return Err(OpError::Invalid);
        }
        Ok(PhysAddr::new(first.addr().raw() + offset))
    }

    /// Reads `len` bytes from `offset` on into words, the last one filled up with zeros.
    pub(super) fn read<P: Platform>(
        &self,
        mm: &Mm<P>,
        offset: u64,
        len: usize,
        to: &[AtomicU64],
    ) -> Result<(), OpError> {
        let start = self.at(offset, len as u64)?;
        if let Some(last) = to.last() {
            last.set(0);
        }
        // SAFETY: `at` checked the bounds of pages that are RAM and belong to the locked handle; the words are the
        // reply's, which this CPU is writing.
        unsafe { mm.direct_map().copy_out(start, to, len) };
        Ok(())
    }

    /// Writes `from`, from `offset` on.
    pub(super) fn write<P: Platform>(&self, mm: &Mm<P>, offset: u64, from: &[u8]) -> Result<(), OpError> {
        let start = self.at(offset, from.len() as u64)?;
        // SAFETY: as in `read`.
        unsafe { mm.direct_map().copy_in(start, from) };
        Ok(())
    }

    /// Writes the pattern of block `number`.
    pub(super) fn fill<P: Platform>(&self, mm: &Mm<P>, seed: u64, number: u32) {
        self.each(mm, |at, word| {
            word.set(Op::pattern(seed, number, at));
            true
        });
    }

    /// The byte offset of the first word that is not as [`Self::fill`] wrote it.
    pub(super) fn mismatch<P: Platform>(&self, mm: &Mm<P>, seed: u64, number: u32) -> Option<u64> {
        self.each(mm, |at, word| word.get() == Op::pattern(seed, number, at)).map(|at| 8 * at)
    }

    /// Calls `work` with the words in order, until it says no; gives the number of that one.
    fn each<P: Platform>(&self, mm: &Mm<P>, mut work: impl FnMut(u64, &AtomicU64) -> bool) -> Option<u64> {
        let (first, pages) = self.held.frames();
        for page in 0..pages {
            // SAFETY: the page is RAM: it belongs to the handle.
            let words = unsafe { mm.direct_map().words(first.add(page)) };
            for (at, word) in (page * PAGE_WORDS..).zip(words) {
                if !work(at, word) {
                    return Some(at);
                }
            }
        }
        None
    }
}
