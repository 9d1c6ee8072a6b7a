//! Locks and cells of the kernel: `mm`'s lock protocol around values, with and without interrupts.
//!
//! Lock order, outermost first: the call-function lock ([`crate::smp`]), locks of `mm`, the log lock. The log lock is
//! innermost: anything may log.

use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use pagevisor_mm::sync;
use pagevisor_shared::region::seq;

use crate::arch::cpu;

/// A lock whose waiters spin. Not for data that interrupt handlers touch: see [`IrqSpinLock`].
#[derive(Debug)]
pub struct SpinLock<T> {
    word: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands the value to one CPU at a time.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { word: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<SpinGuard<'_, T>> {
        // Not `then_some`: a guard that is made and dropped gives somebody else's lock back.
        sync::try_lock(&self.word).then(|| SpinGuard { lock: self })
    }

    /// Gives the lock back for somebody else, who has forgotten the guard.
    ///
    /// # Safety
    /// The lock is held, and whoever took it has no access any more.
    #[inline]
    pub unsafe fn force_unlock(&self) {
        sync::unlock(&self.word);
    }

    /// Waits for the lock and takes it.
    #[inline]
    pub fn lock(&self) -> SpinGuard<'_, T> {
        sync::lock(&self.word, spin_loop);
        SpinGuard { lock: self }
    }
}

/// Holds a [`SpinLock`].
#[derive(Debug)]
pub struct SpinGuard<'a, T> {
    lock: &'a SpinLock<T>,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard's existence means that this CPU holds the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard's existence means that this CPU holds the lock, and the guard is borrowed mutably.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        sync::unlock(&self.lock.word);
    }
}

/// A spin lock that keeps interrupts off while held, for data that handlers touch too.
#[derive(Debug)]
pub struct IrqSpinLock<T>(SpinLock<T>);

impl<T> IrqSpinLock<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> Self {
        Self(SpinLock::new(value))
    }

    /// Turns interrupts off, waits for the lock and takes it.
    #[inline]
    pub fn lock(&self) -> IrqSpinGuard<'_, T> {
        let flags = cpu::irq_save();
        IrqSpinGuard { guard: ManuallyDrop::new(self.0.lock()), flags }
    }

    /// As [`Self::lock`], but waits only for a while and then takes the lock from whoever has it. For a dying kernel
    /// whose last words matter more than the data: a CPU that was stopped inside the lock never gives it back.
    pub fn lock_at_any_price(&self) -> IrqSpinGuard<'_, T> {
        let flags = cpu::irq_save();
        for _ in 0..10_000 {
            if let Some(guard) = self.0.try_lock() {
                return IrqSpinGuard { guard: ManuallyDrop::new(guard), flags };
            }
            spin_loop();
        }
        IrqSpinGuard { guard: ManuallyDrop::new(SpinGuard { lock: &self.0 }), flags }
    }
}

/// Holds an [`IrqSpinLock`].
#[derive(Debug)]
pub struct IrqSpinGuard<'a, T> {
    /// Dropped by hand, because the lock is to be given back before interrupts come on.
    guard: ManuallyDrop<SpinGuard<'a, T>>,
    flags: u64,
}

impl<T> Deref for IrqSpinGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for IrqSpinGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

impl<T> Drop for IrqSpinGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: dropped only here, and not used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.guard) };
        cpu::irq_restore(self.flags);
    }
}

/// A sequence lock: readers never wait for each other nor make a writer wait; they read again when one was at work.
///
/// The value is made of atomics; what `read` took from a mixture of two states is thrown away.
#[derive(Debug)]
pub struct SeqLock<T> {
    seq: AtomicU32,
    writer: IrqSpinLock<()>,
    value: T,
}

impl<T: Sync> SeqLock<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Self {
        Self { seq: AtomicU32::new(0), writer: IrqSpinLock::new(()), value }
    }

    /// Runs `read` until no writer came between.
    #[inline]
    pub fn read<R>(&self, mut read: impl FnMut(&T) -> R) -> R {
        loop {
            if let Some(start) = seq::read_begin(&self.seq) {
                let result = read(&self.value);
                if !seq::read_retry(&self.seq, start) {
                    return result;
                }
            }
            spin_loop();
        }
    }

    /// Changes the value; one writer at a time.
    pub fn write(&self, change: impl FnOnce(&T)) {
        let _writer = self.writer.lock();
        seq::write_begin(&self.seq);
        change(&self.value);
        seq::write_end(&self.seq);
    }
}

/// A cell that is filled once during boot and read for ever after.
#[derive(Debug)]
pub struct Once<T> {
    state: AtomicU8,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: the value is written by one CPU before it is visible, and only shared references are given out.
unsafe impl<T: Send + Sync> Sync for Once<T> {}

impl<T> Once<T> {
    const EMPTY: u8 = 0;
    const FILLING: u8 = 1;
    const FULL: u8 = 2;

    /// An empty cell.
    pub const fn new() -> Self {
        Self { state: AtomicU8::new(Self::EMPTY), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// Fills the cell.
    ///
    /// # Panics
    /// When it was filled before.
    pub fn set(&self, value: T) -> &T {
        let first = self.state.compare_exchange(Self::EMPTY, Self::FILLING, Ordering::Relaxed, Ordering::Relaxed);
        assert!(first.is_ok(), "a cell is filled twice");
        // SAFETY: the exchange above lets one caller through, and no reader looks before the state is FULL.
        let value = unsafe { (*self.value.get()).write(value) };
        // Release pairs with the acquire in `get`.
        self.state.store(Self::FULL, Ordering::Release);
        value
    }

    /// The value, once there is one.
    #[inline(always)]
    pub fn get(&self) -> Option<&T> {
        // SAFETY: FULL is stored after the value was written, and it is never written again.
        (self.state.load(Ordering::Acquire) == Self::FULL).then(|| unsafe { (*self.value.get()).assume_init_ref() })
    }
}
