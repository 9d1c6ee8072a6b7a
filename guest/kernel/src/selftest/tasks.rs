//! Tasks: many that switch, two that wake each other from different CPUs, affinity, sleeping for a time, shares by weight;
//! and that nothing is left of those that have ended.

use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::errno::Errno;
use pagevisor_shared::report::counters::node_page_state_snapshot;
use pagevisor_shared::sched::TaskState;
use pagevisor_shared::units::{CpuId, CpuMask};
use pagevisor_shared::vmstat::NodeStat;

use crate::arch::{fpu, percpu};
use crate::log::{pr_err, pr_info};
use crate::task::{self, Key, Sleep, TaskRef, WaitQueue};
use crate::{clock, platform, smp};

/// Any CPU.
const ANY: CpuMask = CpuMask(u64::MAX);

/// A test's failure, in words.
type Outcome = Result<(), &'static str>;
/// A test with its name.
type Test = (&'static str, fn() -> Outcome);

#[inline(never)]
pub(super) fn run() {
    let before = (task::count(), stacks());
    let tests: [Test; 8] = [
        ("threads", threads),
        ("ping-pong", ping_pong),
        ("affinity", affinity),
        ("timers", timers),
        ("timeouts", timeouts),
        ("words", words),
        ("requeue", requeue),
        ("shares", shares),
    ];
    for (name, test) in tests {
        if let Err(why) = test() {
            pr_err!("selftest: tasks failed: {name}: {why}");
            return;
        }
        pr_info!("selftest: tasks: {name} ok");
    }
    // The last ones may still be on their way out.
    for _ in 0..1000 {
        if (task::count(), stacks()) == before {
            pr_info!("selftest: tasks ok, {} switches", switches());
            return;
        }
        let _ = task::sleep(1_000_000, false);
    }
    pr_err!("selftest: tasks failed: {:?} tasks and KiB of stacks before, {:?} now", before, (task::count(), stacks()));
}

/// KiB of kernel stacks in use.
fn stacks() -> u64 {
    let Some(mm) = platform::mm() else { return 0 };
    let of = |node| node_page_state_snapshot(mm.region(), node, NodeStat::NrKernelStack);
    mm.online_nodes().iter().map(of).sum()
}

/// Times that the current task has left its CPU.
fn switches() -> u64 {
    let task = task::current();
    task.record.nvcsw.load(Relaxed) + task.record.nivcsw.load(Relaxed)
}

fn spawn(cpus: CpuMask, function: task::Entry, argument: usize) -> Result<TaskRef, &'static str> {
    task::kthread_run(format_args!("selftest/{argument}"), cpus, function, argument).ok_or("no memory for a thread")
}

/// Counts down what a test waits for.
#[derive(Debug)]
struct Countdown {
    left: AtomicU32,
    done: WaitQueue,
}

impl Countdown {
    const fn new() -> Self {
        Self { left: AtomicU32::new(0), done: WaitQueue::new() }
    }

    fn count(&self) {
        if self.left.fetch_sub(1, SeqCst) == 1 {
            self.done.wake_all();
        }
    }

    fn wait(&self) {
        self.done.wait_until(|| self.left.load(SeqCst) == 0);
    }
}

static DONE: Countdown = Countdown::new();

/// Many at a time, in waves; each gives up its CPU a few times and counts.
fn threads() -> Outcome {
    static TURNS: AtomicU64 = AtomicU64::new(0);
    const TURNS_EACH: u64 = 8;
    fn turns(_: usize) -> i32 {
        for _ in 0..TURNS_EACH {
            TURNS.fetch_add(1, Relaxed);
            task::yield_now();
        }
        DONE.count();
        0
    }
    // Where ring 0 is emulated it is two hundred times slower.
    let (waves, wave) = if fpu::is_emulated() { (2, 64) } else { (8, 512) };
    TURNS.store(0, Relaxed);
    for _ in 0..waves {
        DONE.left.store(wave, SeqCst);
        for number in 0..wave {
            spawn(ANY, turns, number as usize)?;
        }
        DONE.wait();
    }
    let expected = u64::from(waves * wave) * TURNS_EACH;
    if TURNS.load(Relaxed) == expected { Ok(()) } else { Err("turns are missing") }
}

/// Two threads on different CPUs, if there are, each of which wakes the other and sleeps.
fn ping_pong() -> Outcome {
    static BALL: AtomicU32 = AtomicU32::new(0);
    static QUEUES: [WaitQueue; 2] = [const { WaitQueue::new() }; 2];
    const ROUNDS: u32 = 400;
    fn play(side: usize) -> i32 {
        for round in 0..ROUNDS / 2 {
            let mine = 2 * round + side as u32;
            QUEUES[side].wait_until(|| BALL.load(SeqCst) == mine);
            BALL.store(mine + 1, SeqCst);
            QUEUES[1 - side].wake_all();
        }
        DONE.count();
        0
    }
    let mut cpus = smp::online().iter();
    let first = cpus.next().unwrap_or_default();
    let second = cpus.next().unwrap_or(first);
    BALL.store(0, SeqCst);
    DONE.left.store(2, SeqCst);
    spawn(CpuMask::default().with(first), play, 0)?;
    spawn(CpuMask::default().with(second), play, 1)?;
    DONE.wait();
    if BALL.load(SeqCst) == ROUNDS { Ok(()) } else { Err("the ball is lost") }
}

/// A thread runs where it may, also when that changes while it runs and while it sleeps.
fn affinity() -> Outcome {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    static WRONG: AtomicU32 = AtomicU32::new(0);
    fn tour(_: usize) -> i32 {
        let task = task::current();
        for cpu in smp::online().iter() {
            let moved = task::set_affinity(&task, CpuMask::default().with(cpu));
            if moved.is_err() || percpu::cpu_number() as usize != cpu.index() {
                WRONG.fetch_add(1, SeqCst);
            }
            SEEN.fetch_or(1 << percpu::cpu_number(), SeqCst);
        }
        DONE.count();
        0
    }
    static WOKEN_ON: AtomicU32 = AtomicU32::new(0);
    static CALL: WaitQueue = WaitQueue::new();
    static CALLED: AtomicU32 = AtomicU32::new(0);
    fn sleeper(_: usize) -> i32 {
        CALL.wait_until(|| CALLED.load(SeqCst) != 0);
        WOKEN_ON.store(percpu::cpu_number(), SeqCst);
        DONE.count();
        0
    }
    SEEN.store(0, SeqCst);
    DONE.left.store(4, SeqCst);
    for number in 0..4 {
        spawn(ANY, tour, number)?;
    }
    DONE.wait();
    if WRONG.load(SeqCst) != 0 || SEEN.load(SeqCst) != smp::online().0 {
        return Err("a thread was where it may not be");
    }
    let last = smp::online().iter().last().unwrap_or_default();
    CALLED.store(0, SeqCst);
    DONE.left.store(1, SeqCst);
    let thread = spawn(CpuMask::default().with(CpuId::default()), sleeper, 0)?;
    let asleep = || thread.record.state.load(SeqCst) == TaskState::Uninterruptible as u32;
    while !asleep() {
        let _ = task::sleep(100_000, false);
    }
    task::set_affinity(&thread, CpuMask::default().with(last)).map_err(|_| "a mask was refused")?;
    CALLED.store(1, SeqCst);
    CALL.wake_all();
    DONE.wait();
    if task::set_affinity(&thread, CpuMask(0)) != Err(Errno::EINVAL) {
        return Err("a mask without CPUs was taken");
    }
    if WOKEN_ON.load(SeqCst) as usize == last.index() { Ok(()) } else { Err("a sleeper woke where it may not run") }
}

/// A sleep is never shorter than it was to be, and not much longer; several on a CPU end in the order of their times.
fn timers() -> Outcome {
    // What a processor that others want may take, too.
    const LATE: u64 = 500_000_000;
    for time in [1_000_000, 3_000_000, 10_000_000] {
        let began = clock::nanos();
        task::sleep(time, false).map_err(|_| "a sleep was interrupted")?;
        let slept = clock::nanos() - began;
        if slept < time {
            return Err("a sleep was too short");
        }
        if slept > time + LATE {
            return Err("a sleep was too long");
        }
    }
    static DUE: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];
    static WRONG: AtomicU32 = AtomicU32::new(0);
    fn sleeper(number: usize) -> i32 {
        // The last first.
        let due = DUE[number].load(Relaxed);
        let slept = task::sleep_until(due, false);
        if slept.is_err() || clock::nanos() < due {
            WRONG.fetch_add(1, SeqCst);
        }
        DONE.count();
        0
    }
    DONE.left.store(DUE.len() as u32, SeqCst);
    let now = clock::nanos();
    for (number, due) in DUE.iter().enumerate() {
        due.store(now + (DUE.len() - number) as u64 * 4_000_000, Relaxed);
        spawn(CpuMask::default().with(CpuId::default()), sleeper, number)?;
    }
    DONE.wait();
    if WRONG.load(SeqCst) == 0 { Ok(()) } else { Err("a sleeper woke before its time") }
}

/// A wait for what does not come ends with its time; one for what is there does not begin.
fn timeouts() -> Outcome {
    static NOBODY: WaitQueue = WaitQueue::new();
    let began = clock::nanos();
    let waited: Result<(), Errno> = NOBODY.wait_for(Sleep::DEEP.at_most(2_000_000), || None);
    if waited != Err(Errno::ETIMEDOUT) || clock::nanos() - began < 2_000_000 {
        return Err("a wait for nothing ended otherwise than by its time");
    }
    if NOBODY.wait_for(Sleep::DEEP, || Some(7)) != Ok(7) {
        return Err("what is there is waited for");
    }
    let current = task::current();
    current.todo.fetch_or(task::todo::SIGNAL, SeqCst);
    let waited: Result<(), Errno> = NOBODY.wait_for(Sleep::LIGHT, || None);
    let deep: Result<(), Errno> = NOBODY.wait_for(Sleep::DEEP.at_most(1_000_000), || None);
    current.todo.fetch_and(!task::todo::SIGNAL, SeqCst);
    if waited == Err(Errno::EINTR) && deep == Err(Errno::ETIMEDOUT) { Ok(()) } else { Err("signals and sleep") }
}

/// Sleeping on a word: nobody sleeps on one that has changed, all are woken.
fn words() -> Outcome {
    static WORD: AtomicU32 = AtomicU32::new(0);
    static AWAKE: AtomicU32 = AtomicU32::new(0);
    fn sleeper(_: usize) -> i32 {
        while WORD.load(SeqCst) == 0 {
            task::wait_on(&WORD, 0);
        }
        AWAKE.fetch_add(1, SeqCst);
        DONE.count();
        0
    }
    WORD.store(0, SeqCst);
    AWAKE.store(0, SeqCst);
    DONE.left.store(5, SeqCst);
    let threads = [0, 1, 2, 3, 4].map(|number| spawn(ANY, sleeper, number));
    for thread in threads {
        let thread = thread?;
        while thread.record.state.load(SeqCst) != TaskState::Uninterruptible as u32 {
            let _ = task::sleep(100_000, false);
        }
    }
    if AWAKE.load(SeqCst) != 0 {
        return Err("somebody did not sleep");
    }
    WORD.store(1, SeqCst);
    task::wake_all(&WORD);
    DONE.wait();
    // Returns at once.
    task::wait_on(&WORD, 0);
    Ok(())
}

/// Waiters are moved to another key, where they are woken, one by one, in their order, and only by their bits.
fn requeue() -> Outcome {
    const HERE: Key = Key { space: 1, word: 0x1000 };
    const THERE: Key = Key { space: 1, word: 0x2000 };
    static ENTERED: AtomicU32 = AtomicU32::new(0);
    static WOKEN: AtomicU32 = AtomicU32::new(0);
    fn sleeper(number: usize) -> i32 {
        let entered = || {
            ENTERED.fetch_add(1, SeqCst);
            Ok(())
        };
        if task::wait(HERE, 1 << number, Sleep::LIGHT, entered).is_ok() {
            WOKEN.fetch_or(1 << number, SeqCst);
        }
        DONE.count();
        0
    }
    ENTERED.store(0, SeqCst);
    WOKEN.store(0, SeqCst);
    DONE.left.store(3, SeqCst);
    for number in 0..3 {
        spawn(ANY, sleeper, number)?;
        while ENTERED.load(SeqCst) as usize != number + 1 {
            let _ = task::sleep(100_000, false);
        }
    }
    if task::requeue(HERE, THERE, 0, 3) != (0, 3) || task::wake(HERE, task::ALL_BITS, 3) != 0 {
        return Err("not all were moved");
    }
    if task::wake(THERE, 0b100, 3) != 1 || task::wake(THERE, 0b100, 3) != 0 {
        return Err("bits");
    }
    if task::wake(THERE, task::ALL_BITS, 1) != 1 || task::wake(THERE, task::ALL_BITS, 3) != 1 {
        return Err("count");
    }
    DONE.wait();
    if WOKEN.load(SeqCst) == 0b111 { Ok(()) } else { Err("somebody was not woken") }
}

/// Two threads that want the same CPU all the time share it by their weights.
fn shares() -> Outcome {
    static RAN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    static UNTIL: AtomicU64 = AtomicU64::new(0);
    fn busy(number: usize) -> i32 {
        if number == 1 {
            task::set_nice(&task::current(), 5);
        }
        while clock::nanos() < UNTIL.load(Relaxed) {
            task::cond_resched();
        }
        RAN[number].store(task::Usage::of(&task::current()).time(), SeqCst);
        DONE.count();
        0
    }
    DONE.left.store(2, SeqCst);
    UNTIL.store(clock::nanos() + 300_000_000, SeqCst);
    let cpu = smp::online().iter().last().unwrap_or_default();
    for number in 0..2 {
        spawn(CpuMask::default().with(cpu), busy, number)?;
    }
    DONE.wait();
    let [heavy, light] = [&RAN[0], &RAN[1]].map(|ran| ran.load(SeqCst));
    // 1024 to 335, and what the slices round.
    if heavy > light * 2 && heavy < light * 5 { Ok(()) } else { Err("shares are not by weight") }
}
