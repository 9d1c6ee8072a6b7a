//! Owned values in memory from `kmalloc`: boxes and vectors that say how their memory is to be had, and may fail.
//!
//! The promise it rests on: `kmalloc` gives memory in the direct map that nobody else has until it is freed, aligned to
//! its size where that is a power of two.

use core::alloc::Layout;
use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::slice;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{NodeId, VirtAddr};

use crate::Mm;
use crate::platform::Platform;

/// There is no memory (`-ENOMEM`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

impl fmt::Display for NoMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("out of memory")
    }
}

impl core::error::Error for NoMemory {}

/// What every address from `kmalloc` is a multiple of (`ARCH_KMALLOC_MINALIGN`).
const MIN_ALIGN: usize = 8;

/// Bytes to ask `kmalloc` for, so that there is room for `layout` at a multiple of its alignment; `None` for more than a
/// number holds.
#[inline(always)]
const fn kmalloc_bytes(layout: Layout) -> Option<usize> {
    if layout.align() <= MIN_ALIGN || layout.size() == 0 {
        return Some(layout.size());
    }
    let bytes = if layout.size() > layout.align() { layout.size() } else { layout.align() };
    bytes.checked_next_power_of_two()
}

impl<P: Platform> Mm<P> {
    /// Allocates memory of that size and alignment, to be freed by [`Self::kfree`]. The alignment may be as large as
    /// [`crate::slab::KMALLOC_MAX_SIZE`].
    #[inline]
    pub fn kmalloc_layout(&self, layout: Layout, gfp: Gfp) -> Option<VirtAddr> {
        self.kmalloc(kmalloc_bytes(layout)?, gfp)
    }

    /// Makes memory from [`Self::kmalloc_layout`] larger or smaller, elsewhere if need be, with the same alignment; the
    /// content stays as far as it fits. On failure it is as it was.
    pub fn krealloc_layout(&self, addr: VirtAddr, layout: Layout, gfp: Gfp) -> Option<VirtAddr> {
        // Where it is, it is aligned.
        if layout.size() <= self.ksize(addr) { Some(addr) } else { self.krealloc(addr, kmalloc_bytes(layout)?, gfp) }
    }
}

/// The room of a vector: memory for so many values, of which the first are there. Whose it is must free it in the end.
struct RawVec<T> {
    start: NonNull<T>,
    capacity: usize,
    len: usize,
    owns: PhantomData<T>,
}

// SAFETY: owns its values and nothing else.
unsafe impl<T: Send> Send for RawVec<T> {}
// SAFETY: a shared one gives shared references to its values, nothing else.
unsafe impl<T: Sync> Sync for RawVec<T> {}

impl<T> RawVec<T> {
    const fn new() -> Self {
        let capacity = if size_of::<T>() == 0 { usize::MAX } else { 0 };
        Self { start: NonNull::dangling(), capacity, len: 0, owns: PhantomData }
    }

    fn as_slice(&self) -> &[T] {
        // SAFETY: the first `len` values are there.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: the first `len` values are there, and the caller has the only reference.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Makes room for at least `capacity` values.
    fn grow<P: Platform>(
        &mut self,
        mm: &Mm<P>,
        capacity: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<(), NoMemory> {
        if capacity <= self.capacity {
            return Ok(());
        }
        let layout = Layout::array::<T>(capacity).map_err(|_| NoMemory)?;
        let bytes = kmalloc_bytes(layout).ok_or(NoMemory)?;
        let addr = mm.kmalloc_node(bytes, gfp.without(Gfp::ZERO), node).ok_or(NoMemory)?;
        let start = pointer(mm, addr).ok_or(NoMemory)?;
        // SAFETY: the new memory has room for all values, is aligned for them, and is nobody else's. The old copies are
        // forgotten.
        unsafe { start.copy_from_nonoverlapping(self.start, self.len) };
        self.release(mm);
        self.start = start;
        // What kmalloc gives beyond what was asked for is of use, too.
        self.capacity = mm.ksize(addr).max(bytes) / size_of::<T>();
        Ok(())
    }

    /// Gives the memory back. The values are not dropped.
    fn release<P: Platform>(&mut self, mm: &Mm<P>) {
        if size_of::<T>() != 0 && self.capacity != 0 {
            mm.kfree(VirtAddr::new(self.start.addr().get() as u64));
            self.capacity = 0;
        }
    }

    fn push_within_capacity(&mut self, value: T) -> Result<(), T> {
        if self.len == self.capacity {
            return Err(value);
        }
        // SAFETY: there is room for it behind the last one.
        unsafe { self.start.add(self.len).write(value) };
        self.len += 1;
        Ok(())
    }

    fn pop(&mut self) -> Option<T> {
        self.len = self.len.checked_sub(1)?;
        // SAFETY: it was the last one, and is no longer counted.
        Some(unsafe { self.start.add(self.len).read() })
    }
}

/// The memory at `addr`, which is in the direct map.
fn pointer<P: Platform, T>(mm: &Mm<P>, addr: VirtAddr) -> Option<NonNull<T>> {
    NonNull::new(mm.direct_map().at(mm.phys(addr)?).cast())
}

/// A value in memory of its own (`Box`), allocated as its [`Gfp`] says.
///
/// A value without size needs no memory; one of large alignment gets it.
pub struct KBox<'a, T, P: Platform> {
    value: NonNull<T>,
    mm: &'a Mm<P>,
    owns: PhantomData<T>,
}

// SAFETY: owns its value.
unsafe impl<T: Send, P: Platform> Send for KBox<'_, T, P> {}
// SAFETY: a shared one gives shared references to its value, nothing else.
unsafe impl<T: Sync, P: Platform> Sync for KBox<'_, T, P> {}

impl<'a, T, P: Platform> KBox<'a, T, P> {
    /// Moves `value` into memory from `mm`.
    ///
    /// # Errors
    /// [`NoMemory`]; the value is dropped.
    pub fn new(mm: &'a Mm<P>, value: T, gfp: Gfp) -> Result<Self, NoMemory> {
        let at = if size_of::<T>() == 0 {
            NonNull::dangling()
        } else {
            let addr = mm.kmalloc_layout(Layout::new::<T>(), gfp.without(Gfp::ZERO)).ok_or(NoMemory)?;
            pointer(mm, addr).ok_or(NoMemory)?
        };
        // SAFETY: room for one value, aligned for it, that nobody else has; or nothing is written.
        unsafe { at.write(value) };
        Ok(Self { value: at, mm, owns: PhantomData })
    }

    /// Takes the value out and gives the memory back.
    pub fn into_inner(self) -> T {
        let this = ManuallyDrop::new(self);
        // SAFETY: the value is there, and is not dropped again.
        let value = unsafe { this.value.read() };
        this.release();
        value
    }

    /// Where the value is; for one without size nowhere in particular.
    pub fn addr(&self) -> VirtAddr {
        VirtAddr::new(self.value.addr().get() as u64)
    }

    fn release(&self) {
        if size_of::<T>() != 0 {
            self.mm.kfree(self.addr());
        }
    }
}

impl<T, P: Platform> Deref for KBox<'_, T, P> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the value is there as long as the box is.
        unsafe { self.value.as_ref() }
    }
}

impl<T, P: Platform> DerefMut for KBox<'_, T, P> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the value is there as long as the box is, and the caller has the only reference to that.
        unsafe { self.value.as_mut() }
    }
}

impl<T, P: Platform> Drop for KBox<'_, T, P> {
    fn drop(&mut self) {
        // SAFETY: the value is there, and nobody uses it any more.
        unsafe { self.value.drop_in_place() };
        self.release();
    }
}

impl<T: fmt::Debug, P: Platform> fmt::Debug for KBox<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Values one behind the other (`Vec`), in memory from `kmalloc`; whatever may need memory is told how to get it, and
/// may fail.
pub struct KVec<'a, T, P: Platform> {
    raw: RawVec<T>,
    mm: &'a Mm<P>,
}

impl<'a, T, P: Platform> KVec<'a, T, P> {
    /// No values, and no memory.
    pub const fn new(mm: &'a Mm<P>) -> Self {
        Self { raw: RawVec::new(), mm }
    }

    /// No values, and room for at least `capacity`.
    ///
    /// # Errors
    /// [`NoMemory`], also for more than [`crate::slab::KMALLOC_MAX_SIZE`].
    pub fn with_capacity(mm: &'a Mm<P>, capacity: usize, gfp: Gfp) -> Result<Self, NoMemory> {
        Self::with_capacity_node(mm, capacity, gfp, None)
    }

    /// As [`Self::with_capacity`], with memory from `node` first.
    ///
    /// # Errors
    /// As [`Self::with_capacity`].
    pub fn with_capacity_node(
        mm: &'a Mm<P>,
        capacity: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<Self, NoMemory> {
        let mut vec = Self::new(mm);
        vec.raw.grow(mm, capacity, gfp, node)?;
        Ok(vec)
    }

    /// Values there is room for.
    pub const fn capacity(&self) -> usize {
        self.raw.capacity
    }

    /// Makes room for `more` values.
    ///
    /// # Errors
    /// [`NoMemory`]; the vector is as it was.
    pub fn reserve(&mut self, more: usize, gfp: Gfp) -> Result<(), NoMemory> {
        let needed = self.raw.len.checked_add(more).ok_or(NoMemory)?;
        if needed <= self.raw.capacity {
            return Ok(());
        }
        // Twice as much each time, so that a value is moved twice on average, or else just enough.
        let doubled = self.raw.capacity.saturating_mul(2).max(needed);
        let grown = self.raw.grow(self.mm, doubled, gfp | Gfp::NOWARN, None);
        if grown.is_err() && needed < doubled { self.raw.grow(self.mm, needed, gfp, None) } else { grown }
    }

    /// Appends a value.
    ///
    /// # Errors
    /// [`NoMemory`]; the value is dropped, and the vector is as it was.
    pub fn push(&mut self, value: T, gfp: Gfp) -> Result<(), NoMemory> {
        self.reserve(1, gfp)?;
        self.push_within_capacity(value).map_err(|_| NoMemory)
    }

    /// Appends a value if there is room for it.
    ///
    /// # Errors
    /// The value.
    pub fn push_within_capacity(&mut self, value: T) -> Result<(), T> {
        self.raw.push_within_capacity(value)
    }

    /// Appends copies of all `values`, or none.
    ///
    /// # Errors
    /// [`NoMemory`]; the vector is as it was.
    pub fn extend_from_slice(&mut self, values: &[T], gfp: Gfp) -> Result<(), NoMemory>
    where
        T: Clone,
    {
        self.reserve(values.len(), gfp)?;
        values.iter().try_for_each(|value| self.push_within_capacity(value.clone()).map_err(|_| NoMemory))
    }

    /// Takes the last value off.
    pub fn pop(&mut self) -> Option<T> {
        self.raw.pop()
    }

    /// Takes value `index` out; the last one takes its place.
    pub fn swap_remove(&mut self, index: usize) -> Option<T> {
        let last = self.raw.len.checked_sub(1)?;
        if index > last {
            return None;
        }
        self.swap(index, last);
        self.pop()
    }

    /// Drops all values but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        while self.raw.len > len {
            drop(self.pop());
        }
    }
}

impl<T, P: Platform> Deref for KVec<'_, T, P> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.raw.as_slice()
    }
}

impl<T, P: Platform> DerefMut for KVec<'_, T, P> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.raw.as_mut_slice()
    }
}

impl<T, P: Platform> Drop for KVec<'_, T, P> {
    fn drop(&mut self) {
        self.truncate(0);
        self.raw.release(self.mm);
    }
}

impl<T: fmt::Debug, P: Platform> fmt::Debug for KVec<'_, T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Values that belong to `mm` itself, which therefore is told to each operation. They are dropped, but their memory only
/// goes with the machine.
pub(crate) struct MmVec<T>(RawVec<T>);

impl<T> MmVec<T> {
    pub(crate) const fn new() -> Self {
        Self(RawVec::new())
    }

    /// Makes room for one more value.
    pub(crate) fn reserve<P: Platform>(&mut self, mm: &Mm<P>, gfp: Gfp) -> Result<(), NoMemory> {
        if self.0.len < self.0.capacity { Ok(()) } else { self.0.grow(mm, (2 * self.0.capacity).max(4), gfp, None) }
    }

    /// Appends a value, for which there is room.
    pub(crate) fn push_within_capacity(&mut self, value: T) {
        let _ = self.0.push_within_capacity(value);
    }

    /// Appends a value.
    pub(crate) fn push<P: Platform>(&mut self, mm: &Mm<P>, value: T, gfp: Gfp) -> Result<(), NoMemory> {
        self.reserve(mm, gfp)?;
        self.push_within_capacity(value);
        Ok(())
    }

    /// Drops all values and gives the memory back.
    pub(crate) fn release<P: Platform>(&mut self, mm: &Mm<P>) {
        while self.0.pop().is_some() {}
        self.0.release(mm);
    }

    /// Takes value `index` out; those behind it move up.
    pub(crate) fn remove<P: Platform>(&mut self, mm: &Mm<P>, index: usize) -> Option<T> {
        self.0.as_mut_slice().get_mut(index..)?.rotate_left(1);
        let value = self.0.pop();
        if self.0.len == 0 {
            self.0.release(mm);
        }
        value
    }
}

impl<T> Deref for MmVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.0.as_slice()
    }
}

impl<T> Drop for MmVec<T> {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}
