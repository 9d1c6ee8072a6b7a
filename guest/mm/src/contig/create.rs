//! Areas made while the machine runs, out of free page blocks. Linux makes its areas at boot; here they can be asked for
//! from outside, to try things out.

use core::ops::Range;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::units::{NodeId, NodeMask, PAGEBLOCK_NR_PAGES, Pfn};
use pagevisor_shared::zone::{ZoneIndex, ZoneType};

use super::CmaArea;
use crate::Mm;
use crate::page_alloc::AllocContext;
use crate::platform::Platform;
use crate::sync::Plain;
use crate::zone::update_alloc_mark;

impl<P: Platform> Mm<P> {
    /// Makes an area of at least `pages` pages that are free now, rounded up to page blocks, on `node` or, for `None`, as
    /// near as possible. `None` when there is no such range, or no room for another area.
    ///
    /// It looks at memory page block by page block, so it is slow. Not from interrupts.
    pub fn cma_create(&self, pages: u64, node: Option<NodeId>) -> Option<CmaArea> {
        let count = pages.max(1).checked_next_multiple_of(PAGEBLOCK_NR_PAGES)?;
        let nodemask = node.map(|node| NodeMask::default().with(node));
        let start = node.unwrap_or(self.platform.this_cpu().node);
        let context = AllocContext::prepare(self, Gfp::KERNEL, start, nodemask)?;
        let (index, range) = context.zones(self).find_map(|candidate| {
            // Linux's areas are in whichever zone memblock finds them; the lowest is too small to lend.
            let large = candidate.zone.zone_type.get() != ZoneType::Dma as u32;
            let range = large.then(|| self.take_page_blocks(candidate.index, count)).flatten()?;
            Some((candidate.index, range))
        })?;
        let area = self.cma_new_area(&range, None);
        if area.is_some() {
            for block in (range.start.raw()..range.end.raw()).step_by(PAGEBLOCK_NR_PAGES as usize) {
                let zone = self.lock_zone(index);
                zone.state.cma_pages.bump(PAGEBLOCK_NR_PAGES);
                update_alloc_mark(zone.state);
                self.frames.set_migratetype(block, MigrateType::Cma);
            }
        }
        self.free_contig_range(&range);
        self.drain_all_pages(Some(index));
        area
    }

    /// Allocates `count` pages of whole page blocks side by side, from the end of zone `index`, where fewest are in use.
    fn take_page_blocks(&self, index: ZoneIndex, count: u64) -> Option<Range<Pfn>> {
        let zone = self.zone(index)?;
        let first = zone.zone_start_pfn.get().next_multiple_of(PAGEBLOCK_NR_PAGES);
        let mut end = (zone.zone_start_pfn.get() + zone.spanned_pages.get()) & !(PAGEBLOCK_NR_PAGES - 1);
        while let Some(start) = end.checked_sub(count).filter(|start| *start >= first) {
            let range = Pfn::new(start)..Pfn::new(end);
            // Reserved blocks stay what they are.
            let mut blocks = (start..end).step_by(PAGEBLOCK_NR_PAGES as usize);
            if blocks.all(|block| self.frames.migratetype(block) != MigrateType::HighAtomic)
                && self.is_usable(index, start, end)
                && self.alloc_contig_range(&range, MigrateType::Movable).is_ok()
            {
                return Some(range);
            }
            end -= PAGEBLOCK_NR_PAGES;
        }
        None
    }
}
