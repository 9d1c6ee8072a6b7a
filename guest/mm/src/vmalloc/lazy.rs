//! Giving addresses back, many at a time.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::units::{PAGE_SHIFT, VirtAddr};

use super::area::merge_or_add;
use crate::Mm;
use crate::pgtable::TableChain;
use crate::platform::Platform;
use crate::raw::AreaRef;
use crate::sync::{self, Plain};

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
        let purge = self.lock_purge();
        let unneeded = merge_or_add(*purge, area);
        drop(purge);
        self.free_areas(unneeded);
        if self.vmalloc_state().lazy_nr.get() > self.lazy_max_pages() && !self.platform.in_interrupt() {
            self.try_purge_vmap_areas();
        }
    }

    /// Makes all CPUs forget the addresses that were freed since the last time, gives back the page tables that have
    /// become empty, and then the addresses (`__purge_vmap_area_lazy`). False if there was nothing to do. Not from
    /// interrupts.
    ///
    /// When it returns, the addresses are free that were to be purged when it was called, by this CPU or another: one
    /// purges at a time. Who waits has interrupts on, so who purges can have it forget addresses.
    pub fn purge_vmap_areas(&self) -> bool {
        let lock = &self.vmalloc_state().purge_lock;
        sync::lock(lock, || self.platform.relax());
        let purged = self.purge_vmap_areas_locked();
        sync::unlock(lock);
        purged
    }

    /// As [`Self::purge_vmap_areas`], unless somebody is at it already (`try_purge_vmap_area_lazy`): what the caller
    /// leaves is purged the next time.
    fn try_purge_vmap_areas(&self) {
        let lock = &self.vmalloc_state().purge_lock;
        if sync::try_lock(lock) {
            self.purge_vmap_areas_locked();
            sync::unlock(lock);
        }
    }

    fn purge_vmap_areas_locked(&self) -> bool {
        let first = self.lock_purge().take_all();
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
            let free = self.lock_free();
            let unneeded = merge_or_add(*free, area);
            drop(free);
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
