//! Page tables, reached through the direct map.
//!
//! What it rests on: [`Platform::kernel_root`] is a table for ever; every other table is a page that the allocator gave out
//! to be one (in this file), cleared; and entries that lead to tables are written by [`Table::link`] only: what maps
//! memory is refused where it would be taken for such. So whoever follows an entry that leads to a table arrives at
//! one. A table that is taken out ([`Table::unlink`]) is not touched any more through references that were got before:
//! `pgtable` keeps those only while it counts the entries they are for, or holds the lock of their root; and it frees
//! tables only once they are out of all others.

use core::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::layout::{VMALLOC_END, VMALLOC_START};
use pagevisor_shared::pgtable::{Entry, PMD_SHIFT, PTRS_PER_TABLE, Protection, TOP_LEVEL, USER_END, table_index};
use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn, PhysAddr};

use super::DirectMap;
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// Which of a root's addresses the memory stack's tables are for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Space {
    /// The vmalloc space, in the kernel's root.
    Kernel,
    /// The lower half, in the root of an address space.
    User,
}

impl Space {
    /// Whether `virt` is one of them.
    #[inline(always)]
    const fn has(self, virt: u64) -> bool {
        match self {
            Self::Kernel => VMALLOC_START <= virt && virt <= VMALLOC_END,
            Self::User => virt < USER_END,
        }
    }
}

/// A table of some level.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    entries: &'static [AtomicU64; PTRS_PER_TABLE],
    phys: PhysAddr,
    level: u32,
    space: Space,
}

impl Table {
    /// The kernel's top table.
    #[inline]
    pub(crate) fn root<P: Platform>(platform: &P) -> Self {
        let phys = platform.kernel_root();
        // SAFETY: a table for ever, reached through the direct map (promise of `Platform::kernel_root`).
        unsafe { Self::at(DirectMap::new(platform), phys, TOP_LEVEL, Space::Kernel) }
    }

    /// A page of `mm`'s, cleared, to be a table of `level`.
    pub(crate) fn new<P: Platform>(mm: &Mm<P>, level: u32, space: Space, gfp: Gfp) -> Option<Self> {
        let pfn = mm.alloc_pages(gfp | Gfp::ZERO, Order::ZERO)?;
        // SAFETY: just allocated, cleared as asked for, and nobody else's until it is freed (this file's promise).
        Some(unsafe { Self::at(mm.direct_map(), pfn.addr(), level, space) })
    }

    /// As [`Self::new`], `1 << order` tables of the kernel's in pages that are neighbours.
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
        Some((0..1 << order.raw()).map(move |i| unsafe { Self::at(map, first.add(i).addr(), level, Space::Kernel) }))
    }

    /// # Safety
    /// There is a table of that level.
    #[inline(always)]
    unsafe fn at(map: DirectMap, phys: PhysAddr, level: u32, space: Space) -> Self {
        // SAFETY: tables are whole pages of RAM (promise of `Platform` for the root), which the direct map makes
        // readable and writable for the life of the program; entries are atomics, valid with any content.
        Self { entries: unsafe { &*map.at(phys).cast() }, phys, level, space }
    }

    /// Its level.
    #[inline(always)]
    pub(crate) const fn level(self) -> u32 {
        self.level
    }

    /// Whose addresses it is for.
    #[inline(always)]
    pub(crate) const fn space(self) -> Space {
        self.space
    }

    /// Its frame.
    #[inline(always)]
    pub(crate) const fn pfn(self) -> Pfn {
        Pfn::containing(self.phys)
    }

    /// Whether the entry for `virt` is the memory stack's, and nobody else's. Below the top all are, since the tables are.
    #[inline(always)]
    const fn is_ours(self, virt: u64) -> bool {
        self.level < TOP_LEVEL || self.space.has(virt)
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
        self.is_ours(virt).then(|| unsafe { Self::at(map, entry.address(self.level), self.level - 1, self.space) })
    }

    /// Enters `table`, of the level below, for `virt`.
    #[inline]
    pub(crate) fn link(self, virt: u64, table: Self) {
        if self.level == table.level + 1 && self.space == table.space && self.is_ours(virt) {
            let entry = match self.space {
                Space::Kernel => Entry::to_table(table.phys),
                Space::User => Entry::to_user_table(table.phys),
            };
            self.slot(virt).store(entry.0, Release);
        }
    }

    /// Whether others than [`Self::link`] may write `entry` to a table of this level: nobody takes it for one that leads
    /// to a table.
    #[inline(always)]
    const fn may_hold(self, entry: Entry) -> bool {
        self.level == 0 || self.level == 1 && (!entry.is_present() || entry.is_leaf(1))
    }

    /// Makes of the entry for `virt`, which maps memory or nothing, what `change` makes of it; gives what it was. What
    /// the processor notes in it meanwhile is not lost. `None`, with nothing changed, if it leads to a table, or what it
    /// is to be may not be there.
    #[inline]
    pub(crate) fn update(self, virt: u64, mut change: impl FnMut(Entry) -> Entry) -> Option<Entry> {
        let changed = self.slot(virt).fetch_update(AcqRel, Relaxed, |old| {
            let new = change(Entry(old));
            (self.may_hold(Entry(old)) && self.may_hold(new)).then_some(new.0)
        });
        changed.ok().map(Entry)
    }

    /// Fills this table, which is empty and in no other, so that it maps by small pages what `large`, an entry of level 1,
    /// maps (`__split_huge_pmd_locked`).
    pub(crate) fn fill_split(self, large: Entry) {
        if self.level == 0 {
            let flags = large.0 & !Entry::ADDRESS & !Entry::LARGE;
            for (slot, phys) in self.entries.iter().zip((large.address(1).raw()..).step_by(PAGE_SIZE as usize)) {
                slot.set(phys | flags);
            }
        }
    }

    /// Takes out the large page for `virt` and enters `table`, of the level below, in its place, if what it maps still is
    /// `large`.
    pub(crate) fn link_split(self, virt: u64, large: Entry, table: Self) -> bool {
        let fits = self.level == 1 && table.level == 0 && self.space == table.space && large.is_leaf(1);
        let to = match self.space {
            Space::Kernel => Entry::to_table(table.phys),
            Space::User => Entry::to_user_table(table.phys),
        };
        fits && self.slot(virt).compare_exchange(large.0, to.0, Release, Relaxed).is_ok()
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

/// The page table of the kernel's that was last used, and the 2 MiB that it is for.
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
        Some(unsafe { Table::at(map, Pfn::new(last & u64::from(u32::MAX)).addr(), 0, Space::Kernel) })
    }

    /// Notes the page table that `virt` goes through. Under the lock.
    #[inline]
    pub(crate) fn note(&self, virt: u64, table: Table) {
        if table.level == 0 && table.space == Space::Kernel {
            self.0.set(Self::number(virt) << 32 | table.pfn().raw());
        }
    }

    /// Forgets it. Under the lock.
    pub(crate) fn forget(&self) {
        self.0.set(0);
    }
}

/// The top table of an address space of its own.
#[derive(Debug)]
pub(crate) struct Root {
    pfn: Pfn,
    map: DirectMap,
}

impl Root {
    /// A new one without mappings in the lower half; in the upper one it has what the kernel's root has.
    pub(crate) fn new<P: Platform>(mm: &Mm<P>, gfp: Gfp) -> Option<Self> {
        let table = Table::new(mm, TOP_LEVEL, Space::User, gfp)?;
        let kernel = Table::root(mm.platform);
        for (slot, entry) in table.entries.iter().zip(kernel.entries).skip(PTRS_PER_TABLE / 2) {
            slot.set(entry.get());
        }
        Some(Self { pfn: table.pfn(), map: mm.direct_map() })
    }

    /// The table. For who holds the lock of the address space.
    #[inline(always)]
    pub(crate) fn table(&self) -> Table {
        // SAFETY: `new` made the page one, and it is freed only by whoever has this value to itself and gives it up.
        unsafe { Table::at(self.map, self.pfn.addr(), TOP_LEVEL, Space::User) }
    }

    /// Its frame.
    pub(crate) const fn pfn(&self) -> Pfn {
        self.pfn
    }

    /// Whether its upper half is as the kernel's root has it now (`pgd` entries of `KERNEL_PGD_BOUNDARY` and on).
    pub(crate) fn has_kernel_half<P: Platform>(&self, platform: &P) -> bool {
        let halves = self.table().entries.iter().zip(Table::root(platform).entries).skip(PTRS_PER_TABLE / 2);
        // What the processor notes in entries does not count.
        let noted = |slot: &AtomicU64| slot.get() & !(Entry::ACCESSED | Entry::DIRTY);
        halves.into_iter().all(|(ours, kernels)| noted(ours) == noted(kernels))
    }
}
