//! Workloads on their way to a guest.

use std::time::Duration;

use pagevisor_shared::command::{ANY_CPU, Op, OpError};

use super::error::ErrorKind;
use super::session::{Call, exchange, single, single_error};
use crate::machine::{Deadline, Machine};
use crate::workload::{Messages, Workload, WorkloadReport};

/// As good as no limit.
const FOREVER: Duration = Duration::from_secs(1 << 32);

/// A workload as a guest is told it; the files that it names have been read.
#[derive(Clone, Debug)]
pub struct PreparedWorkload {
    name: String,
    messages: Messages,
}

impl PreparedWorkload {
    /// Prepares a workload.
    ///
    /// # Errors
    /// [`ErrorKind::Workload`] for one that is none, or is nothing but booting.
    pub fn new(workload: &Workload) -> Result<Self, ErrorKind> {
        let name = workload.to_string();
        let bad = |reason| ErrorKind::Workload { workload: name.clone(), reason };
        if workload.is_boot() {
            workload.check().map_err(bad)?;
            return Err(bad("it is done when the guest is ready".to_owned()));
        }
        let messages = workload.encode().map_err(bad)?;
        Ok(Self { name, messages })
    }

    /// As users write it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has the guest of `machine` do it, until it is done, the deadline is over, or `stop` says so.
    ///
    /// A trace may be several messages. When one is not answered, the guest still holds blocks of the trace, and replays no
    /// other one of several messages until `release_workload`.
    ///
    /// # Errors
    /// As [`Guest::run`], and [`ErrorKind::Stopped`].
    pub fn run(
        &self,
        machine: &Machine,
        deadline: Deadline,
        stop: Option<&dyn Fn() -> bool>,
    ) -> Result<WorkloadReport, ErrorKind> {
        self.check(machine)?;
        let nodes = machine.memory().state().open().map_or(0, |region| region.nr_nodes());
        let mut sum: Option<WorkloadReport> = None;
        for (payload, number) in self.messages.payloads().iter().zip(0..) {
            let report = self.send(machine, deadline, stop, payload, number)?;
            let report = WorkloadReport::from_words(&report, nodes)?;
            match &mut sum {
                Some(sum) => sum.add(&report),
                None => sum = Some(report),
            }
        }
        Ok(sum.unwrap_or_default())
    }

    fn bad(&self, reason: String) -> ErrorKind {
        ErrorKind::Workload { workload: self.name.clone(), reason }
    }

    /// Whether the machine has the CPUs that it needs.
    fn check(&self, machine: &Machine) -> Result<(), ErrorKind> {
        let cpus = machine.memory().state().open().map_or(0, |region| region.nr_cpus());
        match self.messages.beyond(cpus) {
            None => Ok(()),
            Some((line, cpu)) => Err(self.bad(format!(
                "line {line} of the trace: the machine has {cpus} CPUs and no CPU {cpu}; cpus= says which stand in"
            ))),
        }
    }

    /// Sends a message; gives the words of its report.
    fn send(
        &self,
        machine: &Machine,
        deadline: Deadline,
        stop: Option<&dyn Fn() -> bool>,
        payload: &[u64],
        number: usize,
    ) -> Result<Vec<u64>, ErrorKind> {
        let payload: Vec<u8> = payload.iter().flat_map(|word| word.to_le_bytes()).collect();
        let op = Op::Run { payload: 0, len: payload.len() as u32 };
        let timeout = deadline.left().unwrap_or(FOREVER);
        let reply = exchange(machine, &Call { payload: &payload, timeout, stop, ..Call::new(ANY_CPU, &[op]) }, None)?;
        let result = single(&reply)?;
        if result.error == Some(OpError::BadRecord) {
            let line = self.messages.line(number, result.value);
            let what = ErrorKind::BadReply { cpu: reply.header.cpu, what: "the number of the record" };
            let reason = OpError::new(result.aux).unwrap_or(OpError::BadRecord);
            return Err(line.map_or(what, |line| self.bad(format!("line {line} of the trace: {reason}"))));
        }
        single_error(&op, &result, reply.header.cpu)?;
        let report = reply.payload.get(result.aux as usize..).unwrap_or(&[]);
        Ok(report.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }
}
