//! Protections of pages change (`mm/mprotect.c`).

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::AcqRel;

use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::VirtAddr;

use super::pte::{Pte, page_prot};
use super::rmap::{is_anon, is_exclusive};
use crate::Mm;
use crate::mmap::Vma;
use crate::platform::Platform;
use crate::sync::Plain;

impl<P: Platform> Mm<P> {
    /// Gives the pages of `vma` from `start` up to `end` the protection that its flags say; gives how many entries were
    /// changed (`change_protection`). The caller has locked the area to change it.
    pub fn change_protection(&self, vma: Vma, start: u64, end: u64) -> u64 {
        let Some(space) = vma.mm() else { return 0 };
        let flags = vma.flags();
        let mut changed = 0;
        self.change_entries(space.record(), start, end, |words| {
            changed += words.iter().filter(|word| self.change_entry(word, flags)).count() as u64;
        });
        if changed != 0 {
            self.platform.flush_user(space.record(), VirtAddr::new(start), VirtAddr::new(end), false);
        }
        changed
    }

    /// Whether the entry keeps a page, which has the protection of `flags` now (`change_pte_range`).
    #[inline(always)]
    fn change_entry(&self, word: &AtomicU64, flags: VmaFlags) -> bool {
        if !Pte(word.get()).keeps_page() {
            return false;
        }
        // What hardware sets until then is in it; from then on it sets nothing (`ptep_modify_prot_start`).
        let old = Pte(word.swap(0, AcqRel));
        let mut new = old.modify(page_prot(flags));
        if flags.contains(VmaFlags::WRITE) && !new.is_writable() && self.can_be_writable(old, flags) {
            new = new.with(Entry::WRITABLE);
        }
        word.set(new.0);
        true
    }

    /// Whether a write would find nothing to do but to set the entry's bit (`can_change_pte_writable`).
    #[inline]
    fn can_be_writable(&self, pte: Pte, flags: VmaFlags) -> bool {
        if !pte.is_dirty() || pte.is_special() {
            return false;
        }
        if flags.contains(VmaFlags::SHARED) {
            return true;
        }
        let page = self.user_page(pte.frame());
        is_anon(page) && is_exclusive(page)
    }
}
