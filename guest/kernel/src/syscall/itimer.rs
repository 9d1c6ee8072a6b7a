//! Timers that send SIGALRM (`kernel/time/itimer.c`). A thread of the kernel sends it: what a CPU's timers do they do in the
//! interrupt, where nobody can send a signal.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use pagevisor_shared::errno::Errno;
use pagevisor_shared::units::CpuMask;

use super::Outcome;
use super::process::own;
use crate::arch::uaccess;
use crate::clock;
use crate::signal::{self, Info, SI_KERNEL, SIGALRM};
use crate::sync::SpinLock;
use crate::task::{self, Process, Sleep, WaitQueue};

const SECOND: u64 = 1_000_000_000;
const MICRO: u64 = 1000;
/// The only one that is here: by the time that passes (`ITIMER_REAL`).
const REAL: u32 = 0;
/// The others, by number.
const OTHERS: [&str; 3] = ["REAL", "VIRTUAL", "PROF"];
/// Where their numbers begin among operations that are told of.
const TOLD: u32 = 16;

/// A timer that is set.
struct Timer {
    /// Whose. It may be gone.
    process: Weak<Process>,
    /// When it is due, by [`clock::nanos`].
    due: u64,
    /// After how many nanoseconds it is due again; 0 for not at all.
    interval: u64,
}

static TIMERS: SpinLock<Vec<Timer>> = SpinLock::new(Vec::new());
/// Counts changes of [`TIMERS`], which the thread waits for.
static CHANGES: AtomicU64 = AtomicU64::new(0);
static CHANGED: WaitQueue = WaitQueue::new();
/// Whether there is the thread.
static STARTED: SpinLock<bool> = SpinLock::new(false);

/// Makes call `number`, if it is one of these.
pub fn call(number: u32, args: &[u64; 6]) -> Option<Outcome> {
    let [a, b, c, ..] = *args;
    Some(match number {
        36 => known(a as u32).and_then(|()| own()).and_then(|own| write(b, get(&own)).map(|()| 0)),
        37 => alarm(a as u32),
        38 => known(a as u32).and_then(|()| set_timer(b, c)),
        _ => return None,
    })
}

/// Whether there is a timer of kind `which`.
fn known(which: u32) -> Result<(), Errno> {
    match which {
        REAL => Ok(()),
        1 | 2 => Err(super::not_here(TOLD + which, "interval timer", OTHERS.get(which as usize))),
        _ => Err(Errno::EINVAL),
    }
}

/// Interval and rest of the timer of `process`, in nanoseconds.
fn get(process: &Arc<Process>) -> [u64; 2] {
    let timers = TIMERS.lock();
    let own = timers.iter().find(|timer| core::ptr::eq(timer.process.as_ptr(), Arc::as_ptr(process)));
    // One that is due, but has not been seen to, is still set.
    own.map_or([0; 2], |timer| [timer.interval, timer.due.saturating_sub(clock::nanos()).max(MICRO)])
}

/// Sets the timer of `process`, or takes it back if `first` is 0; gives what [`get`] would have.
///
/// # Errors
/// EAGAIN if there can be no thread that sees to it.
fn set(process: &Arc<Process>, [interval, first]: [u64; 2]) -> Result<[u64; 2], Errno> {
    start_thread()?;
    let before = get(process);
    let mut timers = TIMERS.lock();
    timers.retain(|timer| !core::ptr::eq(timer.process.as_ptr(), Arc::as_ptr(process)));
    if first != 0 {
        let due = clock::nanos().saturating_add(first);
        timers.push(Timer { process: Arc::downgrade(process), due, interval });
    }
    drop(timers);
    CHANGES.fetch_add(1, SeqCst);
    CHANGED.wake_all();
    Ok(before)
}

fn start_thread() -> Result<(), Errno> {
    let first = !core::mem::replace(&mut *STARTED.lock(), true);
    if first && task::kthread_run(format_args!("itimer"), CpuMask(u64::MAX), see_to_timers, 0).is_none() {
        *STARTED.lock() = false;
        return Err(Errno::EAGAIN);
    }
    Ok(())
}

/// The thread.
fn see_to_timers(_: usize) -> i32 {
    loop {
        let seen = CHANGES.load(SeqCst);
        for process in due() {
            if let Some(leader) = process.leader() {
                signal::send_to_process(&process, &leader, Info { number: SIGALRM, code: SI_KERNEL, words: [0; 3] });
            }
        }
        let next = TIMERS.lock().iter().map(|timer| timer.due).min();
        let sleep = next.map_or(Sleep::LIGHT, |next| Sleep::LIGHT.until(next));
        // Whether it is a change or the time: it looks again.
        let _ = CHANGED.wait_for(sleep, || (CHANGES.load(SeqCst) != seen).then_some(()));
    }
}

/// Processes whose timers are due now. Those timers go, or are set anew (`it_real_fn`).
fn due() -> Vec<Arc<Process>> {
    let (mut found, now) = (Vec::new(), clock::nanos());
    TIMERS.lock().retain_mut(|timer| {
        let Some(process) = timer.process.upgrade().filter(|process| process.live.load(Relaxed) != 0) else {
            return false;
        };
        if timer.due > now {
            return true;
        }
        found.push(process);
        // What was missed is one.
        let turns = (now - timer.due).checked_div(timer.interval).map(|turns| turns + 1);
        timer.due = timer.due.saturating_add(timer.interval.saturating_mul(turns.unwrap_or(0)));
        turns.is_some()
    });
    found
}

/// Writes interval and rest to `at` (`struct itimerval`).
fn write(at: u64, times: [u64; 2]) -> Result<(), Errno> {
    let words = times.map(|nanos| [nanos / SECOND, nanos % SECOND / MICRO]);
    uaccess::write_words(at, words.as_flattened())
}

/// `setitimer`.
fn set_timer(new: u64, old: u64) -> Outcome {
    let [seconds, micros, first_seconds, first_micros] = if new == 0 { [0; 4] } else { uaccess::read_words(new)? };
    let nanos = |seconds: u64, micros: u64| {
        let fits = seconds <= i64::MAX as u64 && micros < SECOND / MICRO;
        if fits { Ok(seconds.saturating_mul(SECOND).saturating_add(micros * MICRO)) } else { Err(Errno::EINVAL) }
    };
    let before = set(&own()?, [nanos(seconds, micros)?, nanos(first_seconds, first_micros)?])?;
    if old != 0 {
        write(old, before)?;
    }
    Ok(0)
}

/// `alarm`: gives the seconds that were left, rounded, but not to 0.
fn alarm(seconds: u32) -> Outcome {
    let seconds = seconds.min(i32::MAX as u32);
    let [_, rest] = set(&own()?, [0, u64::from(seconds) * SECOND])?;
    Ok(if rest == 0 { 0 } else { ((rest + SECOND / 2) / SECOND).max(1) })
}
