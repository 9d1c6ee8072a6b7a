//! A guest that has nothing to do costs the host nothing.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use pagevisor_tests::command::Guest;

/// CPU time that process `id` has used, to a clock tick.
fn cpu_time(id: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).expect("its stat");
    // The name, in parentheses, may contain anything; utime and stime are the 12th and 13th field behind it.
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("ticks")).sum();
    // SAFETY: the call takes a number and gives one.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).expect("ticks per second");
    Duration::from_millis(ticks * 1000 / per_second)
}

/// Less than 1 % of a core, or a tick more than that: what began before the measurement may be counted in it.
#[track_caller]
fn is_idle(guest: &Guest, time: Duration, when: &str) {
    let (before, began) = (cpu_time(guest.id()), Instant::now());
    thread::sleep(time);
    let (used, passed) = (cpu_time(guest.id()) - before, began.elapsed());
    let limit = passed / 100 + Duration::from_millis(10);
    assert!(used <= limit, "{when}: {used:?} of CPU time in {passed:?}");
}

#[test]
fn an_idle_guest_costs_less_than_a_hundredth_of_a_core() {
    let small = Guest::keep("idle", &[]);
    let large = Guest::keep("idle-large", &["--node", "mem=256M,cpus=4", "--node", "mem=256M,cpus=4"]);
    // Whatever follows being ready is over.
    thread::sleep(Duration::from_millis(300));
    is_idle(&small, Duration::from_millis(1500), "two CPUs");
    is_idle(&large, Duration::from_millis(1500), "eight CPUs");
    for view in [&["buddyinfo"][..], &["kmem", "-f"], &["zoneinfo"]] {
        small.show(view);
    }
    is_idle(&small, Duration::from_millis(1500), "after readers have come and gone");
    small.stop();
    large.stop();
}
