//! kmalloc and slab caches.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::slab::Cache;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::VirtAddr;

use super::{Bench, Pages, now};

/// Objects of a burst.
const BURST: usize = 1024;
/// Objects allocated and freed at a time in bulk.
const BULK: usize = 64;

/// What is measured: objects by their addresses; 0 says that there was none.
pub trait Objects {
    /// `kmalloc`, with a size that the compiler knows.
    fn kmalloc<const SIZE: usize>(&self, gfp: Gfp) -> u64;
    /// `kfree`.
    fn kfree(&self, addr: u64);
    /// `kmem_cache_create`.
    fn create(&self, name: &str, size: usize, flags: SlabFlags) -> Option<Cache>;
    /// `kmem_cache_destroy`.
    fn destroy(&self, cache: Cache);
    /// `kmem_cache_alloc`.
    fn cache_alloc(&self, cache: Cache, gfp: Gfp) -> u64;
    /// `kmem_cache_free`.
    fn cache_free(&self, cache: Cache, addr: u64);
    /// `kmem_cache_alloc_bulk`: all or none; how many.
    fn cache_alloc_bulk(&self, cache: Cache, gfp: Gfp, objects: &mut [VirtAddr]) -> usize;
    /// `kmem_cache_free_bulk`.
    fn cache_free_bulk(&self, cache: Cache, objects: &[VirtAddr]);
}

impl<P: Pages + Objects> Bench<'_, P> {
    pub(super) fn slab(&self) {
        self.kmalloc::<8>(("kmalloc_8_hot", "kmalloc_8_burst1024"));
        self.kmalloc::<64>(("kmalloc_64_hot", "kmalloc_64_burst1024"));
        self.kmalloc::<192>(("kmalloc_192_hot", "kmalloc_192_burst1024"));
        self.kmalloc::<512>(("kmalloc_512_hot", "kmalloc_512_burst1024"));
        self.kmalloc::<1024>(("kmalloc_1024_hot", "kmalloc_1024_burst1024"));
        self.kmalloc::<4096>(("kmalloc_4096_hot", "kmalloc_4096_burst1024"));
        self.kmalloc::<8192>(("kmalloc_8192_hot", "kmalloc_8192_burst1024"));
        self.kmalloc::<16384>(("kmalloc_16384_hot", "kmalloc_16384_burst1024"));
        let Some(cache) = self.pages.create("bench-256", 256, SlabFlags::HWCACHE_ALIGN) else { return };
        // None of these is inlined; with a size that is known, the cache is, as in Linux.
        let alloc = || self.pages.cache_alloc(cache, Gfp::KERNEL);
        let free = |addr| self.pages.cache_free(cache, addr);
        self.object_pairs("kmem_cache_256_hot", 1000, alloc, free);
        self.object_burst("kmem_cache_256_burst1024", alloc, free);
        self.object_bulk("kmem_cache_256_bulk64", cache);
        self.pages.destroy(cache);
    }

    fn kmalloc<const SIZE: usize>(&self, names: (&str, &str)) {
        self.object_pairs(names.0, 1000, || self.pages.kmalloc::<SIZE>(Gfp::KERNEL), |addr| self.pages.kfree(addr));
        self.object_burst(names.1, || self.pages.kmalloc::<SIZE>(Gfp::KERNEL), |addr| self.pages.kfree(addr));
    }

    /// Alloc and free in turn: together in one loop, and each half timed call by call.
    #[inline(always)]
    fn object_pairs(&self, name: &str, ops: u64, alloc: impl Fn() -> u64, free: impl Fn(u64)) {
        self.each(name, ops, || free(alloc()));
        self.halves(name, |allocs, frees| {
            for _ in 0..ops {
                let mut addr = 0;
                allocs.time(|| addr = alloc());
                frees.time(|| free(addr));
            }
        });
    }

    /// All allocated, then all freed, first first.
    #[inline(always)]
    fn object_burst(&self, name: &str, alloc: impl Fn() -> u64, free: impl Fn(u64)) {
        let slots: &[AtomicU64] = &self.slots[..BURST];
        self.in_bursts(name, BURST, || {
            let start = now();
            slots.iter().for_each(|slot| slot.store(alloc(), Relaxed));
            let middle = now();
            slots.iter().for_each(|slot| free(slot.load(Relaxed)));
            [start, middle, now()]
        });
    }

    /// Many at once: per object, allocated and freed.
    fn object_bulk(&self, name: &str, cache: Cache) {
        let mut objects = [VirtAddr::new(0); BULK];
        self.in_bursts(name, BULK, || {
            let start = now();
            let got = self.pages.cache_alloc_bulk(cache, Gfp::KERNEL, &mut objects);
            let middle = now();
            self.pages.cache_free_bulk(cache, &objects[..got]);
            [start, middle, now()]
        });
    }
}
