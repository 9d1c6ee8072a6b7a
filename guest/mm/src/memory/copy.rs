//! Fork: the child maps what the parent does (`copy_page_range`).

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::pgtable::{Entry, table_end};
use pagevisor_shared::units::{PAGE_SHIFT, VirtAddr};

use super::pte::{Pte, is_cow};
use super::rmap::{Rss, is_anon, mm_counter};
use crate::Mm;
use crate::mmap::{Space, Vma};
use crate::platform::Platform;
use crate::raw::PageTable;
use crate::sync::Plain;

impl<P: Platform> Mm<P> {
    /// Lets `dst`, a child's copy of `src`, map the pages of `src` (`copy_page_range`). Nobody uses the child yet; the caller
    /// has both spaces to itself, and makes the processors forget what they know of the parent's pages if this says so:
    /// [`Self::flush_after_copy`].
    ///
    /// # Errors
    /// [`Errno::ENOMEM`]; what was copied is the child's, and goes with it.
    pub(crate) fn copy_page_range(&self, dst: Vma, src: Vma) -> Result<(), Errno> {
        let (Some(child), Some(parent)) = (dst.mm(), src.mm()) else { return Ok(()) };
        // Pages of files come in again by themselves (`vma_needs_copy`).
        if src.anon_vma().is_none() && !src.flags().contains(VmaFlags::PFNMAP) {
            return Ok(());
        }
        let (mut virt, end) = (src.start(), src.end());
        while virt < end {
            let stop = table_end(virt, end, 0);
            let Some(from) = self.page_table(parent.record(), virt) else {
                virt = self.next_table(parent.record(), virt, end);
                continue;
            };
            let to = self.page_table_alloc(child.record(), virt).ok_or(Errno::ENOMEM)?;
            self.copy_table(child, from, to, src.flags(), virt..stop);
            virt = stop;
        }
        Ok(())
    }

    /// After all areas were copied: nobody may write to what is shared now, whatever processors remember.
    pub(crate) fn flush_after_copy(&self, parent: Space) {
        self.platform.flush_user(parent.record(), VirtAddr::new(0), VirtAddr::new(u64::MAX), false);
    }

    /// Copies the entries of one table (`copy_pte_range`).
    fn copy_table(&self, child: Space, from: PageTable, to: PageTable, flags: VmaFlags, range: core::ops::Range<u64>) {
        let count = ((range.end - range.start) >> PAGE_SHIFT) as usize;
        let mut rss = Rss::default();
        let to_lock = self.lock_table(to);
        let from_lock = self.lock_table(from);
        for (from, to) in from.words(range.start, count).iter().zip(to.words(range.start, count)) {
            let pte = Pte(from.get());
            if !pte.is_none() {
                to.set(self.copy_entry(from, pte, flags, &mut rss).0);
            }
        }
        drop(from_lock);
        drop(to_lock);
        rss.apply(child.record());
    }

    /// The child's entry for one of the parent's (`copy_present_pte`).
    #[inline(always)]
    fn copy_entry(&self, from: &AtomicU64, pte: Pte, flags: VmaFlags, rss: &mut Rss) -> Pte {
        let mut pte = pte;
        if !pte.is_special() {
            let page = self.user_page(pte.frame());
            page._refcount.fetch_add(1, Relaxed);
            page._mapcount.fetch_add(1, Relaxed);
            if is_anon(page) {
                // Neither alone can come to it any more (`page_try_dup_anon_rmap`).
                if page.flags.get() & PageFlag::ANON_EXCLUSIVE.mask() != 0 {
                    page.flags.fetch_and(!PageFlag::ANON_EXCLUSIVE.mask(), Release);
                }
            }
            rss.add(mm_counter(page), 1);
        }
        if is_cow(flags) && pte.is_writable() {
            pte = Pte(from.fetch_and(!Entry::WRITABLE, AcqRel)).without(Entry::WRITABLE);
        }
        if flags.contains(VmaFlags::SHARED) {
            pte = pte.without(Entry::DIRTY);
        }
        // The child has not looked at it yet, and has locked nothing.
        pte.without(Entry::ACCESSED | Entry::MLOCKED)
    }
}
