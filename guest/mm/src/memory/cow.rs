//! Writes to pages that others may see (`do_wp_page`).

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use pagevisor_shared::mm_types::{MmCounter, VmaFlags};
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn, VirtAddr};

use super::fault::{Fault, FaultKind, FaultResult, NeedsSpace, Outcome};
use super::pte::{Pte, page_prot};
use super::rmap::{is_anon, is_exclusive, mm_counter};
use crate::Mm;
use crate::page_alloc::USER_GFP;
use crate::platform::Platform;
use crate::raw::{PageTable, UserMemory};
use crate::sync::Plain;

impl<P: Platform> Mm<P> {
    /// A write to a page that the entry, `pte` at last look, does not allow.
    #[inline]
    pub(super) fn do_wp_page(&self, fault: &Fault, table: PageTable, pte: Pte) -> Outcome {
        let word = table.word(fault.addr);
        let lock = self.lock_table(table);
        if word.load(Acquire) != pte.0 {
            return Ok(FaultResult::done(FaultKind::Spurious));
        }
        if fault.vm_flags.contains(VmaFlags::SHARED) {
            wp_reuse(word);
            return Ok(FaultResult::done(FaultKind::File));
        }
        if !pte.is_special() {
            let page = self.user_page(pte.frame());
            if is_anon(page) {
                if is_exclusive(page) {
                    wp_reuse(word);
                    return Ok(FaultResult::done(FaultKind::CowReuse));
                }
                // Nobody else has it, so nobody else can get it: whoever forks wants this area first.
                if page._refcount.load(Acquire) == 1 {
                    self.page_move_anon_rmap(page, fault.vma);
                    wp_reuse(word);
                    return Ok(FaultResult::done(FaultKind::CowReuse));
                }
            }
            // It must stay until it is copied.
            page._refcount.fetch_add(1, Relaxed);
        }
        drop(lock);
        self.wp_page_copy(fault, table, pte)
    }

    /// Maps a copy of the page that `pte` keeps, to which the caller has a reference unless it is the zero page
    /// (`wp_page_copy`).
    fn wp_page_copy(&self, fault: &Fault, table: PageTable, pte: Pte) -> Outcome {
        let old = (!pte.is_special()).then(|| pte.pfn());
        if fault.vma.anon_vma().is_none() {
            self.put_old(old);
            return Err(NeedsSpace);
        }
        let new = match old {
            Some(old) => self.alloc_pages(USER_GFP, Order::ZERO).inspect(|new| {
                UserMemory::new(self.direct_map()).copy_page(*new, old);
            }),
            None => self.alloc_zeroed_user_page().map(|frame| Pfn::new(frame as u64)),
        };
        let Some(new) = new else {
            self.put_old(old);
            return Ok(FaultResult::Oom);
        };
        let word = table.word(fault.addr);
        let lock = self.lock_table(table);
        if word.load(Acquire) != pte.0 {
            drop(lock);
            self.put_old(old);
            self.free_page(new);
            return Ok(FaultResult::done(FaultKind::Spurious));
        }
        self.count_copied(fault, old);
        // No processor may use the old page when another uses the new one.
        word.set(0);
        let (start, end) = (VirtAddr::new(fault.addr), VirtAddr::new(fault.addr + PAGE_SIZE));
        self.platform.flush_user(fault.space, start, end, false);
        self.page_add_new_anon_rmap(new.raw() as u32, fault.vma, fault.addr);
        let locked = self.mlock_vma_page(new.raw() as u32, fault.vm_flags);
        let entry = Pte::new(new.raw() as u32, page_prot(fault.vm_flags) | Entry::DIRTY | locked);
        // Release: who finds the page finds it copied.
        word.store(entry.maybe_writable(fault.vm_flags).0, Release);
        self.munlock_vma_page(pte);
        if let Some(old) = old {
            self.page_remove_rmap(old.raw() as u32);
        }
        drop(lock);
        if let Some(old) = old {
            // The entry's reference, and the one for copying.
            self.free_user_pages(&mut [old, old]);
        }
        Ok(FaultResult::done(FaultKind::CowCopy))
    }

    /// The address space has one anonymous page more, and what was there less.
    #[inline]
    fn count_copied(&self, fault: &Fault, old: Option<Pfn>) {
        let stat = &fault.space.rss_stat;
        match old.map(|old| mm_counter(self.user_page(old.raw() as u32))) {
            Some(MmCounter::Anon) => {}
            was => {
                if let Some(was) = was {
                    stat[was as usize].fetch_sub(1, Relaxed);
                }
                stat[MmCounter::Anon as usize].fetch_add(1, Relaxed);
            }
        }
    }

    fn put_old(&self, old: Option<Pfn>) {
        if let Some(old) = old {
            self.free_user_pages(&mut [old]);
        }
    }
}

/// Lets the entry's page be written to (`wp_page_reuse`).
#[inline(always)]
fn wp_reuse(word: &AtomicU64) {
    word.fetch_or(Entry::ACCESSED | Entry::DIRTY | Entry::WRITABLE, AcqRel);
}
