//! Slabs that are one object: of half a page and more, most are. All that such a slab needs is the metadata of its pages,
//! and where it is on its node's lists.

use core::sync::atomic::AtomicU64;

use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, Pfn};

use super::Cache;
use super::node::LockedNode;
use crate::list;
use crate::platform::Platform;
use crate::sync::Plain;

/// Flags of caches whose slabs have their list in an object, and those with which there is something beside the object.
const IN_OBJECT: SlabFlags = SlabFlags::OBJFREELIST.with(SlabFlags::DEBUG);

impl Cache {
    /// Whether each of its slabs is one object, which starts where the slab does and holds the list of free objects while
    /// it is free.
    #[inline(always)]
    pub(super) fn is_whole(self) -> bool {
        let record = self.record();
        record.num.get() == 1
            && record.colour.get() <= 1
            && record.flags.get() & IN_OBJECT.bits() == SlabFlags::OBJFREELIST.bits()
    }
}

impl<P: Platform> LockedNode<'_, P> {
    /// Takes back the first of `objects`, of a cache that [`Cache::is_whole`], as far as they are ones that were handed out;
    /// gives how many.
    #[inline(never)]
    pub(super) fn free_whole(&self, objects: &[AtomicU64]) -> usize {
        let (memmap, memory, home) = (self.memmap, self.mm.slab_memory(), self.home().0);
        let base = self.mm.virt(Pfn::new(0).addr()).raw();
        let mut count = 0;
        // Slabs that are neighbours on the list, with the last on it first, move together.
        let (mut first, mut last) = (0, 0);
        for object in objects {
            let addr = object.get();
            // What is in an array was in a slab when it came there.
            let pfn = (addr.wrapping_sub(base) >> PAGE_SHIFT) as u32;
            let page = memmap.page(pfn);
            if page.mapping.get() != home || page._mapcount.get() != 1 || addr & (PAGE_SIZE - 1) != 0 {
                break;
            }
            page._mapcount.set(0);
            page.private.set(1);
            memory.byte(addr).set(0);
            if first == 0 || list::next(pfn, page) != first {
                self.full_to_free(first, last);
                last = pfn;
            }
            first = pfn;
            count += 1;
        }
        self.full_to_free(first, last);
        self.state.free_slabs.bump(count as u64);
        count
    }

    /// Moves slabs from the list of the full ones to the front of that of the free ones: from the first to the last, as they
    /// are linked; none if those are 0.
    #[inline]
    fn full_to_free(&self, first: u32, last: u32) {
        if first != 0 {
            list::remove_chain(self.memmap, &self.state.slabs_full, first, last);
            list::push_head_chain(self.memmap, &self.state.slabs_free, first, last);
        }
    }
}
