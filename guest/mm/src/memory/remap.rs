//! Pages move to other addresses (`mm/mremap.c`).

use core::sync::atomic::Ordering::AcqRel;

use pagevisor_shared::mm_types::MmStruct;
use pagevisor_shared::pgtable::{PMD_SIZE, table_end};
use pagevisor_shared::units::{PAGE_SHIFT, VirtAddr};

use crate::Mm;
use crate::mmap::Vma;
use crate::platform::Platform;
use crate::raw::{PageTable, Pgd, UserTable};
use crate::sync::{self, Plain};

impl<P: Platform> Mm<P> {
    /// Moves the pages of `vma` from `old` on to `new` on, `len` bytes; gives how many bytes it came to, which are fewer if
    /// there was no memory for tables (`move_page_tables`). The caller has locked the areas of both ranges to change them.
    pub fn move_page_tables(&self, vma: Vma, old: u64, new: u64, len: u64) -> u64 {
        let Some(space) = vma.mm() else { return 0 };
        let record = space.record();
        let mut done = 0;
        while done < len {
            let (from, to) = (old + done, new + done);
            let Some(table) = self.page_table(record, from) else {
                done = (self.next_table(record, from, old + len) - old).min(len);
                continue;
            };
            // Up to where either goes on in another table.
            let now = (table_end(from, old + len, 0) - from).min(table_end(to, new + len, 0) - to);
            if now == PMD_SIZE && self.move_table(record, from, to) {
                done += now;
                continue;
            }
            let Some(target) = self.page_table_alloc(record, to) else { break };
            self.move_entries(table, target, from, to, now);
            done += now;
        }
        if done != 0 {
            self.platform.flush_user(record, VirtAddr::new(old), VirtAddr::new(old + done), true);
        }
        done
    }

    /// Moves a whole table, if there is none yet where it goes (`move_normal_pmd`).
    fn move_table(&self, space: &MmStruct, from: u64, to: u64) -> bool {
        let map = self.direct_map();
        // The levels above are there once an entry for `to` was wanted; without them the entries are moved one by one.
        let directory = |virt: u64| -> Option<UserTable<1>> { Pgd::root(map, space)?.next(map, virt)?.next(map, virt) };
        let (Some(source), Some(target)) = (directory(from), directory(to)) else { return false };
        sync::lock(&space.page_table_lock, || self.platform.relax());
        let table = source.next(map, from);
        let moves = table.is_some() && target.next(map, to).is_none();
        if let (true, Some(table)) = (moves, table) {
            source.unlink(from);
            target.link(map, to, table);
        }
        sync::unlock(&space.page_table_lock);
        moves
    }

    /// Moves entries behind one table each (`move_ptes`).
    fn move_entries(&self, source: PageTable, target: PageTable, from: u64, to: u64, len: u64) {
        let count = (len >> PAGE_SHIFT) as usize;
        let map = self.direct_map();
        let _source_lock = self.lock_table(source);
        let _target_lock = (source.pfn(map) != target.pfn(map)).then(|| self.lock_table(target));
        for (from, to) in source.words(from, count).iter().zip(target.words(to, count)) {
            if from.get() != 0 {
                to.set(from.swap(0, AcqRel));
            }
        }
    }
}
