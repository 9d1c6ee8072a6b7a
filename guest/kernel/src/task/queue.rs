//! Run queues: the tasks that want a CPU, by virtual run time (`kernel/sched/fair.c`).

use core::ops::ControlFlow;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use pagevisor_shared::NR_CPUS;
use pagevisor_shared::units::CpuId;

use super::fair;
use super::heap::{Arena, Heap, Links, before};
use super::object::Task;
use crate::sync::SpinLock;

/// Most waiting tasks of another CPU that are looked at for one to take over (`sched_nr_migrate`).
const NR_MIGRATE: u32 = 32;

/// [`Task::on_rq`] of a task in a run queue, or that runs (`TASK_ON_RQ_QUEUED`).
pub(super) const QUEUED: u32 = 1;
/// [`Task::on_rq`] of a runnable task on its way from one run queue to another (`TASK_ON_RQ_MIGRATING`).
pub(super) const MIGRATING: u32 = 2;

/// Tasks, as entries of a heap.
#[derive(Debug)]
pub(super) struct Tasks;

impl Arena for Tasks {
    #[inline(always)]
    fn links(&self, entry: u64) -> &Links {
        // SAFETY: only `Queue` makes entries, of tasks that are runnable: those do not end.
        unsafe { &Task::at(entry).run }
    }
}

/// A CPU's run queue.
#[repr(align(64))]
pub(super) struct RunQueue {
    /// Held with interrupts off, and across a switch: the next task gives it back.
    pub queue: SpinLock<Queue>,
    /// Runnable tasks, the one that runs included (`nr_running`). Written under the lock.
    pub running: AtomicU32,
}

/// What the lock guards.
pub(super) struct Queue {
    /// Those that wait.
    waiting: Heap<Tasks>,
    /// Weight of all that are runnable.
    weight: u64,
    /// Virtual run time that those who wait have at least reached; it never goes back (`min_vruntime`).
    min_vruntime: u64,
    /// The task that runs; 0 before the CPU does.
    pub curr: u64,
    /// The CPU's idle task.
    pub idle: u64,
}

/// All of them, by CPU.
pub(super) static QUEUES: [RunQueue; NR_CPUS] = [const {
    RunQueue {
        queue: SpinLock::new(Queue { waiting: Heap::new(Tasks), weight: 0, min_vruntime: 0, curr: 0, idle: 0 }),
        running: AtomicU32::new(0),
    }
}; NR_CPUS];

/// The run queue of `cpu`.
#[inline]
pub(super) fn of(cpu: CpuId) -> &'static RunQueue {
    &QUEUES[cpu.index()]
}

impl RunQueue {
    /// Runnable tasks.
    #[inline]
    pub fn running(&self) -> u32 {
        self.running.load(Relaxed)
    }

    fn count(&self, change: i32) -> u32 {
        let running = self.running().wrapping_add_signed(change);
        self.running.store(running, Relaxed);
        running
    }
}

impl Queue {
    /// The task that runs.
    pub fn current(&self) -> &'static Task {
        // SAFETY: a task that runs does not end, and the lock keeps it running.
        unsafe { Task::at(self.curr) }
    }

    /// The CPU's idle task.
    pub fn idle_task(&self) -> &'static Task {
        // SAFETY: idle tasks never end; the CPU switches tasks, so it has one.
        unsafe { Task::at(self.idle) }
    }

    /// Whether nothing runs but the idle task.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.curr == self.idle
    }

    /// Whether the CPU has come up and switches tasks.
    #[inline]
    pub fn is_live(&self) -> bool {
        self.curr != 0
    }

    /// Whether nobody waits.
    #[inline]
    pub fn none_waits(&self) -> bool {
        self.waiting.first().is_none()
    }

    /// Charges the task that runs for the time up to `now` (`update_curr`).
    pub fn update_current(&mut self, now: u64) {
        let task = self.current();
        let ran = now.saturating_sub(task.exec_start.load(Relaxed));
        task.exec_start.store(now, Relaxed);
        task.sum_exec.store(task.sum_exec.load(Relaxed) + ran, Relaxed);
        if !self.is_idle() {
            task.run.set_key(task.run.key().wrapping_add(fair::virtual_time(ran, task.weight.load(Relaxed))));
            self.advance();
        }
    }

    /// `update_min_vruntime`.
    fn advance(&mut self) {
        let current = (!self.is_idle() && self.current().on_rq.load(Relaxed) != 0).then(|| self.current().run.key());
        let least = match (current, self.waiting.first_key()) {
            (Some(a), Some(b)) => Some(if before(a, b) { a } else { b }),
            (a, b) => a.or(b),
        };
        if let Some(least) = least
            && before(self.min_vruntime, least)
        {
            self.min_vruntime = least;
        }
    }

    /// How long the task that runs may still run, of its share (`sched_slice`); 0 when it is over.
    pub fn rest_of_slice(&self, running: u32) -> u64 {
        let task = self.current();
        let slice = fair::slice(task.weight.load(Relaxed), self.weight, running);
        let used = task.sum_exec.load(Relaxed) - task.slice_start.load(Relaxed);
        slice.saturating_sub(used)
    }

    /// Whether `task`, which waits here, is to run before the one that runs (`wakeup_preempt_entity`).
    pub fn is_more_urgent(&self, task: &Task) -> bool {
        if self.is_idle() {
            return true;
        }
        let lead = fair::virtual_time(fair::WAKEUP_GRANULARITY, task.weight.load(Relaxed));
        before(task.run.key().wrapping_add(lead), self.current().run.key())
    }

    /// Gives `task`, which has become runnable, its virtual run time here (`place_entity`). One that has slept keeps the
    /// lead that it had, less the time that has passed, and gets at most half a period of credit; a new one begins
    /// behind the others.
    pub fn place(&self, task: &Task, is_new: bool, now: u64) {
        let lead = if is_new {
            let weight = task.weight.load(Relaxed);
            fair::virtual_time(fair::slice(weight, self.weight + u64::from(weight), 1), weight) as i64
        } else {
            let slept = now.saturating_sub(task.exec_start.load(Relaxed)) as i64;
            (task.run.key() as i64).saturating_sub(slept).max(-(fair::LATENCY as i64 / 2))
        };
        task.exec_start.store(now, Relaxed);
        task.run.set_key(self.min_vruntime.wrapping_add_signed(lead));
    }

    /// Takes `task` in, which was in no run queue; gives how many are runnable now.
    pub fn activate(&mut self, queue: &RunQueue, task: &Task) -> u32 {
        self.weight += u64::from(task.weight.load(Relaxed));
        // Release: who sees it sees which CPU's run queue it is in.
        task.on_rq.store(QUEUED, Release);
        self.waiting.insert(task.addr());
        queue.count(1)
    }

    /// The task that runs does not want to any more, or, if it is `moving`, not here.
    pub fn deactivate_current(&mut self, queue: &RunQueue, moving: bool) {
        let task = self.current();
        self.weight -= u64::from(task.weight.load(Relaxed));
        queue.count(-1);
        // Release: who sees it and wakes the task sees what was written before it slept.
        self.forget_origin(task);
        task.on_rq.store(if moving { MIGRATING } else { 0 }, Release);
    }

    /// Puts `task`, which runs, behind the first of those who wait (`yield_task_fair`).
    pub fn let_others_pass(&self, task: &Task) {
        if let Some(first) = self.waiting.first_key()
            && !before(first, task.run.key())
        {
            task.run.set_key(first.wrapping_add(1));
        }
    }

    /// The task that runs goes back to those who wait.
    pub fn put_back(&mut self, task: &Task) {
        self.waiting.insert(task.addr());
    }

    /// Takes who is next (`pick_next_entity`).
    pub fn take_next(&mut self) -> Option<&'static Task> {
        // SAFETY: it is runnable: it does not end.
        let task = unsafe { Task::at(self.waiting.pop()?) };
        task.slice_start.store(task.sum_exec.load(Relaxed), Relaxed);
        Some(task)
    }

    /// Gives away one of the tasks that wait and may run on `cpu`, out of every run queue, its virtual run time as the
    /// lead that it has here (`detach_tasks`).
    pub fn give_away(&mut self, queue: &RunQueue, cpu: CpuId) -> Option<&'static Task> {
        let mut looks = NR_MIGRATE;
        let found = self.waiting.find(|entry| {
            // SAFETY: it is runnable: it does not end.
            let task = unsafe { Task::at(entry) };
            if task.cpus().contains(cpu) {
                return ControlFlow::Break(Some(task));
            }
            looks -= 1;
            if looks == 0 { ControlFlow::Break(None) } else { ControlFlow::Continue(()) }
        });
        let task = found.flatten()?;
        self.detach(queue, task);
        Some(task)
    }

    /// Takes `task`, which waits here, out (`detach_task`).
    pub fn detach(&mut self, queue: &RunQueue, task: &Task) {
        self.waiting.remove(task.addr());
        self.weight -= u64::from(task.weight.load(Relaxed));
        queue.count(-1);
        self.forget_origin(task);
        task.on_rq.store(MIGRATING, Release);
    }

    /// Makes the virtual run time of `task` a lead: one that counts from where this run queue is.
    fn forget_origin(&self, task: &Task) {
        task.run.set_key(task.run.key().wrapping_sub(self.min_vruntime));
    }

    /// The reverse, for the run queue that it comes to.
    pub fn set_origin(&self, task: &Task) {
        task.run.set_key(task.run.key().wrapping_add(self.min_vruntime));
    }

    /// Changes the weight of `task`, whose run queue this is (`reweight_entity`).
    pub fn reweigh(&mut self, task: &Task, weight: u32) {
        let old = task.weight.swap(weight, Relaxed);
        if task.on_rq.load(Acquire) == QUEUED {
            self.weight = self.weight + u64::from(weight) - u64::from(old);
        }
    }
}
