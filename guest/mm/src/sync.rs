//! Words of shared memory: how the stack reads and writes them, and the lock protocols on them.
//!
//! The state region and the page metadata are made of atomics, because other CPUs and the host read them at any
//! time. Most of them have one writer at a time all the same, whoever holds the lock they belong to. [`Plain`] names
//! that: loads and stores without ordering; the lock orders them.
//!
//! A pageset's lock is a [`Gated`] one: a lock word that the short ways try, and that is closed while something
//! watches every allocation and free. Then the general ways hold a second word instead.
//!
//! The protocols are generic over the word ([`LockWord`]), so that loom can run them.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64};

/// A word with one writer at a time.
pub trait Plain {
    /// What the word holds.
    type Value;

    /// Reads the word.
    fn get(&self) -> Self::Value;

    /// Writes the word.
    fn set(&self, value: Self::Value);

    /// Adds to the word, wrapping; not atomic as a whole.
    fn bump(&self, by: Self::Value);

    /// Subtracts from the word, wrapping; not atomic as a whole.
    fn drop_by(&self, by: Self::Value);
}

macro_rules! plain {
    ($($atomic:ty: $value:ty),*) => {$(
        impl Plain for $atomic {
            type Value = $value;

            #[inline(always)]
            fn get(&self) -> $value {
                self.load(Relaxed)
            }

            #[inline(always)]
            fn set(&self, value: $value) {
                self.store(value, Relaxed);
            }

            #[inline(always)]
            fn bump(&self, by: $value) {
                self.store(self.load(Relaxed).wrapping_add(by), Relaxed);
            }

            #[inline(always)]
            fn drop_by(&self, by: $value) {
                self.store(self.load(Relaxed).wrapping_sub(by), Relaxed);
            }
        }
    )*};
}

plain!(AtomicU8: u8, AtomicU16: u16, AtomicU32: u32, AtomicU64: u64, AtomicI32: i32, AtomicI64: i64);

/// A word that can serve as a lock: bit 0 is set while it is held.
pub trait LockWord {
    /// Sets bit 0 with acquire ordering and tells whether it was set before.
    fn test_and_set(&self) -> bool;

    /// Whether bit 0 is set, without ordering.
    fn is_set(&self) -> bool;

    /// Whether bit 0 is set, with acquire ordering.
    fn is_set_acquire(&self) -> bool;

    /// Clears the word with release ordering.
    fn clear(&self);
}

impl LockWord for AtomicU32 {
    #[inline(always)]
    fn test_and_set(&self) -> bool {
        // Acquire pairs with the release in `clear`. On bit 0 this is one `lock bts`.
        self.fetch_or(1, Acquire) & 1 != 0
    }

    #[inline(always)]
    fn is_set(&self) -> bool {
        self.load(Relaxed) & 1 != 0
    }

    #[inline(always)]
    fn is_set_acquire(&self) -> bool {
        self.load(Acquire) & 1 != 0
    }

    #[inline(always)]
    fn clear(&self) {
        self.store(0, Release);
    }
}

/// Takes the lock if nobody holds it (`spin_trylock`). Fails rather than spins, so it may be tried from an interrupt
/// that arrived while this very CPU holds the lock.
#[inline(always)]
#[must_use]
pub fn try_lock<W: LockWord>(word: &W) -> bool {
    !word.test_and_set()
}

/// Takes the lock, calling `relax` while somebody else holds it (`spin_lock`).
#[inline(always)]
pub fn lock<W: LockWord>(word: &W, mut relax: impl FnMut()) {
    while word.test_and_set() {
        // Wait on a plain load: only the final attempt costs a locked operation.
        while word.is_set() {
            relax();
        }
    }
}

/// Gives the lock back.
#[inline(always)]
pub fn unlock<W: LockWord>(word: &W) {
    word.clear();
}

/// A lock with a gate. Who takes the gate holds the lock, as long as it is not shut; while it is, who takes `slow`
/// holds it, and the gate stays taken.
///
/// Invariant: `shut` changes only under the lock, and the gate is never given back while it is set.
#[derive(Debug)]
pub struct Gated<'a, W> {
    /// What the short ways try, and nothing else.
    pub gate: &'a W,
    /// Bit 0 is set while the gate is shut.
    pub shut: &'a W,
    /// The lock while the gate is shut.
    pub slow: &'a W,
}

impl<'a, W: LockWord> Gated<'a, W> {
    /// Takes the lock if nobody holds it, whether the gate is shut or not; gives the word to [`unlock`]. May be tried
    /// from an interrupt, as [`try_lock`].
    #[inline]
    #[must_use]
    pub fn try_lock(&self) -> Option<&'a W> {
        if try_lock(self.gate) {
            return Some(self.gate);
        }
        if self.shut.is_set_acquire() && try_lock(self.slow) {
            // Opened before this took the slow lock: the gate is the lock again.
            if self.shut.is_set_acquire() {
                return Some(self.slow);
            }
            unlock(self.slow);
        }
        None
    }

    /// Takes the lock, calling `relax` while somebody else holds it; gives the word to [`unlock`].
    #[inline]
    pub fn lock(&self, mut relax: impl FnMut()) -> &'a W {
        loop {
            if let Some(held) = self.try_lock() {
                return held;
            }
            relax();
        }
    }

    /// Calls `set`, which sets or clears `shut`, under the lock, and leaves the gate shut or open accordingly.
    pub fn change(&self, relax: impl FnMut(), set: impl FnOnce()) {
        let held = self.lock(relax);
        set();
        let was_shut = core::ptr::eq(held, self.slow);
        match (was_shut, self.shut.is_set_acquire()) {
            // From now on the slow word is the lock, and it is free.
            (false, true) => {}
            (true, false) => {
                unlock(self.gate);
                unlock(held);
            }
            _ => unlock(held),
        }
    }
}
