//! Calls on how tasks are scheduled, and on what CPUs see of each other's memory (`kernel/sched`).

use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::fence;

use pagevisor_shared::errno::Errno;
use pagevisor_shared::units::CpuMask;

use super::Outcome;
use super::process::{own, thread};
use crate::arch::uaccess;
use crate::smp;
use crate::task::{self, TaskRef};

/// The only policy (`SCHED_OTHER`).
const SCHED_OTHER: u64 = 0;
/// The last one there is in Linux, and the two with priorities.
const SCHED_LAST: u64 = 6;
const SCHED_FIFO: u64 = 1;
const SCHED_RR: u64 = 2;
/// How long tasks run in turn, in nanoseconds (`sched_slice` of two on a CPU).
const TURN: u64 = 3_000_000;

/// Whose nice value: a thread's, those of a process group, those of a user.
const PRIO_PROCESS: u32 = 0;
const PRIO_PGRP: u32 = 1;
const PRIO_USER: u32 = 2;

/// `membarrier`: what there is (`MEMBARRIER_CMD_*`).
const QUERY: u32 = 0;
const GLOBAL: u32 = 1;
const PRIVATE_EXPEDITED: u32 = 8;
const REGISTER_PRIVATE_EXPEDITED: u32 = 16;

/// Makes call `number`, if it is one of these.
pub fn call(number: u32, args: &[u64; 6]) -> Option<Outcome> {
    let [a, b, c, ..] = *args;
    Some(match number {
        140 => priority(a as u32, b as u32),
        141 => set_priority(a as u32, b as u32, (c as u32).cast_signed()),
        142 => parameter(b).and_then(|()| thread(a as u32)).map(|_| 0),
        143 if b == 0 => Err(Errno::EINVAL),
        143 => thread(a as u32).and_then(|_| uaccess::write_u32(b, 0)).map(|()| 0),
        144 => parameter(c).and_then(|()| set_policy(a as u32, b as u32)),
        145 => thread(a as u32).map(|_| SCHED_OTHER),
        146 | 147 if a > SCHED_LAST || a == 4 => Err(Errno::EINVAL),
        146 => Ok(if matches!(a, SCHED_FIFO | SCHED_RR) { 99 } else { 0 }),
        147 => Ok(u64::from(matches!(a, SCHED_FIFO | SCHED_RR))),
        148 => thread(a as u32).and_then(|_| uaccess::write_words(b, &[0, TURN])).map(|()| 0),
        324 => barrier(a as u32, b),
        _ => return None,
    })
}

/// Looks at a parameter of scheduling, which can only be 0.
fn parameter(at: u64) -> Result<(), Errno> {
    if at == 0 || uaccess::read_u32(at)? != 0 { Err(Errno::EINVAL) } else { Ok(()) }
}

fn set_policy(pid: u32, policy: u32) -> Outcome {
    thread(pid)?;
    if u64::from(policy) == SCHED_OTHER { Ok(0) } else { Err(Errno::EINVAL) }
}

/// The tasks that `which` and `who` name.
fn named(which: u32, who: u32) -> Result<alloc::vec::Vec<TaskRef>, Errno> {
    let mut tasks = alloc::vec::Vec::new();
    match which {
        PRIO_PROCESS => tasks.extend(thread(who)),
        PRIO_PGRP => {
            let group = if who == 0 { own()?.record.pgrp.load(Relaxed) } else { who };
            task::for_each(|task| {
                if task.process().is_some_and(|process| process.record.pgrp.load(Relaxed) == group) {
                    tasks.push(task.get());
                }
            });
        }
        // All are root's.
        PRIO_USER if who == 0 => task::for_each(|task| tasks.push(task.get())),
        PRIO_USER => {}
        _ => return Err(Errno::EINVAL),
    }
    if tasks.is_empty() { Err(Errno::ESRCH) } else { Ok(tasks) }
}

/// `getpriority`: the least nice value, counted from 20 down, as there must be no negative ones.
fn priority(which: u32, who: u32) -> Outcome {
    let least = named(which, who)?.iter().map(|task| task::nice(task)).min().unwrap_or_default();
    Ok((20 - least).cast_unsigned().into())
}

fn set_priority(which: u32, who: u32, nice: i32) -> Outcome {
    named(which, who)?.iter().for_each(|task| task::set_nice(task, nice));
    Ok(0)
}

/// `membarrier`: every CPU, or those that run threads of the process, sees what the others wrote before.
fn barrier(command: u32, flags: u64) -> Outcome {
    if flags as u32 != 0 {
        return Err(Errno::EINVAL);
    }
    let process = own()?;
    match command {
        QUERY => return Ok((GLOBAL | PRIVATE_EXPEDITED | REGISTER_PRIVATE_EXPEDITED).into()),
        REGISTER_PRIVATE_EXPEDITED => process.wants_barriers.store(1, Relaxed),
        PRIVATE_EXPEDITED if process.wants_barriers.load(Relaxed) == 0 => return Err(Errno::EPERM),
        GLOBAL => smp::call_function(CpuMask(u64::MAX), |_| fence(SeqCst), 0),
        PRIVATE_EXPEDITED => smp::call_function(process.running_on(), |_| fence(SeqCst), 0),
        _ => return Err(Errno::EINVAL),
    }
    fence(SeqCst);
    Ok(0)
}
