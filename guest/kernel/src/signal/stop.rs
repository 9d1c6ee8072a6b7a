//! Stopping and going on (`do_signal_stop`, `prepare_signal`, `SIGCONT`).
//!
//! A process stops when one of its threads takes a signal that stops it, and its other threads find out on their way to user
//! mode. The thread that is the last to stop tells the parent. All go on by `SIGCONT`, when it is sent.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};

use pagevisor_shared::sched::TaskState;

use super::code::{CLD_CONTINUED, CLD_STOPPED};
use super::{Info, SIGCHLD, SIGCONT, SIGSTOP, STOPS, actions_of, bit, forget, send_to_process};
use crate::task::{self, Process, Task};

/// What `wait` has not told yet.
const NOTHING: u32 = 0;
const STOPPED: u32 = 1;
const CONTINUED: u32 = 2;

/// What `wait` gives for a process that was stopped by `signal`.
const fn stopped_by(signal: u32) -> u32 {
    signal << 8 | 0x7f
}

/// What `wait` gives for a process that goes on.
pub const GOES_ON: u32 = 0xffff;

/// A process's part.
#[derive(Debug, Default)]
pub struct Stop {
    /// The signal that it stops by; 0 if it does not.
    by: AtomicU32,
    /// Threads that have stopped.
    threads: AtomicU32,
    /// What a parent that waits is still to be told.
    news: AtomicU32,
    /// The signal that it was stopped by last, and how often that was.
    last: AtomicU32,
    times: AtomicU32,
}

impl Stop {
    /// Tells a parent that waits for children that stop, or that go on, what has become of this one, if he does not know; it
    /// is told once, unless it is to be kept.
    pub fn news(&self, stopped: bool, continued: bool, keep: bool) -> Option<u32> {
        let (news, status) = match self.news.load(Acquire) {
            STOPPED if stopped => (STOPPED, stopped_by(self.last.load(Relaxed))),
            CONTINUED if continued => (CONTINUED, GOES_ON),
            _ => return None,
        };
        if keep {
            return Some(status);
        }
        self.news.compare_exchange(news, NOTHING, AcqRel, Relaxed).ok().map(|_| status)
    }
}

/// Whether nobody outside the process group of `process`, but in its session, could let it go on
/// (`is_current_pgrp_orphaned`).
fn is_orphaned(process: &Process) -> bool {
    let (group, session) = (process.record.pgrp.load(Relaxed), process.record.session.load(Relaxed));
    let mut members = alloc::vec::Vec::new();
    task::for_each(|task| {
        if let Some(member) = task.get_process().filter(|member| member.record.pgrp.load(Relaxed) == group)
            && task.pid() == task.tgid()
        {
            members.push(member);
        }
    });
    !members
        .iter()
        .filter_map(|member| member.parent())
        .any(|parent| parent.record.pgrp.load(Relaxed) != group && parent.record.session.load(Relaxed) == session)
}

/// The current task has taken `number`, which stops it by default.
pub(super) fn by(task: &Task, number: u32) {
    let Some(process) = task.process() else { return };
    // The first program is not stopped by anybody, and nobody is whom nobody could let go on.
    if task.tgid() == 1 || number != SIGSTOP && is_orphaned(process) {
        return;
    }
    process.stop.last.store(number, Relaxed);
    process.stop.times.fetch_add(1, SeqCst);
    process.stop.by.store(number, SeqCst);
    process.for_each_thread(super::wake);
}

/// Whether the process of the current task stops.
pub(super) fn is_wanted(task: &Task) -> bool {
    task.process().is_some_and(|process| process.stop.by.load(Acquire) != 0)
}

/// The current task stops until its process goes on or ends.
pub(super) fn stay(task: &Task) {
    let Some(process) = task.get_process() else { return };
    let stop = &process.stop;
    stop.threads.fetch_add(1, SeqCst);
    // It may be stopped again before it has gone on.
    let mut known = None;
    loop {
        let times = stop.times.load(SeqCst);
        if known != Some(times) {
            known = Some(times);
            all_stopped(&process);
        }
        task::set_state(TaskState::Stopped);
        if stop.by.load(SeqCst) == 0 || task.ends_with().is_some() {
            break;
        }
        if stop.times.load(SeqCst) == times {
            task::schedule();
        }
        task::set_state(TaskState::Running);
    }
    task::set_state(TaskState::Running);
    stop.threads.fetch_sub(1, SeqCst);
}

/// Tells the parent if all threads of `process` have stopped.
fn all_stopped(process: &Process) {
    let stop = &process.stop;
    if stop.by.load(SeqCst) != 0 && stop.threads.load(SeqCst) >= process.live.load(SeqCst) {
        tell(process, CLD_STOPPED, stop.last.load(Relaxed), STOPPED);
    }
}

/// A thread of `process` has ended, but not the last: the others may all have stopped.
pub fn thread_left(process: &Process) {
    all_stopped(process);
}

/// Tells the parent of `process` what has become of it: by a signal, then if he waits (`do_notify_parent_cldstop`).
fn tell(process: &Process, code: i32, status: u32, news: u32) {
    let parent = process.parent();
    if let (Some(parent), Some(child)) = (&parent, process.leader())
        && let Some(leader) = parent.leader()
        && actions_of(&leader).is_some_and(|actions| !actions.get(SIGCHLD).wants_only_ends())
    {
        let words = [u64::from(child.pid()), u64::from(status), 0];
        send_to_process(parent, &leader, Info { number: SIGCHLD, code, words });
    }
    process.stop.news.store(news, SeqCst);
    if let Some(parent) = parent {
        parent.changed.wake_all();
    }
}

/// Signal `number` is about to be sent to `process`: what stops it and what lets it go on take each other's place, and the
/// latter does so at once, whether it is ignored, blocked or handled (`prepare_signal`).
pub(super) fn prepare(process: &Process, number: u32) {
    if STOPS & bit(number) != 0 {
        forget(process, bit(SIGCONT));
    } else if number == SIGCONT {
        forget(process, STOPS);
        if process.stop.by.swap(0, SeqCst) != 0 {
            process.for_each_thread(|thread| {
                task::wake_state(thread, TaskState::Stopped as u32);
            });
            tell(process, CLD_CONTINUED, SIGCONT, CONTINUED);
        }
    }
}
