//! Pages of programs for somebody else: brought in ahead, read and written (`mm/gup.c`, `access_remote_vm`).

use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::{PAGE_SIZE, Pfn, VirtAddr};

use super::fault::{FaultFlags, FaultResult};
use super::pte::Pte;
use super::walk::AreaGuard;
use crate::Mm;
use crate::mmap::{Space, Vma};
use crate::platform::Platform;
use crate::raw::UserMemory;
use crate::sync::Plain;

impl<P: Platform> Mm<P> {
    /// Reads memory of `space` from `addr` on; gives how many bytes it could (`access_remote_vm`). Pages that are missing
    /// are brought in.
    pub fn read_remote_vm(&self, space: Space, addr: VirtAddr, to: &mut [u8]) -> usize {
        let mut done = 0;
        while done < to.len() {
            let at = VirtAddr::new(addr.raw().wrapping_add(done as u64));
            let memory = UserMemory::new(self.direct_map());
            let read = self.with_page(space, at, false, |pfn, offset| memory.read(pfn, offset, &mut to[done..]));
            match read {
                Ok(now) => done += now,
                Err(_) => break,
            }
        }
        done
    }

    /// Writes memory of `space` from `addr` on, as far as its areas allow it; gives how many bytes it could
    /// (`access_remote_vm`).
    pub fn write_remote_vm(&self, space: Space, addr: VirtAddr, from: &[u8]) -> usize {
        let mut done = 0;
        while done < from.len() {
            let at = VirtAddr::new(addr.raw().wrapping_add(done as u64));
            let memory = UserMemory::new(self.direct_map());
            let written = self.with_page(space, at, true, |pfn, offset| memory.write(pfn, offset, &from[done..]));
            match written {
                Ok(now) => done += now,
                Err(_) => break,
            }
        }
        done
    }

    /// Calls `work` with the page at `addr` and where in it that is. Meanwhile the page stays, and no fork makes it somebody
    /// else's, too.
    pub(super) fn with_page<R>(
        &self,
        space: Space,
        addr: VirtAddr,
        write: bool,
        work: impl FnOnce(Pfn, u64) -> R,
    ) -> Result<R, Errno> {
        let flags = FaultFlags::REMOTE.with(if write { FaultFlags::WRITE } else { FaultFlags::NONE });
        loop {
            let guard = self.area_guard(space, addr).ok_or(Errno::EFAULT)?;
            let wanted = if write { VmaFlags::WRITE } else { VmaFlags::READ };
            if !guard.vma().flags().contains(wanted) {
                return Err(Errno::EFAULT);
            }
            if let Some(pfn) = self.pin_page(space, &guard, addr, write) {
                let result = work(pfn, addr.raw() & (PAGE_SIZE - 1));
                if self.region.header().roots.zero_pfn.get() != pfn.raw() {
                    self.free_user_pages(&mut [pfn]);
                }
                return Ok(result);
            }
            drop(guard);
            match self.fault_in(space, addr, flags) {
                FaultResult::Done { .. } | FaultResult::Retry => {}
                FaultResult::Oom => return Err(Errno::ENOMEM),
                FaultResult::Sigsegv { .. } | FaultResult::Sigbus { .. } => return Err(Errno::EFAULT),
            }
        }
    }

    /// A reference to the page at `addr`, if it is there and the access is allowed (`follow_page_pte`). The zero page has
    /// none.
    fn pin_page(&self, space: Space, _guard: &AreaGuard<'_, P>, addr: VirtAddr, write: bool) -> Option<Pfn> {
        let table = self.page_table(space.record(), addr.raw())?;
        let word = table.word(addr.raw());
        let _lock = self.lock_table(table);
        let pte = Pte(word.get());
        if !pte.keeps_page() || pte.is_protnone() || write && !pte.is_writable() {
            return None;
        }
        word.fetch_or(Entry::ACCESSED | if write { Entry::DIRTY } else { 0 }, AcqRel);
        if !pte.is_special() {
            self.user_page(pte.frame())._refcount.fetch_add(1, Relaxed);
        }
        Some(pte.pfn())
    }

    /// Brings in all pages from `start` up to `end` (`__mm_populate`): for writing where memory is private and writable, so
    /// that no fault follows.
    ///
    /// # Errors
    /// ENOMEM if something is not mapped or there is no memory, EFAULT for pages that nobody may access or that a file does
    /// not have. What was brought in before stays.
    pub fn mm_populate(&self, space: Space, start: VirtAddr, end: VirtAddr) -> Result<(), Errno> {
        self.populate(space, start, end, |vma| {
            Ok(vma.flags().contains(VmaFlags::WRITE) && !vma.flags().contains(VmaFlags::SHARED))
        })
    }

    /// As [`Self::mm_populate`], for writing or not as `write` says (`faultin_page_range`, `MADV_POPULATE_*`).
    ///
    /// # Errors
    /// As there; EINVAL where an area does not allow it (`check_vma_flags`).
    pub fn faultin_range(&self, space: Space, start: VirtAddr, end: VirtAddr, write: bool) -> Result<(), Errno> {
        let wanted = if write { VmaFlags::WRITE } else { VmaFlags::READ };
        self.populate(space, start, end, |vma| vma.flags().contains(wanted).then_some(write).ok_or(Errno::EINVAL))
    }

    /// As [`Self::mm_populate`], of private areas only that are locked and may be written to: what became so is copied before
    /// anybody writes (`mprotect_fixup`). Whatever comes of it, the areas are what they are.
    pub(crate) fn populate_locked(&self, space: Space, start: VirtAddr, end: VirtAddr) {
        let mut at = start;
        while let Some(area) = self.find_vma(space, at).filter(|area| area.start < end) {
            let (from, to) = (area.start.max(at), area.end.min(end));
            if area.flags.contains(VmaFlags::LOCKED.with(VmaFlags::WRITE))
                && !area.flags.intersects(VmaFlags::LOCKONFAULT.with(VmaFlags::SHARED))
            {
                let _ = self.mm_populate(space, from, to);
            }
            at = area.end;
        }
    }

    fn populate(
        &self,
        space: Space,
        start: VirtAddr,
        end: VirtAddr,
        is_write: impl Fn(Vma) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        let mut addr = start.raw() & !(PAGE_SIZE - 1);
        while addr < end.raw() {
            let at = VirtAddr::new(addr);
            let guard = self.area_guard(space, at).ok_or(Errno::ENOMEM)?;
            let write = is_write(guard.vma())?;
            let entry = self.entry_at(space, guard.vma(), at).map(|entry| Pte(entry.0));
            drop(guard);
            if entry.is_none_or(|pte| pte.is_protnone() || write && !pte.is_writable()) {
                let flags = FaultFlags::REMOTE.with(if write { FaultFlags::WRITE } else { FaultFlags::NONE });
                match self.fault_in(space, at, flags) {
                    FaultResult::Done { .. } => {}
                    FaultResult::Retry => continue,
                    FaultResult::Oom => return Err(Errno::ENOMEM),
                    FaultResult::Sigsegv { .. } | FaultResult::Sigbus { .. } => return Err(Errno::EFAULT),
                }
            }
            addr += PAGE_SIZE;
        }
        Ok(())
    }
}
