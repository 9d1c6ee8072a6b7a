//! Every page is in exactly one state.

use std::fmt;
use std::ops::Range;

use pagevisor_shared::page::{PAGE_TYPE_BASE, PG_BUDDY};
use pagevisor_shared::page_flags::{PG_ORDER_MASK, PG_ORDER_SHIFT, PageFlag};
use pagevisor_shared::units::{MAX_ORDER, Order, PAGE_SHIFT};
use pagevisor_shared::zone::ZoneIndex;

use super::Verifier;
use super::report::Place;
use super::rule::Rule;
use super::spans::Spans;
use crate::state::{PageMeta, StateError};

/// The order that the flags of a block in use name.
pub(super) const fn order_of(page: &PageMeta) -> u32 {
    (page.flags & PG_ORDER_MASK) >> PG_ORDER_SHIFT
}

/// Who has a range of frames.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    Free(u32),
    Cached(usize),
    InUse(u32),
    Reserved,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free(order) => write!(f, "a free block of order {order}"),
            Self::Cached(cpu) => write!(f, "a block on a pageset of CPU {cpu}"),
            Self::InUse(order) => write!(f, "a block of order {order} in use"),
            Self::Reserved => f.write_str("reserved memory"),
        }
    }
}

/// Frames in a state.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub frames: Range<u64>,
    pub state: State,
}

/// Pages of a zone by state.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Usage {
    pub free: u64,
    pub isolated: u64,
    pub cma: u64,
    pub cached: u64,
    pub in_use: u64,
    pub reserved: u64,
}

impl Verifier<'_> {
    /// Collects who claims which frames, and finds those that two claim and those that nobody does.
    pub(super) fn check_pages(&mut self) -> Result<(), StateError> {
        let mut claims = Vec::new();
        claims.extend(self.blocks.iter().map(|block| Claim {
            frames: block.pfn..block.pfn + block.order.pages(),
            state: State::Free(block.order.raw()),
        }));
        claims.extend(self.cached.iter().map(|block| Claim {
            frames: block.pfn..block.pfn + block.order.pages(),
            state: State::Cached(block.list.cpu),
        }));
        self.free = Spans::new(claims.iter().map(|claim| claim.frames.clone()));
        let before = claims.len();
        self.collect_in_use(&mut claims);
        self.in_use = Spans::new(claims.iter().skip(before).map(|claim| claim.frames.clone()));
        claims.extend(self.memory.reserved.iter().map(|frames| Claim { frames, state: State::Reserved }));
        claims.sort_by_key(|claim| claim.frames.start);
        self.check_overlaps(&claims);
        self.check_gaps(&claims);
        self.check_references();
        self.count_usage(&claims);
        self.check_known_zero()
    }

    /// Blocks in use, from the metadata that somebody has touched: nobody holds a reference to other memory.
    fn collect_in_use(&mut self, claims: &mut Vec<Claim>) {
        let mut heads: Vec<u64> = self.blocks.iter().map(|block| block.pfn).collect();
        heads.sort_unstable();
        let found = &mut self.findings;
        for (pfn, page) in self.metadata.touched(&self.memory.sections) {
            let place = Place::Pfn(pfn);
            if page.mapcount == PG_BUDDY && heads.binary_search(&pfn).is_err() {
                let evidence = format_args!("marked as a free block of order {}, but on no list", page.private);
                found.add(Rule::BuddyMarkStray, place, evidence);
            }
            if page.refcount == 0 {
                continue;
            }
            if !self.memory.present.contains(pfn) {
                let evidence = format_args!("_refcount is {}, but there is no memory", page.refcount);
                found.add(Rule::PageOutsideMemory, place, evidence);
                continue;
            }
            if self.memory.reserved.contains(pfn) {
                let evidence = format_args!("_refcount is {} of a page reserved at boot", page.refcount);
                found.add(Rule::ReservedReferences, place, evidence);
                continue;
            }
            let order = order_of(page);
            let head = page.flags & PageFlag::Head.mask() != 0;
            if order as usize >= MAX_ORDER || pfn & ((1 << order) - 1) != 0 {
                let evidence = format_args!("_refcount is {}, the order {order} in its flags is wrong", page.refcount);
                found.add(Rule::PageInUse, place, evidence);
            } else if head && order == 0 {
                let evidence = format_args!("_refcount is {}, a compound head of order 0", page.refcount);
                found.add(Rule::PageInUse, place, evidence);
            }
            let order = Order::new(order).unwrap_or(Order::ZERO);
            claims.push(Claim { frames: pfn..pfn + order.pages(), state: State::InUse(order.raw()) });
        }
    }

    fn check_overlaps(&mut self, claims: &[Claim]) {
        let mut last: Option<&Claim> = None;
        for claim in claims {
            if let Some(before) = last.filter(|last| claim.frames.start < last.frames.end) {
                let evidence = format_args!(
                    "{} at {:#x} and {} at {:#x} overlap",
                    before.state, before.frames.start, claim.state, claim.frames.start
                );
                self.findings.add(Rule::PageTwoStates, Place::Pfn(claim.frames.start), evidence);
            }
            if last.is_none_or(|last| last.frames.end < claim.frames.end) {
                last = Some(claim);
            }
        }
    }

    fn check_gaps(&mut self, claims: &[Claim]) {
        let claimed = Spans::new(claims.iter().map(|claim| claim.frames.clone()));
        for span in self.memory.present.iter() {
            for gap in claimed.gaps(span) {
                // A page with broken memory is kept off all lists.
                let poisoned = |pfn| {
                    let page = self.metadata.get(pfn).unwrap_or_default();
                    page.flags & PageFlag::Hwpoison.mask() != 0
                };
                if gap.end - gap.start == 1 && poisoned(gap.start) {
                    continue;
                }
                let page = self.metadata.get(gap.start).unwrap_or_default();
                let evidence = format_args!(
                    "{} pages are neither free nor in use nor reserved; the first has flags {:#x}, _mapcount {:#x}",
                    gap.end - gap.start,
                    page.flags,
                    page.mapcount
                );
                self.findings.add(Rule::PageNoState, Place::Pfn(gap.start), evidence);
            }
        }
        for span in claimed.iter() {
            for outside in self.memory.present.gaps(span) {
                let evidence = format_args!("{} pages that are claimed are no memory", outside.end - outside.start);
                self.findings.add(Rule::PageOutsideMemory, Place::Pfn(outside.start), evidence);
            }
        }
    }

    /// Pages in use are mapped as often as they say, by programs: the kernel's mappings do not count, as in Linux. Slabs keep something else in that word.
    fn check_references(&mut self) {
        let mapped = |pfn: u64| self.programs.mapped.get(&pfn).copied().unwrap_or_default();
        let found = &mut self.findings;
        for (pfn, page) in self.metadata.touched(&self.memory.present) {
            let slab = page.flags & PageFlag::Slab.mask() != 0;
            if page.refcount == 0 || page.mapcount & PAGE_TYPE_BASE != 0 || slab {
                continue;
            }
            let expected = mapped(pfn);
            if page.mapcount != expected {
                let evidence = format_args!("_mapcount is {}, the page is mapped {expected} times", page.mapcount);
                found.add(Rule::PageMapcount, Place::Pfn(pfn), evidence);
            }
        }
    }

    /// Sums up the claims by zone. Blocks lie in one zone, or there is a finding already; reserved memory may not.
    fn count_usage(&mut self, claims: &[Claim]) {
        let mut usage = vec![Usage::default(); self.region.zones().len()];
        let mut add = |zone: Option<ZoneIndex>, what: &dyn Fn(&mut Usage)| {
            if let Some(slot) = zone.and_then(|zone| usage.get_mut(zone.index())) {
                what(slot);
            }
        };
        for block in &self.blocks {
            let pages = block.order.pages();
            add(Some(block.zone), &|usage| {
                usage.free += pages;
                match block.kind {
                    pagevisor_shared::migrate::MigrateType::Isolate => usage.isolated += pages,
                    pagevisor_shared::migrate::MigrateType::Cma => usage.cma += pages,
                    _ => {}
                }
            });
        }
        for block in &self.cached {
            add(Some(block.list.zone), &|usage| usage.cached += block.order.pages());
        }
        for claim in claims.iter().filter(|claim| matches!(claim.state, State::InUse(_))) {
            let pages = claim.frames.end - claim.frames.start;
            add(self.memory.zone_of(claim.frames.start), &|usage| usage.in_use += pages);
        }
        for part in &self.memory.parts {
            let pages = self.memory.reserved.count_within(part.frames.clone());
            add(Some(part.zone), &|usage| usage.reserved += pages);
        }
        self.usage = usage;
    }

    /// Free blocks without the mark that their content is unknown are zero: who asks for cleared pages gets them as they
    /// are. Only what the host keeps pages for can be anything else.
    fn check_known_zero(&mut self) -> Result<(), StateError> {
        let zero = Spans::new(
            self.blocks.iter().filter(|block| block.zero).map(|block| block.pfn..block.pfn + block.order.pages()),
        );
        let mut buffer = vec![0; 1 << 16];
        for span in zero.intersection(&self.memory.present).iter() {
            let (mut next, end) = (span.start << PAGE_SHIFT, span.end << PAGE_SHIFT);
            while next < end {
                let Some(data) = self.view.memory().next_data(next..end)? else { break };
                let len = (data.end - data.start).min(buffer.len() as u64);
                let Some(bytes) = buffer.get_mut(..len as usize) else { break };
                self.view.memory().read(data.start, bytes)?;
                if let Some(at) = bytes.iter().position(|byte| *byte != 0) {
                    let address = data.start + at as u64;
                    let evidence = format_args!("free and said to be zero, but byte {address:#x} is not");
                    self.findings.add(Rule::FreePageZero, Place::Pfn(address >> PAGE_SHIFT), evidence);
                    // On to the next page: one finding for each is enough.
                    next = (address | 0xfff) + 1;
                } else {
                    next = data.start + len;
                }
            }
        }
        Ok(())
    }
}
