//! Values behind locks.
//!
//! The promise it rests on: a value is reached through a guard only, a guard that writes exists only while no other does,
//! and guards are made by these locks' own words.

use core::cell::UnsafeCell;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::AtomicU32;

use crate::platform::{IrqFlags, Platform};
use crate::sync;

/// A value that one CPU at a time has, with interrupts off (`spin_lock_irqsave`).
pub(crate) struct SpinLock<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: whoever has the lock has the value to itself, so that it only passes from one CPU to another.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { word: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Takes the lock.
    #[inline]
    pub(crate) fn lock<'a, P: Platform>(&'a self, platform: &'a P) -> SpinGuard<'a, T, P> {
        let flags = platform.irq_save();
        sync::lock(&self.word, || platform.relax());
        SpinGuard { lock: self, platform, flags }
    }

    /// The value, of which the caller has the only reference.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }
}

impl<T> fmt::Debug for SpinLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpinLock").field("word", &self.word).finish_non_exhaustive()
    }
}

/// The lock is held as long as this is there.
pub(crate) struct SpinGuard<'a, T, P: Platform> {
    lock: &'a SpinLock<T>,
    platform: &'a P,
    flags: IrqFlags,
}

impl<T, P: Platform> Deref for SpinGuard<'_, T, P> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T, P: Platform> DerefMut for SpinGuard<'_, T, P> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held, and there is one guard.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T, P: Platform> Drop for SpinGuard<'_, T, P> {
    #[inline]
    fn drop(&mut self) {
        sync::unlock(&self.lock.word);
        self.platform.irq_restore(self.flags);
    }
}
