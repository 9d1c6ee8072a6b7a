//! `mprotect`.

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::mm_types::uapi::{PROT_EXEC, PROT_GROWSDOWN, PROT_GROWSUP, PROT_READ, PROT_SEM, PROT_WRITE};
use pagevisor_shared::units::{PAGE_SHIFT, VirtAddr};

use super::account::{may_expand_vm, vm_stat_account};
use super::areas::vma_at_or_above;
use super::lock::MmapWrite;
use super::map::prot_flags;
use super::unmap::page_align;
use super::{Limits, PAGE_MASK, Space, Vma};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// All that `mprotect` knows.
const PROT_ALL: u32 = PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM;
/// Areas with any of these have been promised their pages, or need not be (`mprotect_fixup`).
const PROMISED: VmaFlags = VmaFlags::ACCOUNT.with(VmaFlags::WRITE).with(VmaFlags::SHARED).with(VmaFlags::NORESERVE);

/// Flags that let `mprotect` set those of access (`VM_MAY*` are `VM_*`, shifted).
const MAY_SHIFT: u32 = 4;

impl<P: Platform> Mm<P> {
    /// Gives the pages from `start` on another protection (`mprotect`).
    ///
    /// # Errors
    /// EINVAL for an address inside a page or flags that there are not, ENOMEM if something is not mapped or there is no
    /// memory, EACCES if an area must not be used like that. What was changed before stays.
    pub fn do_mprotect(
        &self,
        space: Space,
        start: VirtAddr,
        len: u64,
        prot: u32,
        limits: &Limits,
    ) -> Result<(), Errno> {
        let grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP);
        let prot = prot & !grows;
        let mut start = start.raw();
        if grows == PROT_GROWSDOWN | PROT_GROWSUP || start & !PAGE_MASK != 0 {
            return Err(Errno::EINVAL);
        }
        if len == 0 {
            return Ok(());
        }
        let end = start.checked_add(page_align(len)).filter(|end| *end > start).ok_or(Errno::ENOMEM)?;
        if prot & !PROT_ALL != 0 {
            return Err(Errno::EINVAL);
        }
        let held = self.mmap_write_lock(space);
        let first = vma_at_or_above(space, start).ok_or(Errno::ENOMEM)?;
        if grows == PROT_GROWSDOWN {
            if first.start() >= end {
                return Err(Errno::ENOMEM);
            }
            start = first.start();
            if !first.flags().contains(VmaFlags::GROWSDOWN) {
                return Err(Errno::EINVAL);
            }
        } else if first.start() > start {
            return Err(Errno::ENOMEM);
        } else if grows == PROT_GROWSUP {
            // No area does.
            return Err(Errno::EINVAL);
        }
        let done = self.protect_range(&held, first, start, end, prot, limits);
        let locked = space.record().locked_vm.get() != 0;
        drop(held);
        if locked && prot & PROT_WRITE != 0 {
            self.populate_locked(space, VirtAddr::new(start), VirtAddr::new(end));
        }
        done
    }

    /// The areas from `first` on, which holds `start`.
    fn protect_range(
        &self,
        held: &MmapWrite<'_, P>,
        first: Vma,
        start: u64,
        end: u64,
        prot: u32,
        limits: &Limits,
    ) -> Result<(), Errno> {
        let (mut vma, mut at) = (first, start);
        let mut prev = if start > first.start() { Some(first) } else { first.prev() };
        loop {
            let flags = prot_flags(prot).with(vma.flags().without(VmaFlags::ACCESS));
            if flags.0 & !(flags.0 >> MAY_SHIFT) & VmaFlags::ACCESS.0 != 0 {
                return Err(Errno::EACCES);
            }
            let stop = vma.end().min(end);
            let done = self.mprotect_fixup(held, vma, prev, at, stop, flags, limits)?;
            at = stop;
            if at >= end {
                return Ok(());
            }
            prev = Some(done);
            // It may be part of one that goes on.
            vma = if done.end() > at { done } else { done.next().ok_or(Errno::ENOMEM)? };
            if vma.start() > at {
                return Err(Errno::ENOMEM);
            }
        }
    }

    /// Changes the range from `start` up to `end` of `vma`; gives the area it is in then (`mprotect_fixup`).
    #[expect(clippy::too_many_arguments, reason = "Linux's")]
    fn mprotect_fixup(
        &self,
        held: &MmapWrite<'_, P>,
        vma: Vma,
        prev: Option<Vma>,
        start: u64,
        end: u64,
        flags: VmaFlags,
        limits: &Limits,
    ) -> Result<Vma, Errno> {
        let (space, old, pages) = (held.space(), vma.flags(), (end - start) >> PAGE_SHIFT);
        if flags == old {
            return Ok(vma);
        }
        let (mut flags, mut charged) = (flags, 0);
        if flags.contains(VmaFlags::WRITE) {
            if !may_expand_vm(space, flags, pages, limits) && may_expand_vm(space, old, pages, limits) {
                return Err(Errno::ENOMEM);
            }
            if !old.intersects(PROMISED) {
                charged = pages;
                self.vm_enough_memory(Some(space), charged)?;
                flags = flags.with(VmaFlags::ACCOUNT);
            }
        }
        let vma = match held.reflag(vma, prev, start, end, flags) {
            Ok(vma) => vma,
            Err(error) => {
                self.vm_unacct_memory(charged);
                return Err(error);
            }
        };
        self.change_protection(vma, start, end);
        vm_stat_account(space, old, -(pages as i64));
        vm_stat_account(space, flags, pages as i64);
        Ok(vma)
    }
}
