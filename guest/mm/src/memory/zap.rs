//! Pages are unmapped (`unmap_vmas`, `zap_page_range`, `free_pgtables`, `exit_mmap`).

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::AcqRel;

use pagevisor_shared::mm_types::{MmCounter, MmStruct};
use pagevisor_shared::page::Page;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::pgtable::{Entry, PMD_SIZE, table_end};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE};
use pagevisor_shared::vmstat::{NodeStat, VmEvent};

use super::gather::Gather;
use super::pte::Pte;
use super::rmap::{NodeCount, Rss, is_anon, mm_counter};
use crate::Mm;
use crate::mmap::{MmapWrite, Space, Vma};
use crate::platform::{Level, Platform};
use crate::raw::PageTable;
use crate::sync::Plain;

/// What becomes of the pages that are unmapped together.
struct Zapped {
    rss: Rss,
    anon: NodeCount,
    file: NodeCount,
}

impl<P: Platform> Mm<P> {
    /// Unmaps pages of `vma` from `start` up to `end` (`unmap_page_range`). `files_only` leaves what the area has of its own
    /// where it is (`zap_details.even_cows` not set).
    pub(crate) fn zap_range(&self, gather: &mut Gather<'_, P>, vma: Vma, start: u64, end: u64, files_only: bool) {
        let (mut virt, end) = (start.max(vma.start()), end.min(vma.end()));
        let record = gather.space();
        while virt < end {
            let stop = table_end(virt, end, 0);
            match self.page_table(record, virt) {
                Some(table) => {
                    while virt < stop {
                        let (reached, room) = self.zap_table(gather, table, virt, stop, files_only);
                        if !room {
                            gather.flush();
                        }
                        virt = reached;
                    }
                }
                None => virt = self.next_table(record, virt, end),
            }
        }
    }

    /// Unmaps the pages behind one table from `start` up to `end`; gives where it stopped, and whether there is room for more
    /// pages (`zap_pte_range`).
    fn zap_table(
        &self,
        gather: &mut Gather<'_, P>,
        table: PageTable,
        start: u64,
        end: u64,
        files_only: bool,
    ) -> (u64, bool) {
        let words = table.words(start, ((end - start) >> PAGE_SHIFT) as usize);
        let mut zapped = Zapped {
            rss: Rss::default(),
            anon: NodeCount::new(NodeStat::NrAnonPages),
            file: NodeCount::new(NodeStat::NrMapped),
        };
        let lock = self.lock_table(table);
        if words.iter().fold(0, |bits, word| bits | word.get()) & Entry::MLOCKED != 0 {
            self.munlock_entries(words, files_only);
        }
        let (mut changed, mut stop) = (false, (end, true));
        for (word, virt) in words.iter().zip((start..end).step_by(PAGE_SIZE as usize)) {
            let pte = Pte(word.get());
            if pte.is_none() || files_only && self.is_own(pte) {
                continue;
            }
            changed = true;
            if !self.zap_entry(gather, word, pte, &mut zapped) {
                stop = (virt + PAGE_SIZE, false);
                break;
            }
        }
        drop(lock);
        if changed {
            gather.changed(start, stop.0);
            zapped.rss.apply(gather.space());
            zapped.anon.apply(self);
            zapped.file.apply(self);
        }
        stop
    }

    /// Whether an entry keeps a page that belongs to an area and no file (`should_zap_page`).
    #[inline]
    pub(super) fn is_own(&self, pte: Pte) -> bool {
        pte.is_special() || is_anon(self.user_page(pte.frame()))
    }

    /// Takes out an entry that is not empty; false if there is no room for another page.
    #[inline(always)]
    fn zap_entry(&self, gather: &mut Gather<'_, P>, word: &AtomicU64, pte: Pte, zapped: &mut Zapped) -> bool {
        // Nobody sets bits in the entries of a space that nobody uses.
        let pte = if gather.is_full_mm() {
            word.set(0);
            pte
        } else {
            Pte(word.swap(0, AcqRel))
        };
        if pte.is_special() {
            return true;
        }
        let page = self.user_page(pte.frame());
        let anon = is_anon(page);
        if anon {
            zapped.rss.add(MmCounter::Anon, -1);
        } else {
            note_access(page, pte);
            zapped.rss.add(mm_counter(page), -1);
        }
        if page._mapcount.fetch_sub(1, AcqRel) == 1 {
            let count = if anon { &mut zapped.anon } else { &mut zapped.file };
            count.add(self, pte.pfn(), -1);
        }
        gather.remove_page(pte.pfn())
    }

    /// Unmaps pages of `vma` from `start` up to `end` (`zap_page_range`, `MADV_DONTNEED`). The caller has the space's lock.
    pub fn zap_page_range(&self, vma: Vma, start: u64, end: u64) {
        let Some(space) = vma.mm() else { return };
        update_hiwater_rss(space.record());
        let mut gather = Gather::new(self, space);
        self.zap_range(&mut gather, vma, start, end, false);
        gather.finish();
    }

    /// As [`Self::zap_page_range`], but of files' pages only unless `even_cows` (`zap_page_range_single` for
    /// `unmap_mapping_range`). For who has the file's list of areas: that they stay mapped, not that nobody faults.
    pub fn zap_file_range(&self, vma: Vma, start: u64, end: u64, even_cows: bool) {
        let Some(space) = vma.mm() else { return };
        let mut gather = Gather::new(self, space);
        self.zap_range(&mut gather, vma, start, end, !even_cows);
        gather.finish();
    }

    /// Unmaps all pages of `areas`, which were taken out of their space and are in order of address, and frees the tables
    /// that served nobody else (`unmap_region`). `floor` is the end of the area below all of them, `ceiling` the start of
    /// the one above, 0 for none.
    pub fn unmap_region(
        &self,
        held: &MmapWrite<'_, P>,
        areas: impl Iterator<Item = Vma> + Clone,
        floor: u64,
        ceiling: u64,
    ) {
        update_hiwater_rss(held.space().record());
        let mut gather = Gather::new(self, held.space());
        for vma in areas.clone() {
            self.zap_range(&mut gather, vma, vma.start(), vma.end(), false);
        }
        self.free_pgtables(&mut gather, areas, floor, ceiling);
        gather.finish();
    }

    /// Unmaps the pages of one end of `vma` and frees the tables that served nobody else; in between `shrink` takes the end
    /// from the area, so that who cuts its file does not come to tables that go. `floor` and `ceiling` are as for
    /// [`Self::unmap_region`].
    pub fn unmap_end(
        &self,
        held: &MmapWrite<'_, P>,
        vma: Vma,
        (start, end): (u64, u64),
        (floor, ceiling): (u64, u64),
        shrink: impl FnOnce(),
    ) {
        update_hiwater_rss(held.space().record());
        // From here on nobody's fault brings a page of the area.
        held.vma_start_write(vma);
        let mut gather = Gather::new(self, held.space());
        self.zap_range(&mut gather, vma, start, end, false);
        shrink();
        self.free_pgd_range(&mut gather, start, end, floor, ceiling);
        gather.finish();
    }

    /// Unmaps all pages of a space that nobody uses any more, and frees its tables but for the top one (`exit_mmap`). Its
    /// areas are still there, and go next.
    pub(crate) fn exit_pages(&self, held: &MmapWrite<'_, P>) {
        let space = held.space();
        let mut gather = Gather::full(self, space);
        let areas = core::iter::successors(space.first_vma(), |vma| vma.next());
        for vma in areas.clone() {
            self.zap_range(&mut gather, vma, vma.start(), vma.end(), false);
        }
        self.free_pgtables(&mut gather, areas, 0, 0);
        gather.finish();
        self.check_mm(space);
    }

    /// Frees the tables that served `areas` and nobody else (`free_pgtables`). Areas close to each other are one range.
    fn free_pgtables(&self, gather: &mut Gather<'_, P>, areas: impl Iterator<Item = Vma>, floor: u64, ceiling: u64) {
        let mut range: Option<(u64, u64)> = None;
        for vma in areas {
            // Who cuts its file must not come to tables that go.
            self.unlink_file_vma(vma);
            range = match range {
                Some((start, end)) if vma.start() <= end + PMD_SIZE => Some((start, vma.end().max(end))),
                Some((start, end)) => {
                    self.free_pgd_range(gather, start, end, floor, vma.start());
                    Some((vma.start(), vma.end()))
                }
                None => Some((vma.start(), vma.end())),
            };
        }
        if let Some((start, end)) = range {
            self.free_pgd_range(gather, start, end, floor, ceiling);
        }
    }

    /// Reports counters of a space without pages that are not 0 (`check_mm`).
    fn check_mm(&self, space: Space) {
        let record = space.record();
        for (item, name) in ["MM_FILEPAGES", "MM_ANONPAGES", "MM_SWAPENTS", "MM_SHMEMPAGES"].into_iter().enumerate() {
            let value = record.rss_stat[item].get();
            if value != 0 {
                let line = format_args!("BUG: Bad rss-counter state mm:{:?} type:{name} val:{value}", space.addr());
                self.platform.log(Level::Alert, line);
            }
        }
        let bytes = record.pgtables_bytes.get();
        if bytes != 0 {
            let line = format_args!("BUG: non-zero pgtables_bytes on freeing mm: {bytes}");
            self.platform.log(Level::Alert, line);
        }
    }

    /// Lets the pages of `vma` from `start` up to `end` go once memory is short, unless they are written to before
    /// (`madvise_free_single_vma`). Of anonymous memory.
    pub fn madvise_free_range(&self, vma: Vma, start: u64, end: u64) {
        let Some(space) = vma.mm() else { return };
        let (mut virt, end) = (start.max(vma.start()), end.min(vma.end()));
        let mut gather = Gather::new(self, space);
        while virt < end {
            let stop = table_end(virt, end, 0);
            if let Some(table) = self.page_table(space.record(), virt) {
                let words = table.words(virt, ((stop - virt) >> PAGE_SHIFT) as usize);
                let _lock = self.lock_table(table);
                for (word, at) in words.iter().zip((virt..stop).step_by(PAGE_SIZE as usize)) {
                    if self.free_lazily(word) {
                        gather.changed(at, at + PAGE_SIZE);
                    }
                }
            }
            virt = stop;
        }
        gather.finish();
    }

    /// Whether the entry was changed (`madvise_free_pte_range`).
    fn free_lazily(&self, word: &AtomicU64) -> bool {
        let pte = Pte(word.get());
        if !pte.keeps_page() || pte.is_special() {
            return false;
        }
        let page = self.user_page(pte.frame());
        if !is_anon(page) || page._mapcount.get() != 1 {
            return false;
        }
        if page.flags.fetch_and(!(PageFlag::Swapbacked.mask() | PageFlag::Dirty.mask()), AcqRel)
            & PageFlag::Swapbacked.mask()
            != 0
        {
            self.count_vm_events(VmEvent::Pglazyfree, 1);
        }
        let used = pte.has(Entry::ACCESSED | Entry::DIRTY);
        if used {
            word.fetch_and(!(Entry::ACCESSED | Entry::DIRTY), AcqRel);
        }
        used
    }

    /// Calls `change` with the entries from `start` up to `end` of each page table that there is, locked
    /// (`walk_page_range`). The caller has locked the area to change it.
    #[inline(always)]
    pub(super) fn change_entries(&self, space: &MmStruct, start: u64, end: u64, mut change: impl FnMut(&[AtomicU64])) {
        let mut virt = start;
        while virt < end {
            let stop = table_end(virt, end, 0);
            let Some(table) = self.page_table(space, virt) else {
                virt = self.next_table(space, virt, end);
                continue;
            };
            let words = table.words(virt, ((stop - virt) >> PAGE_SHIFT) as usize);
            let _lock = self.lock_table(table);
            change(words);
            virt = stop;
        }
    }

    /// The address behind what the missing table for `virt` would serve, `end` at most: whole higher levels that are
    /// missing are skipped.
    #[inline]
    pub(crate) fn next_table(&self, space: &MmStruct, virt: u64, end: u64) -> u64 {
        let map = self.direct_map();
        let Some(root) = crate::raw::Pgd::root(map, space) else { return end };
        match root.next(map, virt) {
            None => table_end(virt, end, 2),
            Some(pud) if pud.next(map, virt).is_none() => table_end(virt, end, 1),
            Some(_) => table_end(virt, end, 0),
        }
    }
}

/// Notes how many pages are mapped before some go (`update_hiwater_rss`).
fn update_hiwater_rss(space: &MmStruct) {
    let most = space.get_mm_hiwater_rss();
    if space.hiwater_rss.get() < most {
        space.hiwater_rss.set(most);
    }
}

/// What an entry knows of a file's page goes to the page (`set_page_dirty`, `mark_page_accessed`).
#[inline]
fn note_access(page: &Page, pte: Pte) {
    if pte.is_dirty() && page.flags.get() & PageFlag::Dirty.mask() == 0 {
        page.flags.fetch_or(PageFlag::Dirty.mask(), AcqRel);
    }
    if pte.has(Entry::ACCESSED) && page.flags.get() & PageFlag::Referenced.mask() == 0 {
        page.flags.fetch_or(PageFlag::Referenced.mask(), AcqRel);
    }
}
