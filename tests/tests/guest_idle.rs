//! A guest that has nothing to do costs the host nothing.

use std::mem::MaybeUninit;
use std::thread;
use std::time::{Duration, Instant};

use pagevisor_tests::command::Guest;

/// How long each measurement takes.
const TIME: Duration = Duration::from_secs(5);

/// CPU time that process `id` has used, with all its threads, to the nanosecond. That of vCPUs is in it, whether they
/// are in the guest or not.
fn cpu_time(id: u32) -> Duration {
    let mut clock = 0;
    // SAFETY: the number is only written to.
    let result = unsafe { libc::clock_getcpuclockid(id.cast_signed(), &raw mut clock) };
    assert_eq!(result, 0, "the clock of process {id}");
    let mut time = MaybeUninit::uninit();
    // SAFETY: the clock is that of a process, and the time is written before it is read.
    let time: libc::timespec = unsafe {
        assert_eq!(libc::clock_gettime(clock, time.as_mut_ptr()), 0, "{}", std::io::Error::last_os_error());
        time.assume_init()
    };
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

/// CPU time of each guest while `TIME` passes, and that time.
fn used(guests: &[&Guest]) -> (Vec<Duration>, Duration) {
    let began = Instant::now();
    let before: Vec<Duration> = guests.iter().map(|guest| cpu_time(guest.id())).collect();
    thread::sleep(TIME);
    // Rounded against the guest: time passes while the clocks are read.
    let passed = began.elapsed();
    (guests.iter().zip(before).map(|(guest, before)| cpu_time(guest.id()) - before).collect(), passed)
}

/// Each takes less than 1 % of a core.
///
/// The lab's processors are threads of an emulator. When one of them does not run, the time goes on, and is charged to
/// whatever was running on it: a guest is charged for too much there at times, and never for too little. So a
/// measurement that is below the limit holds, and one that is not is repeated, twice.
#[track_caller]
fn are_idle(guests: &[&Guest], when: &str) {
    let tries = if std::env::var_os("PAGEVISOR_LAB").is_some() { 3 } else { 1 };
    let mut seen = Vec::new();
    for _ in 0..tries {
        let (used, passed) = used(guests);
        println!("{when}: {used:?} of CPU time in {passed:?}");
        if used.iter().all(|used| *used < passed / 100) {
            return;
        }
        seen.push((used, passed));
    }
    panic!("{when}: 1 % of a core or more: {seen:?}");
}

#[test]
fn an_idle_guest_costs_less_than_a_hundredth_of_a_core() {
    let small = Guest::keep("idle", &[]);
    let large = Guest::keep("idle-large", &["--node", "mem=256M,cpus=4", "--node", "mem=256M,cpus=4"]);
    // Whatever follows being ready is over.
    thread::sleep(Duration::from_millis(300));
    are_idle(&[&small, &large], "two CPUs, and eight");
    for view in [&["buddyinfo"][..], &["kmem", "-f"], &["zoneinfo"]] {
        small.show(view);
        large.show(view);
    }
    are_idle(&[&small, &large], "after readers have come and gone");
    small.stop();
    large.stop();
}

#[test]
fn a_guest_that_is_not_idle_is_told_from_one_that_is() {
    let guest = Guest::keep("not-idle", &["--append", "pagevisor.test=hang"]);
    let (used, passed) = used(&[&guest]);
    assert!(used[0] > passed / 100, "{used:?} of CPU time in {passed:?} for an endless loop");
    guest.stop();
}
