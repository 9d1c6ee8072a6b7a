//! Numbers of what pages belong to ([`MappingTable`]).
#![allow(unsafe_code, reason = "gives pages to the table for good")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::mm_types::MappingTable;
use pagevisor_shared::units::{Order, Pfn, PhysAddr};

use crate::Mm;
use crate::platform::Platform;
use crate::raw::table_words;
use crate::sync::{self, Plain};

/// Which numbers are given.
#[derive(Debug)]
pub(crate) struct Numbers {
    lock: AtomicU32,
    /// Numbers up to this one were given to records, which keep them for ever.
    last: AtomicU32,
}

impl Numbers {
    pub(crate) const fn new() -> Self {
        Self { lock: AtomicU32::new(0), last: AtomicU32::new(0) }
    }
}

impl<P: Platform> Mm<P> {
    /// A number that nobody had before, with room in the table; `None` if there is no memory for that, or no number left.
    pub(crate) fn new_number(&self) -> Option<u32> {
        let numbers = &self.memory.numbers;
        sync::lock(&numbers.lock, || self.platform.relax());
        let number = numbers.last.get() + 1;
        let given = number < MappingTable::NUMBERS && self.make_way(number);
        if given {
            numbers.last.set(number);
        }
        sync::unlock(&numbers.lock);
        given.then_some(number)
    }

    /// Gives the table the pages that the word of `number` needs.
    fn make_way(&self, number: u32) -> bool {
        let root = &self.region.header().roots.mappings;
        let Some(mut words) = self.page_of_words(root) else { return false };
        for level in (1..=2).rev() {
            let Some(next) = words.get(MappingTable::index(number, level)).and_then(|word| self.page_of_words(word))
            else {
                return false;
            };
            words = next;
        }
        true
    }

    /// The page of words that `word` leads to; a new one if it leads nowhere.
    fn page_of_words(&self, word: &AtomicU64) -> Option<&'static [AtomicU64]> {
        let mut phys = word.load(Acquire);
        if phys == 0 {
            phys = self.alloc_pages(Gfp::KERNEL | Gfp::ZERO, Order::ZERO)?.addr().raw();
            // Release: who finds the page finds it clear.
            word.store(phys, Release);
        }
        Some(self.words_at(phys))
    }

    fn words_at(&self, phys: u64) -> &'static [AtomicU64] {
        // SAFETY: a page that `page_of_words` allocated for the table, which keeps it.
        unsafe { table_words(self.direct_map(), Pfn::containing(PhysAddr::new(phys))) }
    }

    /// The word of `number`, which was given.
    pub(crate) fn number_word(&self, number: u32) -> Option<&'static AtomicU64> {
        let mut phys = self.region.header().roots.mappings.load(Acquire);
        for level in (0..=2).rev() {
            if phys == 0 {
                return None;
            }
            let word = self.words_at(phys).get(MappingTable::index(number, level))?;
            if level == 0 {
                return Some(word);
            }
            phys = word.load(Acquire);
        }
        None
    }
}
