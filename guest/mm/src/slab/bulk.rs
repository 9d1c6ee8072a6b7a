//! Many objects at once (`kmem_cache_alloc_bulk`, `kmem_cache_free_bulk`).

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabWord;
use pagevisor_shared::units::{PAGE_SHIFT, VirtAddr};

use super::Cache;
use crate::Mm;
use crate::platform::Platform;
use crate::sync::{self, Plain};

impl<P: Platform> Mm<P> {
    /// Fills `objects` with objects of `cache`, or, if there are not that many, none of it; gives how many it filled.
    pub fn kmem_cache_alloc_bulk(&self, cache: Cache, gfp: Gfp, objects: &mut [VirtAddr]) -> usize {
        let mut filled = 0;
        while filled < objects.len() {
            if !gfp.contains(Gfp::ZERO) {
                filled += self.take_from_array(cache, &mut objects[filled..]);
            }
            let Some(slot) = objects.get_mut(filled) else { break };
            // The array is empty now: this refills it.
            match self.kmem_cache_alloc(cache, gfp) {
                Some(object) => *slot = object,
                None => {
                    self.kmem_cache_free_bulk(cache, &objects[..filled]);
                    return 0;
                }
            }
            filled += 1;
        }
        filled
    }

    /// Takes objects out of this CPU's array, as many as it has and there is room for.
    #[inline]
    fn take_from_array(&self, cache: Cache, objects: &mut [VirtAddr]) -> usize {
        let array = cache.array(self.platform.this_cpu());
        if !sync::try_lock(&array.lock) {
            return 0;
        }
        let avail = array.avail.get();
        if avail == 0 {
            sync::unlock(&array.lock);
            return 0;
        }
        let count = objects.len().min(avail as usize);
        let entries = self.slab_memory().words(array.entry.get(), avail as usize);
        for (slot, entry) in objects.iter_mut().zip(entries[avail as usize - count..].iter().rev()) {
            *slot = VirtAddr::new(entry.get());
        }
        array.touched.set(1);
        array.avail.set(avail - count as u32);
        sync::unlock(&array.lock);
        count
    }

    /// Frees all `objects`, which are of `cache`.
    pub fn kmem_cache_free_bulk(&self, cache: Cache, objects: &[VirtAddr]) {
        let mut rest = objects;
        loop {
            rest = &rest[self.put_into_array(cache, rest)..];
            let Some((object, behind)) = rest.split_first() else { return };
            // The array is full now, or the object does not belong there.
            self.kmem_cache_free(cache, *object);
            rest = behind;
        }
    }

    /// Puts objects into this CPU's array as long as there is room and they belong there; gives how many.
    #[inline]
    fn put_into_array(&self, cache: Cache, objects: &[VirtAddr]) -> usize {
        let array = cache.array(self.platform.this_cpu());
        if !sync::try_lock(&array.lock) {
            return 0;
        }
        let (avail, limit) = (array.avail.get(), array.limit.get());
        let home = array.home.get();
        let mut count = 0;
        if avail < limit {
            let entries = self.slab_memory().words(array.entry.get(), limit as usize);
            // The page that was found to be right last: neighbours are freed together more often than not.
            let mut known = 0;
            for (slot, object) in entries[avail as usize..].iter().zip(objects) {
                let page = object.raw() >> PAGE_SHIFT;
                if page != known {
                    let Some(pfn) = self.frame_of(*object) else { break };
                    if SlabWord(self.memmap().page(pfn).mapping.get()).of_any_page() != home {
                        break;
                    }
                    known = page;
                }
                slot.set(object.raw());
                count += 1;
            }
        }
        array.avail.set(avail + count as u32);
        sync::unlock(&array.lock);
        count
    }
}
