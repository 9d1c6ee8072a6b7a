//! Values behind locks.
//!
//! The promise it rests on: a value is reached through a guard only, a guard that writes exists only while no other does,
//! and guards are made by these locks' own words.

use core::cell::UnsafeCell;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

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

/// The word of an [`RwSem`] while somebody writes; else it is the number of readers.
const WRITER: u32 = 1 << 31;

/// A value with many readers or one writer at a time (`struct rw_semaphore`). Not for interrupts.
pub(crate) struct RwSem<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: readers share the value, and a writer has it to itself.
unsafe impl<T: Send + Sync> Sync for RwSem<T> {}

impl<T> RwSem<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { word: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Lets the caller read unless somebody writes or wants to (`down_read_trylock`).
    pub(crate) fn try_read(&self) -> Option<ReadGuard<'_, T>> {
        // Acquire: what the last writer did is seen.
        self.word.fetch_update(Acquire, Relaxed, |word| (word & WRITER == 0).then_some(word + 1)).ok()?;
        Some(ReadGuard(self))
    }

    /// Waits until nobody reads or writes (`down_write`). From then on nobody else does either.
    pub(crate) fn write(&self, mut relax: impl FnMut()) -> WriteGuard<'_, T> {
        // Whoever wants to read from now on must wait, too.
        while self.word.fetch_or(WRITER, Relaxed) & WRITER != 0 {
            relax();
        }
        // Acquire: the last reader is done with what it read.
        while self.word.load(Acquire) != WRITER {
            relax();
        }
        WriteGuard(self)
    }

    /// Whether somebody waits to write (`rwsem_is_contended`), for one who reads.
    pub(crate) fn is_contended(&self) -> bool {
        self.word.load(Relaxed) & WRITER != 0
    }
}

impl<T> fmt::Debug for RwSem<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwSem").field("word", &self.word).finish_non_exhaustive()
    }
}

/// Nobody writes as long as this is there.
pub(crate) struct ReadGuard<'a, T>(&'a RwSem<T>);

impl<T> Deref for ReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: counted among the readers.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> Drop for ReadGuard<'_, T> {
    fn drop(&mut self) {
        // Release: a writer comes after all that was read.
        self.0.word.fetch_sub(1, Release);
    }
}

/// Nobody else reads or writes as long as this is there.
pub(crate) struct WriteGuard<'a, T>(&'a RwSem<T>);

impl<T> Deref for WriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the only one.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for WriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the only one.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for WriteGuard<'_, T> {
    fn drop(&mut self) {
        // Release: who reads from now on sees what was written.
        self.0.word.fetch_and(!WRITER, Release);
    }
}
