//! Which pages a program has, for those who ask (`mm/pagewalk.c`, `fs/proc/task_mmu.c`).

use core::sync::atomic::Ordering::{Acquire, Relaxed};

use pagevisor_shared::errno::Errno;
use pagevisor_shared::pgtable::{Entry, level_size};
use pagevisor_shared::report::process::MappedPage;
use pagevisor_shared::units::{NodeId, PAGE_SIZE, Pfn, VirtAddr};

use super::pte::Pte;
use crate::Mm;
use crate::mmap::{Space, vma_at_or_above};
use crate::platform::Platform;

/// A page that is mapped.
#[derive(Clone, Copy, Debug)]
pub struct UserPage {
    /// Where.
    pub addr: VirtAddr,
    /// The frame.
    pub pfn: Pfn,
    /// What is known of it; nothing for the zero page, which is nobody's.
    pub page: Option<MappedPage>,
}

impl<P: Platform> Mm<P> {
    /// Calls `look` with each page that is mapped from `start` up to `end` in areas of `space`, in order of address
    /// (`walk_page_range`). Areas stay as they are meanwhile, pages may come and go; it must not sleep.
    pub fn for_each_user_page(&self, space: Space, start: VirtAddr, end: VirtAddr, mut look: impl FnMut(&UserPage)) {
        let _held = self.mmap_read_lock(space);
        let mut addr = start.raw();
        while addr < end.raw()
            && let Some(vma) = vma_at_or_above(space, addr)
        {
            addr = addr.max(vma.start());
            let last = vma.end().min(end.raw());
            while addr < last {
                // As far as one table goes.
                let stop = (addr | (level_size(1) - 1)).saturating_add(1).min(last);
                let Some(table) = self.page_table(space.record(), addr) else {
                    addr = stop;
                    continue;
                };
                for at in (addr..stop).step_by(PAGE_SIZE as usize) {
                    let pte = Pte(table.word(at).load(Acquire));
                    if pte.keeps_page() {
                        look(&self.user_page_at(VirtAddr::new(at), pte));
                    }
                }
                addr = stop;
            }
        }
    }

    /// The node of the page at `addr`, which is brought in if it is not there: the zero page, if nothing was written yet
    /// (`lookup_node`).
    ///
    /// # Errors
    /// EFAULT if nothing is mapped there, if it may not be read or if a file does not have it, ENOMEM if there is no memory.
    pub fn lookup_node(&self, space: Space, addr: VirtAddr) -> Result<NodeId, Errno> {
        self.with_page(space, addr, false, |pfn, _| self.page_to_nid(pfn))?.ok_or(Errno::EFAULT)
    }

    /// The node of the page that is at `addr` (`do_pages_stat_array`).
    ///
    /// # Errors
    /// EFAULT if nothing is mapped there, and for the zero page, which is nobody's. ENOENT if there is no page: Linux 6.1 says
    /// so only of files' memory, but by accident, and later ones agree with `move_pages(2)` again.
    pub fn node_of_page(&self, space: Space, addr: VirtAddr) -> Result<NodeId, Errno> {
        let guard = self.area_guard(space, addr).ok_or(Errno::EFAULT)?;
        let pte = Pte(self.entry_at(space, guard.vma(), addr).ok_or(Errno::ENOENT)?.0);
        if pte.is_special() { Err(Errno::EFAULT) } else { self.page_to_nid(pte.pfn()).ok_or(Errno::EFAULT) }
    }

    fn user_page_at(&self, addr: VirtAddr, pte: Pte) -> UserPage {
        let pfn = pte.pfn();
        if pte.is_special() {
            return UserPage { addr, pfn, page: None };
        }
        let page = self.user_page(pte.frame());
        let known = MappedPage::new(
            Entry(pte.0),
            page.flags.load(Relaxed),
            page._mapcount.load(Relaxed),
            page.mapping.load(Relaxed),
            self.page_to_nid(pfn).map_or(0, |node| node.index()),
        );
        UserPage { addr, pfn, page: Some(known) }
    }
}
