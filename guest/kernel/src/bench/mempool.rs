//! Pools with a full reserve, so that elements come from behind it.

use pagevisor_mm::Mm;
use pagevisor_mm::mempool::{Mempool, PageSource, SlabSource, Source};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::Order;

use super::{Bench, Pages, print};
use crate::platform::Kernel;

/// Elements in reserve.
const RESERVE: usize = 16;

impl<P: Pages> Bench<'_, P> {
    pub(super) fn mempool(&self, mm: &'static Mm<Kernel>) {
        let Ok(cache) = mm.kmem_cache_create("bench-pool", 256, 0, SlabFlags::HWCACHE_ALIGN, None) else { return };
        self.pool("mempool_slab256_hot", mm, SlabSource(cache));
        mm.kmem_cache_destroy(cache);
        self.pool("mempool_page_hot", mm, PageSource(Order::ZERO));
    }

    fn pool<S: Source<Kernel>>(&self, name: &str, mm: &'static Mm<Kernel>, source: S) {
        let Ok(pool) = mm.mempool_create(RESERVE, source) else {
            return print(format_args!("bench: no memory for a pool"));
        };
        self.each(name, 1000, || {
            if let Some(element) = alloc(&pool) {
                free(&pool, element);
            }
        });
        self.halves(name, |allocs, frees| {
            for _ in 0..1000 {
                let mut element = None;
                allocs.time(|| element = alloc(&pool));
                if let Some(element) = element {
                    frees.time(|| free(&pool, element));
                }
            }
        });
    }
}

#[inline(never)]
fn alloc<S: Source<Kernel>>(pool: &Mempool<'_, Kernel, S>) -> Option<S::Element> {
    pool.alloc(Gfp::KERNEL)
}

#[inline(never)]
fn free<S: Source<Kernel>>(pool: &Mempool<'_, Kernel, S>, element: S::Element) {
    pool.free(element);
}
