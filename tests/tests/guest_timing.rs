//! Looking at a guest leaves it alone: its CPUs are not disturbed, nothing of it is changed, and its work takes the time
//! that it takes otherwise.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use pagevisor_shared::command::Op;
use pagevisor_shared::region::records::Activity;
use pagevisor_tests::command::Guest;
use pagevisor_tests::company::{Bench, Client, Company, Fewest, compare, look};

/// How long anything here may take on a host that has other things to do.
const PATIENCE: Duration = Duration::from_secs(20);

fn in_lab() -> bool {
    std::env::var_os("PAGEVISOR_LAB").is_some()
}

fn kept(name: &str) -> Guest {
    Guest::keep(name, &["--node", "mem=64M,cpus=2", "--node", "mem=64M,cpus=1", "--workload", "random:ops=100"])
}

/// Nanoseconds that a vCPU's thread has run, and how often it was switched to or from.
type Ran = (u64, u64);

/// What the threads of the vCPUs have done, by name.
fn vcpus(guest: &Guest) -> BTreeMap<String, Ran> {
    let mut found = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{}/task", guest.id())).expect("threads").flatten() {
        let file = |name: &str| fs::read_to_string(task.path().join(name)).expect("a thread of the VMM");
        let name = file("comm").trim().to_owned();
        if name.starts_with("vcpu") {
            let time = file("schedstat").split_whitespace().next().and_then(|word| word.parse().ok()).expect("time");
            let count = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
            let status = file("status");
            let switches = status.lines().filter(|line| line.contains("ctxt_switches")).filter_map(count).sum();
            found.insert(name, (time, switches));
        }
    }
    found
}

/// Waits until the vCPUs have nothing to do, which they have not had for a moment then.
#[track_caller]
fn wait_idle(guest: &Guest) -> BTreeMap<String, Ran> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = vcpus(guest);
        thread::sleep(Duration::from_millis(200));
        if vcpus(guest) == before {
            return before;
        }
        assert!(Instant::now() < deadline, "the vCPUs do not come to rest: {:?}", vcpus(guest));
    }
}

/// Everything there is of a guest that a reader could change.
#[derive(PartialEq, Eq)]
struct Everything {
    /// The state region, byte by byte.
    region: Vec<u8>,
    /// Memory that exists, in blocks of 512 bytes, by node.
    memory: Vec<u64>,
    /// The VMM's mappings, which are the machine's memory slots.
    mappings: String,
    /// The VMM's descriptors.
    descriptors: usize,
}

/// Files of a guest's state and memory.
struct Files {
    region: File,
    nodes: Vec<File>,
}

impl Files {
    fn of(client: &Client) -> Self {
        let attached = client.connection().attach().expect("attached");
        let file = |fd: OwnedFd| File::from(fd);
        Self { region: file(attached.region), nodes: attached.nodes.into_iter().flatten().map(file).collect() }
    }

    fn everything(&self, guest: &Guest) -> Everything {
        let mut region = vec![0; self.region.metadata().expect("its size").len() as usize];
        self.region.read_exact_at(&mut region, 0).expect("the state region");
        let lines = fs::read_to_string(format!("/proc/{}/maps", guest.id())).expect("mappings");
        let named: Vec<&str> = lines.lines().filter(|line| line.contains("memfd:") || line.contains("kvm")).collect();
        Everything {
            region,
            memory: self.nodes.iter().map(|file| file.metadata().expect("its size").blocks()).collect(),
            mappings: named.join("\n"),
            descriptors: fs::read_dir(format!("/proc/{}/fd", guest.id())).expect("descriptors").count(),
        }
    }

    /// Nothing of the guest is another than `before`, in a moment at the latest: the VMM closes what a client has left.
    #[track_caller]
    fn assert_unchanged(&self, guest: &Guest, before: &Everything) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.everything(guest);
            if now == *before {
                return;
            }
            if Instant::now() > deadline {
                let differs = now.region.iter().zip(&before.region).position(|(now, before)| now != before);
                assert_eq!(differs, None, "first byte of the state region that has changed");
                assert_eq!(now.memory, before.memory, "memory that exists");
                assert_eq!(now.mappings, before.mappings);
                assert_eq!(now.descriptors, before.descriptors, "descriptors of the VMM");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn who_attaches_reads_and_detaches_is_not_noticed() {
    let guest = kept("unnoticed");
    let observer = Client::of(&guest);
    let files = Files::of(&observer);
    let ran = wait_idle(&guest);
    let before = files.everything(&guest);
    assert!(ran.len() == 3 && ran.values().all(|(time, switches)| *time > 0 && *switches > 0), "{ran:?}");
    for _ in 0..3 {
        let client = Client::of(&guest);
        let view = client.attach();
        assert!(look(&view) > 1000);
    }
    // Not once has a vCPU left the guest, or its thread run at all.
    assert_eq!(vcpus(&guest), ran);
    files.assert_unchanged(&guest, &before);
    drop(observer);
    guest.stop();
}

#[test]
fn a_snapshot_holds_the_guest_once_and_lets_it_go() {
    const SNAPSHOTS: u64 = 3;
    let guest = kept("let-go");
    let observer = Client::of(&guest);
    let files = Files::of(&observer);
    let ran = wait_idle(&guest);
    let before = files.everything(&guest);
    for _ in 0..SNAPSHOTS {
        let client = Client::of(&guest);
        let view = client.attach();
        let took = client.snapshot(&view, &guest.directory().join("snapshot"));
        assert!(took < PATIENCE, "the guest was paused for {took:?}");
        assert_eq!(view.region().header().park_request.load(SeqCst), 0, "it is to stay parked");
    }
    // Each takes a thread out of the guest and back, with a wait in between, and no more of its time than that takes.
    for (name, (_, switches)) in wait_idle(&guest) {
        let more = switches - ran[&name].1;
        assert!((SNAPSHOTS..=16 * SNAPSHOTS).contains(&more), "{name} was switched {more} times");
    }
    files.assert_unchanged(&guest, &before);
    // It does what it is told, as before.
    let reply = observer.connection().command(&[Op::Barrier], &[], PATIENCE).expect("a reply");
    assert_eq!(reply.results[0].error, None);
    wait_idle(&guest);
    let view = observer.attach();
    assert!(view.region().cpus().iter().all(|cpu| { cpu.activity.load(SeqCst) == Activity::Idle as u32 }));
    drop((view, observer));
    guest.stop();
}

/// Runs of a fixed workload, without and with somebody, `most` of each at most.
fn compared(company: Company, most: u32) -> Fewest {
    let bench = Bench::new(if in_lab() { "random:ops=50,seed=7" } else { "random:ops=100,seed=7" });
    let fewest = compare(&bench, company, (5, most), Duration::from_secs(30));
    println!("{company:?}: {fewest:?}");
    bench.stop();
    fewest
}

/// One who reads while the workload runs takes nothing from the guest but the processors that they share, of which a
/// busy host has too few for a test to tell: `scripts/bench --only clients` has that figure.
#[test]
fn a_visit_before_a_workload_does_not_slow_it_down() {
    let fewest = compared(Company::Visitor, 100);
    assert!(fewest.is_noise(), "{fewest:?}");
}

/// What makes each allocation a little slower is told from noise.
#[test]
fn a_cost_is_not_taken_for_noise() {
    let fewest = compared(Company::Recorder, 20);
    assert!(!fewest.is_noise(), "{fewest:?}");
}
