//! Calls on time. All clocks count from the machine's start: nobody has told it the date.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;

use super::Outcome;
use crate::arch::uaccess;
use crate::clock;
use crate::task::{self, Process, Usage};

const SECOND: u64 = 1_000_000_000;
/// Clocks of what a process or a thread has run (`CLOCK_PROCESS_CPUTIME_ID`, `CLOCK_THREAD_CPUTIME_ID`).
const PROCESS_TIME: u32 = 2;
const THREAD_TIME: u32 = 3;
/// The last clock there is (`CLOCK_TAI`).
const LAST_CLOCK: u32 = 11;
/// Clocks that tell the time, and by which one can sleep: of the date, since boot, and that also wake; of atomic time.
const IS_SLEPT_BY: [u32; 6] = [0, 1, 7, 8, 9, 11];
/// Negative numbers of clocks, of what somebody has run: whose number follows, inverted; that it is a thread's; what is counted,
/// by two bits, of which one value is none; that it is the time in user mode (`CPUCLOCK_*`).
const CLOCK_PID_SHIFT: u32 = 3;
const CLOCK_PER_THREAD: u32 = 4;
const CLOCK_WHICH: u32 = 3;
const CLOCK_USER: u32 = 1;
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
        229 => now(a as u32).and_then(|_| if b == 0 { Ok(0) } else { write(b, 1) }),
        230 => pause(a as u32, b as u32, c, d),
        _ => return None,
    })
}

fn now(clock: u32) -> Result<u64, Errno> {
    match clock {
        PROCESS_TIME => Ok(own_process()?.usage().time()),
        THREAD_TIME => Ok(Usage::of(&task::current()).time()),
        0..=LAST_CLOCK => Ok(clock::nanos()),
        _ => Ok(time_of(clock, used(clock)?)),
    }
}

fn own_process() -> Result<Arc<Process>, Errno> {
    task::current().get_process().ok_or(Errno::EINVAL)
}

/// What is used by whom `clock`, a negative number, names: a thread of the own process, or a process; 0 for the own
/// (`pid_for_clock`).
fn used(clock: u32) -> Result<Usage, Errno> {
    let (pid, me) = (!(clock.cast_signed() >> CLOCK_PID_SHIFT), task::current());
    let found = if pid == 0 { me.get() } else { task::find(pid.cast_unsigned()).ok_or(Errno::EINVAL)? };
    let process = found.get_process().ok_or(Errno::EINVAL)?;
    match clock & CLOCK_PER_THREAD != 0 {
        _ if clock & CLOCK_WHICH == CLOCK_WHICH => Err(Errno::EINVAL),
        true if found.tgid() != me.tgid() => Err(Errno::EINVAL),
        true => Ok(Usage::of(&found)),
        // As in Linux the own number will do, whatever thread's it is.
        false if found.pid() != found.tgid() && found.pid() != me.pid() => Err(Errno::EINVAL),
        false => Ok(process.usage()),
    }
}

/// Of `usage` what `clock`, a negative number, counts.
fn time_of(clock: u32, usage: Usage) -> u64 {
    if clock & CLOCK_WHICH == CLOCK_USER { usage.utime.into_inner() } else { usage.time() }
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
    if !IS_SLEPT_BY.contains(&clock) {
        return Err(Errno::EOPNOTSUPP);
    }
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
