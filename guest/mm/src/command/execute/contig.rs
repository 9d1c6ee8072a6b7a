//! The operations on ranges of frames: isolating page blocks, allocating what lies in them, contiguous memory areas.

use core::ops::Range;

use pagevisor_shared::command::{Isolate, OpError};
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::units::{NodeId, Order, PAGEBLOCK_ORDER, Pfn};

use super::{Outcome, done};
use crate::command::handles::{Held, MAX_RANGE};
use crate::command::{Batch, Services};
use crate::contig::ContigError;
use crate::platform::Platform;
use crate::sync;

/// The order of a page block.
const PAGEBLOCK: Order = match Order::new(PAGEBLOCK_ORDER) {
    Ok(order) => order,
    Err(_) => Order::MAX,
};

impl From<ContigError> for Failure {
    fn from(error: ContigError) -> Self {
        Self(match error {
            ContigError::Busy => OpError::Busy,
            ContigError::Invalid => OpError::Invalid,
        })
    }
}

/// Why a range cannot be had, in the words of replies.
struct Failure(OpError);

impl<P: Platform, S: Services> Batch<'_, '_, P, S> {
    /// Does what isolates page blocks, which one CPU does at a time.
    fn contig<R>(&self, work: impl FnOnce() -> R) -> R {
        sync::lock(&self.state.contig, || self.services.relax());
        let result = work();
        sync::unlock(&self.state.contig);
        result
    }

    #[inline(never)]
    pub(super) fn isolate(&self, action: Isolate, range: &Range<Pfn>, migratetype: MigrateType) -> Outcome {
        let whole = [range.start, range.end].iter().all(|pfn| pfn.is_aligned(PAGEBLOCK));
        if !whole || !self.fits(range, migratetype) {
            return Err(OpError::Invalid);
        }
        let result = self.contig(|| match action {
            Isolate::Start => self.mm.start_isolate_page_range(range, migratetype),
            Isolate::Undo => {
                self.mm.undo_isolate_page_range(range, migratetype);
                Ok(())
            }
        });
        result.map_err(|error| Failure::from(error).0).and_then(|()| done(0))
    }

    /// Whether the blocks of `range` may be of `migratetype`: a CMA block is part of an area, and what is part of one
    /// is a CMA block.
    fn fits(&self, range: &Range<Pfn>, migratetype: MigrateType) -> bool {
        let end = range.end.raw();
        if range.is_empty() || end > u64::from(u32::MAX) || end - range.start.raw() >= MAX_RANGE {
            return false;
        }
        let mut areas = self.mm.cma_ranges();
        match migratetype {
            MigrateType::Cma => areas.any(|area| area.start <= range.start && range.end <= area.end),
            MigrateType::Unmovable | MigrateType::Movable | MigrateType::Reclaimable => {
                !areas.any(|area| area.start < range.end && range.start < area.end)
            }
            MigrateType::HighAtomic | MigrateType::Isolate => false,
        }
    }

    #[inline(never)]
    pub(super) fn alloc_range(&self, range: Range<Pfn>, migratetype: MigrateType, handle: u32) -> Outcome {
        if !matches!(migratetype, MigrateType::Movable | MigrateType::Cma) || !self.fits(&range, migratetype) {
            return Err(OpError::Invalid);
        }
        let slot = self.state.handles.reserve(self.mm, handle)?;
        match self.contig(|| self.mm.alloc_contig_range(&range, migratetype)) {
            Ok(()) => {
                slot.put(Held::Range(range.start, range.end.raw() - range.start.raw()));
                done(range.start.raw())
            }
            Err(error) => {
                slot.clear();
                Err(Failure::from(error).0)
            }
        }
    }

    pub(super) fn reserve_cma(&self, pages: u64, node: Option<NodeId>) -> Outcome {
        if pages == 0 || pages >= MAX_RANGE {
            return Err(OpError::Invalid);
        }
        let area = self.contig(|| self.mm.cma_create(pages, node)).ok_or(OpError::Busy)?;
        done(area.number() as u64)
    }

    #[inline(never)]
    pub(super) fn cma_alloc(&self, area: u8, pages: u32, align: Order, handle: u32) -> Outcome {
        let area_of = self.mm.cma_area_numbered(area.into()).ok_or(OpError::Unavailable)?;
        if pages == 0 || u64::from(pages) >= MAX_RANGE {
            return Err(OpError::Invalid);
        }
        let slot = self.state.handles.reserve(self.mm, handle)?;
        match self.contig(|| self.mm.cma_alloc(area_of, pages.into(), align)) {
            Some(first) => {
                slot.put(Held::Cma(area, first, pages.into()));
                done(first.raw())
            }
            None => {
                slot.clear();
                Err(OpError::NoMemory)
            }
        }
    }
}
