//! Who runs next, and where somebody runs who wakes (`kernel/sched/core.c`).
//!
//! The kernel is not preempted: a task leaves its CPU where it sleeps or yields, and on its way back to user mode. Locks
//! by rank: a task's `wake_lock`, then run queues, of which a second one is only tried; all with interrupts off.

use core::hint::spin_loop;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU64, fence};

use pagevisor_mm::sync;
use pagevisor_shared::sched::TaskState;
use pagevisor_shared::units::{CpuId, CpuMask};

use super::object::{CURRENT, Task, TaskRef, current, is_interruptible, signal_pending, todo, try_current};
use super::queue::{self, MIGRATING, QUEUED, Queue, RunQueue};
use super::{stack, time, timer, user};
use crate::arch::this_cpu::percpu;
use crate::arch::{cpu, gdt, percpu, switch};
use crate::sync::SpinGuard;
use crate::{clock, command, region, rseq, smp};

/// The state of a task that runs or wants to.
const RUNNING: u32 = TaskState::Running as u32;

percpu! {
    /// A space that this CPU no longer uses, since the switch that is under way; 0 for none.
    UNUSED_SPACE: u64 = 0;
}

/// CPUs that run their idle task, a bit each.
static IDLE: AtomicU64 = AtomicU64::new(0);

fn this_cpu() -> CpuId {
    CpuId::new(percpu::cpu_number() as usize).unwrap_or_default()
}

/// Says what the current task waits for, before it looks whether it has to wait (`set_current_state`). A waker that
/// comes after what the task then sees finds it in this state.
pub fn set_state(state: TaskState) {
    current().record.state.store(state as u32, Relaxed);
    fence(SeqCst);
}

/// Says that the current task has ended (`set_special_state`). Not by [`set_state`]: a waker that has just found the task
/// asleep would make it run again.
pub(super) fn set_ended(task: &Task, state: TaskState) {
    let flags = cpu::irq_save();
    sync::lock(&task.wake_lock, spin_loop);
    task.record.state.store(state as u32, Release);
    sync::unlock(&task.wake_lock);
    cpu::irq_restore(flags);
}

/// Leaves the CPU to others: until somebody wakes the current task, if it has said that it sleeps ([`set_state`]),
/// else until its turn comes again (`schedule`).
pub fn schedule() {
    reschedule(true);
}

/// The CPU is wanted by somebody else: lets it have it, whatever the current task is about to wait for
/// (`preempt_schedule`). On the way back to user mode.
pub fn preempt() {
    reschedule(false);
}

/// Lets others run who are more urgent (`cond_resched`).
#[inline]
pub fn cond_resched() {
    if try_current().is_some_and(|task| task.todo.load(Relaxed) & todo::RESCHED != 0) {
        preempt();
    }
}

/// Lets all others run that want to (`sched_yield`).
pub fn yield_now() {
    let task = current();
    let flags = cpu::irq_save();
    let rq = queue::of(this_cpu());
    let mut queue = rq.queue.lock();
    queue.update_current(clock::nanos());
    queue.let_others_pass(&task);
    drop(queue);
    cpu::irq_restore(flags);
    preempt();
}

fn reschedule(may_sleep: bool) {
    let prev = current();
    let flags = cpu::irq_save();
    let here = this_cpu();
    let rq = queue::of(here);
    let mut queue = rq.queue.lock();
    prev.todo.fetch_and(!todo::RESCHED, Relaxed);
    queue.update_current(clock::nanos());
    let voluntary = may_sleep && wants_to_sleep(&prev);
    if voluntary || !prev.cpus().contains(here) {
        queue.deactivate_current(rq, !voluntary);
    } else if !prev.is_idle() {
        queue.put_back(&prev);
    }
    let next = match queue.take_next() {
        Some(next) => next,
        None if pull(here, rq, &mut queue) => queue.take_next().unwrap_or_else(|| queue.idle_task()),
        None => queue.idle_task(),
    };
    if core::ptr::eq(next, &raw const *prev) {
        arm_slice(rq, &queue);
        drop(queue);
    } else {
        let count = if voluntary { &prev.record.nvcsw } else { &prev.record.nivcsw };
        count.store(count.load(Relaxed) + 1, Relaxed);
        switch_to(&prev, next, rq, queue);
    }
    cpu::irq_restore(flags);
}

/// Whether `task`, the current one, has said that it sleeps, and may.
fn wants_to_sleep(task: &Task) -> bool {
    let state = task.state();
    if state == RUNNING {
        return false;
    }
    if is_interruptible(state) && signal_pending(task) {
        task.record.state.store(RUNNING, Relaxed);
        return false;
    }
    true
}

/// Leaves `prev` for `next` (`context_switch`). The run queue's lock is held over the switch: whoever goes on gives it
/// back.
fn switch_to(prev: &Task, next: &'static Task, rq: &RunQueue, mut queue: SpinGuard<'_, Queue>) {
    if next.is_idle() != prev.is_idle() {
        let me = 1 << percpu::cpu_number();
        if next.is_idle() {
            IDLE.fetch_or(me, Relaxed)
        } else {
            IDLE.fetch_and(!me, Relaxed)
        };
    }
    queue.curr = next.addr();
    next.exec_start.store(prev.exec_start.load(Relaxed), Relaxed);
    next.record.on_cpu.store(1, Relaxed);
    arm_slice(rq, &queue);
    core::mem::forget(queue);
    if next.record.user_regs.load(Relaxed) != 0 {
        gdt::set_kernel_stack(stack::top(next));
    }
    CURRENT.write(next.addr());
    rseq::preempted(prev);
    time::publish(prev);
    let unused = user::switch(prev, next);
    UNUSED_SPACE.write(unused);
    // SAFETY: interrupts are off, `prev` is the current task. `next` was out of all run queues or waited in this one,
    // whose lock this CPU holds, and it has stopped running before it got there (`wake`, `finish_switch`); `fork` has
    // prepared it if it is new. Both stay: who runs does not end, and `prev` is let go below.
    let left = unsafe { switch::switch(prev, next) };
    // SAFETY: the task that was left is kept until `finish_switch` says otherwise.
    unsafe { finish_switch(&*left) };
}

/// The CPU has left `prev` (`finish_task_switch`). Interrupts are off.
///
/// # Safety
/// To be called once, by the task that follows, with the lock of this CPU's run queue held by whoever called [`switch_to`].
pub(super) unsafe fn finish_switch(prev: &Task) {
    let dead = prev.state() == TaskState::Dead as u32 || prev.state() == TaskState::Zombie as u32;
    let moving = prev.on_rq.load(Relaxed) == MIGRATING;
    // Release pairs with the acquire in `wake_locked`: who sees it may let the task go on elsewhere.
    prev.record.on_cpu.store(0, Release);
    // SAFETY: the caller's promise. The task may have come from another CPU: it is this one's that is held.
    unsafe { queue::of(this_cpu()).queue.force_unlock() };
    user::drop_kept(UNUSED_SPACE.read());
    if moving {
        // It may not run here any more.
        enqueue(prev, select_cpu(prev), false);
    } else if dead {
        // SAFETY: it has kept a reference to itself for as long as it ran, and that was until now.
        let prev = unsafe { TaskRef::from_addr(prev.addr()) };
        stack::free(&prev);
    }
}

/// Sees to it that the slice of the task that runs ends, if somebody waits.
fn arm_slice(rq: &RunQueue, queue: &Queue) {
    let running = rq.running();
    if queue.is_idle() || queue.none_waits() {
        timer::end_slice_in(None);
    } else {
        timer::end_slice_in(Some(queue.rest_of_slice(running)));
    }
}

/// This CPU's slice timer has run out (`entity_tick`). Interrupts are off.
pub(super) fn slice_is_over() {
    let rq = queue::of(this_cpu());
    let mut queue = rq.queue.lock();
    if !queue.is_live() || queue.is_idle() || queue.none_waits() {
        return;
    }
    queue.update_current(clock::nanos());
    match queue.rest_of_slice(rq.running()) {
        0 => {
            queue.current().todo.fetch_or(todo::RESCHED, Relaxed);
            command::hurry();
            // The task may be long in the kernel; its slice is looked at again then.
            timer::end_slice_in(Some(super::fair::LATENCY));
        }
        rest => timer::end_slice_in(Some(rest)),
    }
    drop(queue);
    // Somebody waits here: a CPU that has nothing to do may take one over.
    let idle = CpuMask(IDLE.load(Relaxed) & smp::online().0);
    if let Some(cpu) = nearest(idle, this_cpu()) {
        kick(cpu, true);
    }
}

/// Another CPU asks this one to look at its run queue. Interrupts are off.
pub fn reschedule_interrupt() {
    let rq = queue::of(this_cpu());
    let queue = rq.queue.lock();
    if queue.is_live() && !queue.none_waits() && !timer::slice_ends() {
        arm_slice(rq, &queue);
    }
}

/// Makes `cpu`, if it idles, look for something to do; interrupts it if it must be (`resched_curr`, `kick_ilb`).
fn kick(cpu: CpuId, look: bool) {
    let rq = queue::of(cpu);
    let idle = rq.queue.lock().idle;
    if look && idle != 0 {
        // SAFETY: idle tasks never end.
        unsafe { Task::at(idle) }.todo.fetch_or(todo::RESCHED, Relaxed);
    }
    if cpu != this_cpu() {
        smp::reschedule(cpu);
    }
}

/// Makes this CPU, which has nothing to do, take over a task that waits for another (`newidle_balance`); whether it did.
fn pull(here: CpuId, rq: &RunQueue, queue: &mut Queue) -> bool {
    let others = CpuMask(smp::online().0 & !(1 << here.index()));
    // Own node first.
    for near in [true, false] {
        for cpu in others.iter().filter(|cpu| (node_of(*cpu) == node_of(here)) == near) {
            let other = queue::of(cpu);
            if other.running() < 2 {
                continue;
            }
            let Some(mut busy) = other.queue.try_lock() else { continue };
            let Some(task) = busy.give_away(other, here) else { continue };
            drop(busy);
            task.record.cpu.store(here.index() as u32, Relaxed);
            queue.set_origin(task);
            queue.activate(rq, task);
            return true;
        }
    }
    false
}

fn node_of(cpu: CpuId) -> u32 {
    region::get().and_then(|region| region.cpus().get(cpu.index())).map_or(0, |state| state.node.load(Relaxed))
}

/// Of `cpus`, the one nearest to `to`: itself, one of its node, any.
fn nearest(cpus: CpuMask, to: CpuId) -> Option<CpuId> {
    cpus.iter().min_by_key(|cpu| (*cpu != to, node_of(*cpu) != node_of(to)))
}

/// Where `task` is to run that becomes runnable (`select_task_rq_fair`): where it ran, if that CPU idles; on another idle
/// one, near it; else where it ran, unless another CPU has less to do.
fn select_cpu(task: &Task) -> CpuId {
    let last = CpuId::new(task.cpu()).unwrap_or_default();
    let allowed = CpuMask(task.cpus().0 & smp::online().0);
    let running = |cpu: CpuId| queue::of(cpu).running();
    if allowed.contains(last) && (allowed.weight() == 1 || running(last) == 0) {
        return last;
    }
    let idle = CpuMask(IDLE.load(Relaxed) & allowed.0);
    let idle = idle.iter().filter(|cpu| running(*cpu) == 0).fold(CpuMask(0), CpuMask::with);
    nearest(idle, last)
        .or_else(|| allowed.iter().min_by_key(|cpu| (running(*cpu), *cpu != last, node_of(*cpu) != node_of(last))))
        .unwrap_or(last)
}

/// Puts `task`, which is in no run queue, into that of `cpu`, and has the CPU look if it should.
fn enqueue(task: &Task, cpu: CpuId, is_new: bool) {
    let rq = queue::of(cpu);
    let mut queue = rq.queue.lock();
    let now = clock::nanos();
    if queue.is_live() && !queue.is_idle() && cpu == this_cpu() {
        queue.update_current(now);
    }
    task.record.cpu.store(cpu.index() as u32, Relaxed);
    queue.place(task, is_new, now);
    let running = queue.activate(rq, task);
    let urgent = queue.is_live() && queue.is_more_urgent(task);
    if urgent {
        queue.current().todo.fetch_or(todo::RESCHED, Relaxed);
    }
    if cpu == this_cpu() {
        if queue.is_live() && !timer::slice_ends() {
            arm_slice(rq, &queue);
        }
    } else if urgent || running == 2 {
        smp::reschedule(cpu);
    }
}

/// Wakes `task` if it is in one of `states` (bits of [`TaskState`]); whether it was (`try_to_wake_up`).
pub fn wake_state(task: &Task, states: u32) -> bool {
    let flags = cpu::irq_save();
    sync::lock(&task.wake_lock, spin_loop);
    fence(SeqCst);
    let woken = task.state() & states != 0;
    if woken {
        wake_locked(task);
    }
    sync::unlock(&task.wake_lock);
    cpu::irq_restore(flags);
    woken
}

/// Wakes `task`, whatever it waits for (`wake_up_process`).
pub fn wake(task: &Task) -> bool {
    wake_state(task, TaskState::Interruptible as u32 | TaskState::Uninterruptible as u32)
}

/// Has the CPU that `task` may be running on, if it is another, come into the kernel, and look on its way back what the task
/// is to do; the caller has said so in `task.todo` (`kick_process`). Without this a program that only computes would not
/// find out: there is no tick.
pub fn kick_process(task: &Task) {
    let cpu = CpuId::new(task.cpu()).unwrap_or_default();
    if cpu != this_cpu() {
        smp::reschedule(cpu);
    }
}

fn wake_locked(task: &Task) {
    // Still, or once more, in a run queue: it has not got to sleep yet.
    while task.on_rq.load(Acquire) != 0 {
        let rq = queue::of(CpuId::new(task.cpu()).unwrap_or_default());
        let _queue = rq.queue.lock();
        // It cannot leave the run queue now, if it is in this one.
        if task.on_rq.load(Acquire) == QUEUED
            && core::ptr::eq(rq, queue::of(CpuId::new(task.cpu()).unwrap_or_default()))
        {
            task.record.state.store(RUNNING, Release);
            return;
        }
    }
    // A CPU may be about to leave it.
    while task.record.on_cpu.load(Acquire) != 0 {
        spin_loop();
    }
    task.record.state.store(RUNNING, Relaxed);
    enqueue(task, select_cpu(task), false);
}

/// Lets `task`, which is new, run (`wake_up_new_task`).
pub(super) fn wake_new(task: &Task) {
    let flags = cpu::irq_save();
    task.record.state.store(RUNNING, Relaxed);
    enqueue(task, select_cpu(task), true);
    cpu::irq_restore(flags);
}

/// Puts `task`, which was taken out of a run queue where it may not be any more, into another. Interrupts are off.
pub(super) fn enqueue_moved(task: &Task) {
    enqueue(task, select_cpu(task), false);
}

/// Charges the current task for what it has run, and lets others see it.
pub(super) fn account(task: &Task) {
    let flags = cpu::irq_save();
    queue::of(this_cpu()).queue.lock().update_current(clock::nanos());
    time::publish(task);
    cpu::irq_restore(flags);
}

/// Makes the caller, which executes on this CPU, its idle task.
pub(super) fn adopt_idle(cpu: CpuId, idle: &Task) {
    let mut queue = queue::of(cpu).queue.lock();
    queue.idle = idle.addr();
    queue.curr = idle.addr();
    IDLE.fetch_or(1 << cpu.index(), Relaxed);
}

/// Whether this CPU's idle task is to look for something to do.
pub fn need_resched() -> bool {
    current().todo.load(Acquire) & todo::RESCHED != 0
}
