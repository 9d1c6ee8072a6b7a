//! How much of a CPU a task gets: Linux's weights and time slices (`kernel/sched/fair.c`, `kernel/sched/core.c`).
//!
//! A task's virtual run time advances more slowly the more it weighs; whoever's is least runs next.

/// Weight of a task of nice value 0 (`NICE_0_LOAD`).
pub const NICE_0_WEIGHT: u32 = 1024;
/// Each runnable task runs once in this time, in nanoseconds, if there are few (`sysctl_sched_latency`).
pub const LATENCY: u64 = 6_000_000;
/// No slice is shorter (`sysctl_sched_min_granularity`).
pub const MIN_GRANULARITY: u64 = 750_000;
/// A task that wakes takes the CPU of one that is ahead of it by this (`sysctl_sched_wakeup_granularity`).
pub const WAKEUP_GRANULARITY: u64 = 1_000_000;

/// Weights by nice value, from -20 on (`sched_prio_to_weight`).
const WEIGHTS: [u32; 40] = [
    88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916, 9548, 7620, 6100, 4904, 3906, 3121, 2501,
    1991, 1586, 1277, 1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110, 87, 70, 56, 45, 36, 29, 23, 18, 15,
];

/// The weight of a task of nice value `nice`, which is kept between -20 and 19.
pub fn weight_of(nice: i32) -> u32 {
    WEIGHTS[(nice.clamp(-20, 19) + 20) as usize]
}

/// What `ran` nanoseconds are in virtual run time for a task of `weight` (`calc_delta_fair`).
#[inline]
pub const fn virtual_time(ran: u64, weight: u32) -> u64 {
    if weight == NICE_0_WEIGHT { ran } else { (ran as u128 * NICE_0_WEIGHT as u128 / weight as u128) as u64 }
}

/// How long a task of `weight` may run while `running` tasks of the weight `total` want to (`sched_slice`).
pub const fn slice(weight: u32, total: u64, running: u32) -> u64 {
    let running = running as u64;
    let period = if running * MIN_GRANULARITY > LATENCY { running * MIN_GRANULARITY } else { LATENCY };
    let total = if total == 0 { 1 } else { total };
    let slice = (period as u128 * weight as u128 / total as u128) as u64;
    if slice < MIN_GRANULARITY { MIN_GRANULARITY } else { slice }
}
