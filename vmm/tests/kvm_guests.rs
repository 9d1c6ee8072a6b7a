//! Guests of one program: tens of them at the same time, and what they leave behind, which is nothing. Needs /dev/kvm.

mod possessions;

use std::mem::forget;
use std::process::Command;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use pagevisor::events::Kinds;
use pagevisor::guest::{ErrorKind, Gfp, Guest, NodeId, Order};
use pagevisor::machine::{Deadline, End, Machine, StopEvent, StopReason};
use pagevisor::topology::Topology;
use pagevisor_shared::region::event::EventKind;
use possessions::Possessions;

const SMALL: &str = "[[node]]\nmem = \"64M\"\ncpus = 1\n";
const PAIR: &str = "[[node]]\nmem = \"64M\"\ncpus = 1\n[[node]]\nmem = \"48M\"\ncpus = 1\n";

/// Where ring 0 is emulated by a processor that is emulated itself, everything takes its time.
fn in_lab() -> bool {
    std::env::var_os("PAGEVISOR_LAB").is_some()
}

fn boot(topology: &str) -> Guest {
    boot_appended(topology, "")
}

fn boot_appended(topology: &str, append: &str) -> Guest {
    let topology = Topology::from_toml(topology, "topology").unwrap();
    Machine::builder().topology(topology).append(append).boot().unwrap_or_else(|error| panic!("{error}"))
}

/// What every guest is asked: to allocate on each CPU, to keep what is written, to say what it has, and some of them to
/// be sound. `number` tells the guests apart.
fn talk_to(guest: &Guest, number: usize) {
    let nodes = guest.topology().nr_nodes();
    let before = guest.state();
    assert_eq!(before.nodes.len(), nodes);
    for cpu in 0..nodes as u32 {
        let pages = guest.cpu(cpu).unwrap().alloc_pages(Gfp::KERNEL, Order::new(number as u32 % 4).unwrap()).unwrap();
        assert_eq!(pages.node().unwrap(), NodeId::new(cpu as usize).unwrap());
        pages.write(0, &number.to_le_bytes()).unwrap();
        let mut found = [0; 8];
        pages.read(0, &mut found).unwrap();
        assert_eq!(usize::from_le_bytes(found), number, "another guest's memory");
    }
    assert_eq!(guest.state().total_pages, before.total_pages);
    if number.is_multiple_of(4) {
        let report = guest.verify().unwrap();
        assert!(report.is_sound(), "guest {number}: {}", report.summary());
    }
}

#[test]
fn tens_of_guests_run_in_one_process_at_the_same_time() {
    const THREADS: usize = 4;
    let each = if in_lab() { 3 } else { 6 };
    // Nobody talks, and nobody goes, before all are there.
    let all_there = Barrier::new(THREADS);
    let work = |thread: usize| {
        let mut guests: Vec<Guest> = Vec::new();
        for number in 0..each {
            guests.push(boot(if number % 2 == 0 { SMALL } else { PAIR }));
        }
        all_there.wait();
        for (number, guest) in guests.iter().enumerate() {
            talk_to(guest, thread * each + number);
        }
        all_there.wait();
        // They end in another order than they began, beside those of other threads.
        while !guests.is_empty() {
            drop(guests.remove(guests.len() / 2));
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

fn idle() {
    drop(boot(PAIR));
}

/// It is not waited for any longer, and goes on.
fn while_a_workload_runs() {
    let topology = Topology::from_toml(PAIR, "topology").unwrap();
    let guest = Machine::builder().topology(topology).run_timeout(Duration::from_millis(50)).boot().unwrap();
    let error = guest.run(&"random:ops=4000000000".parse().unwrap()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::TimedOut { .. }), "{error}");
    assert!(guest.end().is_none());
}

fn after_a_panic() {
    let guest = boot_appended(SMALL, "pagevisor.test=panic");
    let end = guest.machine().wait(Deadline::after(Duration::from_secs(30)), &StopEvent::new().unwrap());
    assert!(matches!(end, End::Panic(_)), "{end}");
    assert!(guest.cpu(0).unwrap().nop().is_err());
}

fn after_a_shutdown() {
    assert_eq!(boot(SMALL).shutdown(3).unwrap(), End::Shutdown { code: 3 });
}

fn hanging() {
    let guest = boot_appended(SMALL, "pagevisor.test=hang");
    assert!(guest.end().is_none());
}

/// Nobody has told it to free them.
fn with_pages_held() {
    let guest = boot(PAIR);
    let cpu = guest.cpu(1).unwrap();
    forget(cpu.alloc_pages(Gfp::KERNEL, Order::new(4).unwrap()).unwrap());
    forget(cpu.alloc_many(Gfp::KERNEL, Order::ZERO, 100).unwrap());
}

/// Its pages are dropped when it has ended.
fn stopped_with_pages_held() {
    let guest = boot(PAIR);
    let pages = guest.cpu(1).unwrap().alloc_pages(Gfp::KERNEL, Order::new(4).unwrap()).unwrap();
    guest.machine().stop(StopReason::Request);
    drop(pages);
}

fn with_a_reader_of_events() {
    let guest = boot(SMALL);
    let mut events = guest.events(Kinds(EventKind::MmPageAlloc.bit())).unwrap();
    drop(guest.cpu(0).unwrap().alloc_pages(Gfp::KERNEL, Order::ZERO).unwrap());
    assert!(!events.read().is_empty());
    // Nobody has told the guest to stop recording.
    forget(events);
}

/// It is of use after the guest.
fn before_its_snapshot() {
    let guest = boot(SMALL);
    let before = guest.state();
    let snapshot = guest.snapshot().unwrap();
    drop(guest);
    assert_eq!(snapshot.state().free_pages(), before.free_pages());
}

fn while_it_is_paused() {
    let guest = boot(PAIR);
    let paused = guest.pause().unwrap();
    drop(guest);
    assert_eq!(paused.registers().len(), 2);
}

fn that_did_not_boot() {
    let builder = Machine::builder().append("pagevisor.test=never-ready").boot_timeout(Duration::from_millis(300));
    let error = builder.boot().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotReady(_)), "{error}");
}

/// Every way in which a guest may go.
const WAYS: [(&str, fn()); 11] = [
    ("idle", idle),
    ("while a workload runs", while_a_workload_runs),
    ("after a panic", after_a_panic),
    ("after a shutdown", after_a_shutdown),
    ("while it hangs", hanging),
    ("with pages held", with_pages_held),
    ("stopped, with pages held", stopped_with_pages_held),
    ("with a reader of its events", with_a_reader_of_events),
    ("before its snapshot", before_its_snapshot),
    ("while it is paused", while_it_is_paused),
    ("having failed to boot", that_did_not_boot),
];

/// Set for the process whose possessions are counted.
const CHILD: &str = "GUESTS_TEST_CHILD";

fn count() {
    // Once, so that whatever a process keeps for good is there.
    idle();
    let before = Possessions::now();
    let guest = boot(PAIR);
    let more = Possessions::now();
    for kind in ["thread", "descriptor", "mapping"] {
        assert!(more.count(kind) > before.count(kind), "no {kind} to give back");
    }
    drop(guest);
    for (way, end) in WAYS {
        end();
        before.assert_nothing_left(way);
    }
}

/// In a process of its own, with a runtime directory of its own: all that it has is this test's.
#[test]
fn a_guest_that_is_dropped_leaves_nothing_behind() {
    if std::env::var_os(CHILD).is_some() {
        return count();
    }
    let runtime = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "a_guest_that_is_dropped_leaves_nothing_behind", "--nocapture", "--test-threads=1"]);
    let output = command.env(CHILD, "1").env("PAGEVISOR_RUNTIME_DIR", runtime.path()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&text));
}
