//! What watches objects: the gates of arrays, and what the general ways do while they are shut.
//!
//! Gates are shut while something is on that looks at objects ([`hot::OBJECTS`]), and for good where a cache is debugged.

use core::sync::atomic::Ordering::Release;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::VirtAddr;

use super::{Cache, gated};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::{self, Plain};

impl<P: Platform> Mm<P> {
    /// What the arrays of `cache` have to say in [`pagevisor_shared::slab::ArrayCache::hot`].
    fn watched(&self, cache: Cache) -> u32 {
        let debugged = if cache.flags().intersects(SlabFlags::DEBUG) { hot::ON } else { 0 };
        hot::among(self.instrumented(), hot::OBJECTS) | debugged
    }

    /// Shuts the gates of a cache that is not in use yet, if they are to be. What is on does not change meanwhile.
    pub(super) fn shut_gates(&self, cache: Cache) {
        let bits = self.watched(cache);
        if bits != 0 {
            for cpu in 0..self.slab_shape().nr_cpus {
                let array = cache.array_of(self.slab_shape(), cpu);
                array.hot.set(bits);
                array.lock.set(1);
            }
        }
    }

    /// Shuts the gates of all caches, or opens them, as [`Mm::instrumented`] says now. When it returns, allocations and
    /// frees that begin on any CPU go accordingly. Not from interrupts.
    pub(crate) fn shut_arrays(&self) {
        // Caches come and go under it, and those that come look for themselves.
        sync::lock(&self.slab.lock, || self.platform.relax());
        for cache in self.kmem_caches() {
            let bits = self.watched(cache);
            for cpu in 0..self.slab_shape().nr_cpus {
                let array = cache.array_of(self.slab_shape(), cpu);
                // Release: the holder of the other lock word sees what the holder of this one did.
                gated(array).change(|| self.platform.relax(), || array.hot.store(bits, Release));
            }
        }
        sync::unlock(&self.slab.lock);
    }

    /// Whether objects of a cache are not cleared whatever the command line asks for: what their constructor wrote, and
    /// the pattern of free ones, must stay (`slab_want_init_on_alloc`, `slab_want_init_on_free`).
    fn keeps_objects(cache: Cache) -> bool {
        cache.record().ctor.get() != 0 || cache.flags().contains(SlabFlags::POISON)
    }

    /// Whether an object is to be cleared before its owner gets it, by what is `watched`
    /// (`slab_want_init_on_alloc`).
    #[inline]
    pub(super) fn wants_zeros(cache: Cache, gfp: Gfp, watched: u32) -> bool {
        gfp.contains(Gfp::ZERO) || watched & hot::INIT_ON_ALLOC != 0 && !Self::keeps_objects(cache)
    }

    /// Clears an object that its owner gives back, if it is one (`slab_want_init_on_free`).
    #[cold]
    pub(super) fn init_on_free(&self, cache: Cache, addr: VirtAddr) {
        let slab = self.virt_to_slab(addr).map(|(pfn, _)| self.slab_page(cache, pfn));
        if !Self::keeps_objects(cache) && slab.is_some_and(|slab| slab.number(addr.raw()).is_some()) {
            self.slab_memory().fill(addr, cache.record().object_size.get() as usize, 0);
        }
    }
}
