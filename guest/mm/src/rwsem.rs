//! Locks of address spaces, as protocols on words: the sleeping lock of a whole space, and that of an area, which faults
//! take without the former.
//!
//! They are generic over the word and over how somebody sleeps, so that loom can run them. Sleeping is as with a futex:
//! `wait(value)` sleeps unless the word has changed, and may return at any time.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Set while somebody writes.
pub const WRITER: u32 = 1 << 31;
/// Set while somebody waits for the lock of a space. There are no new readers then.
pub const WAITING: u32 = 1 << 30;

/// A word that these protocols work on.
pub trait SemWord {
    /// Reads it, without ordering.
    fn peek(&self) -> u32;
    /// Reads it with acquire ordering.
    fn read(&self) -> u32;
    /// Writes it, without ordering.
    fn write(&self, value: u32);
    /// Writes it with release ordering.
    fn publish(&self, value: u32);
    /// Makes `new` of `old`, with acquire ordering; whether it was `old`.
    fn exchange(&self, old: u32, new: u32) -> bool;
    /// Adds, with acquire ordering; gives what it was before.
    fn take(&self, by: u32) -> u32;
    /// Subtracts, with acquire and release ordering; gives what it was before.
    fn give(&self, by: u32) -> u32;
}

impl SemWord for AtomicU32 {
    #[inline(always)]
    fn peek(&self) -> u32 {
        self.load(Relaxed)
    }

    #[inline(always)]
    fn read(&self) -> u32 {
        self.load(Acquire)
    }

    #[inline(always)]
    fn write(&self, value: u32) {
        self.store(value, Relaxed);
    }

    #[inline(always)]
    fn publish(&self, value: u32) {
        self.store(value, Release);
    }

    #[inline(always)]
    fn exchange(&self, old: u32, new: u32) -> bool {
        self.compare_exchange(old, new, Acquire, Relaxed).is_ok()
    }

    #[inline(always)]
    fn take(&self, by: u32) -> u32 {
        self.fetch_add(by, Acquire)
    }

    #[inline(always)]
    fn give(&self, by: u32) -> u32 {
        self.fetch_sub(by, core::sync::atomic::Ordering::AcqRel)
    }
}

/// Lets the caller read (`down_read`).
#[inline(always)]
pub fn down_read<W: SemWord>(word: &W, wait: impl FnMut(u32)) {
    if !word.exchange(0, 1) {
        down_read_slow(word, wait);
    }
}

#[cold]
#[inline(never)]
fn down_read_slow<W: SemWord>(word: &W, mut wait: impl FnMut(u32)) {
    loop {
        let now = word.peek();
        if now & (WRITER | WAITING) == 0 {
            if word.exchange(now, now + 1) {
                return;
            }
        } else if now & WAITING != 0 || word.exchange(now, now | WAITING) {
            wait(now | WAITING);
        }
    }
}

/// Lets the caller read if that needs no waiting (`down_read_trylock`).
#[inline]
pub fn down_read_trylock<W: SemWord>(word: &W) -> bool {
    loop {
        let now = word.peek();
        if now & (WRITER | WAITING) != 0 {
            return false;
        }
        if word.exchange(now, now + 1) {
            return true;
        }
    }
}

/// The caller has read (`up_read`).
#[inline(always)]
pub fn up_read<W: SemWord>(word: &W, wake: impl FnOnce()) {
    // The last reader, and somebody waits: unless somebody else has the lock by now, who will wake them.
    if word.give(1) == WAITING | 1 && word.exchange(WAITING, 0) {
        wake();
    }
}

/// Lets the caller write: nobody else reads or writes (`down_write`).
#[inline(always)]
pub fn down_write<W: SemWord>(word: &W, wait: impl FnMut(u32)) {
    if !word.exchange(0, WRITER) {
        down_write_slow(word, wait);
    }
}

#[cold]
#[inline(never)]
fn down_write_slow<W: SemWord>(word: &W, mut wait: impl FnMut(u32)) {
    loop {
        let now = word.peek();
        if now & !WAITING == 0 {
            if word.exchange(now, now | WRITER) {
                return;
            }
        } else if now & WAITING != 0 || word.exchange(now, now | WAITING) {
            wait(now | WAITING);
        }
    }
}

/// The caller has written (`up_write`).
#[inline(always)]
pub fn up_write<W: SemWord>(word: &W, wake: impl FnOnce()) {
    // Nobody but the writer changes more than the flag.
    if word.give(WRITER) != WRITER && word.exchange(WAITING, 0) {
        wake();
    }
}

/// Counts the caller among those who work on an area, unless it is locked to be changed (`vma_start_read`). `lock_seq` is
/// the area's, `mm_lock_seq` the space's.
#[inline(always)]
#[must_use]
pub fn vma_start_read<W: SemWord>(lock: &W, lock_seq: &W, mm_lock_seq: &W, wake: impl FnOnce()) -> bool {
    // Acquire: pairs with a writer's release of the word, so that its number is seen.
    let free = lock.take(1) & WRITER == 0;
    // Acquire: who sees the number of a later time sees what the writer did before.
    if free && lock_seq.peek() != mm_lock_seq.read() {
        return true;
    }
    vma_end_read(lock, wake);
    false
}

/// The caller has done with the area (`vma_end_read`).
#[inline(always)]
pub fn vma_end_read<W: SemWord>(lock: &W, wake: impl FnOnce()) {
    if lock.give(1) == WRITER | 1 {
        wake();
    }
}

/// Waits for those who work on an area; nobody else begins before the space's number grows (`vma_start_write`). The caller
/// has the space's lock to write.
#[inline(always)]
pub fn vma_start_write<W: SemWord>(lock: &W, lock_seq: &W, mm_lock_seq: &W, mut wait: impl FnMut(u32)) {
    let number = mm_lock_seq.peek();
    if lock_seq.peek() == number {
        return;
    }
    let mut now = lock.take(WRITER) | WRITER;
    while now != WRITER {
        wait(now);
        // Acquire: what the last of them did is seen.
        now = lock.read();
    }
    lock_seq.write(number);
    // Release: who counts itself in from now on sees the number.
    lock.give(WRITER);
}

/// Unlocks all areas of a space (`vma_end_write_all`). The caller is about to give the space's lock back.
#[inline(always)]
pub fn vma_end_write_all<W: SemWord>(mm_lock_seq: &W) {
    // Release: who sees the new number sees what was changed.
    mm_lock_seq.publish(mm_lock_seq.peek().wrapping_add(1));
}
