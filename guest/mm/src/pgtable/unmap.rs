//! Unmapping (`vunmap_range_noflush`).

use pagevisor_shared::pgtable::{PMD_SIZE, table_end};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, Pfn};

use crate::Mm;
use crate::platform::Platform;
use crate::raw::Table;

impl<P: Platform> Mm<P> {
    /// Unmaps what is mapped from `start` up to `end`, a range the caller has to itself and has mapped something in each page
    /// of. Processors may remember it.
    ///
    /// Before anything at a page that is mapped is unmapped, `block` is asked how many pages from there are one block,
    /// and once they are all unmapped `done` gets its first frame and their number.
    #[inline]
    pub(crate) fn unmap_range(&self, start: u64, end: u64, block: impl Fn(Pfn) -> u64, mut done: impl FnMut(Pfn, u64)) {
        let map = self.direct_map();
        let root = Table::root(self.platform);
        let mut virt = start;
        // The block that is being unmapped, and its pages that still are mapped.
        let mut now = (Pfn::new(0), 0, 0);
        while virt < end {
            if let Some(pt) = self.last_table(virt) {
                let stop = table_end(virt, end, 0);
                let cleared = self.unmap_small(pt, virt, stop, &mut now, &block, &mut done);
                self.unuse_entries(pt, cleared);
                virt = stop;
                continue;
            }
            let pd = root.next(map, virt).and_then(|pdpt| pdpt.next(map, virt));
            let Some(pd) = pd else {
                virt = table_end(virt, end, 1);
                continue;
            };
            if let Some(pt) = pd.next(map, virt) {
                let stop = table_end(virt, end, 0);
                let cleared = self.unmap_small(pt, virt, stop, &mut now, &block, &mut done);
                self.unuse_entries(pt, cleared);
                virt = stop;
                continue;
            }
            let entry = pd.get(virt);
            let stop = table_end(virt, end, 0);
            if entry.is_leaf(1) && stop - virt == PMD_SIZE {
                let first = Pfn::containing(entry.address(1));
                pd.unlink(virt);
                self.unuse_entries(pd, 1);
                done(first, PMD_SIZE >> PAGE_SHIFT);
            }
            virt = stop;
        }
    }

    /// Unmaps the one page at `virt`, which the caller has mapped, if its table is the one that was last used; gives its
    /// frame.
    #[inline]
    pub(crate) fn unmap_single(&self, virt: u64) -> Option<Pfn> {
        let pt = self.last_table(virt)?;
        let frame = Pfn::containing(pt.get(virt).address(0));
        pt.unlink(virt);
        self.unuse_entries(pt, 1);
        Some(frame)
    }

    /// The part of [`Self::unmap_range`] behind one page table; gives how many pages were mapped.
    #[inline]
    fn unmap_small(
        &self,
        pt: Table,
        start: u64,
        end: u64,
        now: &mut (Pfn, u64, u64),
        block: &impl Fn(Pfn) -> u64,
        done: &mut impl FnMut(Pfn, u64),
    ) -> u32 {
        let mut virt = start;
        let mut cleared = 0;
        while virt < end {
            if now.2 == 0 {
                let entry = pt.get(virt);
                if !entry.is_present() {
                    virt += PAGE_SIZE;
                    continue;
                }
                let first = Pfn::containing(entry.address(0));
                let pages = block(first).max(1);
                *now = (first, pages, pages);
            }
            let pages = now.2.min((end - virt) >> PAGE_SHIFT);
            pt.clear(virt, pages as usize);
            virt += pages << PAGE_SHIFT;
            cleared += pages as u32;
            now.2 -= pages;
            if now.2 == 0 {
                done(now.0, now.1);
            }
        }
        cleared
    }
}
