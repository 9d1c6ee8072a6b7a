//! What callers may do with the metadata of a page.
//!
//! [`PageRef`] reads everything and writes what belongs to the page's owner. Links and the allocator's own marks are
//! not writable, so no caller can damage the lists.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use pagevisor_shared::page::{PAGE_TYPE_BASE, Page};
use pagevisor_shared::page_flags::{NR_PAGEFLAGS, PG_OWNED, PageFlag};
use pagevisor_shared::units::{MAX_ORDER, Order, Pfn};

use crate::Mm;
use crate::page_alloc::allocated_order;
use crate::platform::Platform;
use crate::sync::Plain;

/// The metadata of a frame.
#[derive(Clone, Copy, Debug)]
pub struct PageRef {
    page: &'static Page,
    pfn: Pfn,
}

impl PageRef {
    /// The frame (`page_to_pfn`).
    #[inline]
    pub fn pfn(self) -> Pfn {
        self.pfn
    }

    /// The page flags with Linux's numbers.
    #[inline]
    pub fn flags(self) -> u32 {
        self.page.flags.get() & ((1 << NR_PAGEFLAGS) - 1)
    }

    /// Whether `flag` is set.
    #[inline]
    pub fn test_flag(self, flag: PageFlag) -> bool {
        self.page.flags.load(Acquire) & flag.mask() != 0
    }

    /// Sets `flag`; tells whether it was set.
    #[inline]
    pub fn set_flag(self, flag: PageFlag) -> bool {
        self.page.flags.fetch_or(flag.mask(), AcqRel) & flag.mask() != 0
    }

    /// Clears `flag`; tells whether it was set. `PG_head` belongs to the allocator and stays.
    #[inline]
    pub fn clear_flag(self, flag: PageFlag) -> bool {
        let mask = if flag == PageFlag::Head { 0 } else { flag.mask() };
        self.page.flags.fetch_and(!mask, AcqRel) & mask != 0
    }

    /// References held (`page_ref_count`).
    #[inline]
    pub fn refcount(self) -> u32 {
        self.page._refcount.load(Acquire)
    }

    /// Page-table entries that map the page (`page_mapcount`); 0 for a page with a type.
    #[inline]
    pub fn mapcount(self) -> u32 {
        let word = self.page._mapcount.get();
        if word & PAGE_TYPE_BASE == 0 { word } else { 0 }
    }

    /// Notes that the owner has written what must be clean when the page is freed.
    #[inline]
    fn own(self) {
        self.page.flags.fetch_or(PG_OWNED, Relaxed);
    }

    /// Counts one more mapping.
    #[inline]
    pub fn inc_mapcount(self) {
        self.own();
        self.page._mapcount.fetch_add(1, AcqRel);
    }

    /// Counts one mapping less; tells whether it was the last.
    #[inline]
    pub fn dec_mapcount(self) -> bool {
        self.page._mapcount.fetch_update(AcqRel, Relaxed, |n| n.checked_sub(1)) == Ok(1)
    }

    /// Whether the page heads a free block (`PageBuddy`). Blocks that nobody ever used are free without this mark.
    #[inline]
    pub fn is_buddy(self) -> bool {
        self.page.is_buddy()
    }

    /// The owner of the content; 0 for none.
    #[inline]
    pub fn mapping(self) -> u32 {
        self.page.mapping.get()
    }

    /// Sets the owner of the content.
    #[inline]
    pub fn set_mapping(self, mapping: u32) {
        self.own();
        self.page.mapping.set(mapping);
    }

    /// The place in the owner.
    #[inline]
    pub fn index(self) -> u32 {
        self.page.index.get()
    }

    /// Sets the place in the owner. For pages in use.
    #[inline]
    pub fn set_index(self, index: u32) {
        if self.refcount() != 0 {
            self.page.index.set(index);
        }
    }

    /// The owner's word (`page_private`).
    #[inline]
    pub fn private(self) -> u32 {
        self.page.private.get()
    }

    /// Sets the owner's word. Not for free pages.
    #[inline]
    pub fn set_private(self, private: u32) {
        if self.refcount() != 0 {
            self.own();
            self.page.private.set(private);
        }
    }

    /// The order of a compound page's head, 0 for other pages (`compound_order`).
    #[inline]
    pub fn compound_order(self) -> Order {
        let flags = self.page.flags.get();
        let order = if flags & PageFlag::Head.mask() == 0 { 0 } else { allocated_order(flags) };
        Order::new(order).unwrap_or_default()
    }
}

impl<P: Platform> Mm<P> {
    /// The metadata of frame `pfn` (`pfn_to_page`); `None` where there is no memory (`pfn_valid`).
    #[inline]
    pub fn page(&self, pfn: Pfn) -> Option<PageRef> {
        self.page_zone(pfn)?;
        Some(PageRef { page: self.memmap().page(pfn.raw() as u32), pfn })
    }

    /// The head of the compound page that frame `pfn` belongs to, or the frame itself (`compound_head`).
    ///
    /// Tails carry no mark. A head is at a multiple of its size, so there are only ten places to look.
    pub fn compound_head(&self, pfn: Pfn) -> Option<Pfn> {
        self.page_zone(pfn)?;
        // A frame that somebody holds by itself is no tail.
        if self.memmap().page(pfn.raw() as u32)._refcount.load(Acquire) != 0 {
            return Some(pfn);
        }
        for order in 1..MAX_ORDER as u32 {
            let head = pfn.raw() & !((1 << order) - 1);
            let page = self.memmap().page(head as u32);
            let flags = page.flags.get();
            let is_head = flags & PageFlag::Head.mask() != 0 && page._refcount.load(Acquire) != 0;
            if is_head && allocated_order(flags) >= order {
                return Some(Pfn::new(head));
            }
        }
        Some(pfn)
    }

    /// Whether frame `pfn` was reserved at boot and never given to the page allocator (`PageReserved`).
    pub fn is_reserved(&self, pfn: Pfn) -> bool {
        let (start, end) = (pfn.addr().raw(), pfn.add(1).addr().raw());
        self.region.reserved().iter().any(|range| {
            let base = range.base.get();
            base < end && start < base.wrapping_add(range.size.get())
        })
    }
}
