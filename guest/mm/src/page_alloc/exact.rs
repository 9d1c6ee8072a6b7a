//! Splitting blocks, and allocations of an exact number of pages.

use core::sync::atomic::Ordering::Release;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::page_flags::{PG_ORDER_MASK, PageFlag};
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::units::{NodeId, Order, PAGE_SIZE, Pfn};
use pagevisor_shared::vmstat::VmEvent;

use super::free::allocated_order;
use crate::Mm;
use crate::buddy::Placement;
use crate::platform::Platform;
use crate::sync::Plain;

impl<P: Platform> Mm<P> {
    /// Makes the block of `order` at `pfn` that many pages, each to be freed by itself (`split_page`). A block that is
    /// not allocated with that order, or is compound, is reported and left as it is.
    pub fn split_page(&self, pfn: Pfn, order: Order) {
        if self.page_zone(pfn).is_none() {
            return self.report_no_page(pfn, "no such page");
        }
        let head = self.memmap().page(pfn.raw() as u32);
        let flags = head.flags.get();
        if head._refcount.get() == 0 || allocated_order(flags) != order.raw() || flags & PageFlag::Head.mask() != 0 {
            return self.bad_page(pfn, "split as another block than allocated");
        }
        head.flags.set(flags & !PG_ORDER_MASK);
        self.make_pages(pfn.raw() as u32 + 1, pfn.raw() as u32 + (1 << order.raw()));
        if self.instrumented() & hot::PAGE_OWNER != 0 {
            self.split_page_owner(pfn.raw() as u32, 1 << order.raw());
        }
    }

    /// Makes frames `[start, end)`, which are off all lists and are not the head of a block, pages in use.
    pub(crate) fn make_pages(&self, start: u32, end: u32) {
        for pfn in start..end {
            let page = self.memmap().page(pfn);
            page.flags.set(Self::pcp_flags(0));
            page._mapcount.set(0);
            page.private.set(0);
            page.mapping.set(0);
            page.index.set(0);
            // Release: whoever gets a reference by `get_page` sees the page prepared.
            page._refcount.store(1, Release);
        }
    }

    /// Allocates just as many pages as hold `bytes`, side by side, from this CPU's node first (`alloc_pages_exact`).
    /// To be freed by [`Self::free_pages_exact`].
    pub fn alloc_pages_exact(&self, bytes: u64, gfp: Gfp) -> Option<Pfn> {
        self.alloc_pages_exact_nid(None, bytes, gfp)
    }

    /// As [`Self::alloc_pages_exact`], from `node` first (`alloc_pages_exact_nid`).
    pub fn alloc_pages_exact_nid(&self, node: Option<NodeId>, bytes: u64, gfp: Gfp) -> Option<Pfn> {
        let order = Order::for_bytes(bytes)?;
        let first = self.alloc_pages_node(node, gfp.without(Gfp::COMP | Gfp::HIGHMEM), order)?;
        let start = first.raw() as u32;
        let (used, end) = (start + bytes.div_ceil(PAGE_SIZE).max(1) as u32, start + (1 << order.raw()));
        let head = self.memmap().page(start);
        head.flags.set(head.flags.get() & !PG_ORDER_MASK);
        self.make_pages(start + 1, used);
        if self.instrumented() & hot::PAGE_OWNER != 0 {
            self.split_page_owner(start, used - start);
        }
        if let Some(index) = self.page_zone(first) {
            // What is left over goes back page by page, last on its lists.
            for pfn in used..end {
                if self.instrumented() != 0 {
                    self.free_hook(pfn, 0);
                }
                self.free_one_page(index, pfn, 0, Placement::Tail);
            }
            self.count_vm_events(VmEvent::Pgfree, (end - used) as u64);
        }
        Some(first)
    }

    /// Frees what [`Self::alloc_pages_exact`] allocated for the same number of bytes (`free_pages_exact`).
    pub fn free_pages_exact(&self, first: Pfn, bytes: u64) {
        for page in 0..bytes.div_ceil(PAGE_SIZE).max(1) {
            self.free_page(first.add(page));
        }
    }
}
