//! Signals (`kernel/signal.c`): what a program gets instead of an access that cannot be, what programs send each other, and
//! what the kernel tells them.
//!
//! A signal waits with the thread or with the process that it is for ([`Pending`]) until a thread that does not block it is
//! on its way to user mode ([`take`]): then it is ignored, ends the process, or makes the thread go on in a handler, with
//! what it would have gone on with on its stack ([`frame`]). Some stop the process ([`stop`]).

mod actions;
mod frame;
pub mod oom;
mod pending;
mod report;
mod stop;

use alloc::sync::Arc;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use pagevisor_shared::errno::Errno;
use pagevisor_shared::sched::TaskState;

use crate::arch::traps::{TrapFrame, vector};
use crate::arch::{cpu, fpu};
use crate::exec;
use crate::rseq;
use crate::syscall;
use crate::task::{self, Kind, Process, Task, clone_flags, killed_by, todo};

pub use actions::{Action, Actions};
pub use frame::{SS_AUTODISARM, SS_DISABLE, SS_ONSTACK, is_on_stack, siginfo, sigreturn};
pub use pending::{Info, Queue};
pub use stop::{GOES_ON, Stop, thread_left};

/// Number of signals; they count from 1 (`_NSIG`).
pub const SIGNALS: u32 = 64;

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        $($(#[$doc])* pub const $name: u32 = $number;)*
    };
}

numbers! {
    /// Invalid instruction.
    SIGILL = 4;
    /// Breakpoint or single step.
    SIGTRAP = 5;
    /// No such memory.
    SIGBUS = 7;
    /// Arithmetic.
    SIGFPE = 8;
    /// The end, which nobody can prevent.
    SIGKILL = 9;
    /// No right to the memory.
    SIGSEGV = 11;
    /// Nobody reads the pipe.
    SIGPIPE = 13;
    /// A timer is due.
    SIGALRM = 14;
    /// A child has ended.
    SIGCHLD = 17;
    /// Go on.
    SIGCONT = 18;
    /// Stop, which nobody can prevent.
    SIGSTOP = 19;
    /// Stop.
    SIGTSTP = 20;
    /// Read from a terminal in the background.
    SIGTTIN = 21;
    /// Written to one.
    SIGTTOU = 22;
    /// Urgent data.
    SIGURG = 23;
    /// A file would be larger than it may be.
    SIGXFSZ = 25;
    /// The window's size has changed.
    SIGWINCH = 28;
}

/// From the kernel (`si_code`).
pub const SI_KERNEL: i32 = 0x80;
/// By `kill`.
pub const SI_USER: i32 = 0;
/// By `tgkill`.
pub const SI_TKILL: i32 = -6;
/// Nothing is mapped there.
pub const SEGV_MAPERR: i32 = 1;
/// What has become of a child (`si_code`).
pub mod code {
    /// It has exited.
    pub const CLD_EXITED: i32 = 1;
    /// A signal has ended it.
    pub const CLD_KILLED: i32 = 2;
    /// It was stopped.
    pub const CLD_STOPPED: i32 = 5;
    /// It goes on.
    pub const CLD_CONTINUED: i32 = 6;
}
/// Codes of exceptions.
const ILL_ILLOPN: i32 = 2;
const FPE_INTDIV: i32 = 1;
/// Of floating-point exceptions, by their flags: invalid, division by zero, overflow, underflow or a denormal, inexact.
const FPE_CODES: [(u32, i32); 5] = [(0x01, 7), (0x04, 3), (0x08, 4), (0x12, 5), (0x20, 6)];
const TRAP_BRKPT: i32 = 1;
const TRAP_TRACE: i32 = 2;
const BUS_ADRALN: i32 = 1;

/// The bit of signal `number` in a mask.
pub const fn bit(number: u32) -> u64 {
    1 << (number - 1)
}

/// Signals that nobody can block or handle.
pub const UNBLOCKABLE: u64 = bit(SIGKILL) | bit(SIGSTOP);
/// Signals that nothing happens on if nobody handles them.
const IGNORED: u64 = bit(SIGCHLD) | bit(SIGCONT) | bit(SIGURG) | bit(SIGWINCH);
/// Signals that stop those who do not handle them.
const STOPS: u64 = bit(SIGSTOP) | bit(SIGTSTP) | bit(SIGTTIN) | bit(SIGTTOU);

/// A thread's part.
#[derive(Debug, Default)]
pub struct State {
    /// What is to be blocked again after the signal that a call has waited for with another mask; that there is something is
    /// in [`Self::restores`].
    saved: AtomicU64,
    restores: AtomicU64,
    /// Signals that it blocks but for a call that waits for them: they are not ignored (`real_blocked`).
    awaited: AtomicU64,
    /// What waits for this thread.
    queue: Queue,
    /// The stack for handlers: address, flags, bytes.
    pub stack: [AtomicU64; 3],
    /// Vector, error code and address of the last exception, for handlers.
    pub trap: [AtomicU64; 3],
}

/// Has `task`, the current one, block `mask` until the next signal has been taken, or until [`unblock`], then again what it
/// blocks now.
pub fn block_for_now(task: &Task, mask: u64) {
    task.signals.saved.store(task.record.blocked.load(Relaxed), Relaxed);
    task.signals.restores.store(1, Relaxed);
    task.record.blocked.store(mask & !UNBLOCKABLE, SeqCst);
    if is_waiting(task, !mask) {
        task.todo.fetch_or(todo::SIGNAL, SeqCst);
    }
}

/// The current task blocks what it did before [`block_for_now`], of which no signal has come.
pub fn unblock() {
    set_blocked(mask_to_restore(&task::current()));
}

/// What a handler finds blocked when it is done.
fn mask_to_restore(task: &Task) -> u64 {
    let State { saved, restores, .. } = &task.signals;
    if restores.swap(0, Relaxed) != 0 { saved.load(Relaxed) } else { task.record.blocked.load(Relaxed) }
}

/// What a program has done that it gets a signal for.
#[derive(Clone, Copy, Debug)]
pub struct Cause {
    /// The signal.
    pub number: u32,
    /// `si_code`.
    pub code: i32,
    /// The address.
    pub address: u64,
    /// The vector.
    pub trap: u64,
    /// The error code.
    pub error: u64,
}

/// The current task gets a signal that it cannot block or ignore: if it tries, it is ended (`force_sig_info_to_task`).
pub fn force(task: &Task, cause: &Cause) {
    for (word, value) in task.signals.trap.iter().zip([cause.trap, cause.error, cause.address]) {
        word.store(value, Relaxed);
    }
    let number = cause.number;
    if let Some(actions) = actions_of(task) {
        let blocked = task.record.blocked.load(Relaxed) & bit(number) != 0;
        if blocked || actions.get(number).ignores() {
            actions.set(number, Action::default());
            task.record.blocked.fetch_and(!bit(number), Relaxed);
        }
    }
    task.pending().add(Info { number, code: cause.code, words: [cause.address, 0, 0] });
    task.todo.fetch_or(todo::SIGNAL, SeqCst);
}

/// The current task gets SIGSEGV, because it cannot go on while it was to handle signal `number`, 0 for none; if that was
/// SIGSEGV itself, it is ended (`force_sigsegv`).
pub fn force_sigsegv(task: &Task, number: u32) {
    if number == SIGSEGV
        && let Some(actions) = actions_of(task)
    {
        actions.set(SIGSEGV, Action::default());
    }
    force(task, &Cause { number: SIGSEGV, code: SI_KERNEL, address: 0, trap: 0, error: 0 });
}

/// A program has raised an exception that is no page fault.
pub fn exception(frame: &TrapFrame) {
    let task = task::current();
    let (number, code, address) = match frame.vector {
        0 => (SIGFPE, FPE_INTDIV, frame.rip),
        1 => (SIGTRAP, TRAP_TRACE, frame.rip),
        3 => (SIGTRAP, SI_KERNEL, 0),
        vector::INVALID_OPCODE => (SIGILL, ILL_ILLOPN, frame.rip),
        16 | 19 => match fpu_code(frame.vector) {
            // It was for nothing: the program goes on where it was.
            None => return,
            Some(code) => (SIGFPE, code, frame.rip),
        },
        17 => (SIGBUS, BUS_ADRALN, 0),
        11 | 12 => (SIGBUS, SI_KERNEL, 0),
        _ => (SIGSEGV, SI_KERNEL, 0),
    };
    let code = if frame.vector == 1 && frame.rflags & 1 << 8 == 0 { TRAP_BRKPT } else { code };
    force(&task, &Cause { number, code, address, trap: frame.vector, error: frame.error_code });
}

/// What the floating-point exception was that has raised `vector`: of x87, or of SSE; the first that is not masked
/// (`fpu__exception_code`).
fn fpu_code(vector: u64) -> Option<i32> {
    let [control, status, mxcsr] = task::with_saved_fpu(fpu::exceptions);
    let raised = if vector == 16 { status & !control } else { mxcsr & !(mxcsr >> 7) };
    FPE_CODES.into_iter().find(|(flags, _)| raised & flags != 0).map(|(_, code)| code)
}

/// What signals do to `task`.
pub fn actions_of(task: &Task) -> Option<Arc<Actions>> {
    task.resources.get_as(Kind::Signals)
}

/// Whether `task` would not notice signal `number` at all.
fn is_ignored(task: &Task, number: u32) -> bool {
    if (task.record.blocked.load(Relaxed) | task.signals.awaited.load(Relaxed)) & bit(number) != 0 {
        return false;
    }
    let Some(action) = actions_of(task).map(|actions| actions.get(number)) else { return true };
    // The first program gets only what it has asked for (`SIGNAL_UNKILLABLE`).
    action.does_nothing(number) || action.is_default() && task.tgid() == 1
}

/// Has `thread` look for signals (`signal_wake_up`).
fn wake(thread: &Task) {
    thread.todo.fetch_or(todo::SIGNAL, SeqCst);
    if !task::wake_state(thread, TaskState::Interruptible as u32) {
        task::kick_process(thread);
    }
}

/// Sends a signal to the thread `target` (`send_signal`).
pub fn send_to_thread(target: &Task, info: Info) {
    if let Some(process) = target.process() {
        stop::prepare(process, info.number);
    }
    if !is_ignored(target, info.number) {
        target.pending().add(info);
        wake(target);
    }
}

/// Sends a signal to `process`, of which `leader` is a thread: whoever of it does not block it takes it.
pub fn send_to_process(process: &Process, leader: &Task, info: Info) {
    stop::prepare(process, info.number);
    if is_ignored(leader, info.number) {
        return;
    }
    if info.number == SIGKILL {
        process.end(killed_by(SIGKILL, false));
        // The current task, too, if it is one of them.
        process.for_each_thread(wake);
        return;
    }
    process.pending().add(info);
    process.for_each_thread(|thread| {
        if thread.record.blocked.load(Relaxed) & bit(info.number) == 0 {
            wake(thread);
        }
    });
}

/// Forgets the signals of `mask` that wait for `process` or one of its threads (`flush_sigqueue_mask`).
pub fn forget(process: &Process, mask: u64) {
    process.pending().discard(mask);
    process.for_each_thread(|thread| thread.pending().discard(mask));
}

/// A child has ended: tells its parent, if that was asked for (`do_notify_parent`).
pub fn child_ended(parent: &Process, child: &Task) {
    let Some(process) = child.process() else { return };
    let number = process.exit_signal.load(Relaxed);
    if number == 0 || number > SIGNALS {
        return;
    }
    let status = child.record.exit_code.load(Relaxed);
    let (code, status) = match status & 0x7f {
        0 => (code::CLD_EXITED, status >> 8 & 0xff),
        signal => (code::CLD_KILLED, signal),
    };
    if let Some(leader) = parent.leader() {
        let words = [u64::from(child.pid()), u64::from(status), 0];
        send_to_process(parent, &leader, Info { number, code, words });
    }
}

/// The current task becomes another program: what was handled is not any more (`flush_signal_handlers`).
pub fn exec(task: &Task) {
    if let Some(actions) = actions_of(task) {
        let own = actions.for_another_program();
        task.set_resource(Kind::Signals, Some(Arc::new(own)));
    }
    task.signals.stack.iter().for_each(|word| word.store(0, Relaxed));
}

/// `child`, made by `parent` with `flags` of `clone`, blocks what that does; a thread has no stack for handlers yet.
pub fn fork(parent: &Task, child: &Task, flags: u64) {
    child.record.blocked.store(parent.record.blocked.load(Relaxed), Relaxed);
    if flags & (clone_flags::VM | clone_flags::VFORK) != clone_flags::VM {
        for (to, from) in child.signals.stack.iter().zip(&parent.signals.stack) {
            to.store(from.load(Relaxed), Relaxed);
        }
    }
}

/// `child`, which has actions of its own, handles no signal (`CLONE_CLEAR_SIGHAND`).
pub fn clear_handlers(child: &Task) {
    if let Some(actions) = actions_of(child) {
        let own = actions.for_another_program();
        child.set_resource(Kind::Signals, Some(Arc::new(own)));
    }
}

/// The current task's process ends by signal `number`.
pub fn die(number: u32) -> ! {
    let task = task::current();
    let code = killed_by(number, false);
    exec::init_ends(&task, code);
    task::exit_group(code)
}

/// The current task, which is on its way to user mode with `frame`, looks for signals (`arch_do_signal_or_restart`).
pub fn take(frame: &mut TrapFrame) {
    let task = task::current();
    loop {
        task.todo.fetch_and(!todo::SIGNAL, SeqCst);
        if let Some(code) = task.ends_with() {
            exec::init_ends(&task, code);
            task::exit(code);
        }
        if stop::is_wanted(&task) {
            stop::stay(&task);
            continue;
        }
        let blocked = task.record.blocked.load(Relaxed);
        let shared = || task.process().and_then(|process| process.pending().take(blocked));
        let Some(info) = task.pending().take(blocked).or_else(shared) else { break };
        let Some(actions) = actions_of(&task) else { continue };
        let action = actions.get(info.number);
        if action.ignores() && info.number != SIGKILL {
            continue;
        }
        if action.is_default() || info.number == SIGKILL {
            if STOPS & bit(info.number) != 0 {
                stop::by(&task, info.number);
            }
            if (IGNORED | STOPS) & bit(info.number) != 0 {
                continue;
            }
            report::report(&task, frame, &info);
            die(info.number);
        }
        syscall::before_handler(frame, action.restarts());
        if action.is_once() {
            actions.set(info.number, Action::default());
        }
        rseq::before_handler(&task, frame, info.number);
        let mask = mask_to_restore(&task);
        if frame::push(&task, frame, &info, &action, mask).is_err() {
            die(SIGSEGV);
        }
        task.record.blocked.fetch_or(action.blocks(info.number), Relaxed);
        // There may be more, which this handler does not block; and a handler is no system call.
        frame.vector = 0;
        task.todo.fetch_or(todo::SIGNAL, SeqCst);
        return;
    }
    syscall::without_handler(frame);
    task.record.blocked.store(mask_to_restore(&task), Relaxed);
}

/// Changes what the current task blocks.
pub fn set_blocked(mask: u64) {
    let flags = cpu::irq_save();
    let task = task::current();
    task.record.blocked.store(mask & !UNBLOCKABLE, Relaxed);
    task.todo.fetch_or(todo::SIGNAL, SeqCst);
    cpu::irq_restore(flags);
}

/// Takes one of the signals `wanted`, which the current task blocks; waits for it until `until`, if it does not wait there
/// already (`do_sigtimedwait`).
///
/// # Errors
/// EAGAIN when none has come, EINTR when another has.
pub fn wait_for(wanted: u64, until: Option<u64>) -> Result<Info, Errno> {
    let task = task::current();
    let take = || {
        let shared = || task.process().and_then(|process| process.pending().take(!wanted));
        task.pending().take(!wanted).or_else(shared)
    };
    if let Some(info) = take() {
        return Ok(info);
    }
    let (mask, awaited) = (&task.record.blocked, &task.signals.awaited);
    let blocked = mask.load(Relaxed);
    awaited.store(wanted & blocked, SeqCst);
    // Who sends one from here on wakes the task.
    mask.store(blocked & !wanted, SeqCst);
    let slept = if is_waiting(&task, wanted) { Ok(()) } else { task::sleep_until(until.unwrap_or(u64::MAX), true) };
    set_blocked(blocked);
    awaited.store(0, SeqCst);
    take().ok_or(if slept.is_ok() { Errno::EAGAIN } else { Errno::EINTR })
}

/// Whether one of the signals `wanted` waits for `task`, or its process.
fn is_waiting(task: &Task, wanted: u64) -> bool {
    let shared = task.process().map_or(0, |process| process.pending().bits());
    (task.pending().bits() | shared) & wanted != 0
}

/// Sends signal `number` as the current task, with `code`, to those whom `pid` names as for `kill`; 0 sends nothing, but asks
/// whether it could be.
///
/// # Errors
/// EINVAL, ESRCH.
pub fn kill(pid: i32, number: u32) -> Result<(), Errno> {
    if number > SIGNALS {
        return Err(Errno::EINVAL);
    }
    let me = task::current();
    let own_group = me.process().map_or(0, |process| process.record.pgrp.load(Relaxed));
    let mut targets = alloc::vec::Vec::new();
    task::for_each(|task| {
        let Some(process) = task.process().filter(|_| task.pid() == task.tgid()) else { return };
        let pgrp = process.record.pgrp.load(Relaxed);
        let wanted = match pid {
            0 => pgrp == own_group,
            -1 => task.pid() != 1 && task.pid() != me.tgid(),
            pid if pid > 0 => task.pid() == pid as u32,
            group => pgrp == group.unsigned_abs(),
        };
        if wanted {
            targets.push(task.get());
        }
    });
    if targets.is_empty() {
        return Err(Errno::ESRCH);
    }
    for target in targets.iter().filter(|_| number != 0) {
        if let Some(process) = target.process() {
            send_to_process(process, target, Info { number, code: SI_USER, words: [u64::from(me.tgid()), 0, 0] });
        }
    }
    Ok(())
}
