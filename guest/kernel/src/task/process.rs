//! Processes: what the threads of a program have in common beside the address space (`signal_struct`), and who belongs to
//! whom.

use alloc::string::String;
use alloc::sync::Arc;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_mm::mmap::Space;
use pagevisor_shared::sched::{RLIM_NLIMITS, SignalStruct, TaskState};
use pagevisor_shared::units::CpuMask;

use super::list::{List, Nodes};
use super::object::{Task, TaskRef, current, todo};
use super::time::charge;
use super::wait::WaitQueue;
use super::{sched, table};
use crate::fs::access::Executed;
use crate::sync::{Once, SpinLock};

/// No limit (`RLIM_INFINITY`).
pub const NO_LIMIT: u64 = u64::MAX;

/// A process.
#[derive(Debug)]
pub struct Process {
    /// What others may read: process group and session, signals that wait, limits.
    pub record: SignalStruct,
    /// Threads that have not begun to end.
    pub live: AtomicU32,
    /// 1 once its parent has been told that it has ended, and may ask for it.
    pub told: AtomicU32,
    /// Not 0 once all of it ends (`SIGNAL_GROUP_EXIT`).
    ending: AtomicU32,
    /// What it ends with then.
    code: AtomicU32,
    /// A child of it has ended, or one of its threads (`wait_chldexit`).
    pub changed: WaitQueue,
    /// The signal that its parent gets when it ends; 0 for none.
    pub exit_signal: AtomicU32,
    /// Not 0: nobody asks for what its children end with (`SIGCHLD` is ignored, or `SA_NOCLDWAIT`).
    pub ignores_children: AtomicU32,
    /// Signals that wait for any of its threads.
    pub signals: crate::signal::Queue,
    /// Whether it is stopped.
    pub stop: crate::signal::Stop,
    /// Not 0: it has said that it will ask for memory barriers (`membarrier_state`).
    pub wants_barriers: AtomicU32,
    /// Of threads that have ended.
    pub gone: Usage,
    /// Of children that have ended and were asked for.
    pub children: Usage,
    /// The program that it executes, and that program's path (`/proc/PID/exe`).
    pub program: SpinLock<Option<(Executed, String)>>,
    parent: SpinLock<Option<Arc<Process>>>,
    /// Taken with the table of tasks locked.
    pub(super) family: SpinLock<Family>,
}

/// What a process, or part of it, has used (`struct rusage`).
#[derive(Debug, Default)]
pub struct Usage {
    /// Nanoseconds in user mode.
    pub utime: AtomicU64,
    /// Nanoseconds in the kernel.
    pub stime: AtomicU64,
    /// Faults that needed no waiting.
    pub min_flt: AtomicU64,
    /// Faults that had to wait for data.
    pub maj_flt: AtomicU64,
    /// Times that a CPU was given up.
    pub nvcsw: AtomicU64,
    /// Times that a CPU was taken.
    pub nivcsw: AtomicU64,
    /// Most pages that were mapped at a time, in a space that is given up.
    pub maxrss: AtomicU64,
}

impl Usage {
    /// What adds up.
    fn words(&self) -> [&AtomicU64; 6] {
        [&self.utime, &self.stime, &self.min_flt, &self.maj_flt, &self.nvcsw, &self.nivcsw]
    }

    /// Adds `other`.
    pub fn add(&self, other: &Self) {
        for (sum, more) in self.words().into_iter().zip(other.words()) {
            sum.fetch_add(more.load(Relaxed), Relaxed);
        }
        self.maxrss.fetch_max(other.maxrss.load(Relaxed), Relaxed);
    }

    /// Notes the most that was mapped of `space` (`setmax_mm_hiwater_rss`).
    pub fn add_space(&self, space: Space) {
        self.maxrss.fetch_max(space.record().get_mm_hiwater_rss(), Relaxed);
    }

    /// What `task` alone has used up to now. As [`charge`].
    pub fn of(task: &Task) -> Self {
        charge(running_on(task));
        let usage = Self::default();
        usage.add_task(task);
        usage
    }

    /// The time in user mode and in the kernel together.
    pub fn time(&self) -> u64 {
        self.utime.load(Relaxed) + self.stime.load(Relaxed)
    }

    /// Adds what `task` has used, as far as it has been counted.
    pub fn add_task(&self, task: &Task) {
        let record = &task.record;
        let used = [&record.utime, &record.stime, &record.min_flt, &record.maj_flt, &record.nvcsw, &record.nivcsw];
        for (sum, more) in self.words().into_iter().zip(used) {
            sum.fetch_add(more.load(Relaxed), Relaxed);
        }
    }
}

/// The CPU that `task` runs on, if it does.
fn running_on(task: &Task) -> CpuMask {
    CpuMask(if task.record.on_cpu.load(Relaxed) == 0 { 0 } else { 1 << task.cpu() })
}

/// Who belongs to a process.
#[derive(Debug)]
pub(super) struct Family {
    /// The leaders of its children.
    pub children: List<Siblings>,
    /// Its threads, the leader first.
    pub threads: List<Threads>,
}

/// Children, as entries of a list.
#[derive(Debug)]
pub(super) struct Siblings;

impl Nodes for Siblings {
    fn links(&self, entry: u64) -> (&AtomicU64, &AtomicU64) {
        // SAFETY: who is in a family is in the table of tasks, which is locked.
        unsafe { Task::at(entry) }.sibling.words()
    }
}

/// Threads, as entries of a list.
#[derive(Debug)]
pub(super) struct Threads;

impl Nodes for Threads {
    fn links(&self, entry: u64) -> (&AtomicU64, &AtomicU64) {
        // SAFETY: a thread is on its process's list as long as it is in the table of tasks, which is locked.
        unsafe { Task::at(entry) }.thread.words()
    }
}

static INIT: Once<Arc<Process>> = Once::new();

/// The process of number 1, which gets the children of those who end.
pub(super) fn init_process() -> Option<&'static Arc<Process>> {
    INIT.get()
}

/// Linux's limits at boot (`INIT_RLIMITS`), by the resource's number.
fn first_limits() -> [[u64; 2]; RLIM_NLIMITS] {
    let mut limits = [[NO_LIMIT; 2]; RLIM_NLIMITS];
    limits[3] = [8 << 20, NO_LIMIT];
    limits[4] = [0, NO_LIMIT];
    limits[6] = [table::max_threads() / 2; 2];
    limits[7] = [1024, 4096];
    limits[8] = [8 << 20; 2];
    limits[11] = [table::max_threads() / 2; 2];
    limits[12] = [819_200; 2];
    limits[13] = [0; 2];
    limits[14] = [0; 2];
    limits
}

impl Process {
    /// A process like `parent` with one thread, which is still to be entered.
    pub(super) fn new(parent: Option<&Self>, exit_signal: u32) -> Arc<Self> {
        let limits = first_limits();
        let limit = |resource: usize, which: usize| match parent {
            Some(parent) => parent.record.rlim[resource][which].load(Relaxed),
            None => limits[resource][which],
        };
        let inherited =
            |word: fn(&SignalStruct) -> &AtomicU32| parent.map_or(0, |parent| word(&parent.record).load(Relaxed));
        let record = SignalStruct {
            pgrp: AtomicU32::new(inherited(|parent| &parent.pgrp)),
            session: AtomicU32::new(inherited(|parent| &parent.session)),
            shared_pending: AtomicU64::new(0),
            rlim: core::array::from_fn(|resource| [0, 1].map(|which| AtomicU64::new(limit(resource, which)))),
        };
        Arc::new(Self {
            record,
            live: AtomicU32::new(1),
            told: AtomicU32::new(0),
            ending: AtomicU32::new(0),
            code: AtomicU32::new(0),
            changed: WaitQueue::new(),
            exit_signal: AtomicU32::new(exit_signal),
            ignores_children: AtomicU32::new(0),
            signals: crate::signal::Queue::default(),
            stop: crate::signal::Stop::default(),
            wants_barriers: AtomicU32::new(0),
            gone: Usage::default(),
            children: Usage::default(),
            program: SpinLock::new(parent.and_then(|parent| parent.program.lock().clone())),
            parent: SpinLock::new(None),
            family: SpinLock::new(Family { children: List::new(Siblings), threads: List::new(Threads) }),
        })
    }

    /// Makes it the process of number 1, whose only thread is `task`.
    pub(super) fn set_init(self: &Arc<Self>, task: &Task) {
        INIT.set(Arc::clone(self));
        self.record.pgrp.store(task.pid(), Relaxed);
        self.record.session.store(task.pid(), Relaxed);
        let _table = table::lock();
        self.family.lock().threads.push(task.addr());
    }

    /// Makes the current task, a thread of the kernel, the only thread of a process that is nobody's child.
    pub fn found() {
        let (task, process) = (current(), Self::new(None, 0));
        process.record.pgrp.store(task.pid(), Relaxed);
        process.record.session.store(task.pid(), Relaxed);
        task.set_process(Arc::clone(&process));
        let _table = table::lock();
        process.family.lock().threads.push(task.addr());
    }

    /// The parent, if there is one.
    pub fn parent(&self) -> Option<Arc<Self>> {
        let _table = table::lock();
        self.parent.lock().clone()
    }

    /// Makes `child`, the leader of a process, a child of this one. The table of tasks is locked.
    pub(super) fn adopt(self: &Arc<Self>, child: &Task, number: u32) {
        self.family.lock().children.push(child.addr());
        child.record.ppid.store(number, Relaxed);
        if let Some(process) = child.process() {
            *process.parent.lock() = Some(Arc::clone(self));
            process.each_thread(|thread| thread.record.ppid.store(number, Relaxed));
        }
    }

    /// The parent, the table of tasks being locked.
    pub(super) fn parent_locked(&self) -> Option<Arc<Self>> {
        self.parent.lock().clone()
    }

    /// Calls `look` with each thread. The table of tasks is locked.
    pub(super) fn each_thread(&self, mut look: impl FnMut(&Task)) {
        let family = self.family.lock();
        let mut entry = family.threads.first();
        while entry != 0 {
            // SAFETY: who is in a family is in the table of tasks, which is locked.
            look(unsafe { Task::at(entry) });
            entry = family.threads.next(entry);
        }
    }

    /// Calls `look` with each thread; it must not sleep.
    pub fn for_each_thread(&self, look: impl FnMut(&Task)) {
        let _table = table::lock();
        self.each_thread(look);
    }

    /// What its threads, ended ones included, have used up to now. As [`charge`].
    pub fn usage(&self) -> Usage {
        charge(self.running_on());
        let usage = Usage::default();
        self.for_each_thread(|thread| usage.add_task(thread));
        usage.add(&self.gone);
        usage
    }

    /// The CPUs that run its threads.
    pub fn running_on(&self) -> CpuMask {
        let mut cpus = CpuMask::default();
        self.for_each_thread(|thread| cpus = CpuMask(cpus.0 | running_on(thread).0));
        cpus
    }

    /// The leader: the thread whose number is the process's.
    pub fn leader(&self) -> Option<TaskRef> {
        let _table = table::lock();
        let first = self.family.lock().threads.first();
        // SAFETY: a thread is on its process's list as long as it is in the table of tasks, which is locked.
        (first != 0).then(|| unsafe { Task::at(first) }.get())
    }

    /// What all of it ends with, once it does: threads that find out end with it.
    pub fn ends_with(&self) -> Option<u32> {
        (self.ending.load(Acquire) != 0).then(|| self.code.load(Relaxed))
    }

    /// Makes all threads but the current one end (`zap_other_threads`), and the process with `code` unless it ends already;
    /// gives what it ends with.
    pub fn end(&self, code: u32) -> u32 {
        let _table = table::lock();
        if self.ending.load(Relaxed) == 0 {
            self.code.store(code, Relaxed);
            self.ending.store(1, Release);
        }
        self.each_thread(kill);
        self.code.load(Relaxed)
    }

    /// Makes all threads but the current one end, and waits until they have; then it has their process for itself and is
    /// its leader (`de_thread`).
    pub fn be_alone(&self) {
        let task = current();
        {
            let _table = table::lock();
            self.each_thread(|thread| {
                thread.kill.store(1, Release);
                kill(thread);
            });
            task.kill.store(0, Relaxed);
        }
        self.changed.wait_until(|| self.live.load(SeqCst) == 1);
        if task.pid() != task.tgid() {
            self.changed.wait_until(|| self.leader().is_none_or(|leader| leader.state() == TaskState::Zombie as u32));
            table::lock().replace_leader(&task, self);
        }
    }
}

/// Has `thread`, if it is not the current one, look why it should end.
fn kill(thread: &Task) {
    if !core::ptr::eq(thread, &raw const *current()) {
        thread.todo.fetch_or(todo::SIGNAL, SeqCst);
        if !sched::wake_state(thread, TaskState::Interruptible as u32 | TaskState::Stopped as u32) {
            sched::kick_process(thread);
        }
    }
}
