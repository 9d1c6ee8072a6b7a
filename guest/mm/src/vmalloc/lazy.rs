//! Giving addresses back, many at a time.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::units::{PAGE_SHIFT, VirtAddr};

use super::area::merge_or_add;
use crate::Mm;
use crate::pgtable::TableChain;
use crate::platform::Platform;
use crate::raw::AreaRef;
use crate::sync::Plain;

impl<P: Platform> Mm<P> {
    /// Pages of address space that may wait to be purged: 32 MiB, doubled with the number of CPUs' bits
    /// (`lazy_max_pages`).
    pub fn lazy_max_pages(&self) -> u64 {
        let bits = u64::from(usize::BITS - self.cpus.len().leading_zeros());
        bits * ((32 << 20) >> PAGE_SHIFT)
    }

    /// Leaves the addresses of `area`, which is in no tree, counted by `lazy_nr` and unmapped, to the next purge
    /// (`free_vmap_area_noflush`). Purges if that makes them too many.
    pub(super) fn free_vmap_area_lazy(&self, area: AreaRef) {
        let held = self.lock_areas();
        let unneeded = merge_or_add(held.purge, area);
        drop(held);
        self.free_areas(unneeded);
        if self.vmalloc_state().lazy_nr.get() > self.lazy_max_pages() && !self.platform.in_interrupt() {
            self.purge_vmap_areas();
        }
    }

    /// Makes all CPUs forget the addresses that were freed since the last time, gives back the page tables that have
    /// become empty, and then the addresses (`__purge_vmap_area_lazy`). False if there was nothing to do. Not from
    /// interrupts.
    pub fn purge_vmap_areas(&self) -> bool {
        let held = self.lock_areas();
        let first = held.purge.take_all();
        drop(held);
        let Some(first) = first else { return false };
        let mut tables = TableChain::default();
        let mut end = 0;
        let mut node = Some(first);
        while let Some(area) = node {
            end = area.end();
            self.detach_empty_tables(area.start(), end, &mut tables);
            node = area.next();
        }
        // The same makes them forget the tables.
        self.platform.flush_kernel_range(VirtAddr::new(first.start()), VirtAddr::new(end));
        self.free_tables(tables);
        let state = self.vmalloc_state();
        let mut node = Some(first);
        while let Some(area) = node {
            node = area.next();
            let pages = area.size() >> PAGE_SHIFT;
            let held = self.lock_areas();
            let unneeded = merge_or_add(held.free, area);
            drop(held);
            state.lazy_nr.fetch_sub(pages, Relaxed);
            self.free_areas(unneeded);
        }
        state.purges.fetch_add(1, Relaxed);
        true
    }

    pub(super) fn free_areas(&self, areas: [Option<AreaRef>; 2]) {
        areas.into_iter().flatten().for_each(|area| self.free_area(area));
    }
}
