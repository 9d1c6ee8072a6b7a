use std::fs::{self, OpenOptions};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::error::exit_status;
use crate::machine::{StopEvent, StopReason};

/// Gives each run what `give` says, and remembers which runs it was asked for.
struct Fake<F> {
    give: F,
    asked: Mutex<Vec<String>>,
}

impl<F> Fake<F> {
    fn new(give: F) -> Self {
        Self { give, asked: Mutex::default() }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl<F: Fn(&Run, &StopEvent) -> Result<Measures, RunError> + Sync> Runner for Fake<F> {
    fn run(&self, run: &Run, _: Duration, stop: &StopEvent) -> Result<Measures, RunError> {
        self.asked.lock().unwrap().push(run.to_string());
        (self.give)(run, stop)
    }
}

fn measures(run: &Run) -> Measures {
    let pairs =
        vec![PairMeasure { from: 0, to: run.topology.nr_nodes() - 1, accesses: 10, latency_ns: 0, bandwidth_mbps: 0 }];
    Measures { guest_cycles: run.seed, pairs, ..Measures::default() }
}

/// Does what is missing; how it ended, and the numbers that `Begin` told.
fn go(
    experiment: &Experiment,
    runner: &dyn Runner,
    dir: &Path,
    retry_failed: bool,
) -> (Result<Outcome, ExperimentError>, (usize, usize)) {
    let mut journal = Journal::open(dir).unwrap();
    let mut begin = (0, 0);
    let stop = StopEvent::new().unwrap();
    let engine = Engine { experiment, jobs: 2, retry_failed };
    let outcome = engine.run(runner, &mut journal, &stop, &mut |event| {
        if let Event::Begin { finished, missing } = event {
            begin = (finished, missing);
        }
    });
    (outcome, begin)
}

#[test]
fn each_run_is_done_once_and_recorded() {
    let (experiment, dir) = (parsed(EIGHT), tempfile::tempdir().unwrap());
    let fake = Fake::new(|run: &Run, _: &StopEvent| Ok(measures(run)));
    let (outcome, begin) = go(&experiment, &fake, dir.path(), false);
    assert_eq!((outcome.unwrap(), begin, fake.asked().len()), (Outcome::Complete, (0, 8), 8));
    let journal = Journal::open(dir.path()).unwrap();
    for run in &experiment.runs {
        let record = journal.get(&run.key).unwrap();
        assert_eq!((&record.topology, record.seed), (&run.name, run.seed));
        let found = record.measures().unwrap();
        // 10 remote accesses of 100 ns in one machine, of 80 ns in the other, which has but local memory.
        let expected = if run.name == "two" { 1000 } else { 800 };
        assert_eq!((found.guest_cycles, found.modelled_ns()), (run.seed, expected));
        // 640 bytes at 50 GB/s, or at 100 GB/s.
        assert_eq!(found.modelled_transfer_ns(), if run.name == "two" { 12 } else { 6 });
    }
    drop(journal);
    let (outcome, begin) = go(&experiment, &fake, dir.path(), true);
    assert_eq!((outcome.unwrap(), begin, fake.asked().len()), (Outcome::Complete, (8, 0), 0), "nothing is missing");
}

#[test]
fn what_was_stopped_goes_on() {
    let (experiment, dir) = (parsed(EIGHT), tempfile::tempdir().unwrap());
    let count = AtomicUsize::new(0);
    let stopping = Fake::new(|run: &Run, stop: &StopEvent| match count.fetch_add(1, Ordering::Relaxed) {
        0..3 => Ok(measures(run)),
        _ => {
            stop.stop(StopReason::Interrupt);
            Err(RunError::Stopped)
        }
    });
    let (outcome, _) = go(&experiment, &stopping, dir.path(), false);
    assert_eq!(outcome.unwrap(), Outcome::Stopped);
    assert!(stopping.asked().len() <= 5, "nothing new begins");
    let fake = Fake::new(|run: &Run, _: &StopEvent| Ok(measures(run)));
    let (outcome, begin) = go(&experiment, &fake, dir.path(), false);
    assert_eq!((outcome.unwrap(), begin, fake.asked().len()), (Outcome::Complete, (3, 5), 5));
}

#[test]
fn runs_are_done_side_by_side() {
    let experiment = parsed(EIGHT);
    let (sender, receiver) = std::sync::mpsc::channel();
    let (sender, receiver) = (Mutex::new(sender), Mutex::new(receiver));
    // Each waits for another one: alone it would fail.
    let fake = Fake::new(|run: &Run, _: &StopEvent| match run.seed {
        1 => sender.lock().unwrap().send(()).map(|()| measures(run)).map_err(|_| RunError::Stopped),
        _ => {
            let met = receiver.lock().unwrap().recv_timeout(Duration::from_secs(10));
            met.map(|()| measures(run)).map_err(|error| RunError::Failed(error.to_string()))
        }
    });
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(go(&experiment, &fake, dir.path(), false).0.unwrap(), Outcome::Complete);
    let journal = Journal::open(dir.path()).unwrap();
    assert!(experiment.runs.iter().all(|run| journal.get(&run.key).unwrap().measures().is_some()));
}

#[test]
fn failed_runs_are_done_again_only_when_asked() {
    let (experiment, dir) = (parsed(EIGHT), tempfile::tempdir().unwrap());
    let failing = Fake::new(|run: &Run, _: &StopEvent| match run.seed {
        2 => Err(RunError::Failed("out of memory".to_owned())),
        _ => Ok(measures(run)),
    });
    assert_eq!(go(&experiment, &failing, dir.path(), false).0.unwrap(), Outcome::Complete);
    let failed = |dir: &Path| {
        let journal = Journal::open(dir).unwrap();
        let records = experiment.runs.iter().map(|run| journal.get(&run.key).unwrap().result.clone());
        records.filter(|result| *result == RunResult::Failed("out of memory".to_owned())).count()
    };
    assert_eq!(failed(dir.path()), 4);
    failing.asked();
    go(&experiment, &failing, dir.path(), false).0.unwrap();
    assert_eq!(failing.asked().len(), 0);
    let fake = Fake::new(|run: &Run, _: &StopEvent| Ok(measures(run)));
    go(&experiment, &fake, dir.path(), true).0.unwrap();
    assert_eq!((fake.asked().len(), failed(dir.path())), (4, 0));
}

#[test]
fn a_host_that_can_do_no_run_ends_it() {
    let (experiment, dir) = (parsed(EIGHT), tempfile::tempdir().unwrap());
    let fake = Fake::new(|_: &Run, _: &StopEvent| {
        let reason = "no /dev/kvm".to_owned();
        Err(RunError::Fatal(ExperimentError::Host { reason, status: exit_status::NO_KVM }))
    });
    let error = go(&experiment, &fake, dir.path(), false).0.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.exit_status()), ("no /dev/kvm", exit_status::NO_KVM));
    assert!(fake.asked().len() <= 3, "one per worker, and one that just began");
    assert_eq!(fs::metadata(dir.path().join("runs.jsonl")).unwrap().len(), 0, "no rows");
}

#[test]
fn a_full_disk_ends_it_and_keeps_what_is_there() {
    let experiment = parsed(EIGHT);
    let mut journal = Journal::of(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let fake = Fake::new(|run: &Run, _: &StopEvent| Ok(measures(run)));
    let stop = StopEvent::new().unwrap();
    let engine = Engine { experiment: &experiment, jobs: 1, retry_failed: false };
    let error = engine.run(&fake, &mut journal, &stop, &mut |_| {}).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.to_string().starts_with("cannot write runs.jsonl; finished runs are kept"), "{error}");
    assert!(source.contains("No space left"), "{source}");
    assert_eq!(stop.reason(), Some(StopReason::Request), "runs under way are not waited for");
    assert!(experiment.runs.iter().all(|run| journal.get(&run.key).is_none()));
}

#[test]
fn a_torn_line_is_cut_off_and_its_run_done_again() {
    let (experiment, dir) = (parsed(EIGHT), tempfile::tempdir().unwrap());
    let fake = Fake::new(|run: &Run, _: &StopEvent| Ok(measures(run)));
    go(&experiment, &fake, dir.path(), false).0.unwrap();
    let path = dir.path().join("runs.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 8);
    fs::write(&path, &text[..text.len() - 20]).unwrap();
    fake.asked();
    assert_eq!(go(&experiment, &fake, dir.path(), false).1, (7, 1));
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 8);

    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"key\": 3}\nnonsense\n").unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.ignored(), [9, 10]);
    let error = Journal::open(dir.path()).unwrap_err();
    assert!(error.to_string().ends_with("runs.jsonl is in use by another experiment"), "{error}");
}
