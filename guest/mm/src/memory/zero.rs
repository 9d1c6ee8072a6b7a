//! The page that stands for untouched private memory (`empty_zero_page`).

use core::sync::atomic::Ordering::{Acquire, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::Order;

use crate::Mm;
use crate::platform::Platform;
use crate::sync;

impl<P: Platform> Mm<P> {
    /// The frame of the zero page (`my_zero_pfn`). It is made when it is first wanted; `None` if there is no memory then.
    #[inline(always)]
    pub(crate) fn zero_frame(&self) -> Option<u32> {
        match self.region.header().roots.zero_pfn.load(Acquire) {
            0 => self.make_zero_page(),
            pfn => Some(pfn as u32),
        }
    }

    #[cold]
    #[inline(never)]
    fn make_zero_page(&self) -> Option<u32> {
        let word = &self.region.header().roots.zero_pfn;
        sync::lock(&self.memory.zero_lock, || self.platform.relax());
        let mut frame = word.load(Acquire);
        if frame == 0
            && let Some(pfn) = self.alloc_pages(Gfp::KERNEL | Gfp::ZERO, Order::ZERO)
        {
            frame = pfn.raw();
            // Release: who maps the page finds it zero.
            word.store(frame, Release);
        }
        sync::unlock(&self.memory.zero_lock);
        (frame != 0).then_some(frame as u32)
    }
}
