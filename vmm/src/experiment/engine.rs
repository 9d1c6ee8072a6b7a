//! Does the runs that have no result yet, several at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::error::ExperimentError;
use super::file::Experiment;
use super::journal::Journal;
use super::matrix::Run;
use super::record::{Record, RunResult};
use super::runner::{RunError, Runner};
use crate::machine::{StopEvent, StopReason};

/// How often [`Event::Tick`] comes.
const TICK: Duration = Duration::from_millis(200);

/// Does the runs of an experiment.
#[derive(Clone, Copy, Debug)]
pub struct Engine<'a> {
    /// The experiment.
    pub experiment: &'a Experiment,
    /// Runs at a time.
    pub jobs: usize,
    /// Whether to do failed runs again.
    pub retry_failed: bool,
}

/// What an engine tells while it works.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// Work begins: so many of the experiment's runs have a result already, so many are to be done.
    Begin {
        /// Runs with a result.
        finished: usize,
        /// Runs to do.
        missing: usize,
    },
    /// A run has a result.
    Finished {
        /// The run.
        run: &'a Run,
        /// Its result.
        record: &'a Record,
    },
    /// Some time has passed.
    Tick,
}

/// How the work ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Every run has a result.
    Complete,
    /// It was stopped before that.
    Stopped,
}

/// What a worker sends: a run's number, what it gave, and how long it took.
type Report = (usize, Result<super::record::Measures, RunError>, Duration);

impl Engine<'_> {
    /// The runs that have to be done, given what `journal` has.
    pub fn missing(&self, journal: &Journal) -> Vec<&Run> {
        let is_missing = |run: &&Run| match journal.get(&run.key).map(|record| &record.result) {
            None => true,
            Some(RunResult::Failed(_)) => self.retry_failed,
            Some(RunResult::Ok(_)) => false,
        };
        self.experiment.runs.iter().filter(is_missing).collect()
    }

    /// Does the missing runs. Each result is in `journal` before it is told to `observe`. When `stop` happens, runs
    /// that are under way end without a result.
    ///
    /// # Errors
    /// When a result cannot be written, or no run can succeed on this host. Runs under way are stopped then, by `stop`.
    pub fn run(
        &self,
        runner: &dyn Runner,
        journal: &mut Journal,
        stop: &StopEvent,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<Outcome, ExperimentError> {
        let runs: Vec<Run> = self.missing(journal).into_iter().cloned().collect();
        observe(Event::Begin { finished: self.experiment.runs.len() - runs.len(), missing: runs.len() });
        let next = AtomicUsize::new(0);
        let (sender, receiver) = channel();
        thread::scope(|scope| {
            for _ in 0..self.jobs.clamp(1, runs.len().max(1)) {
                let (sender, runs, next) = (sender.clone(), &runs, &next);
                scope.spawn(move || work(runs, next, runner, self.experiment.timeout, stop, &sender));
            }
            drop(sender);
            let result = collect(&runs, &receiver, journal, stop, observe);
            if result.is_err() {
                stop.stop(StopReason::Request);
            }
            result
        })
    }
}

/// Does one run after the other until there is none left or `stop` happens.
fn work(
    runs: &[Run],
    next: &AtomicUsize,
    runner: &dyn Runner,
    timeout: Duration,
    stop: &StopEvent,
    sender: &Sender<Report>,
) {
    while stop.reason().is_none() {
        // Each number is taken once; nothing else is passed along with it.
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(run) = runs.get(number) else { return };
        let started = Instant::now();
        let result = runner.run(run, timeout, stop);
        if matches!(result, Err(RunError::Fatal(_))) {
            // Here, so that no other worker begins a run meanwhile.
            stop.stop(StopReason::Request);
        }
        if sender.send((number, result, started.elapsed())).is_err() {
            return;
        }
    }
}

/// Takes down what the workers report, until all have left.
fn collect(
    runs: &[Run],
    reports: &Receiver<Report>,
    journal: &mut Journal,
    stop: &StopEvent,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome, ExperimentError> {
    let mut finished = 0;
    loop {
        let (number, result, took) = match reports.recv_timeout(TICK) {
            Ok(report) => report,
            Err(RecvTimeoutError::Timeout) => {
                observe(Event::Tick);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let Some(run) = runs.get(number) else { continue };
        let result = match result {
            Ok(mut measures) => {
                measures.charge(&run.topology);
                RunResult::Ok(Box::new(measures))
            }
            Err(RunError::Failed(reason)) => RunResult::Failed(reason),
            Err(RunError::Stopped) => continue,
            Err(RunError::Fatal(error)) => return Err(error),
        };
        let record = Record::new(run, took.as_millis() as u64, result);
        journal.add(record.clone())?;
        finished += 1;
        observe(Event::Finished { run, record: &record });
    }
    Ok(if finished == runs.len() || stop.reason().is_none() { Outcome::Complete } else { Outcome::Stopped })
}
