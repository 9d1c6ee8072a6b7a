//! Workloads: what the host has the guest do to its memory ([`pagevisor_shared::command::workload`]).
//!
//! A workload runs on one CPU or several, a `Lane` each. What it does follows from its parameters; that an
//! allocation fails is a result. Its report is counted in the words of the reply as it goes. Blocks that a lane holds
//! are linked through the word of their metadata that is their owner's, so holding them takes no memory and leaves
//! their content alone.

mod chain;
mod kinds;
mod lane;
mod objects;
mod replay;
mod shared;

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::command::OpError;
use pagevisor_shared::command::workload::{Count, Kind, Params, Part, Phase, Report};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{CpuId, CpuMask};

use crate::Mm;
use crate::command::{Placer, Services, may_try};
use crate::platform::Platform;
use crate::sync::Plain;
use lane::Lane;
use objects::Caches;
use replay::Replay;
use shared::SharedPages;

pub use chain::Kept;
pub(crate) use replay::BadRecord;
pub use replay::Unfinished;

/// Most lines of a page that are touched.
const MAX_TOUCH: u32 = 64;

/// What the lanes of a run have in common.
#[derive(Debug)]
struct Run<'a, P: Platform, S> {
    mm: &'a Mm<P>,
    kept: &'a Kept,
    services: &'a S,
    params: &'a Params,
    /// Records of a trace, a word each.
    records: &'a [[u8; 8]],
    report: &'a [AtomicU64],
    /// CPUs that take part, and how many they are.
    cpus: CpuMask,
    lanes: usize,
    /// The trace that is replayed, if one is.
    replay: Option<Replay<'a, P>>,
    /// Pages that were free at the start.
    free: u64,
    /// Words that the lanes share.
    shared: SharedPages<'a, P>,
    /// Slab caches of the run's own.
    caches: Caches<'a, P>,
}

impl<P: Platform, S: Services> Run<'_, P, S> {
    fn add(&self, count: Count, number: u64) {
        self.report[count as usize].fetch_add(number, Relaxed);
    }

    /// The part of `total` that is lane `lane`'s.
    fn share(&self, total: u64, lane: usize) -> u64 {
        let lanes = self.lanes as u64;
        total / lanes + u64::from((lane as u64) < total % lanes)
    }
}

/// What workloads leave behind.
#[derive(Debug)]
pub(crate) struct Left {
    /// Blocks.
    pub(crate) kept: Kept,
    /// A trace whose next records are still to come.
    pub(crate) unfinished: Unfinished,
}

impl Left {
    pub(crate) const fn new() -> Self {
        Self { kept: Kept::new(), unfinished: Unfinished::new() }
    }

    /// Frees all of it; gives how many blocks there were.
    pub(crate) fn release<P: Platform, S: Services>(&self, mm: &Mm<P>, services: &S) -> u64 {
        self.unfinished.release(mm, services) + self.kept.release(mm, services)
    }
}

/// Runs a workload; counts its report in `report`, which has [`Report::words`] words. Gives the record that has ended a
/// replay.
///
/// # Errors
/// [`OpError::Invalid`] for parameters that mean nothing on this machine, [`OpError::NoMemory`] when there is not even
/// memory for its own tables; for parts of a trace also [`OpError::Busy`] and [`OpError::Unavailable`].
pub(crate) fn run<P: Platform, S: Services>(
    mm: &Mm<P>,
    left: &Left,
    services: &S,
    params: &Params,
    records: &[u8],
    report: &[AtomicU64],
) -> Result<Option<BadRecord>, OpError> {
    let records = records.as_chunks().0;
    let records = records.get(..params.records as usize).ok_or(OpError::Invalid)?;
    let keeps = params.keep && !params.kind.is_of_pages();
    let bad = keeps || params.touch > MAX_TOUCH || params.gfp.contains(Gfp::NOFAIL);
    if report.len() < Report::words(mm.nodes.len()) || bad {
        return Err(OpError::Invalid);
    }
    may_try(mm, params.gfp, params.order, params.placement)?;
    if params.kind != Kind::Replay || params.part == Part::Whole {
        return run_lanes(mm, left, services, params, records, report);
    }
    left.unfinished.lock(services);
    let result = run_lanes(mm, left, services, params, records, report);
    left.unfinished.unlock();
    result
}

/// Has the CPUs do their parts.
fn run_lanes<P: Platform, S: Services>(
    mm: &Mm<P>,
    left: &Left,
    services: &S,
    params: &Params,
    records: &[[u8; 8]],
    report: &[AtomicU64],
) -> Result<Option<BadRecord>, OpError> {
    let placer = Placer::new(mm, params.placement, 0)?;
    let cpus = cpus(mm, services, params)?;
    prepare(mm, report);
    let lanes = cpus.weight() as usize;
    let shared = SharedPages::new(mm, shared_order(params.kind, lanes))?;
    let caches = Caches::new(mm, params.kind)?;
    // Last: what is taken over from an earlier message must not be lost.
    let replay = match params.kind {
        Kind::Replay => Some(Replay::new(mm, services, &left.unfinished, params)?),
        _ => None,
    };
    let (kept, free) = (&left.kept, placer.free_pages(mm, params.gfp));
    let run = Run { mm, kept, services, params, records, report, cpus, lanes, replay, free, shared, caches };
    let part = |number| {
        let start = services.ticks();
        // The placement was tried above.
        if let Ok(mut lane) = Lane::new(&run, number) {
            lane.phase(Phase::Whole, Lane::run);
        }
        report[Count::Ticks as usize].fetch_max(services.ticks().wrapping_sub(start), Relaxed);
    };
    if cpus == CpuMask(0).with(mm.platform.this_cpu().cpu) {
        part(0)
    } else {
        services.run_on(cpus, &part)
    }
    Ok(run.replay.and_then(|replay| replay.end(&left.unfinished)))
}

/// The CPUs that take part.
fn cpus<P: Platform, S: Services>(mm: &Mm<P>, services: &S, params: &Params) -> Result<CpuMask, OpError> {
    let (here, online) = (mm.platform.this_cpu().cpu, services.online());
    let wanted = match params.kind {
        Kind::ProducerConsumer | Kind::PcpPingPong => 2,
        _ => 1,
    };
    if params.cpus.0 != 0 {
        return if params.cpus.0 & !online.0 == 0 { Ok(params.cpus) } else { Err(OpError::Invalid) };
    }
    // From this one on, around.
    let all = (here.index()..pagevisor_shared::NR_CPUS).chain(0..here.index()).filter_map(CpuId::new);
    let chosen = all.filter(|cpu| *cpu == here || online.contains(*cpu)).take(wanted);
    Ok(chosen.fold(CpuMask(0), CpuMask::with))
}

/// Clears a report and notes what is free now.
fn prepare<P: Platform>(mm: &Mm<P>, report: &[AtomicU64]) {
    let nodes = mm.nodes.len();
    report.iter().for_each(|word| word.set(0));
    report[Count::Nodes as usize].set(nodes as u64);
    for (word, zone) in report[Report::min_free(nodes)..].iter().zip(mm.zones) {
        word.set(zone.vm_stat[0].get().max(0) as u64);
    }
}

/// The order of the block of words that the lanes of a workload share, if they share any.
fn shared_order(kind: Kind, lanes: usize) -> Option<u32> {
    match kind {
        Kind::ProducerConsumer => Some((lanes / 2).max(1).next_power_of_two().ilog2()),
        Kind::PcpPingPong => Some(0),
        Kind::SlabMix | Kind::VmallocMix | Kind::MemoryMix if lanes > 1 => Some(0),
        _ => None,
    }
}
