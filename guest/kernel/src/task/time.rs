//! Time that tasks use: in user mode by the time stamp counter, at each way out of the kernel and back in; in the kernel
//! what is left of the time that they ran.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::units::{CpuId, CpuMask};

use super::object::{Task, try_current};
use super::sched;
use crate::arch::this_cpu::percpu;
use crate::arch::{cpu, percpu};
use crate::{clock, smp};

percpu! {
    /// The time stamp when this CPU last went to user mode.
    USER_SINCE: u64 = 0;
    /// Ticks that it has spent there.
    USER_TICKS: u64 = 0;
    /// The time stamp when it began to idle; 0 while it does not.
    IDLE_SINCE: u64 = 0;
    /// Ticks that it has idled.
    IDLE_TICKS: u64 = 0;
}

/// To be called last thing before going to user mode, with interrupts off.
#[inline(always)]
pub fn leave_kernel() {
    USER_SINCE.write(cpu::rdtsc());
}

/// To be called first thing when user mode was left, with the current task and interrupts off.
#[inline(always)]
pub fn enter_kernel(task: &Task) {
    let ticks = &task.user_ticks;
    let spent = cpu::rdtsc().wrapping_sub(USER_SINCE.read());
    ticks.store(ticks.load(Relaxed) + spent, Relaxed);
    USER_TICKS.add(spent);
}

/// To be called when this CPU begins to idle, with interrupts off.
pub fn begin_idle() {
    IDLE_SINCE.write(cpu::rdtsc());
}

/// To be called when this CPU has idled.
pub fn end_idle() {
    let since = IDLE_SINCE.read();
    IDLE_SINCE.write(0);
    IDLE_TICKS.add(cpu::rdtsc().wrapping_sub(since));
}

/// Nanoseconds that a CPU has spent so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct CpuTime {
    /// In user mode.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
    /// With nothing to do.
    pub idle: u64,
}

impl CpuTime {
    /// That of `cpu` (`kcpustat_cpu`).
    pub fn of(cpu: CpuId) -> Self {
        let ticks = |word: Option<&AtomicU64>| word.map_or(0, |word| word.load(Relaxed));
        let since = ticks(IDLE_SINCE.of(cpu));
        // If it has just ended, what it has idled last is counted already, or will be at once.
        let now = if since == 0 { 0 } else { cpu::rdtsc().saturating_sub(since) };
        let [user, idle] = [ticks(USER_TICKS.of(cpu)), ticks(IDLE_TICKS.of(cpu)) + now].map(clock::nanos_of);
        Self { user, system: clock::nanos().saturating_sub(user + idle), idle }
    }
}

/// Brings the time that the threads of the kernel and of programs have used which run on `cpus` now up to this moment; else
/// it is that of when they last left a CPU. With interrupts on, and no lock held that others wait for with theirs off.
pub fn charge(cpus: CpuMask) {
    charge_current(0);
    if cpus.0 & !(1 << percpu::cpu_number()) != 0 {
        // What they have spent in user mode is counted where they leave it, as this makes them do.
        smp::call_function(cpus, charge_current, 0);
    }
}

fn charge_current(_: usize) {
    if let Some(task) = try_current().filter(|task| !task.is_idle()) {
        sched::account(&task);
    }
}

/// Brings what others read of the time that `task` has used up to date, by what it ran up to its last charge.
#[inline]
pub(super) fn publish(task: &Task) {
    let ran = task.sum_exec.load(Relaxed);
    let ticks = task.user_ticks.load(Relaxed);
    let user = if ticks == 0 { 0 } else { clock::nanos_of(ticks).min(ran) };
    task.record.utime.store(user, Relaxed);
    task.record.stime.store(ran - user, Relaxed);
}
