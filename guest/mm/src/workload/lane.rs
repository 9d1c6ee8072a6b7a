//! One CPU's part of a workload: how it allocates, frees and counts.
#![allow(unsafe_code, reason = "pages that the lane holds are accessed")]

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::command::OpError;
use pagevisor_shared::command::workload::{Count, Mark, Phase, Report};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::random::SplitMix64;
use pagevisor_shared::units::{MAX_ORDER, NodeId, Order, Pfn};
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneIndex};

use super::chain::Chain;
use super::{Run, shared};
use crate::command::{Placer, Services};
use crate::page_alloc::PageVec;
use crate::platform::Platform;
use crate::sync::Plain;

/// What tells the random numbers of lanes apart.
const LANE: u64 = 0xd1b5_4a32_d192_ed03;

/// A CPU at work.
pub(super) struct Lane<'r, 'a, P: Platform, S> {
    pub(super) run: &'r Run<'a, P, S>,
    pub(super) number: usize,
    pub(super) random: SplitMix64,
    node: NodeId,
    pub(super) placer: Placer,
    mix: Mix,
}

/// How often each order comes.
struct Mix {
    weights: [u16; MAX_ORDER],
    total: u64,
    /// Where taking turns has come to: the order, and how often it came already.
    at: usize,
    times: u16,
}

impl Mix {
    fn new(mut weights: [u16; MAX_ORDER], alone: Order) -> Self {
        if weights.iter().all(|weight| *weight == 0) {
            weights[alone.raw() as usize % MAX_ORDER] = 1;
        }
        let total = weights.iter().map(|weight| u64::from(*weight)).sum();
        Self { weights, total, at: 0, times: 0 }
    }

    /// The next order in turn.
    fn turn(&mut self) -> Order {
        while self.times >= self.weights[self.at] {
            self.times = 0;
            self.at = (self.at + 1) % MAX_ORDER;
        }
        self.times += 1;
        Order::new(self.at as u32).unwrap_or_default()
    }

    /// A random order.
    fn random(&self, random: &mut SplitMix64) -> Order {
        let mut left = random.below(self.total);
        for (order, weight) in self.weights.iter().enumerate() {
            match left.checked_sub(u64::from(*weight)) {
                Some(rest) => left = rest,
                None => return Order::new(order as u32).unwrap_or_default(),
            }
        }
        Order::ZERO
    }
}

impl<'r, 'a, P: Platform, S: Services> Lane<'r, 'a, P, S> {
    /// The lane of the executing CPU.
    pub(super) fn new(run: &'r Run<'a, P, S>, number: usize) -> Result<Self, OpError> {
        let params = run.params;
        Ok(Self {
            run,
            number,
            random: SplitMix64::new(params.seed ^ LANE.wrapping_mul(number as u64)),
            node: run.mm.platform.this_cpu().node,
            placer: Placer::new(run.mm, params.placement, 0)?,
            mix: Mix::new(params.mix, params.order),
        })
    }

    pub(super) fn next_order(&mut self) -> Order {
        self.mix.turn()
    }

    pub(super) fn random_order(&mut self) -> Order {
        self.mix.random(&mut self.random)
    }

    /// Does a part of the workload, between two marks.
    pub(super) fn phase<R>(&mut self, phase: Phase, work: impl FnOnce(&mut Self) -> R) -> R {
        self.mark(phase, false);
        let result = work(self);
        self.mark(phase, true);
        result
    }

    fn mark(&self, phase: Phase, end: bool) {
        // There are at most 64 lanes.
        self.run.mm.trace(Mark::new(self.run.params, phase, end, self.number as u8).encode());
    }

    fn cell(&self, at: usize) -> &'a AtomicU64 {
        &self.run.report[at]
    }

    /// A step: allocates a block where the parameters say, and writes and reads its lines.
    pub(super) fn alloc(&mut self, gfp: Gfp, order: Order) -> Option<Pfn> {
        let pfn = self.take(gfp, order)?;
        let touch = self.run.params.touch;
        if touch != 0 {
            for page in 0..order.pages() {
                self.touch(pfn.add(page), touch, true);
                self.touch(pfn.add(page), touch, false);
            }
        }
        Some(pfn)
    }

    /// As [`Self::alloc`], without touching the block.
    pub(super) fn take(&mut self, gfp: Gfp, order: Order) -> Option<Pfn> {
        let mm = self.run.mm;
        self.run.services.safe_point();
        let (pfn, wanted) = self.placer.alloc(mm, gfp, order);
        let Some(pfn) = pfn else {
            self.run.add(Count::Failed, 1);
            return None;
        };
        self.run.add(Count::Allocs, 1);
        if let Some(index) = mm.page_zone(pfn) {
            self.note(index, gfp, order.pages(), wanted);
        }
        Some(pfn)
    }

    /// Counts `pages` from zone `index`, which were asked of node `wanted`.
    fn note(&self, index: ZoneIndex, gfp: Gfp, pages: u64, wanted: NodeId) {
        let mm = self.run.mm;
        let (node, kind) = (index.index() / MAX_NR_ZONES, index.index() % MAX_NR_ZONES);
        self.cell(Report::placement() + index.index()).fetch_add(pages, Relaxed);
        if node != wanted.index() {
            self.run.add(Count::NodeFallback, pages);
        }
        let above = kind + 1..=gfp.zone().index();
        let populated =
            |kind: usize| mm.zones.get(node * MAX_NR_ZONES + kind).is_some_and(|zone| zone.managed_pages.get() != 0);
        if above.into_iter().any(populated) {
            self.run.add(Count::ZoneFallback, pages);
        }
        if let Some(zone) = mm.zones.get(index.index()) {
            let free = zone.vm_stat[0].get().max(0) as u64;
            let least = self.cell(Report::min_free(mm.nodes.len()) + index.index());
            if free < least.get() {
                least.fetch_min(free, Relaxed);
            }
        }
    }

    /// Writes or reads the first `lines` lines of a page that the lane holds.
    pub(super) fn touch(&self, pfn: Pfn, lines: u32, write: bool) {
        // SAFETY: the lane holds the page.
        unsafe { shared::touch(self.run.mm, pfn, lines, write) };
        self.count_access(pfn, lines.into());
    }

    /// Reads or writes a word of a page that the lane holds.
    pub(super) fn access(&self, pfn: Pfn, word: usize, write: bool) {
        // SAFETY: the lane holds the page.
        unsafe { shared::access(self.run.mm, pfn, word, write) };
        self.count_access(pfn, 1);
    }

    fn count_access(&self, pfn: Pfn, count: u64) {
        let (mm, nodes) = (self.run.mm, self.run.mm.nodes.len());
        if let Some(node) = mm.page_to_nid(pfn) {
            let at = Report::accesses(nodes) + self.node.index() * nodes + node.index();
            self.cell(at).fetch_add(count, Relaxed);
        }
    }

    /// A step: frees a block.
    pub(super) fn free(&self, pfn: Pfn, order: Order) {
        self.run.services.safe_point();
        self.run.mm.free_pages(pfn, order);
        self.run.add(Count::Freed, 1);
    }

    /// Frees all of a chain, first first.
    pub(super) fn free_chain(&self, mut chain: Chain) {
        let mut pages = PageVec::new();
        while let Some((pfn, order)) = chain.pop(self.run.mm) {
            self.run.services.safe_point();
            pages.add(self.run.mm, pfn, order);
            self.run.add(Count::Freed, 1);
        }
        pages.release(self.run.mm);
    }

    /// The end of what a lane holds: kept or freed, as the parameters say.
    pub(super) fn finish(&mut self, chain: Chain) {
        if self.run.params.keep {
            self.run.add(Count::Kept, chain.len);
            self.run.kept.keep(self.run.mm, chain);
        } else {
            self.phase(Phase::Release, |lane| lane.free_chain(chain));
        }
    }
}
