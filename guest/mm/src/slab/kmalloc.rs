//! Memory of any size (`kmalloc` and its relatives).
//!
//! Up to two pages it comes from caches of fixed sizes, larger from pages directly.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::units::{NodeId, Order, PAGE_SIZE, Pfn, VirtAddr};
use pagevisor_shared::vmstat::NodeStat;

use super::Cache;
use super::fast::{Wish, object};
use crate::Mm;
use crate::page_alloc::allocated_order;
use crate::platform::Platform;
use crate::sync::Plain;

/// Largest size that comes from a cache: two pages.
pub const KMALLOC_MAX_CACHE_SIZE: usize = 2 * PAGE_SIZE as usize;
/// Largest size at all: 4 MiB.
pub const KMALLOC_MAX_SIZE: usize = Order::MAX.bytes() as usize;
/// What an allocation of no bytes gives. It is no address of anything, and may be freed.
pub const ZERO_SIZE_PTR: VirtAddr = VirtAddr::new(16);

/// Size classes, by Linux's numbers: 3 to 13 are powers of two, 1 and 2 are 96 and 192 bytes, 0 is none.
pub(super) const KMALLOC_CLASSES: usize = 14;
/// Ordinary, reclaimable, and from ZONE_DMA.
pub(super) const KMALLOC_TYPES: usize = 3;

/// Bytes of each class (`kmalloc_info`).
pub(super) const CLASS_SIZES: [u32; KMALLOC_CLASSES] =
    [0, 96, 192, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];

/// Classes of sizes up to 192, by eights (`size_index`).
const SMALL: [u8; 24] = [3, 4, 5, 5, 6, 6, 6, 6, 1, 1, 1, 1, 7, 7, 7, 7, 2, 2, 2, 2, 2, 2, 2, 2];

/// The class for `size`, which is at most [`KMALLOC_MAX_CACHE_SIZE`] and not 0 (`kmalloc_index`).
#[inline(always)]
const fn class_of(size: usize) -> usize {
    if size <= 192 { SMALL[(size - 1) >> 3] as usize } else { (usize::BITS - (size - 1).leading_zeros()) as usize }
}

/// Ordinary 0, reclaimable 1, DMA 2 (`kmalloc_type`).
#[inline(always)]
const fn type_of(gfp: Gfp) -> usize {
    if !gfp.intersects(Gfp::RECLAIMABLE.with(Gfp::DMA)) {
        0
    } else if gfp.contains(Gfp::DMA) {
        2
    } else {
        1
    }
}

impl<P: Platform> Mm<P> {
    /// The cache for `size` bytes, which is at most [`KMALLOC_MAX_CACHE_SIZE`] and not 0 (`kmalloc_slab`).
    #[inline(always)]
    pub(super) fn kmalloc_slab(&self, size: usize, gfp: Gfp) -> Cache {
        self.slab.kmalloc[type_of(gfp)][class_of(size) % KMALLOC_CLASSES].any()
    }

    /// Allocates `size` bytes, from this CPU's node if possible (`kmalloc`). For no bytes it gives [`ZERO_SIZE_PTR`].
    ///
    /// The address is a multiple of 8, and of the size if that is a power of two.
    #[inline(always)]
    pub fn kmalloc(&self, size: usize, gfp: Gfp) -> Option<VirtAddr> {
        if size.wrapping_sub(1) >= KMALLOC_MAX_CACHE_SIZE {
            return self.kmalloc_other(size, gfp, None);
        }
        object(self.slab_alloc(self.kmalloc_slab(size, gfp), gfp, Wish::bytes(gfp, size)))
    }

    /// As [`Self::kmalloc`], from `node` first (this CPU's for `None`), or from no other with `__GFP_THISNODE`
    /// (`kmalloc_node`).
    pub fn kmalloc_node(&self, size: usize, gfp: Gfp, node: Option<NodeId>) -> Option<VirtAddr> {
        if size.wrapping_sub(1) >= KMALLOC_MAX_CACHE_SIZE {
            return self.kmalloc_other(size, gfp, node);
        }
        self.slab_alloc_node(self.kmalloc_slab(size, gfp), gfp, Wish::bytes(gfp, size), node)
    }

    /// As [`Self::kmalloc`], zeros (`kzalloc`).
    #[inline]
    pub fn kzalloc(&self, size: usize, gfp: Gfp) -> Option<VirtAddr> {
        self.kmalloc(size, gfp | Gfp::ZERO)
    }

    /// `count` times `size` bytes of zeros; `None` if that is more than a number holds (`kcalloc`).
    pub fn kcalloc(&self, count: usize, size: usize, gfp: Gfp) -> Option<VirtAddr> {
        self.kzalloc(count.checked_mul(size)?, gfp)
    }

    /// Nothing, or pages (`kmalloc_large`).
    #[inline(never)]
    fn kmalloc_other(&self, size: usize, gfp: Gfp, node: Option<NodeId>) -> Option<VirtAddr> {
        if size == 0 {
            return Some(ZERO_SIZE_PTR);
        }
        let order = Order::for_bytes(size as u64)?;
        let first = self.alloc_pages_node(node, gfp.without(Gfp::HIGHMEM | Gfp::MOVABLE) | Gfp::COMP, order);
        if self.instrumented() & hot::SLAB_EVENTS != 0 {
            let addr = first.map_or(0, |first| self.virt(first.addr()).raw());
            self.trace_kmalloc(addr, size as u64, order.bytes(), gfp, node);
        }
        let first = first?;
        if let Some(node) = self.page_to_nid(first) {
            self.mod_node_page_state(node, NodeStat::NrSlabUnreclaimable, order.pages() as i64);
        }
        Some(self.virt(first.addr()))
    }

    /// The general way to free: a slab's object, nothing, or pages (`free_large_kmalloc`).
    #[cold]
    #[inline(never)]
    pub(super) fn kfree_general(&self, addr: VirtAddr) {
        if self.instrumented() & hot::SLAB_EVENTS != 0 {
            self.trace_kfree(addr);
        }
        if let Some((_, word)) = self.virt_to_slab(addr)
            && let Some(cache) = self.cache_by_id(word.cache())
        {
            return self.slab_free(cache, word, addr);
        }
        if addr.raw() <= ZERO_SIZE_PTR.raw() {
            return;
        }
        let Some((pfn, order)) = self.large_block(addr) else {
            if self.slab.bad_frees.fetch_add(1, Relaxed) == 0 {
                self.warn_free(format_args!("free_large_kmalloc: not from kmalloc"), addr);
            }
            return;
        };
        if let Some(node) = self.page_to_nid(pfn) {
            self.mod_node_page_state(node, NodeStat::NrSlabUnreclaimable, -(order.pages() as i64));
        }
        self.free_pages(pfn, order);
    }

    /// The compound page of more than two pages that starts at `addr`.
    fn large_block(&self, addr: VirtAddr) -> Option<(Pfn, Order)> {
        let pfn = Pfn::new(self.frame_of(addr)? as u64);
        self.page_zone(pfn)?;
        let page = self.memmap().page(pfn.raw() as u32);
        let flags = page.flags.get();
        let order = Order::new(allocated_order(flags)).ok()?;
        let whole = addr.raw().is_multiple_of(PAGE_SIZE) && flags & PageFlag::Head.mask() != 0;
        (whole && page._refcount.get() != 0 && order.bytes() as usize > KMALLOC_MAX_CACHE_SIZE).then_some((pfn, order))
    }

    /// How many bytes may be used at `addr`, which [`Self::kmalloc`] or a relative gave (`ksize`); 0 for nothing.
    pub fn ksize(&self, addr: VirtAddr) -> usize {
        if addr.raw() <= ZERO_SIZE_PTR.raw() {
            return 0;
        }
        match self.virt_to_cache(addr) {
            Some(cache) => cache.record().object_size.get() as usize,
            None => self.large_block(addr).map_or(0, |(_, order)| order.bytes() as usize),
        }
    }

    /// Makes what is at `addr` `size` bytes long, elsewhere if need be; the content stays as far as it fits
    /// (`krealloc`). On failure it is as it was.
    pub fn krealloc(&self, addr: VirtAddr, size: usize, gfp: Gfp) -> Option<VirtAddr> {
        if size == 0 {
            self.kfree(addr);
            return Some(ZERO_SIZE_PTR);
        }
        let room = self.ksize(addr);
        if room >= size {
            return Some(addr);
        }
        let new = self.kmalloc(size, gfp)?;
        if room != 0 {
            self.slab_memory().copy(new, addr, room);
        }
        self.kfree(addr);
        Some(new)
    }
}
