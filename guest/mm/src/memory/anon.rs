//! The first touch of private memory (`do_anonymous_page`).

use core::sync::atomic::Ordering::{Relaxed, Release};

use pagevisor_shared::mm_types::{MmCounter, VmaFlags};
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::Pfn;

use super::fault::{Fault, FaultKind, FaultResult, NeedsSpace, Outcome};
use super::pte::{Pte, page_prot};
use crate::Mm;
use crate::platform::Platform;
use crate::raw::PageTable;
use crate::sync::Plain;

impl<P: Platform> Mm<P> {
    /// Maps the zero page for a read, a page of zeros for a write.
    #[inline(always)]
    pub(super) fn do_anonymous_page(&self, fault: &Fault, table: PageTable) -> Outcome {
        if !fault.write {
            return Ok(self.map_zero_page(fault, table));
        }
        if fault.vma.anon_vma().is_none() {
            return Err(NeedsSpace);
        }
        let Some(frame) = self.alloc_zeroed_user_page() else { return Ok(FaultResult::Oom) };
        let word = table.word(fault.addr);
        let lock = self.lock_table(table);
        if word.get() != 0 {
            drop(lock);
            self.free_page(Pfn::new(frame as u64));
            return Ok(FaultResult::done(FaultKind::Spurious));
        }
        self.page_add_new_anon_rmap(frame, fault.vma, fault.addr);
        fault.space.rss_stat[MmCounter::Anon as usize].fetch_add(1, Relaxed);
        let locked = self.mlock_vma_page(frame, fault.vm_flags);
        let pte = Pte::new(frame, page_prot(fault.vm_flags) | Entry::DIRTY | Entry::WRITABLE | locked);
        // Release: who finds the page finds it clear.
        word.store(pte.0, Release);
        drop(lock);
        Ok(FaultResult::done(FaultKind::Anon))
    }

    fn map_zero_page(&self, fault: &Fault, table: PageTable) -> FaultResult {
        if fault.vm_flags.contains(VmaFlags::SHARED) {
            // Shared memory has a file.
            return FaultResult::BUS_ADRERR;
        }
        let Some(zero) = self.zero_frame() else { return FaultResult::Oom };
        let word = table.word(fault.addr);
        let _lock = self.lock_table(table);
        if word.get() != 0 {
            return FaultResult::done(FaultKind::Spurious);
        }
        word.store(Pte::new(zero, page_prot(fault.vm_flags) | Entry::SPECIAL).0, Release);
        FaultResult::done(FaultKind::Zero)
    }
}
