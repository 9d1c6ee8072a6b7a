//! A finished run: what it was and what came of it.

use std::collections::BTreeMap;

use pagevisor_shared::report::ContigPageInfo;
use pagevisor_shared::units::MAX_ORDER;
use serde::{Deserialize, Serialize};

use super::matrix::{Run, Setting};
use crate::topology::Topology;
use crate::workload::{Value, Workload};

/// Bytes that an access moves: a cache line.
const ACCESS_BYTES: u64 = 64;

/// A finished run, as a line of `runs.jsonl` has it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// [`Run::key`]
    pub key: String,
    /// Name of the topology.
    pub topology: String,
    /// The machine.
    pub machine: Machine,
    /// The workload, without its seed.
    pub workload: Workload,
    /// The settings.
    pub settings: BTreeMap<Setting, Value>,
    /// The seed.
    pub seed: u64,
    /// Milliseconds that the run took on the host, booting included.
    pub host_ms: u64,
    /// What came of it.
    pub result: RunResult,
}

/// How large a machine is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Its nodes.
    pub nodes: usize,
    /// Its CPUs.
    pub cpus: usize,
}

/// What came of a run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunResult {
    /// It did what it was to do.
    Ok(Box<Measures>),
    /// It failed, for this reason.
    Failed(String),
}

/// What was counted in a run.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Measures {
    /// Ticks of the guest's time stamp counter from the workload's first step to its last.
    pub guest_cycles: u64,
    /// Ticks per millisecond.
    pub tsc_khz: u32,
    /// Allocations that succeeded.
    pub allocs: u64,
    /// Allocations that failed.
    pub failed: u64,
    /// Attempts at large blocks, for a workload that makes them.
    pub tries: u64,
    /// Those that succeeded.
    pub hits: u64,
    /// Pages that the workload was given, by node, over the whole run.
    pub placed_pages: Vec<u64>,
    /// Pages from a lower zone, or from another node, than the one tried first.
    pub fallbacks: Fallbacks,
    /// Accesses by node of the CPU and node of the page.
    pub pairs: Vec<PairMeasure>,
    /// Populated zones, when the workload was done.
    pub zones: Vec<ZoneMeasure>,
    /// [`crate::state::StateView::free_list_digest`] when the workload was done.
    pub free_list_digest: String,
    /// Whether free lists and counters agreed then.
    pub verified: bool,
}

/// Pages that did not come from where they were tried first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Fallbacks {
    /// From a lower zone.
    pub zone: u64,
    /// From another node.
    pub node: u64,
}

/// Accesses from a node's CPUs to a node's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PairMeasure {
    /// Node of the CPU.
    pub from: usize,
    /// Node of the memory.
    pub to: usize,
    /// Accesses that the workload stands for.
    pub accesses: u64,
    /// Nanoseconds that the model charges for each.
    pub latency_ns: u32,
    /// MB/s at which the model lets the accesses' bytes come.
    pub bandwidth_mbps: u32,
}

/// A zone.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ZoneMeasure {
    /// Its node.
    pub node: usize,
    /// Its name.
    pub zone: String,
    /// Pages the allocator manages.
    pub managed_pages: u64,
    /// Pages of it that the workload was given, over the whole run.
    pub placed_pages: u64,
    /// Free pages.
    pub free_pages: u64,
    /// The fewest there were while the workload ran.
    pub min_free_pages: u64,
    /// Free blocks by order.
    pub free_blocks: [u64; MAX_ORDER],
}

impl PairMeasure {
    /// What the model charges for the accesses, in ns.
    pub fn modelled_ns(&self) -> u64 {
        self.accesses.saturating_mul(self.latency_ns.into())
    }

    /// What the bytes of the accesses take at full bandwidth, in ns: the least that the model could charge.
    pub fn modelled_transfer_ns(&self) -> u64 {
        // 10^6 bytes in a second are a byte in 1000 ns.
        let ns = u128::from(self.accesses) * u128::from(ACCESS_BYTES) * 1000;
        let ns = ns.checked_div(self.bandwidth_mbps.into()).unwrap_or(0);
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}

/// Both of Linux's indices of the free lists, in thousandths, by order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Indices {
    /// `extfrag_index`
    pub extfrag: [i64; MAX_ORDER],
    /// `unusable_index`
    pub unusable: [i64; MAX_ORDER],
}

impl Indices {
    /// Of free lists with so many blocks by order.
    pub fn of(blocks: &[u64; MAX_ORDER]) -> Self {
        let index = |index: fn(&ContigPageInfo, usize) -> i64| {
            std::array::from_fn(|order| index(&ContigPageInfo::new(blocks, order), order))
        };
        Self {
            extfrag: index(ContigPageInfo::fragmentation_index),
            unusable: index(ContigPageInfo::unusable_free_index),
        }
    }
}

impl Measures {
    /// Nanoseconds from the workload's first step to its last.
    pub fn guest_ns(&self) -> Option<u64> {
        let ns = (u128::from(self.guest_cycles) * 1_000_000).checked_div(self.tsc_khz.into())?;
        u64::try_from(ns).ok()
    }

    /// Accesses, of local pairs or of remote ones.
    pub fn accesses(&self, local: bool) -> u64 {
        let pairs = self.pairs.iter().filter(|pair| (pair.from == pair.to) == local);
        pairs.fold(0, |sum, pair| sum.saturating_add(pair.accesses))
    }

    /// The part of all accesses that are local; `None` if there are no accesses.
    pub fn local_ratio(&self) -> Option<f64> {
        let (local, remote) = (self.accesses(true) as f64, self.accesses(false) as f64);
        (local + remote > 0.0).then(|| local / (local + remote))
    }

    /// What the model charges for all accesses, in ns.
    pub fn modelled_ns(&self) -> u64 {
        self.pairs.iter().fold(0, |sum, pair| sum.saturating_add(pair.modelled_ns()))
    }

    /// What the bytes of all accesses take at full bandwidth, in ns, one pair of nodes after the other.
    pub fn modelled_transfer_ns(&self) -> u64 {
        self.pairs.iter().fold(0, |sum, pair| sum.saturating_add(pair.modelled_transfer_ns()))
    }

    /// Free blocks of all zones by order.
    pub fn free_blocks(&self) -> [u64; MAX_ORDER] {
        let mut blocks = [0u64; MAX_ORDER];
        for zone in &self.zones {
            for (sum, count) in blocks.iter_mut().zip(zone.free_blocks) {
                *sum = sum.saturating_add(count);
            }
        }
        blocks
    }

    /// Charges the accesses by the latencies and bandwidths of `topology`.
    pub fn charge(&mut self, topology: &Topology) {
        for pair in &mut self.pairs {
            pair.latency_ns = topology.latency_ns(pair.from, pair.to).unwrap_or(0);
            pair.bandwidth_mbps = topology.bandwidth_mbps(pair.from, pair.to).unwrap_or(0);
        }
    }
}

impl Record {
    /// The record of `run`.
    pub fn new(run: &Run, host_ms: u64, result: RunResult) -> Self {
        Self {
            key: run.key.clone(),
            topology: run.name.clone(),
            machine: Machine { nodes: run.topology.nr_nodes(), cpus: run.topology.nr_cpus() },
            workload: run.workload.clone(),
            settings: run.settings.clone(),
            seed: run.seed,
            host_ms,
            result,
        }
    }

    /// What was counted, if the run succeeded.
    pub fn measures(&self) -> Option<&Measures> {
        match &self.result {
            RunResult::Ok(measures) => Some(measures),
            RunResult::Failed(_) => None,
        }
    }
}
