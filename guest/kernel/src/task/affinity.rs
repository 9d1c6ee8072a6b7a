//! Which CPUs a task may run on, and how much of them it gets (`sched_setaffinity`, `set_user_nice`).

use core::hint::spin_loop;
use core::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

use pagevisor_mm::sync;
use pagevisor_shared::errno::Errno;
use pagevisor_shared::units::{CpuId, CpuMask};

use super::object::{Task, todo};
use super::queue::{self, QUEUED, Queue, RunQueue};
use super::{fair, sched};
use crate::arch::cpu;
use crate::smp;

/// Lets `task` run on those of `cpus` that are there, and nowhere else (`sched_setaffinity`). When this returns it no longer
/// runs elsewhere, unless it is another task that is in the kernel: then it moves when it leaves its CPU.
///
/// # Errors
/// EINVAL when none of them is there.
pub fn set_affinity(task: &Task, cpus: CpuMask) -> Result<(), Errno> {
    let cpus = CpuMask(cpus.0 & smp::online().0);
    if cpus.0 == 0 {
        return Err(Errno::EINVAL);
    }
    let flags = cpu::irq_save();
    sync::lock(&task.wake_lock, spin_loop);
    task.record.cpus_mask.store(cpus.0, SeqCst);
    let mut leave = false;
    with_queue(task, |rq, queue| {
        let here = CpuId::new(task.cpu()).unwrap_or_default();
        if task.on_rq.load(Relaxed) != QUEUED || cpus.contains(here) {
            return;
        }
        if core::ptr::eq(queue.current(), task) {
            task.todo.fetch_or(todo::RESCHED, Relaxed);
            smp::reschedule(here);
            leave = true;
        } else {
            queue.detach(rq, task);
        }
    });
    if task.on_rq.load(Relaxed) == queue::MIGRATING && !leave {
        sched::enqueue_moved(task);
    }
    sync::unlock(&task.wake_lock);
    cpu::irq_restore(flags);
    if leave && super::try_current().is_some_and(|current| core::ptr::eq(&raw const *current, task)) {
        sched::preempt();
    }
    Ok(())
}

/// Calls `change` with the run queue of `task`, which is locked and stays its own meanwhile. Interrupts are off.
fn with_queue(task: &Task, change: impl FnOnce(&RunQueue, &mut Queue)) {
    loop {
        let cpu = task.cpu();
        let rq = queue::of(CpuId::new(cpu).unwrap_or_default());
        let mut queue = rq.queue.lock();
        if task.cpu() == cpu && task.on_rq.load(Acquire) != queue::MIGRATING {
            return change(rq, &mut queue);
        }
        drop(queue);
        spin_loop();
    }
}

/// The nice value of `task`.
pub fn nice(task: &Task) -> i32 {
    task.nice.load(Relaxed)
}

/// Sets the nice value of `task`, kept between -20 and 19 (`set_user_nice`).
pub fn set_nice(task: &Task, nice: i32) {
    let nice = nice.clamp(-20, 19);
    let flags = cpu::irq_save();
    with_queue(task, |_, queue| {
        task.nice.store(nice, Relaxed);
        queue.reweigh(task, fair::weight_of(nice));
    });
    cpu::irq_restore(flags);
}
