//! Page tables of user address spaces: where they come from and where they go (`mm/memory.c`, `arch/x86/mm/pgtable.c`).
//!
//! Their pages have the type `PG_table` and count as `NR_PAGETABLE`; those below the top also as the address space's
//! `pgtables_bytes`. The lock of a page table's entries is its page's `private` word.
#![allow(unsafe_code, reason = "makes pages of its own into tables")]

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::layout::TASK_SIZE_MAX;
use pagevisor_shared::mm_types::MmStruct;
use pagevisor_shared::page::PG_TABLE;
use pagevisor_shared::page_flags::PG_OWNED;
use pagevisor_shared::pgtable::{level_size, table_end};
use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn};
use pagevisor_shared::vmstat::NodeStat;

use super::gather::Gather;
use crate::Mm;
use crate::platform::Platform;
use crate::raw::{PageTable, Pgd, Space, UserTable};
use crate::sync::{self, Plain};

/// `GFP_PGTABLE_USER`.
const TABLE_GFP: Gfp = Gfp::KERNEL.with(Gfp::ZERO);

/// The entries of a page table are the holder's to change.
#[derive(Debug)]
pub(crate) struct PteLock(&'static AtomicU32);

impl Drop for PteLock {
    #[inline(always)]
    fn drop(&mut self) {
        sync::unlock(self.0);
    }
}

impl<P: Platform> Mm<P> {
    fn new_user_table<const LEVEL: u32>(&self) -> Option<UserTable<LEVEL>> {
        let pfn = self.alloc_pages(TABLE_GFP, Order::ZERO)?;
        let page = self.memmap().page(pfn.raw() as u32);
        page.flags.set(page.flags.get() | PG_OWNED);
        page._mapcount.set(PG_TABLE);
        page.private.set(0);
        self.count_tables(pfn, 1);
        // SAFETY: just allocated, cleared as asked for, and nobody else's until it is out of all tables.
        Some(unsafe { UserTable::adopt(self.direct_map(), pfn) })
    }

    fn count_tables(&self, pfn: Pfn, by: i64) {
        if let Some(node) = self.page_to_nid(pfn) {
            self.mod_node_page_state(node, NodeStat::NrPageTablePages, by);
        }
    }

    /// Makes a page that is no table any more ready to be freed (`pgtable_pte_page_dtor`).
    fn undo_table(&self, pfn: Pfn) {
        let page = self.memmap().page(pfn.raw() as u32);
        page._mapcount.set(0);
        page.flags.set(Self::pcp_flags(0));
        self.count_tables(pfn, -1);
    }

    /// Gives back a table that never was in one.
    fn free_user_table<const LEVEL: u32>(&self, table: UserTable<LEVEL>) {
        let pfn = table.pfn(self.direct_map());
        self.undo_table(pfn);
        self.free_page(pfn);
    }

    /// Gives `space`, which has none, a top table (`mm_alloc_pgd`). False if there is no memory.
    #[must_use]
    pub(crate) fn pgd_alloc(&self, space: Space) -> bool {
        // Before the kernel's half is copied, all that will ever be there is.
        if !self.vmalloc_ready(Gfp::KERNEL) {
            return false;
        }
        let Some(root): Option<Pgd> = self.new_user_table() else { return false };
        root.set_root(self.platform, space.record());
        true
    }

    /// Gives back the top table of `space`, which is all that is left of its tables and which no CPU uses any more
    /// (`mm_free_pgd`).
    pub(crate) fn pgd_free(&self, space: Space) {
        if let Some(root) = Pgd::take_root(self.direct_map(), space.record()) {
            self.free_user_table(root);
        }
    }

    /// The page table that `virt` goes through, if there is one.
    #[inline(always)]
    pub(crate) fn page_table(&self, space: &MmStruct, virt: u64) -> Option<PageTable> {
        let map = self.direct_map();
        Pgd::root(map, space)?.next(map, virt)?.next(map, virt)?.next(map, virt)
    }

    /// The page table that `virt` goes through; tables that are missing on the way there are added (`pte_alloc`). `None`
    /// if there is no memory.
    #[inline(always)]
    pub(crate) fn page_table_alloc(&self, space: &MmStruct, virt: u64) -> Option<PageTable> {
        match self.page_table(space, virt) {
            Some(table) => Some(table),
            None => self.page_table_add(space, virt),
        }
    }

    /// `__pud_alloc`, `__pmd_alloc`, `__pte_alloc`.
    #[cold]
    #[inline(never)]
    fn page_table_add(&self, space: &MmStruct, virt: u64) -> Option<PageTable> {
        if virt >= TASK_SIZE_MAX {
            return None;
        }
        macro_rules! descend {
            ($table:expr) => {{
                let (map, table) = (self.direct_map(), $table);
                match table.next(map, virt) {
                    Some(next) => next,
                    None => {
                        let new = self.new_user_table()?;
                        sync::lock(&space.page_table_lock, || self.platform.relax());
                        // Somebody else may have been faster.
                        let found = table.next(map, virt);
                        if found.is_none() {
                            table.link(map, virt, new);
                            space.pgtables_bytes.fetch_add(PAGE_SIZE, Relaxed);
                        }
                        sync::unlock(&space.page_table_lock);
                        match found {
                            Some(found) => {
                                self.free_user_table(new);
                                found
                            }
                            None => new,
                        }
                    }
                }
            }};
        }
        let root = Pgd::root(self.direct_map(), space)?;
        Some(descend!(descend!(descend!(root))))
    }

    /// Takes the lock of a page table's entries (`pte_lockptr`, `spin_lock`).
    #[inline(always)]
    pub(crate) fn lock_table(&self, table: PageTable) -> PteLock {
        let frame = table.pfn(self.direct_map()).raw() as u32;
        let word = &self.memmap().page(frame).private;
        sync::lock(word, || self.platform.relax());
        PteLock(word)
    }

    /// Frees the tables that serve nothing but addresses from `start` up to `end`, where nothing is mapped any more.
    /// `floor` and `ceiling` are the end of the area below and the start of the one above, 0 for none
    /// (`free_pgd_range`, `free_pgtables`).
    pub(crate) fn free_pgd_range(&self, gather: &mut Gather<'_, P>, start: u64, end: u64, floor: u64, ceiling: u64) {
        const PMD: u64 = level_size(1);
        // As Linux has it, for ranges that share their first or last table with somebody.
        let mut start = start & !(PMD - 1);
        if start < floor {
            start += PMD;
        }
        let ceiling = if ceiling == 0 { u64::MAX } else { ceiling & !(PMD - 1) };
        let end = end.min(ceiling);
        if start >= end {
            return;
        }
        let bounds = Bounds { floor, ceiling };
        let map = self.direct_map();
        let Some(root) = Pgd::root(map, gather.space()) else { return };
        let mut virt = start;
        while virt < end {
            let stop = table_end(virt, end, 2);
            if let Some(pud) = root.next(map, virt) {
                self.free_pud_range(gather, pud, virt, stop, bounds);
                if bounds.covers(virt, 3) {
                    root.unlink(virt);
                    self.retire_table(gather, pud.pfn(map));
                }
            }
            virt = stop;
        }
    }

    fn free_pud_range(&self, gather: &mut Gather<'_, P>, pud: UserTable<2>, start: u64, end: u64, bounds: Bounds) {
        let map = self.direct_map();
        let mut virt = start;
        while virt < end {
            let stop = table_end(virt, end, 1);
            if let Some(pmd) = pud.next(map, virt) {
                self.free_pmd_range(gather, pmd, virt, stop);
                if bounds.covers(virt, 2) {
                    pud.unlink(virt);
                    self.retire_table(gather, pmd.pfn(map));
                }
            }
            virt = stop;
        }
    }

    fn free_pmd_range(&self, gather: &mut Gather<'_, P>, pmd: UserTable<1>, start: u64, end: u64) {
        let map = self.direct_map();
        let mut virt = start;
        while virt < end {
            let stop = table_end(virt, end, 0);
            if let Some(table) = pmd.next(map, virt) {
                pmd.unlink(virt);
                self.retire_table(gather, table.pfn(map));
            }
            virt = stop;
        }
    }

    /// Lets a table go that was taken out: when no CPU remembers it any more (`pte_free_tlb`, `mm_dec_nr_ptes`).
    fn retire_table(&self, gather: &mut Gather<'_, P>, pfn: Pfn) {
        gather.space().pgtables_bytes.fetch_sub(PAGE_SIZE, Relaxed);
        self.undo_table(pfn);
        gather.remove_table(pfn);
    }
}

/// What addresses tables may serve that are to go.
#[derive(Clone, Copy)]
struct Bounds {
    floor: u64,
    ceiling: u64,
}

impl Bounds {
    /// Whether what is behind the entry of `level` for `virt` lies in the bounds.
    fn covers(self, virt: u64, level: u32) -> bool {
        let start = virt & !(level_size(level) - 1);
        start >= self.floor && start + (level_size(level) - 1) < self.ceiling
    }
}
