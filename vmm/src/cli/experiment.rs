//! `pagevisor experiment`

use std::io::Write;
use std::path::PathBuf;
use std::thread;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::os::fd::AsFd;

use super::args::ExperimentArgs;
use super::failure::Failure;
use super::kernel::sha256;
use super::notice;
use super::progress::Progress;
use super::run::host;
use super::signals::{self, Signals};
use crate::error::exit_status;
use crate::experiment::{
    Engine, Experiment, ExperimentError, GuestRunner, Journal, Outcome, Record, RunResult, Runner, do_workload,
    summary, tables,
};
use crate::machine::{StopEvent, StopReason, kernel_elf};

impl From<ExperimentError> for Failure {
    fn from(error: ExperimentError) -> Self {
        Self::new(error.exit_status(), error)
    }
}

/// Does an experiment, or what is missing of it.
pub(super) fn experiment(args: &ExperimentArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let experiment = Experiment::read(&args.file, &sha256(kernel_elf()))?;
    let stem = args.file.file_stem().map_or_else(|| "experiment".into(), |stem| stem.to_string_lossy());
    let dir = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{stem}-results")));
    if args.dry_run {
        return dry_run(args, &experiment, out);
    }
    let runner = GuestRunner { work: Some(&do_workload), ..GuestRunner::default() };
    runner.check(&experiment, &args.file.display().to_string())?;
    let signals = Signals::block().map_err(host("cannot take signals"))?;
    let mut journal = Journal::open(&dir)?;
    for line in journal.ignored() {
        notice(format_args!("warning: {}:{line}: not the result of a run; ignored", journal.path().display()));
    }
    let engine = Engine { experiment: &experiment, jobs: args.jobs.get(), retry_failed: args.retry_failed };
    let mut progress = Progress::new(args.no_progress);
    let result = attended(&engine, &runner, &mut journal, &signals, &mut progress);
    progress.end();
    let (outcome, signal) = result?;

    let records: Vec<&Record> = experiment.runs.iter().filter_map(|run| journal.get(&run.key)).collect();
    for (name, table) in tables(&records) {
        let name = if name == "runs" { stem.to_string() } else { format!("{stem}-{name}") };
        table.save(&dir, &name)?;
    }
    if !records.is_empty() {
        out.write_all(summary(&records).as_bytes()).map_err(Failure::stdout)?;
    }
    let failed = records.iter().filter(|record| matches!(record.result, RunResult::Failed(_))).count();
    let total = experiment.runs.len();
    notice(format_args!("results are in {}: {stem}.csv, {stem}.parquet and their like", dir.display()));
    match (outcome, signal) {
        (Outcome::Stopped, signal) => {
            let done = records.len();
            notice(format_args!("stopped with {done} of {total} runs done; the same command goes on from there"));
            Err(Failure::quiet(signals::exit_status(signal.unwrap_or(Signal::SIGINT))))
        }
        (Outcome::Complete, _) if failed != 0 => Err(Failure::new(
            exit_status::FAILURE,
            format!("{failed} of {total} runs failed; --retry-failed does them again"),
        )),
        (Outcome::Complete, _) => Ok(exit_status::OK),
    }
}

/// Lists the runs, those that have a result with a mark.
fn dry_run(args: &ExperimentArgs, experiment: &Experiment, out: &mut impl Write) -> Result<u8, Failure> {
    for run in &experiment.runs {
        writeln!(out, "{run}").map_err(Failure::stdout)?;
    }
    let (runs, jobs) = (experiment.runs.len(), args.jobs);
    writeln!(out, "{runs} runs, {jobs} at a time, at most {} s each", experiment.timeout.as_secs())
        .map_err(Failure::stdout)?;
    Ok(exit_status::OK)
}

/// Runs the engine while another thread watches for signals. How it ended, and the signal that made it.
fn attended(
    engine: &Engine<'_>,
    runner: &dyn Runner,
    journal: &mut Journal,
    signals: &Signals,
    progress: &mut Progress,
) -> Result<(Outcome, Option<Signal>), Failure> {
    let event = || StopEvent::new().map_err(host("cannot make an eventfd"));
    let (stop, over) = (event()?, event()?);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(signals, &stop, &over));
        let outcome = engine.run(runner, journal, &stop, &mut |event| progress.show(event));
        over.stop(StopReason::Request);
        let signal = watcher.join().unwrap_or(None);
        Ok((outcome?, signal))
    })
}

/// Waits for a signal, and stops then; gives up when all is over.
fn watch(signals: &Signals, stop: &StopEvent, over: &StopEvent) -> Option<Signal> {
    while over.reason().is_none() {
        let mut fds = [signals.as_fd(), over.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // An error, such as EINTR, only makes another round.
        let _ = poll(&mut fds, PollTimeout::from(1000u16));
        if let Some(signal) = signals.take() {
            stop.stop(StopReason::Interrupt);
            return Some(signal);
        }
    }
    None
}
