//! Emptying a pageset in one go (`free_pcppages_bulk`), and freeing what it does not keep.

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page::{Page, encode_next};
use pagevisor_shared::page_flags::PG_NOTZERO;
use pagevisor_shared::region::event::EventKind;
use pagevisor_shared::region::zone::{ListHead, NR_PCP_LISTS, PcpState};
use pagevisor_shared::units::PAGEBLOCK_ORDER;

use super::free::{Placement, is_buddy};
use super::lock::{Block, LockedZone, list_type};
use crate::list;
use crate::pcp::pindex_to_order;
use crate::platform::Platform;
use crate::sync::Plain;

/// Blocks that are neighbours in memory and would be freed one after the other.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// First frame.
    start: u32,
    /// The frame behind the last.
    end: u32,
    /// Whether the highest is freed first.
    descending: bool,
    migratetype: u32,
}

impl<P: Platform> LockedZone<'_, P> {
    /// Frees at least `count` pages of a pageset whose lock is held, or all it has, going round its lists from list
    /// `pindex` on (`free_pcppages_bulk`).
    pub(crate) fn free_pcppages_bulk(&self, pcp: &PcpState, count: u32, pindex: usize) {
        let mut left = count.min(pcp.count.get()) as i64;
        let mut index = pindex % NR_PCP_LISTS;
        let (mut freed, mut empty) = (0, 0);
        // The count can only promise more than the lists hold if something else is broken; then the lists decide.
        while left > 0 && empty < NR_PCP_LISTS {
            let list = &pcp.lists[index];
            if list.first.get() == 0 {
                empty += 1;
            } else {
                empty = 0;
                let pages = self.free_list(list, pindex_to_order(index), left);
                left -= pages as i64;
                freed += pages;
            }
            index = if index + 1 == NR_PCP_LISTS { 0 } else { index + 1 };
        }
        pcp.count.drop_by(freed);
    }

    /// Frees blocks of one list, oldest first, until `left` pages are freed or it is empty; gives how many pages.
    fn free_list(&self, list: &ListHead, order: u32, left: i64) -> u32 {
        let first = list.first.get();
        let step = |pfn, page: &Page| if pfn == first { 0 } else { list::prev(pfn, page) };
        let (pfn, freed) = self.free_linked(list.last.get(), order, left, step);
        list.last.set(pfn);
        if pfn == 0 {
            list.first.set(0);
        } else {
            self.memmap.page(pfn).next.set(encode_next(pfn, 0));
        }
        freed
    }

    /// Frees the blocks of `order` that are linked from `first` to `last`, and have the types of their page blocks in
    /// `index` as on a pageset, last first.
    #[inline(never)]
    pub(crate) fn free_chain(&self, first: u32, last: u32, order: u32) {
        let step = |pfn, page: &Page| if pfn == first { 0 } else { list::prev(pfn, page) };
        self.free_linked(last, order, i64::MAX, step);
    }

    /// Frees blocks of `order`, `pfn` and those to which `step` leads from there, 0 at the end, until `left` pages are
    /// freed; gives the block it stopped at, 0 at the end, and how many pages.
    ///
    /// Linux frees each block by itself. A run of neighbours makes up whole aligned blocks, each complete when its
    /// last part is freed; until then its parts are only joined to each other. So joining them first, and freeing the
    /// blocks in the order in which they become complete, leaves the same lists.
    #[inline(always)]
    fn free_linked(&self, mut pfn: u32, order: u32, left: i64, step: impl Fn(u32, &Page) -> u32) -> (u32, u32) {
        let size = 1 << order;
        let mut freed = 0;
        while pfn != 0 && (freed as i64) < left {
            let page = self.memmap.page(pfn);
            let migratetype = page.index.get();
            let mut run = Run { start: pfn, end: pfn + size, descending: false, migratetype };
            freed += size;
            let mut behind = step(pfn, page);
            run.descending = behind != 0 && behind + size == run.start;
            while behind != 0 && (freed as i64) < left {
                let grows = if run.descending { behind + size == run.start } else { behind == run.end };
                let page = self.memmap.page(behind);
                if !grows || page.index.get() != migratetype {
                    break;
                }
                if run.descending {
                    run.start = behind;
                } else {
                    run.end += size;
                }
                freed += size;
                behind = step(behind, page);
            }
            self.free_run(run);
            self.trace_drain(run, order);
            pfn = behind;
        }
        (pfn, freed)
    }

    /// Tells of the blocks of `order` of a run, in the order in which they came off their list.
    #[inline]
    fn trace_drain(&self, run: Run, order: u32) {
        if !self.mm.traces(EventKind::MmPagePcpuDrain) {
            return;
        }
        let (kind, blocks) = (run.migratetype, (run.end - run.start) >> order);
        for block in 0..blocks {
            let at = if run.descending { blocks - 1 - block } else { block };
            self.trace_page(EventKind::MmPagePcpuDrain, run.start + (at << order), order, kind, 0);
        }
    }

    /// Frees a run, in whole blocks of at most a page block.
    fn free_run(&self, mut run: Run) {
        let kind = MigrateType::new(run.migratetype as usize).unwrap_or(MigrateType::Movable);
        let mut pages = 0;
        while run.start < run.end {
            // The part in one page block: the first, or the last if that is freed first.
            let mut part = run;
            if run.descending {
                part.start = run.start.max((run.end - 1) >> PAGEBLOCK_ORDER << PAGEBLOCK_ORDER);
                run.end = part.start;
            } else {
                part.end = run.end.min(((run.start >> PAGEBLOCK_ORDER) + 1) << PAGEBLOCK_ORDER);
                run.start = part.end;
            }
            // The page block could have been isolated meanwhile.
            let isolated = self.mm.frames.migratetype(part.start as u64) == MigrateType::Isolate;
            if !isolated {
                pages += (part.end - part.start) as i64;
            }
            self.free_part(part, if isolated { MigrateType::Isolate } else { kind });
        }
        self.mod_free_pages_of(pages, kind);
    }

    /// Frees a run in one page block to the lists of `migratetype`.
    #[inline(always)]
    fn free_part(&self, mut part: Run, migratetype: MigrateType) {
        let one_zone = self.has_one_zone(part.start);
        if one_zone && !part.descending {
            self.absorb_lower(&mut part);
        }
        while part.start < part.end {
            let most = (part.end - part.start).ilog2();
            let order = if part.descending { part.end } else { part.start }.trailing_zeros().min(most);
            let pfn = if part.descending { part.end - (1 << order) } else { part.start };
            let block = Block { pfn, order, notzero: PG_NOTZERO, migratetype };
            self.free_one_page_of(block, Placement::Auto, one_zone);
            if part.descending {
                part.end = pfn;
            } else {
                part.start += 1 << order;
            }
        }
    }

    /// Takes the free blocks below a run off their lists that its first parts would merge with, and makes them part of it.
    #[inline(always)]
    fn absorb_lower(&self, part: &mut Run) {
        loop {
            let order = part.start.trailing_zeros();
            if order >= PAGEBLOCK_ORDER || part.end - part.start < 1 << order {
                return;
            }
            let buddy = part.start - (1 << order);
            let page = self.memmap.page(buddy);
            if !is_buddy(page, order) {
                return;
            }
            self.del_page_from_free_list(buddy, page, order, list_type(page));
            part.start = buddy;
        }
    }
}
