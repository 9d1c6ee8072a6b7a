//! Fragments of pages (`page_frag_alloc`): memory of any size below a page, cut from the end of a block to its start,
//! where one thing after the other is allocated and all are freed soon, such as buffers of packets.
//!
//! Every fragment holds a reference to its block, so whoever frees the last one frees the block. As taking references
//! one by one is dear, the cache takes more than it can ever use at once, and keeps in mind how many are left.

use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::page::Page;
use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn, VirtAddr};

use super::free::allocated_order;
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// Bytes of a block that fragments are cut from (`PAGE_FRAG_CACHE_MAX_SIZE`), and how many fragments there can be of it.
pub const PAGE_FRAG_CACHE_MAX_SIZE: u32 = 32 << 10;

/// A block that fragments are cut from (`struct page_frag_cache`). One CPU at a time uses it. Before it is dropped,
/// [`Mm::page_frag_cache_drain`] gives up the block.
#[derive(Debug, Default)]
pub struct PageFragCache {
    /// The first frame; 0 for none.
    pfn: u32,
    /// Bytes of the block.
    size: u32,
    /// Where the last fragment starts.
    offset: u32,
    /// References that are the cache's.
    pagecnt_bias: u32,
}

impl PageFragCache {
    /// No block yet.
    pub const fn new() -> Self {
        Self { pfn: 0, size: 0, offset: 0, pagecnt_bias: 0 }
    }
}

impl<P: Platform> Mm<P> {
    /// Allocates `size` bytes, at a multiple of `align`, a power of two (`page_frag_alloc_align`). More than
    /// [`PAGE_FRAG_CACHE_MAX_SIZE`] can never be had, and more than a page only as long as memory is not short. To be
    /// freed by [`Self::page_frag_free`], by whomever and in any order.
    pub fn page_frag_alloc_align(
        &self,
        cache: &mut PageFragCache,
        size: u32,
        gfp: Gfp,
        align: u32,
    ) -> Option<VirtAddr> {
        if size == 0 || size > PAGE_FRAG_CACHE_MAX_SIZE || !align.is_power_of_two() {
            return None;
        }
        if cache.pfn == 0 {
            self.page_frag_refill(cache, gfp)?;
        }
        // A block without a reference left, but the cache's own, is as good as new: so this comes around at most once.
        let start = loop {
            if let Some(start) = cache.offset.checked_sub(size) {
                break start;
            }
            let page = self.memmap().page(cache.pfn);
            if drop_references(page, cache.pagecnt_bias) {
                // Nobody else has it.
                page._refcount.store(PAGE_FRAG_CACHE_MAX_SIZE + 1, Release);
                cache.pagecnt_bias = PAGE_FRAG_CACHE_MAX_SIZE + 1;
                cache.offset = cache.size;
                // Too large for a block of a single page. It is kept: to free it could make things worse.
                break cache.size.checked_sub(size)?;
            }
            // The fragments that are left free it.
            cache.pfn = 0;
            self.page_frag_refill(cache, gfp)?;
        };
        cache.pagecnt_bias -= 1;
        cache.offset = start & align.wrapping_neg();
        Some(VirtAddr::new(self.virt(Pfn::new(cache.pfn as u64).addr()).raw() + cache.offset as u64))
    }

    /// As [`Self::page_frag_alloc_align`], at any address (`page_frag_alloc`).
    pub fn page_frag_alloc(&self, cache: &mut PageFragCache, size: u32, gfp: Gfp) -> Option<VirtAddr> {
        self.page_frag_alloc_align(cache, size, gfp, 1)
    }

    /// Gets a new block, as large as can be had without trouble (`__page_frag_cache_refill`).
    fn page_frag_refill(&self, cache: &mut PageFragCache, gfp: Gfp) -> Option<()> {
        let order = Order::for_bytes(PAGE_FRAG_CACHE_MAX_SIZE as u64)?;
        let gfp = gfp.without(Gfp::HIGHMEM);
        let easily = gfp | Gfp::COMP | Gfp::NOWARN | Gfp::NORETRY | Gfp::NOMEMALLOC;
        let (first, size) = match self.alloc_pages(easily, order) {
            Some(first) => (first, PAGE_FRAG_CACHE_MAX_SIZE),
            None => (self.alloc_pages(gfp, Order::ZERO)?, PAGE_SIZE as u32),
        };
        let pfn = first.raw() as u32;
        // Added, not set: somebody may hold a reference already who found it by its number (`get_page_unless_zero`).
        self.memmap().page(pfn)._refcount.fetch_add(PAGE_FRAG_CACHE_MAX_SIZE, Relaxed);
        *cache = PageFragCache { pfn, size, offset: size, pagecnt_bias: PAGE_FRAG_CACHE_MAX_SIZE + 1 };
        Some(())
    }

    /// Frees a fragment (`page_frag_free`).
    pub fn page_frag_free(&self, addr: VirtAddr) {
        match self.phys(addr) {
            Some(phys) => self.put_page(Pfn::containing(phys)),
            None => self.report_no_page(Pfn::new(u64::MAX), "address below the direct map"),
        }
    }

    /// Gives up the block of a cache; the fragments that are still in use keep it (`__page_frag_cache_drain`).
    pub fn page_frag_cache_drain(&self, cache: &mut PageFragCache) {
        let PageFragCache { pfn, pagecnt_bias, .. } = core::mem::take(cache);
        let Some(index) = (pfn != 0).then(|| self.page_zone(Pfn::new(pfn as u64))).flatten() else { return };
        let page = self.memmap().page(pfn);
        if drop_references(page, pagecnt_bias) {
            self.free_the_page(index, pfn, allocated_order(page.flags.get()));
        }
    }
}

/// Drops references; tells whether those were all (`page_ref_sub_and_test`).
fn drop_references(page: &Page, count: u32) -> bool {
    // AcqRel: what others did with their fragments comes before the block's next use.
    page._refcount.fetch_sub(count, AcqRel) == count
}
