//! Memory for devices that need it in one piece (`kernel/dma/contiguous.c`).

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn};

use super::CmaArea;
use crate::Mm;
use crate::platform::Platform;

/// Largest alignment of what areas give, whatever the size (`CONFIG_CMA_ALIGNMENT`).
const CMA_ALIGNMENT: u32 = 8;

impl<P: Platform> Mm<P> {
    /// The area that the command line asked for (`dma_contiguous_default_area`).
    pub fn dma_contiguous_default_area(&self) -> Option<CmaArea> {
        let start = Pfn::containing(self.boot_area.as_ref()?.start);
        let mut areas = (0..).map_while(|number| self.cma_area_numbered(number));
        areas.find(|area| self.cma_range(*area).start == start)
    }

    /// Allocates `size` bytes side by side for a device: from the area if there is one, more than a page is wanted and
    /// `gfp` allows to wait, and else from the page allocator (`dma_alloc_contiguous`, `__dma_direct_alloc_pages`).
    /// To be freed by [`Self::dma_free_contiguous`].
    pub fn dma_alloc_contiguous(&self, size: u64, gfp: Gfp) -> Option<Pfn> {
        if size == 0 {
            return None;
        }
        if size > PAGE_SIZE
            && gfp.contains(Gfp::DIRECT_RECLAIM)
            && let Some(area) = self.dma_contiguous_default_area()
        {
            let align = Order::for_bytes(size).map_or(CMA_ALIGNMENT, |order| order.raw().min(CMA_ALIGNMENT));
            let first = Order::new(align).ok().and_then(|align| self.cma_alloc(area, size.div_ceil(PAGE_SIZE), align));
            if first.is_some() {
                return first;
            }
        }
        self.alloc_pages(gfp.without(Gfp::HIGHMEM | Gfp::COMP), Order::for_bytes(size)?)
    }

    /// Frees what [`Self::dma_alloc_contiguous`] gave for the same number of bytes (`dma_free_contiguous`).
    pub fn dma_free_contiguous(&self, first: Pfn, size: u64) {
        let area = self.dma_contiguous_default_area();
        if area.is_some_and(|area| self.cma_release(area, first, size.div_ceil(PAGE_SIZE))) {
            return;
        }
        if let Some(order) = Order::for_bytes(size) {
            self.free_pages(first, order);
        }
    }
}
