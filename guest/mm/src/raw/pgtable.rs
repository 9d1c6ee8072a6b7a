//! Page tables, reached through the direct map.
//!
//! What it rests on: [`Platform::kernel_root`] is a table for ever; every other table is a page that the allocator gave out
//! to be one (in this file), cleared; and entries that lead to tables are written by [`Table::link`] only. So whoever
//! follows an entry that leads to a table arrives at one. A table that is taken out ([`Table::unlink`]) is not touched any
//! more through references that were got before: `pgtable` keeps those only while it counts the entries they are for, or
//! holds the lock; and it frees tables only once they are out of all others.

use core::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::layout::{VMALLOC_END, VMALLOC_START};
use pagevisor_shared::pgtable::{Entry, PMD_SHIFT, PTRS_PER_TABLE, Protection, TOP_LEVEL, table_index};
use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn, PhysAddr};

use super::DirectMap;
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// A table of some level.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    entries: &'static [AtomicU64; PTRS_PER_TABLE],
    phys: PhysAddr,
    level: u32,
}

impl Table {
    /// The kernel's top table.
    #[inline]
    pub(crate) fn root<P: Platform>(platform: &P) -> Self {
        let phys = platform.kernel_root();
        // SAFETY: a table for ever, reached through the direct map (promise of `Platform::kernel_root`).
        unsafe { Self::at(DirectMap::new(platform), phys, TOP_LEVEL) }
    }

    /// A page of `mm`'s, cleared, to be a table of `level`.
    pub(crate) fn new<P: Platform>(mm: &Mm<P>, level: u32, gfp: Gfp) -> Option<Self> {
        let pfn = mm.alloc_pages(gfp | Gfp::ZERO, Order::ZERO)?;
        // SAFETY: just allocated, cleared as asked for, and nobody else's until it is freed (this file's promise).
        Some(unsafe { Self::at(mm.direct_map(), pfn.addr(), level) })
    }

    /// As [`Self::new`], `1 << order` tables in pages that are neighbours.
    pub(crate) fn new_run<P: Platform>(
        mm: &Mm<P>,
        level: u32,
        order: Order,
        gfp: Gfp,
    ) -> Option<impl Iterator<Item = Self> + use<P>> {
        let first = mm.alloc_pages(gfp | Gfp::ZERO, order)?;
        mm.split_page(first, order);
        let map = mm.direct_map();
        // SAFETY: as in `new`, each of them by itself from here on.
        Some((0..1 << order.raw()).map(move |i| unsafe { Self::at(map, first.add(i).addr(), level) }))
    }

    /// # Safety
    /// There is a table of that level.
    #[inline(always)]
    unsafe fn at(map: DirectMap, phys: PhysAddr, level: u32) -> Self {
        // SAFETY: tables are whole pages of RAM (promise of `Platform` for the root), which the direct map makes
        // readable and writable for the life of the program; entries are atomics, valid with any content.
        Self { entries: unsafe { &*map.at(phys).cast() }, phys, level }
    }

    /// Its level.
    #[inline(always)]
    pub(crate) const fn level(self) -> u32 {
        self.level
    }

    /// Its frame.
    #[inline(always)]
    pub(crate) const fn pfn(self) -> Pfn {
        Pfn::containing(self.phys)
    }

    /// Whether the entry for `virt` is the memory stack's, and nobody else's. Below the top all are, since the tables are.
    #[inline(always)]
    const fn is_ours(self, virt: u64) -> bool {
        self.level < TOP_LEVEL || VMALLOC_START <= virt && virt <= VMALLOC_END
    }

    #[inline(always)]
    fn slot(self, virt: u64) -> &'static AtomicU64 {
        // Nine bits, so it is in range.
        &self.entries[table_index(virt, self.level)]
    }

    /// The entry for `virt`.
    #[inline(always)]
    pub(crate) fn get(self, virt: u64) -> Entry {
        Entry(self.slot(virt).get())
    }

    /// The table that the entry for `virt` leads to, if it leads to one.
    #[inline(always)]
    pub(crate) fn next(self, map: DirectMap, virt: u64) -> Option<Self> {
        // Acquire pairs with the release in `link`: who finds the table finds it cleared.
        let entry = Entry(self.slot(virt).load(Acquire));
        if self.level == 0 || !entry.is_present() || entry.is_leaf(self.level) {
            return None;
        }
        // SAFETY: only `link` writes such entries, and in the range of addresses whose tables are the memory stack's
        // (`is_ours`) nobody else writes any; it had a table of the level below.
        self.is_ours(virt).then(|| unsafe { Self::at(map, entry.address(self.level), self.level - 1) })
    }

    /// Enters `table`, of the level below, for `virt`.
    #[inline]
    pub(crate) fn link(self, virt: u64, table: Self) {
        if self.level == table.level + 1 && self.is_ours(virt) {
            self.slot(virt).store(Entry::to_table(table.phys).0, Release);
        }
    }

    /// Takes out whatever the entry for `virt` leads to or maps.
    #[inline]
    pub(crate) fn unlink(self, virt: u64) {
        if self.is_ours(virt) {
            self.slot(virt).set(0);
        }
    }

    /// Maps the `count` pages (large ones in a table of level 1) from `phys` on at `virt`, all behind this table.
    #[inline]
    pub(crate) fn fill(self, virt: u64, count: usize, phys: PhysAddr, protection: Protection) {
        if self.level > 1 {
            return;
        }
        let (mut entry, step) = match self.level {
            0 => (Entry::to_page(phys, protection).0, PAGE_SIZE),
            _ => (Entry::to_large_page(phys, protection).0, PAGE_SIZE << 9),
        };
        let Some(slots) = self.slots(virt, count) else { return };
        let (groups, rest) = slots.as_chunks::<8>();
        for group in groups {
            for slot in group {
                slot.set(entry);
                entry += step;
            }
        }
        for slot in rest {
            slot.set(entry);
            entry += step;
        }
    }

    /// As [`Self::fill`], a single page in a table of level 0.
    #[inline]
    pub(crate) fn set_page(self, virt: u64, phys: PhysAddr, protection: Protection) {
        if self.level == 0 {
            self.slot(virt).set(Entry::to_page(phys, protection).0);
        }
    }

    /// Unmaps `count` pages at `virt`, all behind this table, which leads nowhere.
    #[inline]
    pub(crate) fn clear(self, virt: u64, count: usize) {
        if self.level > 1 {
            return;
        }
        let Some(slots) = self.slots(virt, count) else { return };
        let (groups, rest) = slots.as_chunks::<8>();
        for group in groups {
            group.iter().for_each(|slot| slot.set(0));
        }
        rest.iter().for_each(|slot| slot.set(0));
    }

    #[inline(always)]
    fn slots(self, virt: u64, count: usize) -> Option<&'static [AtomicU64]> {
        let first = table_index(virt, self.level);
        self.entries.get(first..first + count)
    }
}

/// The page table that was last used, and the 2 MiB that it is for.
///
/// It is noted while it is in the tables, and forgotten when it is taken out, which does not happen while the lock is
/// held or entries in it are counted.
#[derive(Debug)]
pub(crate) struct LastTable(AtomicU64);

impl LastTable {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// What is above the frame in the word for a table that `virt` goes through: the number of the 2 MiB, plus 1.
    #[inline(always)]
    const fn number(virt: u64) -> u64 {
        (virt.wrapping_sub(VMALLOC_START) >> PMD_SHIFT).wrapping_add(1)
    }

    /// The page table for `virt`, if it is that one. For who holds the lock, or has entries for `virt` counted.
    #[inline(always)]
    pub(crate) fn get(&self, map: DirectMap, virt: u64) -> Option<Table> {
        let last = self.0.get();
        if last >> 32 != Self::number(virt) {
            return None;
        }
        // SAFETY: it was in the tables for `virt` when it was noted, and is forgotten when it is taken out (promise
        // of the type).
        Some(unsafe { Table::at(map, Pfn::new(last & u64::from(u32::MAX)).addr(), 0) })
    }

    /// Notes the page table that `virt` goes through. Under the lock.
    #[inline]
    pub(crate) fn note(&self, virt: u64, table: Table) {
        if table.level == 0 {
            self.0.set(Self::number(virt) << 32 | table.pfn().raw());
        }
    }

    /// Forgets it. Under the lock.
    pub(crate) fn forget(&self) {
        self.0.set(0);
    }
}
