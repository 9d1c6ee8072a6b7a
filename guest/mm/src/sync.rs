//! Words of shared memory: how the stack reads and writes them, and the two lock protocols on them.
//!
//! The state region and the page metadata are made of atomics, because other CPUs and the host read them at any
//! time. Most of them have one writer at a time all the same, whoever holds the lock they belong to. [`Plain`] names
//! that: loads and stores without ordering; the lock orders them.
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
