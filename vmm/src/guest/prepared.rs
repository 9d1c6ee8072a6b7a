//! Workloads on their way to a guest.

use std::time::Duration;

use pagevisor_shared::command::{ANY_CPU, Op};

use super::error::ErrorKind;
use super::session::{Call, exchange, single, single_error};
use crate::machine::{Deadline, Machine};
use crate::workload::{Workload, WorkloadReport};

/// As good as no limit.
const FOREVER: Duration = Duration::from_secs(1 << 32);

/// A workload as a guest is told it; the files that it names have been read.
#[derive(Clone, Debug)]
pub struct PreparedWorkload {
    name: String,
    payload: Vec<u8>,
}

impl PreparedWorkload {
    /// Prepares a workload.
    ///
    /// # Errors
    /// [`ErrorKind::Workload`] for one that is none, or is nothing but booting.
    pub fn new(workload: &Workload) -> Result<Self, ErrorKind> {
        let name = workload.to_string();
        let bad = |reason| ErrorKind::Workload { workload: name.clone(), reason };
        workload.check().map_err(bad)?;
        if workload.is_boot() {
            return Err(bad("it is done when the guest is ready".to_owned()));
        }
        let payload = workload.encode().map_err(bad)?.iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(Self { name, payload })
    }

    /// As users write it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has the guest of `machine` do it, until it is done, the deadline is over, or `stop` says so.
    ///
    /// # Errors
    /// As [`Guest::run`], and [`ErrorKind::Stopped`].
    pub fn run(
        &self,
        machine: &Machine,
        deadline: Deadline,
        stop: Option<&dyn Fn() -> bool>,
    ) -> Result<WorkloadReport, ErrorKind> {
        let op = Op::Run { payload: 0, len: self.payload.len() as u32 };
        let timeout = deadline.left().unwrap_or(FOREVER);
        let reply =
            exchange(machine, &Call { payload: &self.payload, timeout, stop, ..Call::new(ANY_CPU, &[op]) }, None)?;
        let result = single(&reply)?;
        single_error(&op, &result, reply.header.cpu)?;
        let report = reply.payload.get(result.aux as usize..).unwrap_or(&[]);
        let words: Vec<u64> = report.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let nodes = machine.memory().state().open().map_or(0, |region| region.nr_nodes());
        Ok(WorkloadReport::from_words(&words, nodes)?)
    }
}
