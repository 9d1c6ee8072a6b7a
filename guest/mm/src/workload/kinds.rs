//! What each workload does.
//!
//! As the operations of commands, the functions here are what call traces and events name as callers.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use pagevisor_shared::command::workload::{Count, Kind, Phase};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, Pfn};

use super::chain::Chain;
use super::lane::Lane;
use super::shared::SharedPages;
use crate::command::Services;
use crate::platform::Platform;
use crate::sync::Plain;

/// Blocks that the random workload holds at most, and that change hands at a time between pagesets.
const HOLD: u64 = 1024;
const BATCH: u64 = 256;
/// Pages that a program touches.
const FAULT_PAGES: u64 = 1024;
/// Most blocks that a table can name.
const MAX_TABLE: u64 = 1 << 19;
/// Blocks that can be on their way from a producer to a consumer.
const RING: u64 = 256;
/// Words of a page that is such a ring: how many went in and out, whether more will come, and the blocks.
const PUT: usize = 0;
const TAKEN: usize = 8;
const ENDED: usize = 16;
const SLOTS: usize = 64;
/// Words of the page that pagesets play ping-pong with: whose turn it is, and the blocks.
const TURN: usize = 0;
const FIRST: usize = 8;
const LEN: usize = 9;

/// A block as a word that is not 0.
pub(super) fn word(pfn: Pfn, order: Order) -> u64 {
    pfn.raw() << 8 | u64::from(order.raw())
}

/// The block that a word stands for.
pub(super) fn block(word: u64) -> (Pfn, Order) {
    (Pfn::new(word >> 8), Order::new((word & 0xff) as u32).unwrap_or_default())
}

impl<P: Platform, S: Services> Lane<'_, '_, P, S> {
    /// Runs the workload.
    pub(super) fn run(&mut self) {
        match self.run.params.kind {
            Kind::Sequential => self.sequential(),
            Kind::Random => self.random_steps(),
            Kind::ProducerConsumer => self.producer_consumer(),
            Kind::Fragment => self.fragment(),
            Kind::DmaExhaust => self.exhaust(self.run.params.gfp | Gfp::DMA | Gfp::NOWARN, u64::MAX),
            Kind::NodeExhaust => self.exhaust(self.run.params.gfp | Gfp::NOWARN, self.run.params.ops),
            Kind::PcpPingPong => self.ping_pong(),
            Kind::Replay => self.replay(),
            Kind::Access => self.accesses(),
            Kind::SlabMix | Kind::VmallocMix | Kind::MemoryMix => self.object_steps(),
            Kind::Scull | Kind::Scullc | Kind::Scullp | Kind::Scullv => self.scull(),
            Kind::Fault => self.faults(),
        }
    }

    /// A program's faults; all that it has goes with it.
    #[inline(never)]
    fn faults(&mut self) {
        let (services, touch, pages) = (self.run.services, self.run.params.fault, self.hold(FAULT_PAGES));
        match self.phase(Phase::Access, |_| services.run_program(touch, pages)) {
            Some(faults) => self.run.add(Count::Faults, faults),
            None => self.run.add(Count::Failed, 1),
        }
    }

    /// The lane's part of the steps.
    fn steps(&self) -> u64 {
        self.run.share(self.run.params.ops, self.number)
    }

    fn hold(&self, otherwise: u64) -> u64 {
        if self.run.params.hold == 0 { otherwise } else { self.run.params.hold.into() }
    }

    #[inline(never)]
    fn sequential(&mut self) {
        let (hold, mut chain) = (self.hold(u64::MAX), Chain::default());
        self.phase(Phase::Fill, |lane| {
            for _ in 0..lane.steps() {
                if chain.len >= hold
                    && let Some((pfn, order)) = chain.pop(lane.run.mm)
                {
                    lane.free(pfn, order);
                }
                let order = lane.next_order();
                if let Some(pfn) = lane.alloc(lane.run.params.gfp, order) {
                    chain.push(lane.run.mm, pfn);
                }
            }
        });
        self.finish(chain);
    }

    #[inline(never)]
    fn random_steps(&mut self) {
        let hold = self.hold(HOLD).min(MAX_TABLE);
        let Ok(table) = SharedPages::of_words(self.run.mm, hold) else { return self.run.add(Count::Failed, 1) };
        let mut held = 0;
        for _ in 0..self.steps() {
            if held == 0 || held < hold && self.random.next() >> 63 == 0 {
                let order = self.random_order();
                if let Some(pfn) = self.alloc(self.run.params.gfp, order) {
                    table.word(held).set(word(pfn, order));
                    held += 1;
                }
            } else {
                let which = self.random.below(held);
                held -= 1;
                let (pfn, order) = block(table.word(which).get());
                table.word(which).set(table.word(held).get());
                self.free(pfn, order);
            }
        }
        self.finish_table(&table, held);
    }

    /// The end of the blocks that the first `held` words of a table stand for.
    fn finish_table(&mut self, table: &SharedPages<'_, P>, held: u64) {
        let mut chain = Chain::default();
        for at in 0..held {
            let word = table.word(at).get();
            if word != 0 {
                chain.push(self.run.mm, block(word).0);
            }
        }
        self.finish(chain);
    }

    fn producer_consumer(&mut self) {
        let producers = (self.run.lanes / 2).max(1);
        if self.run.lanes == 1 {
            self.alone();
        } else if self.number < producers {
            self.produce(self.number, producers as u64);
        } else {
            self.consume(self.number - producers, self.run.lanes - producers, producers);
        }
    }

    /// One CPU is both by turns.
    #[inline(never)]
    fn alone(&mut self) {
        let (mut left, batch) = (self.run.params.ops, self.hold(RING));
        while left != 0 {
            let mut chain = Chain::default();
            for _ in 0..batch.min(left) {
                let order = self.next_order();
                if let Some(pfn) = self.alloc(self.run.params.gfp, order) {
                    chain.push(self.run.mm, pfn);
                }
            }
            left -= batch.min(left);
            self.free_chain(chain);
        }
    }

    /// Allocates and hands over. What it allocates it writes; reading is the consumer's.
    #[inline(never)]
    fn produce(&mut self, ring: usize, producers: u64) {
        let params = self.run.params;
        let words = self.run.shared.page(ring as u64);
        let room = self.hold(RING).min(RING);
        let steps = params.ops / producers + u64::from((ring as u64) < params.ops % producers);
        let mut put = 0;
        for _ in 0..steps {
            let order = self.next_order();
            let Some(pfn) = self.take(params.gfp, order) else { continue };
            if params.touch != 0 {
                (0..order.pages()).for_each(|page| self.touch(pfn.add(page), params.touch, true));
            }
            // Acquire pairs with the consumer's release: the slot is empty.
            while put - words[TAKEN].load(Acquire) >= room {
                self.run.services.relax();
            }
            words[SLOTS + (put % RING) as usize].set(word(pfn, order));
            put += 1;
            // Release: who sees the count sees the block.
            words[PUT].store(put, Release);
        }
        words[ENDED].store(1, Release);
    }

    /// Takes over and frees.
    #[inline(never)]
    fn consume(&mut self, number: usize, consumers: usize, producers: usize) {
        let touch = self.run.params.touch;
        loop {
            let mut ended = true;
            let mut idle = true;
            for ring in (number..producers).step_by(consumers) {
                let words = self.run.shared.page(ring as u64);
                // Looked at first: what was put before the end is seen below.
                ended &= words[ENDED].load(Acquire) != 0;
                let taken = words[TAKEN].get();
                if words[PUT].load(Acquire) == taken {
                    continue;
                }
                idle = false;
                let (pfn, order) = block(words[SLOTS + (taken % RING) as usize].get());
                words[TAKEN].store(taken + 1, Release);
                if touch != 0 {
                    (0..order.pages()).for_each(|page| self.touch(pfn.add(page), touch, false));
                }
                self.free(pfn, order);
            }
            if idle && ended {
                return;
            }
            if idle {
                self.run.services.relax();
            }
        }
    }

    #[inline(never)]
    fn fragment(&mut self) {
        let params = self.run.params;
        let (mut all, nth) = (Chain::default(), u64::from(params.nth.max(1)));
        let most = if params.hold == 0 { u64::MAX } else { params.hold.into() };
        let pages = self.run.share(self.fill().min(most), self.number);
        self.phase(Phase::Fill, |lane| {
            for _ in 0..pages {
                match lane.alloc(params.gfp, Order::ZERO) {
                    Some(pfn) => all.push(lane.run.mm, pfn),
                    None => break,
                }
            }
        });
        let mut rest = Chain::default();
        self.phase(Phase::Thin, |lane| {
            let mut number = 0;
            while let Some((pfn, order)) = all.pop(lane.run.mm) {
                if number % nth == 0 {
                    rest.push(lane.run.mm, pfn);
                } else {
                    lane.free(pfn, order);
                }
                number += 1;
            }
        });
        self.phase(Phase::Probe, |lane| {
            for _ in 0..lane.steps() {
                lane.run.add(Count::Tries, 1);
                if let Some(pfn) = lane.alloc(params.gfp, params.order) {
                    lane.run.add(Count::Hits, 1);
                    rest.push(lane.run.mm, pfn);
                }
            }
        });
        self.finish(rest);
    }

    /// The pages that the parameters want filled.
    fn fill(&self) -> u64 {
        self.run.free * u64::from(self.run.params.fill.min(100)) / 100
    }

    /// Allocates until that fails, or so many pages have come from another node than the one asked for.
    #[inline(never)]
    fn exhaust(&mut self, gfp: Gfp, enough: u64) {
        let mut chain = Chain::default();
        while self.run.report[Count::NodeFallback as usize].get() < enough {
            let order = self.next_order();
            match self.alloc(gfp, order) {
                Some(pfn) => chain.push(self.run.mm, pfn),
                None => break,
            }
        }
        self.finish(chain);
    }

    /// At its turn, a lane frees what the one before left to it and leaves to the next what it allocates.
    #[inline(never)]
    fn ping_pong(&mut self) {
        let words = self.run.shared.page(0);
        let (params, lanes, batch) = (self.run.params, self.run.lanes as u64, self.hold(BATCH));
        let mut turn = self.number as u64;
        while turn <= params.ops {
            // Acquire pairs with the release below: the blocks are there.
            while words[TURN].load(Acquire) != turn {
                self.run.services.relax();
            }
            let left = Chain::from_parts(words[FIRST].get() as u32, words[LEN].get());
            self.free_chain(left);
            let mut chain = Chain::default();
            if turn < params.ops {
                for _ in 0..batch {
                    let order = self.next_order();
                    if let Some(pfn) = self.alloc(params.gfp, order) {
                        chain.push(self.run.mm, pfn);
                    }
                }
            }
            words[FIRST].store(chain.first.into(), Relaxed);
            words[LEN].store(chain.len, Relaxed);
            words[TURN].store(turn + 1, Release);
            turn += lanes;
        }
    }

    #[inline(never)]
    fn accesses(&mut self) {
        let params = self.run.params;
        let order = params.order;
        let wanted = (self.run.share(self.fill(), self.number) >> order.raw()).clamp(1, MAX_TABLE);
        let Ok(table) = SharedPages::of_words(self.run.mm, wanted) else { return self.run.add(Count::Failed, 1) };
        let mut held = 0;
        self.phase(Phase::Fill, |lane| {
            while held < wanted
                && let Some(pfn) = lane.take(params.gfp, order)
            {
                table.word(held).set(word(pfn, order));
                held += 1;
            }
        });
        if held != 0 {
            self.phase(Phase::Access, |lane| {
                for _ in 0..lane.steps() {
                    lane.run.services.safe_point();
                    let (pfn, _) = block(table.word(lane.random.below(held)).get());
                    let at = lane.random.next();
                    let page = pfn.add(at >> 16 & (order.pages() - 1));
                    lane.access(page, (at & 511) as usize, at >> 63 != 0);
                }
            });
        }
        self.finish_table(&table, held);
    }
}
