//! Walks along lists of pages, which are linked by frame number through the page metadata.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use pagevisor_shared::migrate::MIGRATE_PCPTYPES;
use pagevisor_shared::region::zone::{ListHead, NR_PCP_LISTS, PCP_LOW_ORDERS};
use pagevisor_shared::report::counters;
use pagevisor_shared::units::{CpuId, Order, PAGE_SHIFT};
use pagevisor_shared::zone::ZoneIndex;

use super::StateView;
use super::error::StateError;
use super::memmap::{Memmap, PageMeta};

/// Most frames a [`ListFault`] carries.
const SEEN_MAX: usize = 1024;

/// What is wrong with a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListFaultKind {
    /// A link leads out of the zone.
    OutOfZone,
    /// A link leads to a frame that no block of the list's order starts at.
    Misaligned,
    /// A link leads to a frame without metadata.
    Hole,
    /// The frame's backward link is not where the walk came from: the list is a cycle, or two lists have met.
    BackLink {
        /// Where it leads.
        found: u32,
    },
    /// The frame is not what belongs on the list.
    NotFree,
    /// The frame is not the first of one of the cache's slabs on the list's node.
    NotSlab,
    /// There are more pages on lists than the machine has, or than the pageset counts.
    TooLong,
    /// The list ends elsewhere than its head says.
    End {
        /// The last frame by the head.
        expected: u32,
    },
}

/// A list that cannot be followed to its end, and what was seen of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListFault {
    /// What is wrong.
    pub kind: ListFaultKind,
    /// The frame at which it showed.
    pub pfn: u32,
    /// The frames before it, from the start; of a long list the first 1024.
    pub seen: Vec<u32>,
}

impl fmt::Display for ListFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pfn = self.pfn;
        match self.kind {
            ListFaultKind::OutOfZone => write!(f, "frame {pfn:#x} lies outside the zone"),
            ListFaultKind::Misaligned => write!(f, "frame {pfn:#x} is not aligned to the list's order"),
            ListFaultKind::Hole => write!(f, "frame {pfn:#x} has no metadata"),
            ListFaultKind::BackLink { found } => {
                let from = self.seen.last().copied().unwrap_or(0);
                write!(f, "frame {pfn:#x} links back to {found:#x}, reached from {from:#x}")
            }
            ListFaultKind::NotFree => write!(f, "frame {pfn:#x} is not a free block of the list's order"),
            ListFaultKind::NotSlab => write!(f, "frame {pfn:#x} is not the first of a slab of the cache and node"),
            ListFaultKind::TooLong => write!(f, "more pages than there can be, at frame {pfn:#x}"),
            ListFaultKind::End { expected } => write!(f, "the last frame is {pfn:#x}, by the head {expected:#x}"),
        }
    }
}

/// What a walk along a list found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ListWalk {
    /// Blocks up to the end, or to the fault.
    pub blocks: u64,
    /// What ended the walk early.
    pub fault: Option<ListFault>,
}

/// How a list is to be walked.
pub(super) struct ListRule<'r> {
    /// Order of its blocks.
    pub order: Order,
    /// Frames of the zone.
    pub zone: Range<u64>,
    /// Whether a page may be on the list.
    pub accept: &'r dyn Fn(&PageMeta) -> bool,
    /// What is wrong if it may not.
    pub refused: ListFaultKind,
    /// Whether the guest keeps the outer links of the ends: the backward link of the first page, and the last page of
    /// an empty list. On the lists of pagesets it does not.
    pub closed: bool,
}

/// Walks from `first` along the forward links, and calls `visit` with each page that belongs there. Each step takes the
/// block's pages off `budget`, so that all walks together end however the links lie; a cycle ends sooner, by its backward
/// links.
pub(super) fn visit_list(
    memmap: &mut Memmap<'_>,
    (first, last): (u32, u32),
    rule: &ListRule<'_>,
    budget: &mut u64,
    visit: &mut dyn FnMut(u32, &PageMeta),
) -> Result<ListWalk, StateError> {
    let mut walk = ListWalk::default();
    let mut seen = Vec::new();
    let (mut from, mut pfn) = (0, first);
    let kind = loop {
        if pfn == 0 {
            if from == last || from == 0 && !rule.closed {
                return Ok(walk);
            }
            pfn = from;
            break ListFaultKind::End { expected: last };
        }
        let block = u64::from(pfn)..u64::from(pfn) + rule.order.pages();
        if block.start < rule.zone.start || block.end > rule.zone.end {
            break ListFaultKind::OutOfZone;
        }
        if block.start & (rule.order.pages() - 1) != 0 {
            break ListFaultKind::Misaligned;
        }
        let Some(left) = budget.checked_sub(rule.order.pages()) else { break ListFaultKind::TooLong };
        *budget = left;
        let Some(page) = memmap.get(block.start)? else { break ListFaultKind::Hole };
        if page.prev_of(pfn) != from && (from != 0 || rule.closed) {
            break ListFaultKind::BackLink { found: page.prev_of(pfn) };
        }
        if !(rule.accept)(&page) {
            break rule.refused;
        }
        visit(pfn, &page);
        walk.blocks += 1;
        if seen.len() < SEEN_MAX {
            seen.push(pfn);
        }
        (from, pfn) = (pfn, page.next_of(pfn));
    };
    walk.fault = Some(ListFault { kind, pfn, seen });
    Ok(walk)
}

/// What walks along the lists of a pageset found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PcpWalk {
    /// `count`, the pages there should be.
    pub count: u64,
    /// By list: orders 0 to 3 by migrate type, then order 9.
    pub lists: [ListWalk; NR_PCP_LISTS],
    /// Pages found whose content is known to be zero.
    pub known_zero: u64,
}

impl PcpWalk {
    /// Pages found.
    pub fn pages(&self) -> u64 {
        self.lists.iter().zip(0..).fold(0, |sum, (list, number)| sum + (list.blocks << list_order(number).raw()))
    }

    /// Whether every list could be followed, and `count` pages were on them.
    pub fn is_sound(&self) -> bool {
        self.pages() == self.count && self.lists.iter().all(|list| list.fault.is_none())
    }
}

/// Order of the blocks on list `number` of a pageset.
fn list_order(number: usize) -> Order {
    if number >= PCP_LOW_ORDERS * MIGRATE_PCPTYPES {
        return Order::PAGEBLOCK;
    }
    Order::new((number / MIGRATE_PCPTYPES) as u32).unwrap_or(Order::ZERO)
}

impl StateView {
    /// Frames of `zone`.
    pub(super) fn zone_frames(&self, zone: ZoneIndex) -> Range<u64> {
        let region = self.region();
        let Some(record) = region.zones().get(zone.index()) else { return 0..0 };
        let start = record.zone_start_pfn.load(Relaxed);
        start..start.saturating_add(record.spanned_pages.load(Relaxed))
    }

    /// Walks along the lists of `cpu`'s pageset for `zone`; `None` when there is no such pageset. A running guest's
    /// pageset is looked at again, up to `tries` times, while its owner works on it.
    ///
    /// # Errors
    /// When a page table or the memory map lies outside memory.
    pub fn walk_pcp(&self, cpu: CpuId, zone: ZoneIndex, tries: u32) -> Result<Option<PcpWalk>, StateError> {
        let region = self.region();
        let Some(pcp) = counters::pcp(&region, cpu, zone) else { return Ok(None) };
        let frames = self.zone_frames(zone);
        let mut memmap = self.memmap();
        let mut attempt = || {
            let mut walk = PcpWalk { count: pcp.count.load(Acquire).into(), ..PcpWalk::default() };
            // Without the first backward link a cycle through the first page shows only by its length.
            let mut budget = walk.count.min(self.memory().size() >> PAGE_SHIFT);
            for ((found, head), number) in walk.lists.iter_mut().zip(&pcp.lists).zip(0..) {
                let rule = ListRule {
                    order: list_order(number),
                    zone: frames.clone(),
                    accept: &|page| page.refcount == 0,
                    refused: ListFaultKind::NotFree,
                    closed: false,
                };
                let visit = &mut |_, page: &PageMeta| walk.known_zero += page.known_zero_pages(rule.order);
                *found = visit_list(&mut memmap, ends(head), &rule, &mut budget, visit)?;
            }
            Ok(walk)
        };
        let mut result = attempt();
        for _ in 1..tries {
            if matches!(&result, Ok(walk) if walk.is_sound()) || !self.is_running() {
                break;
            }
            std::thread::yield_now();
            result = attempt();
        }
        result.map(Some)
    }
}

/// First and last frame of a list.
pub(super) fn ends(head: &ListHead) -> (u32, u32) {
    (head.first.load(Relaxed), head.last.load(Relaxed))
}
