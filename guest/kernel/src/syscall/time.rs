//! Calls on time. All clocks count from the machine's start: nobody has told it the date.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;

use super::Outcome;
use crate::arch::uaccess;
use crate::{clock, task};

const SECOND: u64 = 1_000_000_000;
/// Clocks of what a process or a thread has run (`CLOCK_PROCESS_CPUTIME_ID`, `CLOCK_THREAD_CPUTIME_ID`).
const PROCESS_TIME: u32 = 2;
const THREAD_TIME: u32 = 3;
/// The last clock there is (`CLOCK_TAI`).
const LAST_CLOCK: u32 = 11;
/// The time is one of the clock's, not one from now.
const TIMER_ABSTIME: u32 = 1;

/// [`task::Restart::call`] of a sleeper.
const RESTARTS_SLEEP: u32 = 1;

/// Makes call `number`, if it is one of these.
pub fn call(number: u32, args: &[u64; 6]) -> Option<Outcome> {
    let [a, b, c, d, ..] = *args;
    Some(match number {
        35 => pause(0, 0, a, b),
        96 => day(a),
        201 => {
            let now = clock::nanos() / SECOND;
            if a == 0 { Ok(now) } else { uaccess::write_u64(a, now).map(|()| now) }
        }
        219 => restart(),
        228 => now(a as u32).and_then(|now| write(b, now)),
        229 if a as u32 > LAST_CLOCK => Err(Errno::EINVAL),
        229 if b == 0 => Ok(0),
        229 => write(b, 1),
        230 => pause(a as u32, b as u32, c, d),
        _ => return None,
    })
}

fn now(clock: u32) -> Result<u64, Errno> {
    let task = task::current();
    match clock {
        THREAD_TIME | PROCESS_TIME => Ok(task::cpu_time(&task)),
        _ if clock > LAST_CLOCK => Err(Errno::EINVAL),
        _ => Ok(clock::nanos()),
    }
}

/// `gettimeofday`.
fn day(at: u64) -> Outcome {
    let now = clock::nanos();
    if at != 0 {
        uaccess::write_words(at, &[now / SECOND, now % SECOND / 1000])?;
    }
    Ok(0)
}

fn write(at: u64, nanos: u64) -> Outcome {
    uaccess::write_words(at, &[nanos / SECOND, nanos % SECOND]).map(|()| 0)
}

/// The program's time at `at` (`struct timespec`), in nanoseconds.
///
/// # Errors
/// EFAULT; EINVAL if it is none.
pub fn read(at: u64) -> Result<u64, Errno> {
    let [seconds, nanos] = uaccess::read_words(at)?;
    if nanos >= SECOND || seconds > i64::MAX as u64 {
        return Err(Errno::EINVAL);
    }
    Ok(seconds.saturating_mul(SECOND).saturating_add(nanos))
}

/// `nanosleep`, `clock_nanosleep`.
fn pause(clock: u32, flags: u32, wanted: u64, rest: u64) -> Outcome {
    now(clock)?;
    let (wanted, began) = (read(wanted)?, clock::nanos());
    if flags & TIMER_ABSTIME != 0 { sleep(wanted, 0) } else { sleep(began.saturating_add(wanted), rest) }
}

/// Sleeps until `until`; interrupted, it notes the time that is left at `rest`, if that is not 0, and how to go on.
fn sleep(until: u64, rest: u64) -> Outcome {
    let Err(error) = task::sleep_until(until, true) else { return Ok(0) };
    let restart = &task::current().restart;
    restart.call.store(RESTARTS_SLEEP, Relaxed);
    restart.until.store(until, Relaxed);
    restart.at.store(rest, Relaxed);
    if rest != 0 {
        write(rest, until.saturating_sub(clock::nanos()))?;
    }
    Err(error)
}

/// `restart_syscall`: goes on with what was interrupted, if that can be.
fn restart() -> Outcome {
    let restart = &task::current().restart;
    match restart.call.swap(0, Relaxed) {
        RESTARTS_SLEEP => sleep(restart.until.load(Relaxed), restart.at.load(Relaxed)),
        call => super::futex::restart(call, restart),
    }
}

/// Ticks of a hundredth of a second, for `times`.
pub fn ticks(nanos: u64) -> u64 {
    nanos / (SECOND / 100)
}

/// What the current task has used, in user mode and in the kernel.
pub fn used() -> [u64; 2] {
    let task = task::current();
    [task.record.utime.load(Relaxed), task.record.stime.load(Relaxed)]
}
