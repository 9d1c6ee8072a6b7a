//! What is in memory (`mincore`), and what is written (`msync`).

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::mm_types::uapi::{MS_ASYNC, MS_INVALIDATE, MS_SYNC};
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use super::areas::{vma_at, vma_at_or_above};
use super::unmap::page_align;
use super::{PAGE_MASK, Space};
use crate::Mm;
use crate::platform::Platform;

impl<P: Platform> Mm<P> {
    /// Tells for each page from `start` on whether it is in memory: bit 0 of a byte of `out` each (`mincore`).
    ///
    /// # Errors
    /// EINVAL for an address inside a page, ENOMEM if something is not mapped.
    pub fn do_mincore(&self, space: Space, start: VirtAddr, out: &mut [u8]) -> Result<(), Errno> {
        if start.raw() & !PAGE_MASK != 0 {
            return Err(Errno::EINVAL);
        }
        let _held = self.mmap_read_lock(space);
        let mut at = start.raw();
        for byte in out {
            let vma = vma_at(space, at).ok_or(Errno::ENOMEM)?;
            *byte = u8::from(self.entry_at(space, vma, VirtAddr::new(at)).is_some() || self.is_cached(vma, at));
            at = at.checked_add(PAGE_SIZE).ok_or(Errno::ENOMEM)?;
        }
        Ok(())
    }

    /// Sees to it that what was written from `start` on reaches the files (`msync`), which here have no other place than
    /// memory.
    ///
    /// # Errors
    /// EINVAL for an address inside a page or flags that make no sense, ENOMEM if something is not mapped, EBUSY if what
    /// is locked was to be given up.
    pub fn do_msync(&self, space: Space, start: VirtAddr, len: u64, flags: u32) -> Result<(), Errno> {
        let start = start.raw();
        if flags & !(MS_ASYNC | MS_INVALIDATE | MS_SYNC) != 0
            || start & !PAGE_MASK != 0
            || flags & MS_ASYNC != 0 && flags & MS_SYNC != 0
        {
            return Err(Errno::EINVAL);
        }
        let end = start.checked_add(page_align(len)).ok_or(Errno::ENOMEM)?;
        let _held = self.mmap_read_lock(space);
        let (mut at, mut holes) = (start, false);
        while at < end {
            let vma = vma_at_or_above(space, at).ok_or(Errno::ENOMEM)?;
            if vma.start() > at {
                holes = true;
                if vma.start() >= end || flags == MS_ASYNC {
                    return Err(Errno::ENOMEM);
                }
            }
            if flags & MS_INVALIDATE != 0 && vma.flags().contains(VmaFlags::LOCKED) {
                return Err(Errno::EBUSY);
            }
            at = vma.end();
        }
        if holes { Err(Errno::ENOMEM) } else { Ok(()) }
    }
}
