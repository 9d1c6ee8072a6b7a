//! Pages of files are mapped (`do_fault`, `finish_fault`, `filemap_map_pages`).
//!
//! An entry for a file's page is made with the page locked: it is inside the file as long as that is so. Files here are
//! nowhere but in memory, so nobody wants to know of the first write to a page, and pages of areas that are shared and
//! writable are so from the start (`vma_wants_writenotify`).

use core::sync::atomic::Ordering::{Relaxed, Release};

use pagevisor_shared::mm_types::{MmCounter, VmaFlags};
use pagevisor_shared::pgtable::{Entry, table_end};
use pagevisor_shared::units::{Order, PAGE_SHIFT, PAGE_SIZE, Pfn};

use super::fault::{Fault, FaultKind, FaultResult, NeedsSpace, Outcome};
use super::pte::{Pte, page_prot};
use super::rmap::{Rss, mm_counter};
use crate::Mm;
use crate::filemap::{FileMapping, Wanted, mark_dirty, pages_of};
use crate::page_alloc::USER_GFP;
use crate::platform::Platform;
use crate::raw::{PageTable, UserMemory};
use crate::sync::Plain;

/// Pages around a missing one that are mapped with it if they are in memory (`fault_around_bytes`).
const AROUND: u64 = 16;

impl<P: Platform> Mm<P> {
    /// A page of a file is missing (`do_fault`).
    #[inline(never)]
    pub(super) fn do_fault(&self, fault: &Fault, table: PageTable) -> Outcome {
        let Some(mapping) = fault.vma.file().and_then(|file| file.mapping()) else {
            return Ok(FaultResult::BUS_ADRERR);
        };
        if fault.write && !fault.vm_flags.contains(VmaFlags::SHARED) {
            return self.do_cow_fault(fault, table, mapping);
        }
        if !fault.write && self.do_fault_around(fault, table, mapping) {
            return Ok(FaultResult::done(FaultKind::File));
        }
        Ok(self.map_file_page(fault, table, mapping))
    }

    /// Maps the page itself (`do_read_fault`, `do_shared_fault`, `finish_fault`).
    fn map_file_page(&self, fault: &Fault, table: PageTable, mapping: FileMapping) -> FaultResult {
        let frame = match self.lock_file_page(mapping, fault.vma.index_of(fault.addr), true) {
            Ok(frame) => frame,
            Err(wanted) => return no_page(wanted),
        };
        let word = table.word(fault.addr);
        let lock = self.lock_table(table);
        let missing = word.get() == 0;
        if missing {
            let page = self.user_page(frame);
            self.page_add_file_rmap(frame);
            fault.space.rss_stat[mm_counter(page) as usize].fetch_add(1, Relaxed);
            let locked = self.mlock_vma_page(frame, fault.vm_flags);
            let mut pte = Pte::new(frame, page_prot(fault.vm_flags) | locked);
            if fault.write {
                mark_dirty(page);
                pte = pte.with(Entry::DIRTY).maybe_writable(fault.vm_flags);
            }
            // Release: who finds the page finds what is in it.
            word.store(pte.0, Release);
        }
        drop(lock);
        self.unlock_page(frame);
        if missing {
            // The entry has the reference.
            return FaultResult::done(FaultKind::File);
        }
        self.put_file_page(frame);
        FaultResult::done(FaultKind::Spurious)
    }

    /// Maps a copy of the page, for who writes to private memory (`do_cow_fault`).
    fn do_cow_fault(&self, fault: &Fault, table: PageTable, mapping: FileMapping) -> Outcome {
        if fault.vma.anon_vma().is_none() {
            return Err(NeedsSpace);
        }
        let Some(copy) = self.alloc_pages(USER_GFP, Order::ZERO) else { return Ok(FaultResult::Oom) };
        let frame = match self.lock_file_page(mapping, fault.vma.index_of(fault.addr), true) {
            Ok(frame) => frame,
            Err(wanted) => {
                self.free_page(copy);
                return Ok(no_page(wanted));
            }
        };
        UserMemory::new(self.direct_map()).copy_page(copy, Pfn::new(frame.into()));
        let word = table.word(fault.addr);
        let lock = self.lock_table(table);
        let missing = word.get() == 0;
        if missing {
            self.page_add_new_anon_rmap(copy.raw() as u32, fault.vma, fault.addr);
            fault.space.rss_stat[MmCounter::Anon as usize].fetch_add(1, Relaxed);
            let locked = self.mlock_vma_page(copy.raw() as u32, fault.vm_flags);
            let pte = Pte::new(copy.raw() as u32, page_prot(fault.vm_flags) | Entry::DIRTY | locked);
            // Release: who finds the page finds it copied.
            word.store(pte.maybe_writable(fault.vm_flags).0, Release);
        }
        drop(lock);
        self.unlock_page(frame);
        self.put_file_page(frame);
        if missing {
            return Ok(FaultResult::done(FaultKind::CowCopy));
        }
        self.free_page(copy);
        Ok(FaultResult::done(FaultKind::Spurious))
    }

    /// Maps pages around the missing one that are in memory; whether it was among them (`do_fault_around`,
    /// `filemap_map_pages`).
    fn do_fault_around(&self, fault: &Fault, table: PageTable, mapping: FileMapping) -> bool {
        let vma = fault.vma;
        let start = (fault.addr & !(AROUND * PAGE_SIZE - 1)).max(vma.start());
        // Not behind the table, which the window's lowest page may be as far from as from this one.
        let end = table_end(start, vma.end().min(start + AROUND * PAGE_SIZE), 0);
        let first = vma.index_of(start);
        let count = ((end - start) >> PAGE_SHIFT).min(pages_of(mapping).saturating_sub(first));
        let mut pages = [0u32; AROUND as usize];
        if self.find_get_pages(mapping, first, &mut pages[..count as usize]) == 0 {
            return false;
        }
        let mut rss = Rss::default();
        let lock = self.lock_table(table);
        for ((word, index), frame) in table.words(start, count as usize).iter().zip(first..).zip(&mut pages) {
            if *frame == 0 || word.get() != 0 || !self.try_lock_page(*frame) {
                continue;
            }
            if self.is_page_of(*frame, mapping) && index < pages_of(mapping) {
                self.page_add_file_rmap(*frame);
                rss.add(mm_counter(self.user_page(*frame)), 1);
                let locked = self.mlock_vma_page(*frame, fault.vm_flags);
                // Release: as for the page itself.
                word.store(Pte::new(*frame, page_prot(fault.vm_flags) | locked).0, Release);
                self.unlock_page(*frame);
                // The entry has the reference.
                *frame = 0;
            } else {
                self.unlock_page(*frame);
            }
        }
        let done = table.word(fault.addr).get() != 0;
        drop(lock);
        rss.apply(fault.space);
        pages.into_iter().filter(|frame| *frame != 0).for_each(|frame| self.put_file_page(frame));
        done
    }
}

/// What a fault comes to that finds no page.
fn no_page(wanted: Wanted) -> FaultResult {
    match wanted {
        Wanted::BehindEnd | Wanted::NoSpace => FaultResult::BUS_ADRERR,
        Wanted::NoMemory => FaultResult::Oom,
    }
}
