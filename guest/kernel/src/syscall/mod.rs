//! System calls: Linux's numbers, arguments and errors (`arch/x86/entry/syscalls/syscall_64.tbl`).

mod clone;
mod files;
mod futex;
mod iovec;
mod itimer;
mod memory;
mod numa;
mod process;
mod ready;
mod sched;
mod shmem;
mod signals;
mod stat;
mod time;
mod tree;
mod wait;

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::mmap::Limits;
use pagevisor_shared::errno::Errno;
use pagevisor_shared::syscalls;

use crate::arch::traps::{TrapFrame, vector};
use crate::log::pr_info;
use crate::task::{self, Task};

/// What a call gives.
type Outcome = Result<u64, Errno>;

/// Bytes of `syscall`, by which a call is made again.
const SYSCALL_BYTES: u64 = 2;

/// Where in [`TOLD`] the bits of operations of a call begin, behind those of calls.
const OPERATIONS_TOLD: u32 = 464;

/// Calls that were not known; and which of them have been told of, a bit each.
static UNKNOWN: AtomicU64 = AtomicU64::new(0);
static TOLD: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

/// `task`, the current one, calls with `frame`.
#[inline]
pub fn call(task: &Task, frame: &mut TrapFrame) {
    task.record.syscalls.store(task.record.syscalls.load(Relaxed) + 1, Relaxed);
    let number = frame.rax as u32;
    match process::identity(task, number) {
        Some(value) => frame.rax = value,
        None => work(number, frame),
    }
}

/// Makes call `number`.
#[inline(never)]
fn work(number: u32, frame: &mut TrapFrame) {
    let result = if memory::is_of_memory(number) {
        Some(memory::call(number, &frame.arguments()))
    } else {
        dispatch(number, frame)
    };
    let result = match result {
        Some(result) => result,
        // All registers are another's now.
        None => return,
    };
    frame.rax = match result {
        Ok(value) => value,
        Err(error) => error.to_result(),
    };
}

/// Makes call `number`; `None` if it has replaced the registers.
fn dispatch(number: u32, frame: &mut TrapFrame) -> Option<Outcome> {
    let args = frame.arguments();
    Some(match number {
        15 => {
            crate::signal::sigreturn(frame);
            return None;
        }
        59 => match process::execve(&args, frame) {
            Ok(()) => return None,
            Err(error) => Err(error),
        },
        202 => futex::call(&args),
        _ => {
            let result = files::call(number, &args)
                .or_else(|| tree::call(number, &args))
                .or_else(|| stat::call(number, &args))
                .or_else(|| shmem::call(number, &args))
                .or_else(|| numa::call(number, &args))
                .or_else(|| process::call(number, &args, frame))
                .or_else(|| signals::call(number, &args, frame))
                .or_else(|| time::call(number, &args))
                .or_else(|| ready::call(number, &args))
                .or_else(|| wait::call(number, &args))
                .or_else(|| itimer::call(number, &args))
                .or_else(|| sched::call(number, &args));
            result.unwrap_or_else(|| unknown(number, frame))
        }
    })
}

/// A call that is not here.
#[cold]
fn unknown(number: u32, frame: &TrapFrame) -> Outcome {
    tell_once(number, |task| {
        let name = syscalls::name(number.into()).unwrap_or("?");
        pr_info!(
            "{}[{}]: system call {number} ({name}) is not implemented, ip {:x}",
            task.name(),
            task.pid(),
            frame.rip
        );
    });
    Err(Errno::ENOSYS)
}

/// Counts that something was wanted that is not here, and calls `tell` if it is the first time for `number`.
fn tell_once(number: u32, tell: impl FnOnce(&Task)) {
    UNKNOWN.fetch_add(1, Relaxed);
    let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
    if TOLD.get(word).is_none_or(|told| told.fetch_or(bit, Relaxed) & bit == 0) {
        tell(&task::current());
    }
}

/// Operation `number` of what `family` is, called `name` if Linux has it, is not here.
fn not_here(number: u32, family: &str, name: Option<&&str>) -> Errno {
    if let Some(name) = name {
        tell_once(OPERATIONS_TOLD + number, |task| {
            pr_info!("{}[{}]: {family} {number} ({name}) is not implemented", task.name(), task.pid());
        });
    }
    Errno::ENOSYS
}

/// Tells how often something was wanted that is not here, if it was.
pub fn report_unknown() {
    match UNKNOWN.load(Relaxed) {
        0 => {}
        count => pr_info!("System calls: {count} could not be made, as they are not here"),
    }
}

/// What `task` may use at most.
pub fn limits(task: &Task) -> Limits {
    let Some(process) = task.process() else { return Limits::DEFAULT };
    let [of, max] = [0, 1].map(|which| move |resource: usize| process.record.rlim[resource][which].load(Relaxed));
    Limits { data: of(2), data_max: max(2), stack: of(3), memlock: of(8), as_: of(9) }
}

/// Whether the call at `frame` was interrupted by a signal.
fn is_interrupted(frame: &TrapFrame) -> bool {
    frame.vector == vector::SYSTEM_CALL && frame.rax == Errno::EINTR.to_result()
}

/// Whether the call at `frame`, when interrupted, is made again if the handler wants that (`ERESTARTSYS`): what has no time.
fn can_be_repeated(frame: &TrapFrame) -> bool {
    // read, write, readv, writev, open, wait4, openat, waitid
    matches!(frame.error_code, 0 | 1 | 2 | 19 | 20 | 61 | 257 | 247) || frame.error_code == FUTEX && !has_rest(frame)
}

/// Whether call `number`, when interrupted, is made again only if nothing was handled (`ERESTARTNOHAND`).
const fn waits_for_signals(number: u64) -> bool {
    // poll, select, pause, rt_sigsuspend, pselect6, ppoll
    matches!(number, 7 | 23 | 34 | 130 | 270 | 271)
}

/// Whether the call at `frame` sleeps for a time, and goes on with the rest of it if nothing was handled
/// (`ERESTART_RESTARTBLOCK`).
fn has_rest(frame: &TrapFrame) -> bool {
    // nanosleep, clock_nanosleep; and who waits for a word, until a time in the fourth argument
    matches!(frame.error_code, 35 | 230 | RESTART) || frame.error_code == FUTEX && frame.arguments()[3] != 0
}

/// `futex`.
const FUTEX: u64 = 202;

/// `restart_syscall`.
const RESTART: u64 = 219;

fn repeat(frame: &mut TrapFrame) {
    frame.rax = frame.error_code;
    frame.rip -= SYSCALL_BYTES;
    frame.vector = 0;
}

/// A signal is handled before the program goes on with `frame`: makes the call that it has interrupted, if that is so and
/// `restarts`, be made again behind the handler.
pub fn before_handler(frame: &mut TrapFrame, restarts: bool) {
    // What the handler interrupts does not go on with the rest of its time.
    task::current().restart.call.store(0, Relaxed);
    if is_interrupted(frame) && restarts && can_be_repeated(frame) {
        repeat(frame);
    }
}

/// No signal is handled: a call that was interrupted all the same is made again.
pub fn without_handler(frame: &mut TrapFrame) {
    if !is_interrupted(frame) {
        return;
    }
    if has_rest(frame) {
        repeat(frame);
        frame.rax = RESTART;
    } else if can_be_repeated(frame) || waits_for_signals(frame.error_code) {
        repeat(frame);
    }
}
