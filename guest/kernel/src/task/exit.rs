//! How tasks end, and how their parents learn of it (`kernel/exit.c`).

use alloc::sync::Arc;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use pagevisor_shared::errno::Errno;
use pagevisor_shared::sched::{TaskState, TaskStruct};

use super::object::{Task, TaskRef, current};
use super::process::{Process, Usage, init_process};
use super::table::Table;
use super::wait::Sleep;
use super::{resources, sched, space, table};
use crate::sync::Once;

/// Called when a process has ended, with its parent and its leader, to send the signal it asked for. The table of tasks is
/// not locked; it must not sleep.
pub type Notice = fn(&Process, &Task);

static NOTICE: Once<Notice> = Once::new();

/// Sets who is called when a process has ended.
pub fn set_notice(notice: Notice) {
    NOTICE.set(notice);
}

/// What a task that was ended by signal `signal` ends with; with `dumped` if it left a picture of its memory.
pub const fn killed_by(signal: u32, dumped: bool) -> u32 {
    signal & 0x7f | if dumped { 0x80 } else { 0 }
}

/// What a task ends with that has called `exit` with `code`.
pub const fn exited_with(code: i32) -> u32 {
    (code as u32 & 0xff) << 8
}

/// Ends the current task's process, with `code` ([`exited_with`], [`killed_by`]) unless it ends already with another
/// (`do_group_exit`).
pub fn exit_group(code: u32) -> ! {
    let code = current().process().map_or(code, |process| process.end(code));
    exit(code)
}

/// Ends the current task, a thread of the kernel, with `code` (`kthread_exit`).
pub fn exit_thread(code: i32) -> ! {
    exit(code as u32)
}

/// Ends the current task (`do_exit`), with `code` as `wait` gives it.
pub fn exit(code: u32) -> ! {
    let task = current();
    task.record.flags.fetch_or(TaskStruct::EXITING, Relaxed);
    task.record.exit_code.store(code, Relaxed);
    space::exit_space();
    resources::exit(&task);
    // Before anybody asks for it, its program can be written to.
    let program =
        task.process().filter(|process| process.live.load(SeqCst) == 1).map(|process| process.program.lock().take());
    drop(program);
    let notice = match task.get_process() {
        Some(process) => leave_process(&task, &process),
        None => {
            let held = table::lock().remove(&task);
            sched::set_ended(&task, TaskState::Dead);
            drop(held);
            None
        }
    };
    if let Some((parent, leader)) = notice {
        if let Some(notice) = NOTICE.get() {
            notice(&parent, &leader);
        }
        let_parent_ask(&leader);
    }
    sched::schedule();
    unreachable!("a dead task runs")
}

/// The current task is no part of its process any more (`exit_notify`); gives whom to tell that the process has ended, and
/// its leader. From here on the task must not sleep but for good.
fn leave_process(task: &Task, process: &Arc<Process>) -> Option<(Arc<Process>, TaskRef)> {
    sched::account(task);
    let mut table = table::lock();
    let last = process.live.fetch_sub(1, SeqCst) == 1;
    if last {
        give_children_away(process);
    }
    let leads = task.pid() == task.tgid();
    let held = if leads {
        sched::set_ended(task, TaskState::Zombie);
        None
    } else {
        process.gone.add_task(task);
        process.family.lock().threads.remove(task.addr());
        sched::set_ended(task, TaskState::Dead);
        Some(table.remove(task))
    };
    let notice = if last { ended(&mut table, process) } else { None };
    drop(table);
    drop(held);
    if !last {
        crate::signal::thread_left(process);
    }
    // Who waits to be alone.
    process.changed.wake_all();
    notice
}

/// The last thread of `process` has ended. If nobody will ask for it, it goes.
fn ended(table: &mut Table, process: &Arc<Process>) -> Option<(Arc<Process>, TaskRef)> {
    let first = process.family.lock().threads.first();
    if first == 0 {
        return None;
    }
    // SAFETY: who is in a family is in the table of tasks, which is locked.
    let leader = unsafe { Task::at(first) }.get();
    let Some(parent) = process.parent_locked() else {
        drop(table.remove(&leader));
        return None;
    };
    if parent.live.load(SeqCst) == 0 || parent.ignores_children.load(SeqCst) != 0 {
        reap(table, &parent, &leader);
    }
    Some((parent, leader))
}

/// The parent of the process of `leader`, which has ended, may ask for it. It has got its signal before, as with Linux
/// (`exit_notify`), unless it is another one by now.
fn let_parent_ask(leader: &Task) {
    let Some(process) = leader.process() else { return };
    let table = table::lock();
    process.told.store(1, SeqCst);
    let parent = process.parent_locked();
    drop(table);
    if let Some(parent) = parent {
        parent.changed.wake_all();
    }
}

/// The children of `process`, which ends, become init's (`forget_original_parent`). The table of tasks is locked.
fn give_children_away(process: &Arc<Process>) {
    let Some(init) = init_process().filter(|init| !Arc::ptr_eq(init, process)) else { return };
    loop {
        let Some(child) = process.family.lock().children.pop() else { break };
        // SAFETY: a child is in its parent's family as long as it is in the table of tasks, which is locked.
        init.adopt(unsafe { Task::at(child) }, 1);
    }
    init.changed.wake_all();
}

/// Takes the leader of a process that has ended out of the table: nothing is left of it (`release_task`).
fn reap(table: &mut Table, parent: &Process, leader: &Task) {
    parent.family.lock().children.remove(leader.addr());
    if let Some(process) = leader.process() {
        process.gone.add_task(leader);
        parent.children.add(&process.gone);
        parent.children.add(&process.children);
        process.family.lock().threads.remove(leader.addr());
    }
    drop(table.remove(leader));
}

/// Which children [`wait4`] waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// Any.
    Any,
    /// The one of this number.
    Process(u32),
    /// Those of this process group.
    Group(u32),
}

impl Which {
    fn matches(self, child: &Task) -> bool {
        match self {
            Self::Any => true,
            Self::Process(pid) => child.pid() == pid,
            Self::Group(pgrp) => child.process().is_some_and(|process| process.record.pgrp.load(Relaxed) == pgrp),
        }
    }
}

/// What is waited for, and how.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Wait {
    /// Nobody waits (`WNOHANG`).
    pub no_hang: bool,
    /// Children that have ended (`WEXITED`).
    pub ended: bool,
    /// Children that stop, too (`WUNTRACED`).
    pub stopped: bool,
    /// Children that go on, too (`WCONTINUED`).
    pub continued: bool,
    /// It can be asked for once more (`WNOWAIT`).
    pub keep: bool,
}

/// A child that has ended, or stopped, or goes on.
#[derive(Debug)]
pub struct Ended {
    /// Its number.
    pub pid: u32,
    /// What it ended with.
    pub status: u32,
    /// What it and its own children used.
    pub usage: Usage,
}

/// Waits until what `how` names has become of one of the children `which`, and tells it; one that has ended is taken, unless
/// it is to be kept. `None` if nothing has and nobody is to wait.
///
/// # Errors
/// ECHILD when there are no such children, EINTR.
pub fn wait4(which: Which, how: Wait) -> Result<Option<Ended>, Errno> {
    let task = current();
    let Some(process) = task.process() else { return Err(Errno::ECHILD) };
    process.changed.wait_for(Sleep::LIGHT, || match look(process, which, how) {
        Ok(None) if !how.no_hang => None,
        looked => Some(looked),
    })?
}

/// Looks for such a child once (`do_wait`).
fn look(process: &Process, which: Which, how: Wait) -> Result<Option<Ended>, Errno> {
    let mut table = table::lock();
    let (mut child, mut any) = (process.family.lock().children.first(), false);
    while child != 0 {
        // SAFETY: who is in a family is in the table of tasks, which is locked.
        let leader = unsafe { Task::at(child) };
        child = process.family.lock().children.next(child);
        if !which.matches(leader) {
            continue;
        }
        any = true;
        let over = leader.process().is_none_or(|process| process.told.load(SeqCst) != 0);
        if how.ended && over && leader.state() == TaskState::Zombie as u32 {
            let usage = Usage::default();
            usage.add_task(leader);
            let process_of = leader.process();
            if let Some(process) = process_of {
                usage.add(&process.gone);
                usage.add(&process.children);
            }
            let status = process_of.and_then(|process| process.ends_with());
            let status = status.unwrap_or_else(|| leader.record.exit_code.load(Relaxed));
            let ended = Ended { pid: leader.pid(), status, usage };
            if !how.keep {
                reap(&mut table, process, leader);
            }
            return Ok(Some(ended));
        }
        let news = leader.process().and_then(|child| child.stop.news(how.stopped, how.continued, how.keep));
        if let Some(status) = news {
            let usage = Usage::default();
            usage.add_task(leader);
            return Ok(Some(Ended { pid: leader.pid(), status, usage }));
        }
    }
    if any { Ok(None) } else { Err(Errno::ECHILD) }
}
