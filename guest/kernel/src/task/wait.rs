//! Sleeping until something has happened: waiters by key, in hashed buckets (`kernel/futex`, `kernel/sched/wait_bit.c`).
//!
//! A key names what is waited for: a word of the kernel's ([`wait_on`], the memory stack's way), a [`WaitQueue`], or a
//! word of a program's (a futex). Who waits enters itself, looks whether it still has to, and sleeps; who has changed
//! what is waited for then wakes those who are entered. So nobody who looked before the change is missed.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64, fence};

use pagevisor_shared::errno::Errno;
use pagevisor_shared::sched::TaskState;

use super::list::{List, Node, Nodes};
use super::object::{Task, current, signal_pending, try_current};
use super::sched;
use crate::clock;
use crate::sync::IrqSpinLock;

/// Buckets; a power of two.
const BUCKETS: usize = 256;
/// From here on a time does not come: no timer is set for it (`KTIME_MAX`).
const FOR_EVER: u64 = i64::MAX as u64;
/// Waits for all.
pub const ALL_BITS: u32 = u32::MAX;

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// What `word` is in: 0 for the kernel, else an address space or a file.
    pub space: u64,
    /// An address, or a place in a file.
    pub word: u64,
}

impl Key {
    /// Of a word of the kernel's own memory.
    pub const fn kernel(word: u64) -> Self {
        Self { space: 0, word }
    }

    fn bucket(self) -> usize {
        let hash = (self.word ^ self.space.rotate_left(32)).wrapping_mul(0x61c8_8646_80b5_83eb);
        (hash >> 56) as usize % BUCKETS
    }
}

/// How long to sleep, and what ends it.
#[derive(Clone, Copy, Debug)]
pub struct Sleep {
    /// A signal ends it.
    pub interruptible: bool,
    /// It is no load: whoever sleeps waits for work.
    pub idle: bool,
    /// So does [`clock::nanos`] when it reaches this.
    pub until: Option<u64>,
}

impl Sleep {
    /// Nothing but a waker ends it.
    pub const DEEP: Self = Self { interruptible: false, idle: false, until: None };
    /// A signal ends it, too.
    pub const LIGHT: Self = Self { interruptible: true, ..Self::DEEP };
    /// As [`Self::DEEP`], of a thread of the kernel's that has nothing to do.
    pub const IDLE: Self = Self { idle: true, ..Self::DEEP };

    /// The same, but not beyond `until`.
    #[must_use]
    pub const fn until(self, until: u64) -> Self {
        Self { until: Some(until), ..self }
    }

    /// The same, but not longer than `nanos` from now.
    #[must_use]
    pub fn at_most(self, nanos: u64) -> Self {
        self.until(clock::nanos().saturating_add(nanos))
    }

    const fn state(self) -> TaskState {
        match self {
            Self { idle: true, .. } => TaskState::Idle,
            Self { interruptible: true, .. } => TaskState::Interruptible,
            _ => TaskState::Uninterruptible,
        }
    }

    /// What ends the sleep right now, if something does.
    fn ended(self, task: &Task) -> Option<Errno> {
        if self.interruptible && signal_pending(task) {
            return Some(Errno::EINTR);
        }
        self.until.is_some_and(|until| clock::nanos() >= until).then_some(Errno::ETIMEDOUT)
    }
}

/// Somebody who waits. It lies on that task's stack, which it does not leave before it has taken itself out.
struct Waiter {
    links: Node,
    /// The key; changed under the locks of both buckets.
    space: AtomicU64,
    word: AtomicU64,
    /// Wakers that name none of these bits leave it alone.
    bits: u32,
    task: u64,
    /// 1 while it is in a bucket.
    waits: AtomicU32,
}

impl Waiter {
    fn key(&self) -> Key {
        Key { space: self.space.load(Relaxed), word: self.word.load(Relaxed) }
    }

    fn set_key(&self, key: Key) {
        self.space.store(key.space, Relaxed);
        self.word.store(key.word, Relaxed);
    }

    fn addr(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }
}

/// Waiters, as entries of a list.
#[derive(Debug)]
struct Waiters;

fn waiter_at<'a>(entry: u64) -> &'a Waiter {
    // SAFETY: entries are waiters that are in a bucket, whose lock is held; a waiter takes that lock before it goes.
    unsafe { &*core::ptr::with_exposed_provenance(entry as usize) }
}

impl Nodes for Waiters {
    fn links(&self, entry: u64) -> (&AtomicU64, &AtomicU64) {
        waiter_at(entry).links.words()
    }
}

static TABLE: [IrqSpinLock<List<Waiters>>; BUCKETS] = [const { IrqSpinLock::new(List::new(Waiters)) }; BUCKETS];

/// Waits for `key` with `bits`, unless `check`, which is called once the task is entered and may sleep itself, gives an
/// error.
///
/// # Errors
/// That of `check`; EINTR when a signal came, ETIMEDOUT when the time was over. A task that was woken returns no error,
/// whatever else came.
pub fn wait(key: Key, bits: u32, sleep: Sleep, check: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    let task = current();
    let waiter = Waiter {
        links: Node::new(),
        space: AtomicU64::new(key.space),
        word: AtomicU64::new(key.word),
        bits,
        task: task.addr(),
        waits: AtomicU32::new(1),
    };
    TABLE[key.bucket()].lock().push(waiter.addr());
    // Who changes what `check` looks at finds the waiter, or `check` sees the change.
    fence(SeqCst);
    let mut result = check();
    while result.is_ok() {
        sched::set_state(sleep.state());
        if waiter.waits.load(Acquire) == 0 {
            break;
        }
        match sleep.ended(&task) {
            Some(error) => result = Err(error),
            None => sleep_once(&task, sleep),
        }
    }
    sched::set_state(TaskState::Running);
    if leave(&waiter) { result } else { Ok(()) }
}

/// Sleeps until somebody wakes the task or its time is over.
fn sleep_once(task: &Task, sleep: Sleep) {
    let Some(until) = sleep.until.filter(|until| *until < FOR_EVER) else { return sched::schedule() };
    // SAFETY: the timer is part of the task, which is there for as long as it executes this.
    unsafe { task.alarm.set(until, wake_sleeper, task.addr()) };
    sched::schedule();
    task.alarm.cancel();
}

/// The action of a sleeper's timer.
fn wake_sleeper(task: u64) -> Option<u64> {
    // SAFETY: the sleeper takes its timer back before it goes on.
    sched::wake(unsafe { Task::at(task) });
    None
}

/// Takes `waiter` out, if it is still in; whether it was.
fn leave(waiter: &Waiter) -> bool {
    loop {
        let at = waiter.key().bucket();
        let mut bucket = TABLE[at].lock();
        if waiter.waits.load(Acquire) == 0 {
            return false;
        }
        // It may have been moved to another bucket before this one was locked.
        if waiter.key().bucket() == at {
            bucket.remove(waiter.addr());
            waiter.waits.store(0, Relaxed);
            return true;
        }
    }
}

/// Wakes at most `count` of those who wait for `key` with one of `bits`, in the order in which they came; gives how many.
pub fn wake(key: Key, bits: u32, count: u32) -> u32 {
    let mut bucket = TABLE[key.bucket()].lock();
    let (mut entry, mut woken) = (bucket.first(), 0);
    while entry != 0 && woken < count {
        let waiter = waiter_at(entry);
        let next = bucket.next(entry);
        if waiter.key() == key && waiter.bits & bits != 0 {
            bucket.remove(entry);
            // SAFETY: the task leaves `wait` only with the bucket's lock, which is held.
            let task = unsafe { Task::at(waiter.task) };
            waiter.waits.store(0, Release);
            sched::wake(task);
            woken += 1;
        }
        entry = next;
    }
    woken
}

/// Wakes at most `wakes` of those who wait for `from`, and makes at most `moves` of the others wait for `to`
/// (`futex_requeue`); gives how many of each.
pub fn requeue(from: Key, to: Key, wakes: u32, moves: u32) -> (u32, u32) {
    let woken = wake(from, ALL_BITS, wakes);
    let [a, b] = [from.bucket(), to.bucket()];
    if a == b {
        let bucket = TABLE[a].lock();
        return (woken, rename(&bucket, from, to, moves, |_| ()));
    }
    // By number, so that nobody waits for the other.
    let mut low = TABLE[a.min(b)].lock();
    let mut high = TABLE[a.max(b)].lock();
    let (source, target) = if a < b { (&mut *low, &mut *high) } else { (&mut *high, &mut *low) };
    let mut moved = 0;
    while moved < moves {
        let mut found = 0;
        moved += rename(source, from, to, 1, |entry| found = entry);
        if found == 0 {
            break;
        }
        source.remove(found);
        target.push(found);
    }
    (woken, moved)
}

/// Gives the first `count` waiters of `bucket` that have the key `from` the key `to`, and names them; gives how many.
fn rename(bucket: &List<Waiters>, from: Key, to: Key, count: u32, mut name: impl FnMut(u64)) -> u32 {
    let (mut entry, mut renamed) = (bucket.first(), 0);
    while entry != 0 && renamed < count {
        let waiter = waiter_at(entry);
        if waiter.key() == from {
            waiter.set_key(to);
            name(entry);
            renamed += 1;
        }
        entry = bucket.next(entry);
    }
    renamed
}

/// Sleeps while `word` holds `value` ([`pagevisor_mm::platform::Platform`]); may return early. Where there is no task to
/// put to sleep it only pauses.
pub fn wait_on(word: &AtomicU32, value: u32) {
    match try_current() {
        Some(task) if !task.is_idle() && crate::arch::cpu::irqs_enabled() => {
            let key = Key::kernel(core::ptr::from_ref(word).addr() as u64);
            let check = || if word.load(SeqCst) == value { Ok(()) } else { Err(Errno::EAGAIN) };
            // Whatever it says, the caller looks again.
            let _ = wait(key, ALL_BITS, Sleep::DEEP, check);
        }
        _ => core::hint::spin_loop(),
    }
}

/// Wakes all who sleep in [`wait_on`] because of `word`, which the caller has changed.
pub fn wake_all(word: &AtomicU32) {
    fence(SeqCst);
    wake(Key::kernel(core::ptr::from_ref(word).addr() as u64), ALL_BITS, u32::MAX);
}

/// A queue of tasks that wait for a condition (`wait_queue_head_t`). Zero is an empty one. It must stay where it is while
/// somebody waits.
#[derive(Debug, Default)]
pub struct WaitQueue {
    waiters: AtomicU32,
}

impl WaitQueue {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self { waiters: AtomicU32::new(0) }
    }

    fn key(&self) -> Key {
        Key::kernel(core::ptr::from_ref(self).addr() as u64)
    }

    /// Sleeps until `condition` gives something (`wait_event` and its kind). The condition must not sleep.
    ///
    /// # Errors
    /// EINTR or ETIMEDOUT when that, by `sleep`, comes first.
    pub fn wait_for<T>(&self, sleep: Sleep, mut condition: impl FnMut() -> Option<T>) -> Result<T, Errno> {
        loop {
            if let Some(met) = condition() {
                return Ok(met);
            }
            let mut met = None;
            self.waiters.fetch_add(1, SeqCst);
            let slept = wait(self.key(), ALL_BITS, sleep, || {
                met = condition();
                if met.is_some() { Err(Errno::EAGAIN) } else { Ok(()) }
            });
            self.waiters.fetch_sub(1, Relaxed);
            if let Some(met) = met {
                return Ok(met);
            }
            if let Err(error) = slept {
                // The last look.
                return condition().ok_or(error);
            }
        }
    }

    /// [`Self::wait_for`] something that is true, with nothing to end it but that (`wait_event`).
    pub fn wait_until(&self, mut condition: impl FnMut() -> bool) {
        let met = self.wait_for(Sleep::DEEP, || condition().then_some(()));
        debug_assert!(met.is_ok(), "nothing else ends a deep sleep");
    }

    /// As [`Self::wait_until`], of a thread of the kernel's that has nothing to do until then (`wait_event_idle`).
    pub fn wait_idle(&self, mut condition: impl FnMut() -> bool) {
        let met = self.wait_for(Sleep::IDLE, || condition().then_some(()));
        debug_assert!(met.is_ok(), "nothing else ends a deep sleep");
    }

    /// Wakes at most `count`, after a change of what they wait for (`wake_up_nr`).
    pub fn wake(&self, count: u32) {
        fence(SeqCst);
        if self.waiters.load(Relaxed) != 0 {
            wake(self.key(), ALL_BITS, count);
        }
    }

    /// Wakes all (`wake_up_all`).
    pub fn wake_all(&self) {
        self.wake(u32::MAX);
    }
}

/// Sleeps for `nanos`, or until a signal if `interruptible` (`schedule_timeout`).
///
/// # Errors
/// EINTR.
pub fn sleep(nanos: u64, interruptible: bool) -> Result<(), Errno> {
    sleep_until(clock::nanos().saturating_add(nanos), interruptible)
}

/// Sleeps until [`clock::nanos`] has reached `until`, or a signal comes if `interruptible` (`hrtimer_nanosleep`).
///
/// # Errors
/// EINTR.
pub fn sleep_until(until: u64, interruptible: bool) -> Result<(), Errno> {
    let task = current();
    let sleep = Sleep { interruptible, until: Some(until), ..Sleep::DEEP };
    loop {
        sched::set_state(sleep.state());
        match sleep.ended(&task) {
            None => sleep_once(&task, sleep),
            Some(why) => {
                sched::set_state(TaskState::Running);
                return if why == Errno::ETIMEDOUT { Ok(()) } else { Err(why) };
            }
        }
    }
}
