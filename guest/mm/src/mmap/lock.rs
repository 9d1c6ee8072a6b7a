//! The locks of a space and of its areas, held as long as a guard lives.

use core::fmt;
use core::sync::atomic::AtomicU32;

use pagevisor_shared::region::seq;

use super::{Space, Vma};
use crate::Mm;
use crate::platform::Platform;
use crate::rwsem;
use crate::sync;

/// The space's areas stay as they are (`mmap_read_lock`).
#[must_use]
pub struct MmapRead<'a, P: Platform> {
    mm: &'a Mm<P>,
    space: Space,
}

/// Nobody else reads or changes the space's areas, apart from those who work on one (`mmap_write_lock`).
#[must_use]
pub struct MmapWrite<'a, P: Platform> {
    mm: &'a Mm<P>,
    space: Space,
}

/// An area that stays as it is, without [`MmapRead`] (`vma_start_read`).
#[must_use]
pub struct VmaRead<'a, P: Platform> {
    mm: &'a Mm<P>,
    vma: Vma,
}

macro_rules! debug {
    ($($guard:ident, $field:ident;)*) => {$(
        impl<P: Platform> fmt::Debug for $guard<'_, P> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($guard)).field(&self.$field).finish()
            }
        }
    )*};
}

debug! {
    MmapRead, space;
    MmapWrite, space;
    VmaRead, vma;
}

impl<P: Platform> Mm<P> {
    /// Sleeps on a word of these locks.
    #[inline]
    fn wait_for<'a>(&'a self, word: &'a AtomicU32) -> impl FnMut(u32) + 'a {
        |value| self.platform.wait_on(word, value)
    }

    /// Waits until the areas of `space` stay as they are (`mmap_read_lock`).
    #[inline]
    pub fn mmap_read_lock(&self, space: Space) -> MmapRead<'_, P> {
        let word = &space.record().mmap_lock;
        rwsem::down_read(word, self.wait_for(word));
        MmapRead { mm: self, space }
    }

    /// As [`Self::mmap_read_lock`], but without waiting.
    #[inline]
    pub fn mmap_read_trylock(&self, space: Space) -> Option<MmapRead<'_, P>> {
        // A guard that is made is dropped.
        rwsem::down_read_trylock(&space.record().mmap_lock).then(|| MmapRead { mm: self, space })
    }

    /// Waits until the caller may change the areas of `space` (`mmap_write_lock`).
    #[inline]
    pub fn mmap_write_lock(&self, space: Space) -> MmapWrite<'_, P> {
        let word = &space.record().mmap_lock;
        rwsem::down_write(word, self.wait_for(word));
        MmapWrite { mm: self, space }
    }

    /// Counts the caller among those who work on `vma`, which was found in `space` (`vma_start_read`).
    #[inline(always)]
    pub(super) fn vma_start_read(&self, space: Space, vma: Vma) -> Option<VmaRead<'_, P>> {
        let (record, number) = (vma.record(), &space.record().mm_lock_seq);
        let wake = || self.platform.wake_all(&record.vm_lock);
        rwsem::vma_start_read(&record.vm_lock, &record.vm_lock_seq, number, wake).then(|| VmaRead { mm: self, vma })
    }
}

impl<P: Platform> Drop for MmapRead<'_, P> {
    #[inline]
    fn drop(&mut self) {
        let word = &self.space.record().mmap_lock;
        rwsem::up_read(word, || self.mm.platform.wake_all(word));
    }
}

impl<P: Platform> Drop for MmapWrite<'_, P> {
    #[inline]
    fn drop(&mut self) {
        let record = self.space.record();
        rwsem::vma_end_write_all(&record.mm_lock_seq);
        rwsem::up_write(&record.mmap_lock, || self.mm.platform.wake_all(&record.mmap_lock));
    }
}

impl<P: Platform> MmapRead<'_, P> {
    /// The space.
    #[inline(always)]
    pub fn space(&self) -> Space {
        self.space
    }
}

impl<'a, P: Platform> MmapWrite<'a, P> {
    /// The space.
    #[inline(always)]
    pub fn space(&self) -> Space {
        self.space
    }

    /// The memory stack.
    #[inline(always)]
    pub(super) fn mm(&self) -> &'a Mm<P> {
        self.mm
    }

    /// Waits for those who work on `vma`, an area of the space or one that is going to be; until this guard goes, nobody
    /// else does (`vma_start_write`).
    #[inline]
    pub(crate) fn vma_start_write(&self, vma: Vma) {
        let (record, number) = (vma.record(), &self.space.record().mm_lock_seq);
        rwsem::vma_start_write(&record.vm_lock, &record.vm_lock_seq, number, self.mm.wait_for(&record.vm_lock));
    }

    /// Calls `change`, which changes the tree or the bounds of areas that are locked
    /// ([`Self::vma_start_write`]); who is looking for an area without a lock looks again.
    #[inline(always)]
    pub(super) fn change<R>(&self, change: impl FnOnce() -> R) -> R {
        let record = self.space.record();
        sync::lock(&record.tree_lock, || self.mm.platform.relax());
        seq::write_begin(&record.seq);
        let result = change();
        seq::write_end(&record.seq);
        sync::unlock(&record.tree_lock);
        result
    }
}

impl<P: Platform> VmaRead<'_, P> {
    /// The area.
    #[inline(always)]
    pub fn vma(&self) -> Vma {
        self.vma
    }
}

impl<P: Platform> Drop for VmaRead<'_, P> {
    #[inline(always)]
    fn drop(&mut self) {
        let word = &self.vma.record().vm_lock;
        rwsem::vma_end_read(word, || self.mm.platform.wake_all(word));
    }
}
