//! Signals that wait to be taken (`struct sigpending`).

use alloc::vec::Vec;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use super::{SIGKILL, SIGNALS, bit};
use crate::sync::SpinLock;
use crate::task::{Process, Task};

/// The first signal of which more than one can wait (`SIGRTMIN`).
const FIRST_QUEUED: u32 = 32;
/// Most signals that wait at a place.
const MAX_QUEUED: usize = 1024;

/// A signal, and what is known about it (`siginfo_t`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Info {
    /// The signal.
    pub number: u32,
    /// `si_code`.
    pub code: i32,
    /// What follows: address, or process and user, then status or value.
    pub words: [u64; 3],
}

/// What is known about signals that wait at a place.
#[derive(Debug)]
pub struct Queue(SpinLock<Option<Vec<Info>>>);

impl Default for Queue {
    fn default() -> Self {
        Self(SpinLock::new(None))
    }
}

/// Signals that wait at a place.
#[derive(Clone, Copy, Debug)]
pub struct Pending<'p> {
    /// Which, a bit each: in the record of the place, for others to see.
    bits: &'p AtomicU64,
    queue: &'p SpinLock<Option<Vec<Info>>>,
}

impl Task {
    /// Signals that wait for the thread.
    pub fn pending(&self) -> Pending<'_> {
        Pending { bits: &self.record.pending, queue: &self.signals.queue.0 }
    }
}

impl Process {
    /// Signals that wait for any of its threads (`shared_pending`).
    pub fn pending(&self) -> Pending<'_> {
        Pending { bits: &self.record.shared_pending, queue: &self.signals.0 }
    }
}

impl Pending<'_> {
    /// Adds a signal; one that waits already does not wait twice, unless it is a real-time signal.
    pub fn add(self, info: Info) {
        let mut queue = self.queue.lock();
        let waits = self.bits.load(Acquire) & bit(info.number) != 0;
        let queue = queue.get_or_insert_with(Vec::new);
        if !waits || info.number >= FIRST_QUEUED && queue.len() < MAX_QUEUED {
            queue.push(info);
        }
        self.bits.fetch_or(bit(info.number), AcqRel);
    }

    /// Which wait, a bit each.
    pub fn bits(self) -> u64 {
        self.bits.load(Acquire)
    }

    /// Forgets those in `mask` (`flush_sigqueue_mask`).
    pub fn discard(self, mask: u64) {
        let mut queue = self.queue.lock();
        if let Some(queue) = queue.as_mut() {
            queue.retain(|info| bit(info.number) & mask == 0);
        }
        self.bits.fetch_and(!mask, AcqRel);
    }

    /// Forgets all.
    pub fn clear(self) {
        drop(self.queue.lock().take());
        self.bits.store(0, Release);
    }

    /// Takes one that is not in `blocked`: what the program has done comes first, then by number (`next_signal`).
    pub fn take(self, blocked: u64) -> Option<Info> {
        const SYNCHRONOUS: u64 =
            bit(super::SIGSEGV) | bit(super::SIGBUS) | bit(super::SIGILL) | bit(super::SIGTRAP) | bit(super::SIGFPE);
        if self.bits.load(Acquire) & !blocked == 0 {
            return None;
        }
        let mut queue = self.queue.lock();
        let ready = self.bits.load(Acquire) & !blocked;
        let choice =
            [bit(SIGKILL), SYNCHRONOUS, u64::MAX].into_iter().map(|mask| ready & mask).find(|bits| *bits != 0)?;
        let number = choice.trailing_zeros() + 1;
        debug_assert!(number <= SIGNALS);
        let queue = queue.as_mut()?;
        let index = queue.iter().position(|info| info.number == number);
        let info =
            index.map(|index| queue.remove(index)).unwrap_or(Info { number, code: super::SI_USER, words: [0; 3] });
        if !queue.iter().any(|info| info.number == number) {
            self.bits.fetch_and(!bit(number), AcqRel);
        }
        Some(info)
    }
}
