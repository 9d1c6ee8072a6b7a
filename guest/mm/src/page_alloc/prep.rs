//! Making a block ready for its owner (`prep_new_page`).

use core::sync::atomic::Ordering::{Relaxed, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::page_flags::{PG_NOTZERO, PageFlag};
use pagevisor_shared::units::{Order, Pfn};

use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

impl<P: Platform> Mm<P> {
    /// Prepares a block that was just taken off the lists.
    #[inline]
    pub(crate) fn prep_new_page(&self, pfn: u32, order: u32, gfp: Gfp) {
        let page = self.memmap().page(pfn);
        page.private.set(0);
        let gfp = if self.instrumented() == 0 { gfp } else { self.post_alloc_hook(pfn, order, gfp) };
        self.prep_flags(pfn, order, gfp);
        // Release: whoever gets a reference by `get_page` sees the page prepared.
        page._refcount.store(1, Release);
    }

    /// Clears the block if asked to, makes it compound if asked to, and sets its flags. From here on its content is
    /// its owner's, so no longer known to be zero.
    pub(super) fn prep_flags(&self, pfn: u32, order: u32, gfp: Gfp) {
        let page = self.memmap().page(pfn);
        let known_zero = self.fresh_is_zero && page.flags.get() & PG_NOTZERO == 0;
        if gfp.contains(Gfp::ZERO) {
            self.zero_block(pfn, order, known_zero);
        }
        let mut flags = PG_NOTZERO | Self::pcp_flags(order);
        if order != 0 && gfp.contains(Gfp::COMP) {
            // Tails are found from the head's order, so they need not be written (`prep_compound_page`).
            flags |= PageFlag::Head.mask();
        }
        page.flags.set(flags);
    }

    /// Makes a block zero for its new owner: nothing if it is known to be.
    #[inline(always)]
    pub(super) fn zero_block(&self, pfn: u32, order: u32, known_zero: bool) {
        let cpu = self.platform.this_cpu().state;
        let count = if known_zero { &cpu.clears_saved } else { &cpu.pages_cleared };
        count.fetch_add(1 << order, Relaxed);
        if !known_zero {
            self.clear_block(pfn, order);
        }
    }

    /// Clears a block that has no owner and cannot get one meanwhile.
    #[allow(unsafe_code, reason = "the one place where the allocator writes to the memory it hands out")]
    pub(crate) fn clear_block(&self, pfn: u32, order: u32) {
        let Ok(order) = Order::new(order) else { return };
        // SAFETY: only called on a block that the calling function has just taken off the free lists and not yet
        // given to anyone, or whose last owner has just given it up and that is not on a list yet, or part of one that
        // cannot leave its list because the zone's lock is held; blocks on those lists are RAM.
        unsafe { self.direct_map().clear(Pfn::new(pfn as u64), order) };
    }
}
