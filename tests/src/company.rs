//! What it costs a guest to be looked at: the time of a fixed workload, alone and in somebody's company.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use pagevisor::dump;
use pagevisor::report::View;
use pagevisor::runtime::{Connection, GuestName, RuntimeDir};
use pagevisor::state::StateView;
use pagevisor::workload::{Workload, WorkloadReport};
use pagevisor_shared::command::Op;
use pagevisor_shared::region::event::EventKind;

use crate::command::Guest;

/// How long a run may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the guests are.
const SHAPE: [&str; 2] = ["--node", "mem=128M,cpus=1"];
/// How often a reader looks.
const LOOK: Duration = Duration::from_millis(5);

/// Who else is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Company {
    /// Nobody.
    Nobody,
    /// Before the run, somebody has attached, taken a snapshot and detached.
    Visitor,
    /// Before the run, somebody has done so with another guest of the same size. That gives the host the same work to
    /// do, which leaves its caches, and the tables of a host that is emulated itself, in the same state.
    Neighbour,
    /// During the run, somebody reads all free lists again and again, and takes no snapshot.
    Reader,
    /// During the run, somebody has each allocation recorded: this one does cost something.
    Recorder,
}

impl Company {
    /// What its runs are to be compared with, because it differs from them in nothing but what it does to the guest.
    fn control(self) -> Self {
        match self {
            Self::Visitor => Self::Neighbour,
            Self::Nobody | Self::Neighbour | Self::Reader | Self::Recorder => Self::Nobody,
        }
    }
}

/// A client of the guest.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
}

impl Client {
    /// Connects to `guest`.
    ///
    /// # Panics
    /// If that cannot be done.
    #[track_caller]
    pub fn of(guest: &Guest) -> Self {
        let directory = RuntimeDir::open(guest.directory()).expect("a directory").expect("a directory");
        let name: GuestName = guest.name().parse().expect("a name");
        Self { connection: Connection::open(&directory, &name).expect("a connection") }
    }

    /// The connection.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The guest's state and memory.
    ///
    /// # Panics
    /// If they are not to be had.
    #[track_caller]
    pub fn attach(&self) -> StateView {
        StateView::of_attached(self.connection.attach().expect("attached")).expect("its state")
    }

    /// Takes a snapshot into a file, and gives how long the guest was paused for it.
    ///
    /// # Panics
    /// If that cannot be done.
    #[track_caller]
    pub fn snapshot(&self, view: &StateView, file: &Path) -> Duration {
        let began = Instant::now();
        let paused = self.connection.pause().expect("paused");
        dump::write(view, paused.registers(), file).expect("a snapshot");
        drop(paused);
        let took = began.elapsed();
        fs::remove_file(file).expect("the snapshot");
        took
    }
}

/// What a look at live state gives: every view of the buddy lists.
#[track_caller]
pub fn look(view: &StateView) -> usize {
    let mut text = Vec::new();
    for name in ["buddyinfo", "zoneinfo", "pagetypeinfo", "vmstat"] {
        let view_of: View = name.parse().expect("a view");
        view_of.render(view, false, &mut text).expect("it is rendered");
    }
    text.len()
}

/// A guest with one CPU that does the same work again and again.
#[derive(Debug)]
pub struct Bench {
    guest: Guest,
    driver: Client,
    payload: Vec<u8>,
    /// Another guest, if somebody has needed one.
    neighbour: OnceLock<Guest>,
}

impl Bench {
    /// A guest that is to do `workload`.
    ///
    /// # Panics
    /// If it does not come up.
    #[track_caller]
    pub fn new(workload: &str) -> Self {
        let guest = Guest::keep("timed", &SHAPE);
        let messages = workload.parse::<Workload>().expect("a workload").encode().expect("a workload");
        let [words] = messages.payloads() else { panic!("{workload} is several messages") };
        let payload = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let driver = Client::of(&guest);
        let bench = Self { guest, driver, payload, neighbour: OnceLock::new() };
        // The first runs are others: they touch memory that nobody has touched.
        for _ in 0..3 {
            bench.ticks(Company::Nobody);
        }
        bench
    }

    /// Time stamps that a run takes, as the guest counts them.
    ///
    /// # Panics
    /// If the guest does not do its work.
    #[track_caller]
    pub fn ticks(&self, company: Company) -> u64 {
        match company {
            Company::Nobody => self.run(),
            Company::Visitor => {
                visit(&self.guest);
                self.run()
            }
            Company::Neighbour => {
                visit(self.neighbour.get_or_init(|| Guest::keep("neighbour", &SHAPE)));
                self.run()
            }
            Company::Reader => {
                let client = Client::of(&self.guest);
                let view = client.attach();
                thread::scope(|scope| {
                    let run = scope.spawn(|| self.run());
                    while !run.is_finished() {
                        look(&view);
                        thread::sleep(LOOK);
                    }
                    run.join().expect("a run")
                })
            }
            Company::Recorder => {
                let client = Client::of(&self.guest);
                let kinds = EventKind::MmPageAlloc.bit() | EventKind::MmPageFree.bit();
                client.connection.record_events(kinds).expect("they are recorded");
                self.run()
            }
        }
    }

    fn run(&self) -> u64 {
        let op = Op::Run { payload: 0, len: self.payload.len() as u32 };
        let reply = self.driver.connection.command(&[op], &self.payload, PATIENCE).expect("a reply");
        let result = reply.results[0];
        assert_eq!(result.error, None);
        let report = reply.payload.get(result.aux as usize..).expect("a report");
        let words: Vec<u64> = report.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let report = WorkloadReport::from_words(&words, 1).expect("a report");
        assert_eq!((report.failed, report.kept), (0, 0), "{report}");
        report.ticks
    }

    /// `ticks` in milliseconds.
    ///
    /// # Panics
    /// If the guest's state cannot be read.
    #[track_caller]
    pub fn millis(&self, ticks: u64) -> f64 {
        let khz = self.driver.attach().region().header().tsc_khz.load(Relaxed);
        ticks as f64 / khz as f64
    }

    /// How long a snapshot holds the guest.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn snapshot(&self) -> Duration {
        self.driver.snapshot(&self.driver.attach(), &self.guest.directory().join("snapshot"))
    }

    /// Ends the guest.
    #[track_caller]
    pub fn stop(self) {
        drop(self.driver);
        self.guest.stop();
        if let Some(neighbour) = self.neighbour.into_inner() {
            neighbour.stop();
        }
    }
}

/// Attaches, takes a snapshot and detaches.
#[track_caller]
fn visit(guest: &Guest) {
    let client = Client::of(guest);
    let view = client.attach();
    client.snapshot(&view, &guest.directory().join("snapshot"));
}

/// The fewest ticks of the runs alone (that is, with what the company is compared with), of which there are two lots, and of those in company. They take turns, so that
/// what else goes on in the host meets all alike.
#[derive(Clone, Copy, Debug)]
pub struct Fewest {
    /// Nobody was there.
    pub alone: [u64; 2],
    /// Somebody was.
    pub company: u64,
    /// Runs of each.
    pub rounds: u32,
}

impl Fewest {
    /// What one more run of each tells.
    #[track_caller]
    fn add(&mut self, bench: &Bench, company: Company) {
        self.alone[0] = self.alone[0].min(bench.ticks(company.control()));
        self.company = self.company.min(bench.ticks(company));
        self.alone[1] = self.alone[1].min(bench.ticks(company.control()));
        self.rounds += 1;
    }

    /// Fewest ticks of a run alone.
    pub fn best(&self) -> u64 {
        self.alone[0].min(self.alone[1])
    }

    /// What is noise: as much as the two lots alone differ by, and 5 % at least.
    pub fn noise(&self) -> u64 {
        self.alone[0].abs_diff(self.alone[1]).max(self.best() / 20)
    }

    /// Whether the two lots alone agree.
    pub fn is_settled(&self) -> bool {
        self.alone[0].abs_diff(self.alone[1]) <= self.best() / 20
    }

    /// Whether the company makes no difference that is more than noise.
    pub fn is_noise(&self) -> bool {
        self.company <= self.best() + self.noise()
    }
}

/// Compares runs alone with runs in company (with a visit elsewhere for a visit here), at least `rounds.0` of each. Whatever the host does makes a run slower
/// and none faster, so the fewest ticks come nearer to what the run takes undisturbed, the more of them there are: it
/// goes on until the runs alone agree and the company is seen to make no difference, or for `rounds.1`, or until `time`
/// is over. What the company itself costs is in each of its runs, and stays.
#[track_caller]
pub fn compare(bench: &Bench, company: Company, rounds: (u32, u32), time: Duration) -> Fewest {
    let began = Instant::now();
    let mut fewest = Fewest { alone: [u64::MAX; 2], company: u64::MAX, rounds: 0 };
    loop {
        fewest.add(bench, company);
        let clear = fewest.is_settled() && fewest.is_noise();
        let enough = fewest.rounds >= rounds.0 && (clear || fewest.rounds >= rounds.1);
        if enough || (fewest.rounds >= 3 && began.elapsed() > time) {
            return fewest;
        }
    }
}
