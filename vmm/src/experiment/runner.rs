//! Who does a run.

use std::time::Duration;

use super::error::ExperimentError;
use super::matrix::Run;
use super::record::Measures;
use crate::machine::StopEvent;

/// Does runs, several at a time.
pub trait Runner: Sync {
    /// Does one run and gives what was counted. It takes no longer than `timeout`, and ends early when `stop` happens.
    ///
    /// # Errors
    /// [`RunError`] tells a run that failed from one that was stopped, and both from a host that can do no run.
    fn run(&self, run: &Run, timeout: Duration, stop: &StopEvent) -> Result<Measures, RunError>;
}

/// Why a run has no measures.
#[derive(Debug)]
pub enum RunError {
    /// It failed; the reason, in one line.
    Failed(String),
    /// It was stopped, and says nothing about itself.
    Stopped,
    /// No run can succeed here.
    Fatal(ExperimentError),
}
