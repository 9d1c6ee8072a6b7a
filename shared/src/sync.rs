//! The few operations on shared words that the protocols of the region need, as a trait: the protocols run on the
//! core's atomics, and under `cfg(loom)` on loom's, which try every interleaving.

use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A shared word.
pub trait Word<T> {
    /// Reads the word.
    fn load(&self, order: Ordering) -> T;

    /// Writes the word.
    fn store(&self, value: T, order: Ordering);

    /// The fence that goes with this kind of word.
    fn fence(order: Ordering);
}

macro_rules! word {
    ($atomic:ty, $raw:ty, $fence:path) => {
        impl Word<$raw> for $atomic {
            #[inline(always)]
            fn load(&self, order: Ordering) -> $raw {
                <$atomic>::load(self, order)
            }

            #[inline(always)]
            fn store(&self, value: $raw, order: Ordering) {
                <$atomic>::store(self, value, order);
            }

            #[inline(always)]
            fn fence(order: Ordering) {
                $fence(order);
            }
        }
    };
}

word!(AtomicU16, u16, core::sync::atomic::fence);
word!(AtomicU32, u32, core::sync::atomic::fence);
word!(AtomicU64, u64, core::sync::atomic::fence);
#[cfg(loom)]
word!(loom::sync::atomic::AtomicU16, u16, loom::sync::atomic::fence);
#[cfg(loom)]
word!(loom::sync::atomic::AtomicU32, u32, loom::sync::atomic::fence);
#[cfg(loom)]
word!(loom::sync::atomic::AtomicU64, u64, loom::sync::atomic::fence);
