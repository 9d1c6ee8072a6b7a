//! Tables: where they come from, what they count, where they go.
#![allow(unsafe_code, reason = "makes pages of its own into tables")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::layout::VMALLOC_START;
use pagevisor_shared::page::{PG_TABLE, decode_next, encode_next};
use pagevisor_shared::page_flags::PG_OWNED;
use pagevisor_shared::pgtable::{PMD_SHIFT, TOP_LEVEL, level_size, table_end};
use pagevisor_shared::units::{Order, Pfn};
use pagevisor_shared::vmstat::NodeStat;

use crate::Mm;
use crate::platform::{IrqFlags, Platform};
use crate::raw::Table;
use crate::sync::{self, Plain};

/// Guards which tables there are.
#[derive(Debug)]
pub(crate) struct TableLock {
    word: AtomicU32,
    /// The page table that was last used: its frame, and above it the number of the 2 MiB that it is for, plus 1. Written
    /// under the lock, and forgotten when the table is taken out.
    last: AtomicU64,
}

impl TableLock {
    pub(crate) const fn new() -> Self {
        Self { word: AtomicU32::new(0), last: AtomicU64::new(0) }
    }
}

/// What is in [`TableLock::last`] above the frame for a table that `virt` goes through.
#[inline(always)]
const fn last_of(virt: u64) -> u64 {
    (virt.wrapping_sub(VMALLOC_START) >> PMD_SHIFT).wrapping_add(1)
}

/// The lock is held and interrupts are off.
pub(super) struct Held<'a, P: Platform> {
    mm: &'a Mm<P>,
    irq: IrqFlags,
}

impl<P: Platform> Drop for Held<'_, P> {
    #[inline]
    fn drop(&mut self) {
        sync::unlock(&self.mm.table_lock.word);
        self.mm.platform.irq_restore(self.irq);
    }
}

impl<P: Platform> Mm<P> {
    #[inline]
    pub(super) fn lock_tables(&self) -> Held<'_, P> {
        let irq = self.platform.irq_save();
        sync::lock(&self.table_lock.word, || self.platform.relax());
        Held { mm: self, irq }
    }

    /// The page table for `virt`, if it is the one that was last used. For who holds the lock, or has entries for `virt`
    /// counted.
    #[inline(always)]
    pub(super) fn last_table(&self, virt: u64) -> Option<Table> {
        let last = self.table_lock.last.get();
        if last >> 32 != last_of(virt) {
            return None;
        }
        // SAFETY: it was in the tables for `virt` when it was noted, and is forgotten when it is taken out, which does not
        // happen while the lock is held or entries in it are counted.
        Some(unsafe { Table::adopt(self.direct_map(), Pfn::new(last & u64::from(u32::MAX)), 0) })
    }

    /// Notes the page table that `virt` goes through. Under the lock.
    #[inline]
    pub(super) fn note_table(&self, virt: u64, table: Table) {
        if table.level() == 0 {
            self.table_lock.last.set(last_of(virt) << 32 | table.pfn().raw());
        }
    }

    /// A new table of `level` (`pte_alloc_one_kernel` and so on).
    pub(super) fn new_table(&self, level: u32, gfp: Gfp) -> Option<Table> {
        let plain = gfp.without(Gfp::HIGHMEM | Gfp::COMP | Gfp::DMA | Gfp::DMA32 | Gfp::MOVABLE);
        let pfn = self.alloc_pages(plain | Gfp::ZERO, Order::ZERO)?;
        let page = self.memmap().page(pfn.raw() as u32);
        page.flags.fetch_or(PG_OWNED, Relaxed);
        page._mapcount.set(PG_TABLE);
        self.count_table(pfn, 1);
        // SAFETY: just allocated, cleared as asked for, and nobody else's; `free_table` gives it back once it is out of
        // all tables.
        Some(unsafe { Table::adopt(self.direct_map(), pfn, level) })
    }

    /// Gives back a table that nothing leads to any more.
    pub(super) fn free_table(&self, table: Table) {
        let page = self.memmap().page(table.pfn().raw() as u32);
        page._mapcount.set(0);
        page.private.set(0);
        self.count_table(table.pfn(), -1);
        self.free_page(table.pfn());
    }

    fn count_table(&self, pfn: Pfn, by: i64) {
        if let Some(node) = self.page_to_nid(pfn) {
            self.mod_node_page_state(node, NodeStat::NrPageTablePages, by);
        }
    }

    /// The count of a table's entries. The top table has none: it is not an allocated page, and stays.
    #[inline]
    fn used(&self, table: Table) -> Option<&'static AtomicU32> {
        (table.level() < TOP_LEVEL).then(|| &self.memmap().page(table.pfn().raw() as u32).private)
    }

    /// Counts `count` more entries of `table`. Under the lock.
    #[inline]
    pub(super) fn use_entries(&self, table: Table, count: u32) {
        if let Some(used) = self.used(table) {
            used.fetch_add(count, Relaxed);
        }
    }

    /// Counts `count` entries of `table` less, which are clear.
    #[inline]
    pub(super) fn unuse_entries(&self, table: Table, count: u32) {
        if let Some(used) = self.used(table) {
            // Release pairs with the acquire below: who finds the table empty finds its entries clear.
            used.fetch_sub(count, Release);
        }
    }

    fn is_empty(&self, table: Table) -> bool {
        self.used(table).is_some_and(|used| used.load(Acquire) == 0)
    }

    /// Takes out all tables without entries that addresses from `start` up to `end` go through, and puts them on
    /// `chain`.
    pub(crate) fn detach_empty_tables(&self, start: u64, end: u64, chain: &mut TableChain) {
        let map = self.direct_map();
        let root = Table::root(self.platform);
        let mut virt = start;
        while virt < end {
            // Not longer than it takes for a gigabyte.
            let stop = table_end(virt, end, 1);
            let held = self.lock_tables();
            virt = match root.next(map, virt) {
                None => table_end(virt, end, TOP_LEVEL - 1),
                Some(pdpt) => {
                    if let Some(pd) = pdpt.next(map, virt) {
                        self.detach_page_tables(pd, virt, stop, chain);
                        if self.is_empty(pd) {
                            pdpt.unlink(virt);
                            self.unuse_entries(pdpt, 1);
                            self.chain_push(chain, pd);
                        }
                    }
                    stop
                }
            };
            drop(held);
        }
    }

    /// As [`Self::detach_empty_tables`], the page tables behind one directory.
    fn detach_page_tables(&self, pd: Table, start: u64, end: u64, chain: &mut TableChain) {
        let mut virt = start;
        while virt < end {
            if let Some(pt) = pd.next(self.direct_map(), virt)
                && self.is_empty(pt)
            {
                if self.last_table(virt).is_some() {
                    self.table_lock.last.set(0);
                }
                pd.unlink(virt);
                self.unuse_entries(pd, 1);
                self.chain_push(chain, pt);
            }
            virt = (virt & !(level_size(1) - 1)) + level_size(1);
        }
    }

    fn chain_push(&self, chain: &mut TableChain, table: Table) {
        let pfn = table.pfn().raw() as u32;
        self.memmap().page(pfn).next.set(encode_next(pfn, chain.first));
        chain.first = pfn;
    }

    /// Gives back the tables of `chain`, which no processor remembers any more.
    pub(crate) fn free_tables(&self, mut chain: TableChain) {
        while chain.first != 0 {
            let pfn = chain.first;
            chain.first = decode_next(pfn, self.memmap().page(pfn).next.get());
            // SAFETY: `detach_empty_tables` took it out of all tables; its level does not matter any more.
            let table = unsafe { Table::adopt(self.direct_map(), Pfn::new(pfn as u64), 0) };
            self.free_table(table);
        }
    }
}

/// Tables that were taken out, linked through their metadata.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct TableChain {
    first: u32,
}
