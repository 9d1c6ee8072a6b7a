//! Runs in real guests.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::error::ExperimentError;
use super::file::Experiment;
use super::matrix::{Run, Setting};
use super::measure;
use super::record::Measures;
use super::runner::{RunError, Runner};
use crate::error::{StartError, exit_status};
use crate::guest::{ErrorKind, PreparedWorkload};
use crate::machine::{Deadline, End, KernelImage, Machine, MachineConfig, StopEvent};
use crate::sandbox::Mode;
use crate::state::{Patience, StateView};
use crate::workload::{Workload, WorkloadReport};

/// Has a guest do a workload, until it is done, the deadline is over, or something stops it.
pub type Work = dyn Fn(&Machine, &Workload, Deadline, &StopEvent) -> Result<WorkloadReport, RunError> + Sync;

/// Boots a guest for each run and ends it afterwards.
pub struct GuestRunner<'w> {
    /// The kernel to boot.
    pub kernel: KernelImage,
    /// How a guest is told to do a workload; `None` if there is nothing to be done but booting.
    pub work: Option<&'w Work>,
}

/// A [`Work`]: tells the guest to do it.
///
/// # Errors
/// Why it was not done.
pub fn do_workload(
    machine: &Machine,
    workload: &Workload,
    deadline: Deadline,
    stop: &StopEvent,
) -> Result<WorkloadReport, RunError> {
    let stopped = || stop.reason().is_some();
    let report = PreparedWorkload::new(workload).and_then(|work| work.run(machine, deadline, Some(&stopped)));
    report.map_err(|error| match error {
        ErrorKind::Stopped => RunError::Stopped,
        ErrorKind::Ended(end) => RunError::Failed(end.to_string().lines().next().unwrap_or_default().to_owned()),
        error => failed(error),
    })
}

impl GuestRunner<'_> {
    /// Checks that the runs are such as this runner can do.
    ///
    /// # Errors
    /// [`ExperimentError::File`] with the first workload that it cannot do.
    pub fn check(&self, experiment: &Experiment, origin: &str) -> Result<(), ExperimentError> {
        let cannot = |run: &&Run| !run.workload.is_boot() && self.work.is_none();
        match experiment.runs.iter().find(cannot) {
            None => Ok(()),
            Some(run) => Err(ExperimentError::File {
                origin: origin.to_owned(),
                reason: format!("workload {:?}: this version's guests do nothing but boot", run.workload.name),
            }),
        }
    }

    /// Does the workload, if there is one.
    fn work(
        &self,
        machine: &Machine,
        run: &Run,
        deadline: Deadline,
        stop: &StopEvent,
    ) -> Result<Option<WorkloadReport>, RunError> {
        match self.work {
            Some(work) if !run.workload.is_boot() => work(machine, &run.seeded(), deadline, stop).map(Some),
            _ => Ok(None),
        }
    }
}

impl Default for GuestRunner<'_> {
    fn default() -> Self {
        Self { kernel: KernelImage::Embedded, work: None }
    }
}

impl Runner for GuestRunner<'_> {
    fn run(&self, run: &Run, timeout: Duration, stop: &StopEvent) -> Result<Measures, RunError> {
        let deadline = Deadline::after(timeout);
        let console = SerialTail::default();
        let config = MachineConfig {
            kernel: self.kernel.clone(),
            append: append(run),
            console: Box::new(console.clone()),
            sandbox: Mode::Enforce,
            ..MachineConfig::new((*run.topology).clone()).map_err(failed)?
        };
        let machine = Machine::start(config).map_err(not_started)?;
        machine.wait_ready(deadline, stop).map_err(|end| ended(&end, &console))?;
        let state = StateView::of_machine(&machine).map_err(failed)?;
        check_settings(run, &state)?;
        let report = self.work(&machine, run, deadline, stop)?;
        // Whatever the guest is doing, its tables are of one moment while it is paused.
        let paused = machine.pause().map_err(failed)?;
        let verified = state.walk_free_lists(Patience::default()).map_err(failed)?.is_verified();
        let mut measures = Measures {
            guest_cycles: measure::boot_cycles(&state),
            tsc_khz: measure::tsc_khz(&state),
            zones: measure::zones(&state),
            free_list_digest: state.free_list_digest().map_err(failed)?,
            verified,
            ..Measures::default()
        };
        drop(paused);
        if let Some(report) = report {
            measure::take_over(&mut measures, &report);
        }
        Ok(measures)
    }
}

/// The words for the kernel's command line. Settings of `vm.` are among them (`sysctl.vm.NAME=VALUE`): so they hold when
/// the guest is ready.
fn append(run: &Run) -> String {
    let words = run.settings.iter().filter_map(|(setting, value)| match setting {
        Setting::Append => Some(value.to_string()),
        Setting::Cpus => None,
        Setting::LowmemReserveRatio => Some(format!("sysctl.{}=\"{value}\"", setting.name())),
        setting => Some(format!("sysctl.{}={value}", setting.name())),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Checks that the guest has taken the settings.
fn check_settings(run: &Run, state: &StateView) -> Result<(), RunError> {
    for (setting, value) in &run.settings {
        let Some(found) = measure::setting(state, *setting) else { continue };
        let wanted = setting.numbers(value).map_err(RunError::Failed)?;
        if found.get(..wanted.len()) != Some(&wanted[..]) {
            return Err(RunError::Failed(format!("the guest does not accept {}", setting.with(value))));
        }
    }
    Ok(())
}

/// A run that failed, with `error` and what caused it in one line.
fn failed(error: impl std::error::Error) -> RunError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    RunError::Failed(text)
}

/// A host without KVM, or without memory, can do none of the runs; a topology may be one that this kernel cannot boot.
fn not_started(error: StartError) -> RunError {
    let status = error.exit_status();
    match (status, failed(error)) {
        (exit_status::USAGE, failed) => failed,
        (status, RunError::Failed(reason)) => RunError::Fatal(ExperimentError::Host { reason, status }),
        (_, other) => other,
    }
}

/// A guest that ended, or did not get ready.
fn ended(end: &End, console: &SerialTail) -> RunError {
    if let End::Stopped(_) = end {
        return RunError::Stopped;
    }
    let text = end.to_string();
    let first = text.lines().next().unwrap_or("the guest ended");
    match console.last_line() {
        Some(said) if matches!(end, End::TimedOut { .. }) => RunError::Failed(format!("{first}; it said last: {said}")),
        _ => RunError::Failed(first.to_owned()),
    }
}

/// The end of what a guest says over its serial line.
#[derive(Clone, Debug, Default)]
struct SerialTail(Arc<Mutex<Vec<u8>>>);

impl SerialTail {
    /// Most bytes that are kept.
    const MAX: usize = 4096;

    fn last_line(&self) -> Option<String> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&bytes);
        text.lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
    }
}

impl std::io::Write for SerialTail {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let surplus = kept.len().saturating_sub(Self::MAX);
        kept.drain(..surplus);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
