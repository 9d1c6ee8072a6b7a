//! Experiments: a matrix of machines, workloads, settings and seeds, each run a guest of its own, each result a row.
//!
//! ```text
//! file.rs     what the user wrote            -> Experiment
//! matrix.rs   every combination of it        -> Run, with a key that tells it from all others
//! runner.rs   who does one run               -> Measures
//! guest.rs    a guest that does
//! record.rs   a finished run, for good: one line of runs.jsonl
//! engine.rs   runs what is missing, several at a time
//! table.rs    rows as columns                -> csv.rs, parquet.rs, summary.rs
//! ```
//!
//! # What a result says
//!
//! - `guest_cycles` are ticks of the time stamp counter between the workload's first and last step, `guest_ns` the same
//!   in nanoseconds. KVM counts no instructions. They depend on the host and on what else runs there.
//! - What the workload's allocations got is counted by node of the CPU that asked and node of the page. Placement,
//!   fallbacks, and the digest of all free lists follow from topology, workload, settings and seed alone, as long as the
//!   guest has one CPU.
//! - `modelled_ns` is a **model**, not a measurement: the number of accesses the workload stands for, by node of the CPU
//!   and node of the page, times [`Topology::latency_ns`](crate::topology::Topology::latency_ns) of the pair. It charges
//!   the full latency for each access: no cache, no prefetch, no overlap, no contention. `modelled_transfer_ns` is the
//!   other end of the same model: the accesses' cache lines of 64 bytes at full
//!   [`Topology::bandwidth_mbps`](crate::topology::Topology::bandwidth_mbps), as if all of them overlapped. They rank
//!   placements and policies on a host without NUMA; they do not predict times.
//! - `extfrag_index` and `unusable_index` are Linux's, in thousandths, of the free lists when the workload is done.

mod engine;
mod error;
mod file;
mod guest;
mod journal;
mod matrix;
mod measure;
mod record;
mod runner;
mod summary;
mod table;
#[cfg(test)]
mod tests;

pub use engine::{Engine, Event, Outcome};
pub use error::ExperimentError;
pub use file::Experiment;
pub use guest::{GuestRunner, Work, do_workload};
pub use journal::Journal;
pub use matrix::{Run, Setting};
pub use record::{Fallbacks, Machine, Measures, PairMeasure, Record, RunResult, ZoneMeasure};
pub use runner::{RunError, Runner};
pub use summary::summary;
pub use table::{Cell, Column, Table, tables};
