//! Pages of locked areas (`mm/mlock.c`).
//!
//! An entry of a locked area that keeps a page says so ([`Entry::MLOCKED`]), under the lock of its table: so what counts a
//! page as locked is what takes that back, whichever way the area went meanwhile. The page counts such entries
//! (`mlock_count`) in the word that leads back on lists, where no locked page is.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::Pfn;
use pagevisor_shared::vmstat::{NodeStat, VmEvent, ZoneStat};

use super::pte::Pte;
use crate::Mm;
use crate::mmap::Vma;
use crate::platform::Platform;
use crate::sync::Plain;

const MLOCKED: u32 = PageFlag::Mlocked.mask();
const UNEVICTABLE: u32 = PageFlag::Unevictable.mask();

impl<P: Platform> Mm<P> {
    /// What an entry has more that is going to keep the page at `frame` in an area with `vm_flags` (`mlock_vma_page`).
    #[inline(always)]
    pub(super) fn mlock_vma_page(&self, frame: u32, vm_flags: VmaFlags) -> u64 {
        if vm_flags.contains(VmaFlags::LOCKED) { self.mlock_page(frame) } else { 0 }
    }

    /// The entry `pte` does not keep its page any more, which has been told nothing else yet (`munlock_vma_page`).
    #[inline(always)]
    pub(super) fn munlock_vma_page(&self, pte: Pte) {
        if pte.has(Entry::MLOCKED) {
            self.munlock_page(pte.frame());
        }
    }

    /// Counts an entry that locks the page; gives what the entry has then (`mlock_folio`).
    #[cold]
    #[inline(never)]
    fn mlock_page(&self, frame: u32) -> u64 {
        let page = self.user_page(frame);
        loop {
            let old = page.flags.fetch_or(MLOCKED, AcqRel);
            if old & MLOCKED == 0 {
                page.prev.store(1, Relaxed);
                // Release: who finds this finds the count. Until then, and when the count is 0 again, others wait.
                page.flags.fetch_or(UNEVICTABLE, Release);
                self.count_mlocked(frame, 1);
                return Entry::MLOCKED;
            }
            let more = |count: u32| if count == 0 { None } else { Some(count + 1) };
            if old & UNEVICTABLE != 0 && page.prev.fetch_update(AcqRel, Acquire, more).is_ok() {
                return Entry::MLOCKED;
            }
            self.platform.relax();
        }
    }

    /// Counts an entry less that locks the page (`munlock_page`).
    #[cold]
    #[inline(never)]
    fn munlock_page(&self, frame: u32) {
        let page = self.user_page(frame);
        if page.prev.fetch_sub(1, AcqRel) == 1 {
            self.count_mlocked(frame, -1);
            page.flags.fetch_and(!(MLOCKED | UNEVICTABLE), AcqRel);
        }
    }

    /// A page more or less is locked: it is on no list of pages that can be had back.
    fn count_mlocked(&self, frame: u32, by: i64) {
        let pfn = Pfn::new(frame.into());
        if let (Some(zone), Some(node)) = (self.page_zone(pfn), self.page_to_nid(pfn)) {
            self.mod_zone_page_state(zone, ZoneStat::NrMlock, by);
            self.mod_zone_page_state(zone, ZoneStat::NrZoneUnevictable, by);
            self.mod_node_page_state(node, NodeStat::NrUnevictable, by);
        }
        let (told, moved) = match by {
            1 => (VmEvent::UnevictablePgsMlocked, VmEvent::UnevictablePgsCulled),
            _ => (VmEvent::UnevictablePgsMunlocked, VmEvent::UnevictablePgsRescued),
        };
        self.count_vm_events(told, 1);
        self.count_vm_events(moved, 1);
    }

    /// Locks or unlocks the pages that are there in `vma` from `start` up to `end` (`mlock_vma_pages_range`). The caller has
    /// locked the area to change it, and it is what its flags say.
    pub(crate) fn mlock_vma_pages_range(&self, vma: Vma, start: u64, end: u64) {
        let Some(space) = vma.mm() else { return };
        let locked = vma.flags().contains(VmaFlags::LOCKED);
        self.change_entries(space.record(), start, end, |words| {
            words.iter().for_each(|word| self.mlock_entry(word, locked));
        });
    }

    /// Takes back that the entries lock their pages, which are about to be unmapped, but with `files_only` those that belong to
    /// no file. The caller has locked the table.
    #[cold]
    #[inline(never)]
    pub(super) fn munlock_entries(&self, words: &[AtomicU64], files_only: bool) {
        let goes = |word: &&AtomicU64| {
            let pte = Pte(word.get());
            pte.keeps_page() && !(files_only && self.is_own(pte))
        };
        words.iter().filter(goes).for_each(|word| self.mlock_entry(word, false));
    }

    /// `mlock_pte_range`, for an entry.
    fn mlock_entry(&self, word: &AtomicU64, locked: bool) {
        let pte = Pte(word.get());
        if !pte.keeps_page() || pte.is_special() || pte.has(Entry::MLOCKED) == locked {
            return;
        }
        if locked {
            word.fetch_or(self.mlock_page(pte.frame()), AcqRel);
        } else {
            word.fetch_and(!Entry::MLOCKED, AcqRel);
            self.munlock_page(pte.frame());
        }
    }
}
