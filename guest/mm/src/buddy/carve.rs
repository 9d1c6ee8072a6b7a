//! Refilling a pageset in one go (`rmqueue_bulk`).

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page::{encode_next, encode_prev};
use pagevisor_shared::page_flags::PG_ORDER_SHIFT;
use pagevisor_shared::region::zone::ListHead;

use super::fallback::AllocFlags;
use super::lock::{Block, LockedZone};
use crate::list;
use crate::platform::Platform;
use crate::sync::Plain;

impl<P: Platform> LockedZone<'_, P> {
    /// Appends up to `count` blocks of `order` to a pageset list; gives how many (`rmqueue_bulk`).
    ///
    /// Linux takes them one by one. Taking from a block larger than needed leaves its remainder as the only block on
    /// each lower list, and the next block comes from there: together they come out in ascending order, and what
    /// remains is the natural decomposition of the rest. That is what is done here, in one step per larger block.
    pub(crate) fn rmqueue_bulk(
        &self,
        order: u32,
        count: u32,
        list: &ListHead,
        migratetype: MigrateType,
        flags: AllocFlags,
    ) -> u32 {
        let mut taken = 0;
        // With contiguous memory areas, each block decides anew where it comes from.
        let one_by_one = flags.intersects(AllocFlags::CMA) && self.state.cma_pages.get() != 0;
        while taken < count {
            let Some(block) = self.take_fast(order, migratetype, flags) else { break };
            let blocks = if one_by_one { 1 } else { (count - taken).min(1 << (block.order - order)) };
            if block.migratetype == MigrateType::Cma {
                self.mod_free_cma(-((blocks as i64) << order));
            }
            let rest = block.pfn + (blocks << order);
            self.append_run(list, Block { order, ..block }, blocks);
            self.give_back(block, rest);
            self.trace_zone_locked(Block { order, ..block }, blocks);
            taken += blocks;
        }
        self.mod_free_pages(-((taken as i64) << order));
        taken
    }

    /// Puts `count` blocks side by side on a pageset list, lowest first.
    #[inline]
    fn append_run(&self, list: &ListHead, block: Block, count: u32) {
        let step = 1 << block.order;
        // Links are relative, so all inner ones are the same.
        let (next, prev) = (encode_next(0, step), encode_prev(step, 0));
        let flags = block.notzero | block.order << PG_ORDER_SHIFT;
        let migratetype = block.migratetype.index() as u32;
        let mut pfn = block.pfn;
        for _ in 0..count {
            let page = self.memmap.page(pfn);
            page.flags.set(flags);
            page.next.set(next);
            page.prev.set(prev);
            page.index.set(migratetype);
            pfn += step;
        }
        list::pcp_push_tail_chain(self.memmap, list, block.pfn, pfn - step);
    }

    /// Puts frames from `start` to the end of `block` back on the lists its parts came from. `start` is inside the
    /// block or its end.
    #[inline]
    fn give_back(&self, block: Block, mut start: u32) {
        let end = block.pfn + (1 << block.order);
        while start < end {
            // What is left of an aligned block, from a point inside it, is aligned to its own size.
            let order = start.trailing_zeros();
            self.add_to_free_list(Block { pfn: start, order, ..block }, false);
            start += 1 << order;
        }
    }
}
