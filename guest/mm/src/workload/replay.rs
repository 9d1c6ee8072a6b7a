//! Replays of recorded allocations.
//!
//! What is guaranteed of the order of records, and what a bad record does, says
//! [`pagevisor_shared::command::trace`]. Nothing here trusts the host to have put its waits right: a word of the table is
//! taken and filled in one step, so a block is freed once whatever the CPUs do at the same time, and who waits waits for
//! an earlier record, so in the end for somebody who does not.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::command::OpError;
use pagevisor_shared::command::trace::{MAX_IDS, Part, TraceRecord};
use pagevisor_shared::command::workload::{Params, Phase};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{CpuId, Order, PAGE_SIZE, Pfn};

use super::chain::Chain;
use super::kinds::{block, word};
use super::lane::Lane;
use super::shared::SharedPages;
use crate::Mm;
use crate::command::Services;
use crate::page_alloc::PageVec;
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// Words of a page.
const WORDS: u64 = PAGE_SIZE / 8;
/// The word of an id whose allocation failed. Frame 0 is never allocated, so it is no block's.
const FAILED: u64 = 1;
/// A CPU's word in the first page of the table: on a cache line of its own.
const LINE: usize = 8;

const _: () = assert!(pagevisor_shared::NR_CPUS * LINE == WORDS as usize);

/// The blocks of a trace, by id: pages of words, whose frames follow a page of how far each CPU has come.
#[derive(Debug)]
struct Table<'a, P: Platform> {
    mm: &'a Mm<P>,
    root: SharedPages<'a, P>,
    ids: u32,
}

impl<'a, P: Platform> Table<'a, P> {
    fn new<S: Services>(mm: &'a Mm<P>, services: &S, ids: u32) -> Result<Self, OpError> {
        if ids > MAX_IDS {
            return Err(OpError::Invalid);
        }
        let leaves = u64::from(ids).div_ceil(WORDS);
        let table = Self { mm, root: SharedPages::of_words(mm, WORDS + leaves)?, ids };
        for leaf in 0..leaves {
            services.safe_point();
            let page = mm.alloc_page(Gfp::KERNEL | Gfp::ZERO | Gfp::NOWARN).ok_or(OpError::NoMemory)?;
            table.root.word(WORDS + leaf).set(page.raw());
        }
        Ok(table)
    }

    fn leaf(&self, number: u64) -> &[AtomicU64] {
        match self.root.word(WORDS + number).get() {
            0 => &[],
            // SAFETY: the page was allocated for the table in `new`, and is given back when the table is dropped.
            #[allow(unsafe_code, reason = "the table lies in pages of its own")]
            page => unsafe { self.mm.direct_map().words(Pfn::new(page)) },
        }
    }

    /// The word of an id.
    #[inline]
    fn word(&self, id: u32) -> Result<&AtomicU64, OpError> {
        if id >= self.ids {
            return Err(OpError::Invalid);
        }
        self.leaf(u64::from(id) / WORDS).get((u64::from(id) % WORDS) as usize).ok_or(OpError::Invalid)
    }

    /// How far a CPU has come: all its records in front of this number are done.
    #[inline]
    fn progress(&self, cpu: usize) -> &AtomicU64 {
        self.root.word((cpu * LINE) as u64)
    }

    /// Takes all blocks out, in the order of their ids. No CPU uses the table now.
    fn take_all<S: Services>(&self, services: &S) -> Chain {
        let mut chain = Chain::default();
        for leaf in 0..u64::from(self.ids).div_ceil(WORDS) {
            services.safe_point();
            for word in self.leaf(leaf) {
                let held = word.get();
                if held != 0 {
                    word.set(0);
                }
                if held > FAILED {
                    chain.push(self.mm, block(held).0);
                }
            }
        }
        chain
    }
}

impl<P: Platform> Drop for Table<'_, P> {
    fn drop(&mut self) {
        if self.root.is_empty() {
            return;
        }
        for leaf in 0..u64::from(self.ids).div_ceil(WORDS) {
            match self.root.word(WORDS + leaf).get() {
                0 => {}
                page => self.mm.free_pages(Pfn::new(page), Order::ZERO),
            }
        }
    }
}

/// The trace of several messages that is being replayed, between two of them.
#[derive(Debug)]
pub struct Unfinished {
    /// Held while a message of it is worked on.
    lock: AtomicU32,
    ids: AtomicU32,
    /// The first block of its table; 0 if there is no such trace.
    root: AtomicU64,
}

impl Unfinished {
    pub(crate) const fn new() -> Self {
        let [lock, ids] = [const { AtomicU32::new(0) }; 2];
        Self { lock, ids, root: AtomicU64::new(0) }
    }

    pub(super) fn lock<S: Services>(&self, services: &S) {
        sync::lock(&self.lock, || services.relax());
    }

    pub(super) fn unlock(&self) {
        sync::unlock(&self.lock);
    }

    fn is_there(&self) -> bool {
        self.root.get() != 0
    }

    fn put<P: Platform>(&self, table: Table<'_, P>) {
        let mut table = table;
        self.ids.set(table.ids);
        self.root.set(table.root.leave().map_or(0, |(pfn, order)| word(pfn, order)));
    }

    fn take<'a, P: Platform>(&self, mm: &'a Mm<P>) -> Option<Table<'a, P>> {
        let root = self.root.get();
        self.root.set(0);
        (root != 0).then(|| Table { mm, root: SharedPages::left(mm, block(root)), ids: self.ids.get() })
    }

    /// Ends the trace and frees its blocks; gives how many there were.
    pub(crate) fn release<P: Platform, S: Services>(&self, mm: &Mm<P>, services: &S) -> u64 {
        self.lock(services);
        let table = self.take(mm);
        self.unlock();
        let (mut pages, mut count) = (PageVec::new(), 0);
        if let Some(table) = table {
            let mut chain = table.take_all(services);
            while let Some((pfn, order)) = chain.pop(mm) {
                services.safe_point();
                pages.add(mm, pfn, order);
                count += 1;
            }
        }
        pages.release(mm);
        count
    }
}

/// A record that cannot be replayed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BadRecord {
    /// Its number in the message.
    pub(crate) number: u64,
    /// What is wrong with it.
    pub(crate) error: OpError,
}

/// What the CPUs of a replay have in common.
#[derive(Debug)]
pub(super) struct Replay<'a, P: Platform> {
    table: Table<'a, P>,
    part: Part,
    /// The first bad record that was found: its number and the error.
    bad: AtomicU64,
    /// CPUs that have done their records.
    ended: AtomicU64,
}

const ERROR_BITS: u32 = 8;

impl<'a, P: Platform> Replay<'a, P> {
    /// The trace that these parameters begin, or go on with. The caller has `unfinished` locked unless they are the
    /// whole.
    ///
    /// # Errors
    /// [`OpError::Busy`] when another one is not at its end yet, [`OpError::Unavailable`] when there is none to go on with,
    /// [`OpError::NoMemory`] when there is none for the table.
    pub(super) fn new<S: Services>(
        mm: &'a Mm<P>,
        services: &S,
        unfinished: &Unfinished,
        params: &Params,
    ) -> Result<Self, OpError> {
        let table = match params.part {
            Part::First if unfinished.is_there() => return Err(OpError::Busy),
            part if part.begins() => Table::new(mm, services, params.ids)?,
            _ => unfinished.take(mm).ok_or(OpError::Unavailable)?,
        };
        (0..pagevisor_shared::NR_CPUS).for_each(|cpu| table.progress(cpu).set(0));
        Ok(Self { table, part: params.part, bad: AtomicU64::new(u64::MAX), ended: AtomicU64::new(0) })
    }

    /// The end of a message.
    pub(super) fn end(self, unfinished: &Unfinished) -> Option<BadRecord> {
        let bad = self.bad.get();
        if bad == u64::MAX {
            if !self.part.ends() {
                unfinished.put(self.table);
            }
            return None;
        }
        let error = OpError::new((bad & ((1 << ERROR_BITS) - 1)) as u32).unwrap_or(OpError::Invalid);
        Some(BadRecord { number: bad >> ERROR_BITS, error })
    }

    fn refuse(&self, number: u64, error: OpError) {
        self.bad.fetch_min(number << ERROR_BITS | u64::from(error as u32), Relaxed);
    }

    /// Whether there is a bad record in front of this one.
    #[inline]
    fn is_over(&self, number: u64) -> bool {
        number > self.bad.load(Relaxed) >> ERROR_BITS
    }
}

impl<P: Platform, S: Services> Lane<'_, '_, P, S> {
    #[inline(never)]
    pub(super) fn replay(&mut self) {
        let run = self.run;
        let Some(replay) = &run.replay else { return };
        let cpu = run.mm.platform.this_cpu().cpu.index();
        self.records(replay, cpu);
        // Release: who sees that this CPU has ended sees what it did.
        replay.table.progress(cpu).store(u64::MAX, Release);
        replay.ended.fetch_add(1, Release);
        if self.number != 0 {
            return;
        }
        while replay.ended.load(Acquire) != run.lanes as u64 {
            run.services.relax();
        }
        if replay.bad.get() != u64::MAX {
            let chain = replay.table.take_all(run.services);
            self.phase(Phase::Release, |lane| lane.free_chain(chain));
        } else if replay.part.ends() {
            self.finish(replay.table.take_all(run.services));
        }
    }

    /// Does this CPU's records.
    fn records(&mut self, replay: &Replay<'_, P>, cpu: usize) {
        let progress = replay.table.progress(cpu);
        for (record, number) in self.run.records.iter().zip(0..) {
            if replay.is_over(number) {
                return;
            }
            let record = u64::from_le_bytes(*record);
            let named = TraceRecord::cpu_of(record);
            if named != cpu {
                // One of them looks after those that are nobody's.
                if self.number == 0 && self.run.cpus.0 >> named & 1 == 0 {
                    return replay.refuse(number, OpError::NoSuchCpu);
                }
                continue;
            }
            // Release: who waits for an earlier record sees what it did. Before this one, which may itself wait.
            progress.store(number, Release);
            if let Err(error) = TraceRecord::decode(record).and_then(|record| self.record(replay, record, number)) {
                return replay.refuse(number, error);
            }
        }
    }

    #[inline]
    fn record(&mut self, replay: &Replay<'_, P>, record: TraceRecord, number: u64) -> Result<(), OpError> {
        match record {
            TraceRecord::Alloc { id, order, gfp, .. } => {
                let slot = replay.table.word(id)?;
                if gfp.contains(Gfp::NOFAIL) {
                    return Err(OpError::Invalid);
                }
                if slot.get() != 0 {
                    return Err(OpError::HandleInUse);
                }
                let got = self.alloc(gfp, order).map(|pfn| word(pfn, order));
                if slot.compare_exchange(0, got.unwrap_or(FAILED), AcqRel, Relaxed).is_err() {
                    // Another CPU was told to use the id at the same time.
                    if let Some((pfn, order)) = got.map(block) {
                        self.free(pfn, order);
                    }
                    return Err(OpError::HandleInUse);
                }
            }
            TraceRecord::Free { id, .. } => match replay.table.word(id)?.swap(0, AcqRel) {
                0 => return Err(OpError::BadHandle),
                FAILED => {}
                held => {
                    let (pfn, order) = block(held);
                    self.free(pfn, order);
                }
            },
            TraceRecord::Wait { peer, record, .. } => self.wait_for(replay, peer, record.into(), number)?,
        }
        Ok(())
    }

    /// Waits until `peer` has done its records up to `record`, or the trace is over.
    fn wait_for(&self, replay: &Replay<'_, P>, peer: CpuId, record: u64, number: u64) -> Result<(), OpError> {
        if record >= number {
            return Err(OpError::Invalid);
        }
        if !self.run.cpus.contains(peer) {
            return Err(OpError::NoSuchCpu);
        }
        // Acquire pairs with the release in `records`.
        while replay.table.progress(peer.index()).load(Acquire) <= record && !replay.is_over(number) {
            self.run.services.relax();
        }
        Ok(())
    }
}
