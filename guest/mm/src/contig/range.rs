//! Allocating ranges of frames (`alloc_contig_range` and its relatives).

use core::ops::Range;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::units::{NodeId, NodeMask, Pfn};

use super::ContigError;
use crate::Mm;
use crate::page_alloc::AllocContext;
use crate::platform::{Level, Platform};
use crate::sync::Plain;

impl<P: Platform> Mm<P> {
    /// Allocates just the frames of `range` (`alloc_contig_range`): each becomes a page of its own with one reference.
    /// [`Self::free_contig_range`] frees them, or [`Self::free_page`] one by one.
    ///
    /// The page blocks of `range` become blocks of `migratetype`; only `Cma` may be given for blocks that are.
    ///
    /// # Errors
    /// [`ContigError::Busy`] when a page of the range is in use, or one beside it in its page blocks that could not be
    /// moved; [`ContigError::Invalid`] for a range that is empty or not in one zone.
    pub fn alloc_contig_range(&self, range: &Range<Pfn>, migratetype: MigrateType) -> Result<(), ContigError> {
        let index = self.zone_of_range(range)?;
        self.start_isolate_page_range(range, migratetype)?;
        self.drain_all_pages(Some(index));
        let (start, end) = (range.start.raw() as u32, range.end.raw() as u32);
        let taken = self.lock_zone(index).take_isolated(start, end);
        if let Some(taken) = &taken {
            if self.instrumented() != 0 {
                for pfn in taken.clone() {
                    self.post_alloc_hook(pfn, 0, Gfp::MOVABLE);
                }
            }
            self.make_pages(taken.start, taken.end);
            // Free blocks may reach over the ends of the range: back with the rest of them.
            for excess in [taken.start..start, end..taken.end] {
                self.free_contig_range(&(Pfn::new(excess.start as u64)..Pfn::new(excess.end as u64)));
            }
        }
        self.undo_isolate_page_range(range, migratetype);
        taken.map(drop).ok_or(ContigError::Busy)
    }

    /// Frees the frames of `range`, each a page of its own (`free_contig_range`). Those that somebody else has a
    /// reference to are freed when that is dropped, and reported.
    pub fn free_contig_range(&self, range: &Range<Pfn>) {
        let mut in_use = 0u64;
        for pfn in (range.start.raw()..range.end.raw()).map(Pfn::new) {
            in_use += u64::from(self.page(pfn).is_none_or(|page| page.refcount() != 1));
            self.free_page(pfn);
        }
        if in_use != 0 {
            self.platform.log(Level::Warning, format_args!("{in_use} pages are still in use!"));
        }
    }

    /// Allocates `count` pages side by side, from `node` first and only from nodes in `nodemask`
    /// (`alloc_contig_pages`); gives the first. To be freed by [`Self::free_contig_range`].
    ///
    /// For a power of two the first is a multiple of it. It looks at memory range by range, so it is slow.
    pub fn alloc_contig_pages(
        &self,
        count: u64,
        gfp: Gfp,
        node: NodeId,
        nodemask: Option<NodeMask>,
    ) -> Option<Range<Pfn>> {
        let align = count.checked_sub(1)?;
        let context = AllocContext::prepare(self, gfp, node, nodemask)?;
        let mut large_enough = context.zones(self).filter(|candidate| count <= candidate.zone.spanned_pages.get());
        large_enough.find_map(|candidate| {
            let start = candidate.zone.zone_start_pfn.get();
            let end = start + candidate.zone.spanned_pages.get();
            // Linux's `ALIGN`, which for other than powers of two means nothing in particular.
            let mut pfn = (start + align) & !align;
            while pfn + count <= end {
                let range = Pfn::new(pfn)..Pfn::new(pfn + count);
                if self.is_usable(candidate.index, pfn, pfn + count)
                    && self.alloc_contig_range(&range, MigrateType::Movable).is_ok()
                {
                    return Some(range);
                }
                pfn += count;
            }
            None
        })
    }
}
