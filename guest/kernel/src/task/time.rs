//! Time that tasks use: in user mode by the time stamp counter, at each way out of the kernel and back in; in the kernel
//! what is left of the time that they ran.

use core::sync::atomic::Ordering::Relaxed;

use super::object::{Task, current};
use crate::arch::cpu;
use crate::arch::this_cpu::percpu;
use crate::clock;

percpu! {
    /// The time stamp when this CPU last went to user mode.
    USER_SINCE: u64 = 0;
}

/// To be called last thing before going to user mode, with interrupts off.
#[inline(always)]
pub fn leave_kernel() {
    USER_SINCE.write(cpu::rdtsc());
}

/// To be called first thing when user mode was left, with interrupts off.
#[inline(always)]
pub fn enter_kernel() {
    let ticks = &current().user_ticks;
    ticks.store(ticks.load(Relaxed) + cpu::rdtsc().wrapping_sub(USER_SINCE.read()), Relaxed);
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
