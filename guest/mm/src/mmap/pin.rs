//! Locked memory (`mlock`, `mlockall`).

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::mm_types::uapi::{MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT, MLOCK_ONFAULT};
use pagevisor_shared::units::{PAGE_SHIFT, VirtAddr};

use super::areas::{vma_at_or_above, vma_before};
use super::lock::MmapWrite;
use super::unmap::page_align;
use super::{Limits, PAGE_MASK, Space, Vma};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// Both ways to lock (`VM_LOCKED_MASK`).
const LOCKED_MASK: VmaFlags = VmaFlags::LOCKED.with(VmaFlags::LOCKONFAULT);

impl<P: Platform> Mm<P> {
    /// Whether `len` bytes more may be mapped with `flags`, if these say that they are locked (`mlock_future_check`).
    ///
    /// # Errors
    /// EAGAIN.
    pub(super) fn may_lock_more(&self, space: Space, flags: VmaFlags, len: u64, limits: &Limits) -> Result<(), Errno> {
        let locked = space.record().locked_vm.get() + (len >> PAGE_SHIFT);
        if flags.contains(VmaFlags::LOCKED) && locked > limits.memlock >> PAGE_SHIFT {
            return Err(Errno::EAGAIN);
        }
        Ok(())
    }

    /// Locks what is mapped from `start` on (`mlock`, `mlock2`).
    ///
    /// # Errors
    /// EINVAL for flags that there are not or a range that is none, ENOMEM if something is not mapped, if the limits do not
    /// allow it or if there is no memory, EAGAIN if pages cannot be had, EPERM if nothing may be locked.
    pub fn do_mlock(&self, space: Space, start: VirtAddr, len: u64, flags: u32, limits: &Limits) -> Result<(), Errno> {
        if flags & !MLOCK_ONFAULT != 0 {
            return Err(Errno::EINVAL);
        }
        if limits.memlock == 0 {
            return Err(Errno::EPERM);
        }
        let on_fault = flags & MLOCK_ONFAULT != 0;
        let wanted = if on_fault { LOCKED_MASK } else { VmaFlags::LOCKED };
        let (from, len) = whole_pages(start.raw(), len);
        let held = self.mmap_write_lock(space);
        let pages = len >> PAGE_SHIFT;
        let most = limits.memlock >> PAGE_SHIFT;
        let mut locked = space.record().locked_vm.get() + pages;
        if locked > most {
            // What is locked already does not count twice.
            locked -= locked_pages(space, from, from.saturating_add(len));
        }
        if locked > most {
            return Err(Errno::ENOMEM);
        }
        self.apply_vma_lock_flags(&held, from, len, wanted)?;
        drop(held);
        if on_fault || len == 0 {
            return Ok(());
        }
        self.mm_populate(space, VirtAddr::new(from), VirtAddr::new(from + len)).map_err(|error| match error {
            // `__mlock_posix_error_return`.
            Errno::EFAULT => Errno::ENOMEM,
            Errno::ENOMEM => Errno::EAGAIN,
            other => other,
        })
    }

    /// Unlocks what is mapped from `start` on (`munlock`).
    ///
    /// # Errors
    /// EINVAL for a range that is none, ENOMEM if something is not mapped or there is no memory.
    pub fn do_munlock(&self, space: Space, start: VirtAddr, len: u64) -> Result<(), Errno> {
        let (from, len) = whole_pages(start.raw(), len);
        self.apply_vma_lock_flags(&self.mmap_write_lock(space), from, len, VmaFlags::NONE)
    }

    /// Locks all there is, or all there will be (`mlockall`).
    ///
    /// # Errors
    /// EINVAL for flags that make no sense, EPERM if nothing may be locked, ENOMEM if the limits do not allow it.
    pub fn do_mlockall(&self, space: Space, flags: u32, limits: &Limits) -> Result<(), Errno> {
        if flags == 0 || flags & !(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0 || flags == MCL_ONFAULT {
            return Err(Errno::EINVAL);
        }
        if limits.memlock == 0 {
            return Err(Errno::EPERM);
        }
        let held = self.mmap_write_lock(space);
        if flags & MCL_CURRENT != 0 && space.record().total_vm.get() > limits.memlock >> PAGE_SHIFT {
            return Err(Errno::ENOMEM);
        }
        self.apply_mlockall_flags(&held, flags);
        drop(held);
        if flags & (MCL_CURRENT | MCL_ONFAULT) == MCL_CURRENT {
            // Whatever comes of it, the areas are locked. Each by itself: there are holes between them.
            let mut at = 0;
            while let Some(area) = self.find_vma(space, VirtAddr::new(at)) {
                at = area.end.raw();
                let _ = self.mm_populate(space, area.start, area.end);
            }
        }
        Ok(())
    }

    /// Unlocks all (`munlockall`).
    pub fn do_munlockall(&self, space: Space) {
        self.apply_mlockall_flags(&self.mmap_write_lock(space), 0);
    }

    /// `apply_mlockall_flags`.
    fn apply_mlockall_flags(&self, held: &MmapWrite<'_, P>, flags: u32) {
        let (space, record) = (held.space(), held.space().record());
        let wanted = match (flags & (MCL_CURRENT | MCL_FUTURE), flags & MCL_ONFAULT) {
            (0, _) => VmaFlags::NONE,
            (_, 0) => VmaFlags::LOCKED,
            _ => LOCKED_MASK,
        };
        let future = if flags & MCL_FUTURE != 0 { wanted } else { VmaFlags::NONE };
        record.def_flags.set(record.def_flags.get() & !LOCKED_MASK.0 | future.0);
        if flags & MCL_FUTURE != 0 && flags & MCL_CURRENT == 0 {
            return;
        }
        let (mut at, mut prev) = (space.first_vma(), None);
        while let Some(vma) = at {
            // Errors are ignored: then an area stays as it was.
            let done = self.mlock_fixup(held, vma, prev, vma.start(), vma.end(), wanted).unwrap_or(vma);
            (at, prev) = (done.next(), Some(done));
        }
    }

    /// Gives the range, in whole pages, another way of being locked (`apply_vma_lock_flags`).
    fn apply_vma_lock_flags(
        &self,
        held: &MmapWrite<'_, P>,
        start: u64,
        len: u64,
        wanted: VmaFlags,
    ) -> Result<(), Errno> {
        let end = start.checked_add(len).ok_or(Errno::EINVAL)?;
        if start == end {
            return Ok(());
        }
        let space = held.space();
        let mut vma = vma_at_or_above(space, start).filter(|vma| vma.start() <= start).ok_or(Errno::ENOMEM)?;
        let mut prev = if start > vma.start() { Some(vma) } else { vma_before(space, Some(vma)) };
        let mut at = start;
        loop {
            let stop = vma.end().min(end);
            let done = self.mlock_fixup(held, vma, prev, at, stop, wanted)?;
            at = stop.max(done.end().min(end));
            if at >= end {
                return Ok(());
            }
            prev = Some(done);
            vma = done.next().filter(|next| next.start() == at).ok_or(Errno::ENOMEM)?;
        }
    }

    /// `mlock_fixup`; gives the area the range is in then.
    fn mlock_fixup(
        &self,
        held: &MmapWrite<'_, P>,
        vma: Vma,
        prev: Option<Vma>,
        start: u64,
        end: u64,
        wanted: VmaFlags,
    ) -> Result<Vma, Errno> {
        let old = vma.flags();
        let flags = old.without(LOCKED_MASK).with(wanted);
        if flags == old || old.contains(VmaFlags::PFNMAP) {
            return Ok(vma);
        }
        let pages = (end - start) >> PAGE_SHIFT;
        let vma = held.reflag(vma, prev, start, end, flags)?;
        let locked = &held.space().record().locked_vm;
        match (old.contains(VmaFlags::LOCKED), wanted.contains(VmaFlags::LOCKED)) {
            (false, true) => locked.bump(pages),
            (true, false) => locked.drop_by(pages),
            _ => return Ok(vma),
        }
        self.mlock_vma_pages_range(vma, start, end);
        Ok(vma)
    }
}

/// The whole pages that a range touches.
fn whole_pages(start: u64, len: u64) -> (u64, u64) {
    (start & PAGE_MASK, page_align(len.wrapping_add(start & !PAGE_MASK)))
}

/// Pages of locked areas in a range (`count_mm_mlocked_page_nr`).
fn locked_pages(space: Space, start: u64, end: u64) -> u64 {
    let areas = core::iter::successors(vma_at_or_above(space, start), |vma| vma.next());
    let inside = areas.take_while(|vma| vma.start() < end).filter(|vma| vma.flags().contains(VmaFlags::LOCKED));
    inside.map(|vma| (vma.end().min(end) - vma.start().max(start)) >> PAGE_SHIFT).sum()
}
