//! What is put off: giving back chunks and pages that are not needed, and having some ready for those who cannot wait
//! (`pcpu_balance_workfn`).

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::percpu::{PCPU_BLOCK_BITS, PcpuRoot};

use super::{Locked, bits, slots};
use crate::Mm;
use crate::platform::Platform;
use crate::raw::Chunk;
use crate::sync::Plain;

/// With fewer empty pages that have memory, more are wanted (`PCPU_EMPTY_POP_PAGES_LOW`).
pub(super) const EMPTY_POP_PAGES_LOW: u64 = 2;
/// So many are made then, and more than that are given back (`PCPU_EMPTY_POP_PAGES_HIGH`).
const EMPTY_POP_PAGES_HIGH: u64 = 4;

/// How a chunk's free memory is balanced: whether there is something to give back (`pcpu_should_reclaim_chunk`).
#[inline]
pub(super) fn is_surplus(root: &PcpuRoot, chunk: Chunk) -> bool {
    if chunk.immutable.get() != 0 {
        return false;
    }
    if chunk.slot.get() == root.free_slot.get() {
        // One chunk without allocations is kept.
        return chunk.next.get() != 0 || chunk.prev.get() != 0;
    }
    let empty = chunk.nr_empty_pop_pages.get();
    root.nr_empty_pop_pages.get() > EMPTY_POP_PAGES_HIGH + u64::from(empty) && empty >= chunk.nr_pages.get() / 4
}

impl<P: Platform> Mm<P> {
    /// Does what was put off, if anything was. For whoever has time; from interrupts it does nothing.
    #[inline]
    pub fn percpu_balance(&self) {
        if let Some(root) = self.percpu.root()
            && root.balance_pending.get() != 0
            && !self.platform.in_interrupt()
        {
            self.pcpu_balance(root);
        }
    }

    #[cold]
    fn pcpu_balance(&self, root: &PcpuRoot) {
        root.balance_pending.set(0);
        self.with_pcpu_mutex(root, || {
            self.free_surplus_chunks(root);
            self.reclaim_populated(root);
            self.populate_reserve(root);
        });
    }

    /// Gives back all chunks without allocations but one (`pcpu_balance_free`).
    fn free_surplus_chunks(&self, root: &PcpuRoot) {
        loop {
            let locked = Locked::new(self.platform, root);
            let first = root.slots.get(root.free_slot.get() as usize).map_or(0, Plain::get);
            let surplus = slots::list(first).nth(1);
            if let Some(chunk) = surplus {
                slots::remove(root, chunk);
                self.leave_chunk(root, chunk);
            }
            locked.unlock();
            let Some(chunk) = surplus else { return };
            self.depopulate_where(root, chunk, || true);
            self.destroy_chunk(root, chunk);
        }
    }

    /// Takes the memory of empty pages of `chunk` as long as `more` says so, which is asked under the lock.
    fn depopulate_where(&self, root: &PcpuRoot, chunk: Chunk, more: impl Fn() -> bool) {
        let maps = chunk.maps();
        for page in (0..maps.blocks.len()).rev() {
            let locked = Locked::new(self.platform, root);
            let empty = maps.blocks[page].left_free.get() as usize == PCPU_BLOCK_BITS;
            let goes = empty && bits::test(maps.populated, page) && more();
            if goes {
                // From here on whoever allocates there waits for the mutex to have it populated.
                self.note_populated(root, chunk, page, false);
            }
            locked.unlock();
            if goes {
                self.depopulate_page(root, chunk, page, self.cpus.len());
            }
        }
    }

    /// Gives back empty pages of chunks that have many (`pcpu_reclaim_populated`).
    fn reclaim_populated(&self, root: &PcpuRoot) {
        let enough = || root.nr_empty_pop_pages.get() > EMPTY_POP_PAGES_HIGH;
        let mut next = root.chunks.get();
        // Chunks come and go under the mutex only.
        while let Some(chunk) = Chunk::at(next) {
            next = chunk.all_next.get();
            let many = chunk.nr_empty_pop_pages.get() >= chunk.nr_pages.get() / 4;
            if chunk.immutable.get() == 0 && many && enough() {
                self.depopulate_where(root, chunk, enough);
            }
        }
    }

    /// Has some empty pages ready for those who cannot wait (`pcpu_balance_populated`).
    fn populate_reserve(&self, root: &PcpuRoot) {
        let failed = root.atomic_alloc_failed.get() != 0;
        root.atomic_alloc_failed.set(0);
        let have = root.nr_empty_pop_pages.get();
        let mut wanted = match (failed, have < EMPTY_POP_PAGES_LOW) {
            (true, _) => EMPTY_POP_PAGES_HIGH,
            (false, true) => EMPTY_POP_PAGES_HIGH - have,
            (false, false) => 0,
        };
        let gfp = Gfp::KERNEL | Gfp::NORETRY | Gfp::NOWARN;
        for grown in [false, true] {
            if grown && wanted > 0 {
                // Nothing is left to populate: another chunk.
                let Some(chunk) = self.create_chunk(root, gfp) else { return };
                let locked = Locked::new(self.platform, root);
                self.enter_chunk(root, chunk);
                locked.unlock();
            }
            let mut next = root.chunks.get();
            while let Some(chunk) = Chunk::at(next).filter(|_| wanted > 0) {
                next = chunk.all_next.get();
                wanted = self.populate_some(root, chunk, wanted, gfp);
            }
        }
    }

    /// Gives up to `wanted` pages of `chunk` memory; gives how many are still wanted, 0 if there is no memory.
    fn populate_some(&self, root: &PcpuRoot, chunk: Chunk, wanted: u64, gfp: Gfp) -> u64 {
        let maps = chunk.maps();
        let mut wanted = wanted;
        for page in 0..maps.blocks.len() {
            // One with allocations is about to be populated by whoever made them.
            let free = maps.blocks[page].left_free.get() as usize == PCPU_BLOCK_BITS;
            if wanted == 0 || !free || bits::test(maps.populated, page) {
                continue;
            }
            if !self.populate_page(root, chunk, page, gfp) {
                return 0;
            }
            let locked = Locked::new(self.platform, root);
            self.note_populated(root, chunk, page, true);
            locked.unlock();
            wanted -= 1;
        }
        wanted
    }
}
