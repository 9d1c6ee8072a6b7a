//! The records of areas: objects of a slab cache, an area and what it is used for in one.
#![allow(unsafe_code, reason = "makes objects of its own into records")]

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabFlags;

use crate::Mm;
use crate::platform::Platform;
use crate::raw::{AREA_BYTES, AreaRef, CacheSlot};

/// The cache of records.
#[derive(Debug)]
pub(super) struct Records(CacheSlot);

impl Records {
    pub(super) const fn new() -> Self {
        Self(CacheSlot::new())
    }
}

impl<P: Platform> Mm<P> {
    /// Makes the cache. False when there is no memory for it. By one CPU at a time.
    pub(super) fn records_init(&self) -> bool {
        let slot = &self.vmalloc.records.0;
        if slot.get().is_none() {
            match self.kmem_cache_create("vmap_area", AREA_BYTES, AREA_BYTES, SlabFlags::NONE, None) {
                Ok(cache) => slot.set(cache),
                Err(_) => return false,
            }
        }
        true
    }

    /// A record.
    #[inline(always)]
    pub(super) fn new_area(&self, gfp: Gfp) -> Option<AreaRef> {
        let addr = self.kmem_cache_alloc(self.vmalloc.records.0.get()?, gfp)?;
        // SAFETY: an object of that size and alignment, nobody else's until `free_area`.
        Some(unsafe { AreaRef::adopt(addr) })
    }

    /// Gives back a record that nothing links to.
    #[inline(always)]
    pub(super) fn free_area(&self, area: AreaRef) {
        if let Some(cache) = self.vmalloc.records.0.get() {
            self.kmem_cache_free(cache, area.addr());
        }
    }
}
