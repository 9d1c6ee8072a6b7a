//! Pages of programs: single ones, zero at first, and given back many at a time (`vma_alloc_zeroed_movable_folio`,
//! `free_pages_and_swap_cache`).

use core::sync::atomic::Ordering::{AcqRel, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::page_flags::{PG_NOTZERO, PG_ORDER_MASK, PageFlag};
use pagevisor_shared::units::{Order, Pfn};

use super::fast::above_low_watermark;
use super::free::CHECK_AT_FREE;
use crate::Mm;
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// Where programs' pages come from.
pub(crate) const USER_GFP: Gfp = Gfp::HIGHUSER_MOVABLE;

/// Flags that the short way of freeing leaves to the general one.
const GENERAL: u32 = CHECK_AT_FREE | PG_ORDER_MASK | PageFlag::Head.mask() | PageFlag::Hwpoison.mask();

impl<P: Platform> Mm<P> {
    /// A page of zeros, from this CPU's node first; one that is known to be zero is not cleared.
    #[inline]
    pub(crate) fn alloc_zeroed_user_page(&self) -> Option<u32> {
        let route = self.platform.this_cpu().route(USER_GFP);
        let pcp = route.pcp;
        if !above_low_watermark(route.zone, 0) || !sync::try_lock(&pcp.lock) {
            return self.alloc_zeroed_general();
        }
        let frame = route.list.first.get();
        if frame == 0 {
            sync::unlock(&pcp.lock);
            return self.alloc_zeroed_general();
        }
        let page = self.pop(route, route.list, frame, 0);
        let known_zero = self.fresh_is_zero && page.flags.get() & PG_NOTZERO == 0;
        self.zero_block(frame, 0, known_zero);
        page.flags.set(Self::pcp_flags(0));
        // Release: whoever gets a reference by `get_page` sees the page prepared.
        page._refcount.store(1, Release);
        Some(frame)
    }

    #[cold]
    #[inline(never)]
    fn alloc_zeroed_general(&self) -> Option<u32> {
        Some(self.alloc_pages(USER_GFP | Gfp::ZERO, Order::ZERO)?.raw() as u32)
    }

    /// Drops a reference to each of these pages, which entries of page tables kept or which were such tables, and frees
    /// those to which it was the last. The slice's order is not kept.
    pub(crate) fn free_user_pages(&self, pages: &mut [Pfn]) {
        if pages.is_empty() {
            return;
        }
        let mut last = 0;
        for at in 0..pages.len() {
            let pfn = pages[at];
            if self.drop_user_page(pfn) {
                pages[last] = pfn;
                last += 1;
            }
        }
        self.free_dropped_pages(&mut pages[..last]);
    }

    /// Drops a reference; tells whether it was the last. Then the caller frees the page ([`Self::free_dropped_pages`]).
    #[inline(always)]
    pub(crate) fn drop_user_page(&self, pfn: Pfn) -> bool {
        // AcqRel: what others did with the page before they dropped their references comes before its next use.
        self.memmap().page(pfn.raw() as u32)._refcount.fetch_sub(1, AcqRel) == 1
    }

    /// Frees pages without references ([`Self::drop_user_page`]). The slice's order is not kept.
    pub(crate) fn free_dropped_pages(&self, pages: &mut [Pfn]) {
        let watched = self.instrumented() != 0;
        let mut last = 0;
        for at in 0..pages.len() {
            let pfn = pages[at];
            if self.ready_user_page(pfn, watched) {
                pages[last] = pfn;
                last += 1;
            }
        }
        if last != 0 {
            self.free_unref_page_list(&pages[..last]);
        }
    }

    /// Makes a page without references ready; whether it can go on a list.
    #[inline(always)]
    fn ready_user_page(&self, pfn: Pfn, watched: bool) -> bool {
        let page = self.memmap().page(pfn.raw() as u32);
        let settled = self.frames.home(pfn.raw()).is_some_and(|home| home.zone() < self.zones.len());
        let anon = page.mapping.get() & pagevisor_shared::mm_types::MappingId::ANON != 0 || page.mapping.get() == 0;
        if watched || !settled || !anon || page.flags.get() & GENERAL != 0 || page._mapcount.get() != 0 {
            return self.ready_checked(pfn);
        }
        page.mapping.set(0);
        page.private.set(0);
        page.flags.set(Self::pcp_flags(0));
        true
    }

    /// As [`Self::ready_user_page`], with all checks.
    #[cold]
    #[inline(never)]
    fn ready_checked(&self, pfn: Pfn) -> bool {
        self.page_zone(pfn).is_some_and(|index| self.free_unref_page_prepare(index, pfn))
    }
}
