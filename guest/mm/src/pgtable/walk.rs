//! Going through the pages that are mapped in a range of addresses (`mm/pagewalk.c`).

use core::cell::Cell;

use pagevisor_shared::pgtable::{Entry, Protection, level_size, table_end};
use pagevisor_shared::units::{Order, PAGE_SHIFT, VirtAddr};

use crate::Mm;
use crate::platform::Platform;
use crate::raw::Table;

/// An entry that maps a page, small or large, or notes where one went. It is seen under the lock of the tables.
#[derive(Debug)]
pub struct Leaf {
    table: Table,
    virt: u64,
    /// Whether it was cleared.
    cleared: Cell<bool>,
}

impl Leaf {
    /// The first address of the page.
    pub const fn virt(&self) -> VirtAddr {
        VirtAddr::new(self.virt)
    }

    /// 0 for a small page, 1 for a large one.
    pub const fn level(&self) -> u32 {
        self.table.level()
    }

    /// Bytes of the page.
    pub const fn bytes(&self) -> u64 {
        level_size(self.table.level())
    }

    /// The order of a block of that size.
    pub fn order(&self) -> Order {
        Order::new(self.bytes().ilog2() - PAGE_SHIFT).unwrap_or_default()
    }

    /// The entry as it is now.
    #[inline]
    pub fn entry(&self) -> Entry {
        self.table.get(self.virt)
    }

    /// Clears the entry; gives what it was to the last note of the processor (`ptep_get_and_clear`).
    #[inline]
    pub fn take(&self) -> Entry {
        let old = self.table.update(self.virt, |_| Entry::NONE).unwrap_or(Entry::NONE);
        self.cleared.set(self.cleared.get() || !old.is_none());
        old
    }

    /// Makes of the entry what `change` makes of it, unless that is nothing or what may not be there (then it stays); gives
    /// what it was. What the processor notes meanwhile is not lost (`ptep_modify_prot_start`, `_commit`).
    #[inline]
    pub fn update(&self, mut change: impl FnMut(Entry) -> Entry) -> Entry {
        let change = |old: Entry| {
            // What was taken stays so.
            let new = if old.is_none() { old } else { change(old) };
            if new.is_none() { old } else { new }
        };
        self.table.update(self.virt, change).unwrap_or_else(|| self.entry())
    }

    /// Allows what `protection` does, if a page is mapped (`change_pte_range`). Gives what the entry was.
    pub fn protect(&self, protection: Protection) -> Entry {
        self.update(|old| if old.is_present() { old.modified(protection) } else { old })
    }

    /// Whether the page was used since the last time; from now on it was not (`ptep_test_and_clear_young`).
    pub fn test_and_clear_young(&self) -> bool {
        self.update(|old| if old.is_present() { old.without(Entry::ACCESSED) } else { old }).is_young()
    }

    /// Whether the page was written to since the last time; from now on it was not, and may not be written to without a
    /// fault, by which one learns of the next time (`clear_page_dirty_for_io`'s `page_mkclean_one`).
    pub fn clean(&self) -> bool {
        let clean = |old: Entry| old.without(Entry::DIRTY | Entry::WRITABLE);
        let old = self.update(|old| if old.is_present() { clean(old) } else { old });
        old.is_present() && old.is_dirty()
    }
}

/// Visits what is mapped behind the lowest table, or the missing one, that `virt` goes through from `root` on; gives the
/// address to go on from. Under the lock.
pub(super) fn walk_table<P: Platform>(
    mm: &Mm<P>,
    root: Table,
    virt: u64,
    end: u64,
    visit: &mut impl FnMut(&Leaf),
) -> u64 {
    let map = mm.direct_map();
    let mut table = root;
    while let Some(next) = table.next(map, virt) {
        table = next;
    }
    let level = table.level();
    // Missing entries of a table are passed over at once, and so are pages of a page table.
    let (mut virt, stop) = (virt, table_end(virt, end, level));
    while virt < stop {
        let page = virt & !(level_size(level) - 1);
        if !table.get(page).is_none() {
            if table.next(map, page).is_some() {
                return virt;
            }
            let leaf = Leaf { table, virt: page, cleared: Cell::new(false) };
            visit(&leaf);
            if leaf.cleared.get() {
                mm.unuse_entries(table, 1);
            }
        }
        virt = (page + level_size(level)).min(stop);
    }
    virt
}
