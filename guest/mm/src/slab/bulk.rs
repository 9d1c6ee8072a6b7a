//! Many objects at once (`kmem_cache_alloc_bulk`, `kmem_cache_free_bulk`).

use core::sync::atomic::AtomicU64;

use pagevisor_shared::gfp::Gfp;
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
        let array = cache.array(self.platform);
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
        let (slots, entries) = (&mut objects[..count], &entries[avail as usize - count..]);
        let (slots, entries) = (slots.as_chunks_mut::<8>(), entries.as_chunks::<8>());
        for (slots, entries) in slots.0.iter_mut().zip(entries.0) {
            for at in 0..8 {
                slots[at] = VirtAddr::new(entries[at].get());
            }
        }
        for (slot, entry) in slots.1.iter_mut().zip(entries.1) {
            *slot = VirtAddr::new(entry.get());
        }
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
        let array = cache.array(self.platform);
        if !sync::try_lock(&array.lock) {
            return 0;
        }
        let (avail, limit) = (array.avail.get(), array.limit.get());
        let home = array.home.get();
        let mut count = 0;
        if avail < limit {
            let entries = self.slab_memory().words(array.entry.get(), limit as usize);
            count = self.put_known(home, &entries[avail as usize..], objects);
        }
        array.avail.set(avail + count as u32);
        sync::unlock(&array.lock);
        count
    }

    /// Copies objects into an array whose objects are at home in `home`, as many as there is room for; stops at one that
    /// is not. Gives how many it copied.
    #[inline]
    fn put_known(&self, home: u32, room: &[AtomicU64], objects: &[VirtAddr]) -> usize {
        // The page that was found to be right last: neighbours are freed together more often than not.
        let mut known = 0;
        let mut is_home = |object: VirtAddr| {
            let page = object.raw() >> PAGE_SHIFT;
            let right = page == known || self.slab_word(object).is_some_and(|word| word.of_any_page() == home);
            known = if right { page } else { 0 };
            right
        };
        let count = room.len().min(objects.len());
        let (room, objects) = (&room[..count], &objects[..count]);
        let mut done = 0;
        while let Some(four) = objects[done..].first_chunk::<4>()
            && let Some(slots) = room[done..].first_chunk::<4>()
        {
            let [a, b, c, d] = four.map(VirtAddr::raw);
            let same = ((a ^ b) | (a ^ c) | (a ^ d)) >> PAGE_SHIFT == 0;
            if !(same && is_home(four[0]) || four.iter().all(|object| is_home(*object))) {
                break;
            }
            slots[0].set(a);
            slots[1].set(b);
            slots[2].set(c);
            slots[3].set(d);
            done += 4;
        }
        for (slot, object) in room[done..].iter().zip(&objects[done..]) {
            if !is_home(*object) {
                break;
            }
            slot.set(object.raw());
            done += 1;
        }
        done
    }
}
