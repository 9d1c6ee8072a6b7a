//! `munmap`.

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, VirtAddr};

use super::account::vm_stat_account;
use super::areas::vma_at_or_above;
use super::lock::MmapWrite;
use super::{PAGE_MASK, Space, Vma};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// `len` in whole pages; 0 if it is that, or too much (`PAGE_ALIGN`).
pub(super) const fn page_align(len: u64) -> u64 {
    len.wrapping_add(PAGE_SIZE - 1) & PAGE_MASK
}

impl<P: Platform> Mm<P> {
    /// Unmaps what there is from `addr` on (`do_munmap`).
    ///
    /// # Errors
    /// EINVAL for a range that is none, ENOMEM if an area would have to be split and cannot be.
    pub fn do_munmap(&self, space: Space, addr: VirtAddr, len: u64) -> Result<(), Errno> {
        self.munmap_locked(&self.mmap_write_lock(space), addr.raw(), len)
    }

    /// As [`Self::do_munmap`], for who has the lock.
    pub(super) fn munmap_locked(&self, held: &MmapWrite<'_, P>, addr: u64, len: u64) -> Result<(), Errno> {
        let size = held.space().record().task_size.get();
        if addr & !PAGE_MASK != 0 || addr > size || len > size - addr {
            return Err(Errno::EINVAL);
        }
        let len = page_align(len);
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        self.munmap_range(held, addr, addr + len)
    }

    /// Unmaps what there is from `start` up to `end`, both at pages (`do_mas_align_munmap`).
    ///
    /// # Errors
    /// ENOMEM; then all is as it was but for where areas meet.
    pub(super) fn munmap_range(&self, held: &MmapWrite<'_, P>, start: u64, end: u64) -> Result<(), Errno> {
        let space = held.space();
        let Some(mut first) = vma_at_or_above(space, start).filter(|vma| vma.start() < end) else { return Ok(()) };
        let alone = first.end() >= end || first.next().is_none_or(|next| next.start() >= end);
        let (from, to) = (start.max(first.start()), end.min(first.end()));
        if alone && (from == first.start()) != (to == first.end()) {
            self.cut(held, first, from, to);
            return Ok(());
        }
        if start > first.start() {
            if end < first.end() {
                // There will be one more.
                self.may_have_more(space, 0)?;
            }
            held.split_vma_unchecked(first, start, false)?;
            let Some(behind) = first.next() else { return Ok(()) };
            first = behind;
        }
        // The last may have to be split, too; nothing has gone until then.
        let (mut count, mut last) = (1, first);
        while last.end() < end
            && let Some(next) = last.next().filter(|next| next.start() < end)
        {
            (count, last) = (count + 1, next);
        }
        if last.end() > end {
            held.split_vma_unchecked(last, end, true)?;
            if count == 1 {
                let Some(below) = last.prev() else { return Ok(()) };
                first = below;
            }
        }
        self.unmap_areas(held, first, count);
        Ok(())
    }

    /// Unmaps one end of `vma`, from `start` up to `end`: what is left is as if it had been split and the other part had gone,
    /// but no area is made for that.
    fn cut(&self, held: &MmapWrite<'_, P>, vma: Vma, start: u64, end: u64) {
        let (space, flags, pages) = (held.space(), vma.flags(), (end - start) >> PAGE_SHIFT);
        let keeps_start = start > vma.start();
        let beyond = vma.next().map_or(0, Vma::start);
        let (floor, ceiling) = if keeps_start { (start, beyond) } else { (vma.prev().map_or(0, Vma::end), end) };
        self.unmap_end(held, vma, (start, end), (floor, ceiling), || {
            let (left, right) = if keeps_start { (vma.start(), start) } else { (end, vma.end()) };
            held.shrink(vma, left, right);
        });
        if flags.contains(VmaFlags::LOCKED) {
            space.record().locked_vm.drop_by(pages);
        }
        vm_stat_account(space, flags, -(pages as i64));
        if flags.contains(VmaFlags::ACCOUNT) {
            self.vm_unacct_memory(pages);
        }
    }

    /// Unmaps `count` areas from `first` on (`unmap_region`, `remove_mt`).
    fn unmap_areas(&self, held: &MmapWrite<'_, P>, first: Vma, count: usize) {
        let space = held.space();
        let floor = first.prev().map_or(0, Vma::end);
        // Areas that were taken out still lead to the next one.
        let areas = || core::iter::successors(Some(first), |vma| vma.next()).take(count);
        let mut promised = 0;
        for vma in areas() {
            let (flags, pages) = (vma.flags(), vma.pages());
            if flags.contains(VmaFlags::LOCKED) {
                space.record().locked_vm.drop_by(pages);
            }
            if flags.contains(VmaFlags::ACCOUNT) {
                promised += pages;
            }
            vm_stat_account(space, flags, -(pages as i64));
            held.unlink(vma);
        }
        let ceiling = areas().last().and_then(Vma::next).map_or(0, Vma::start);
        self.unmap_region(held, areas(), floor, ceiling);
        if promised != 0 {
            self.vm_unacct_memory(promised);
        }
        let mut next = Some(first);
        for _ in 0..count {
            let Some(vma) = next else { break };
            next = vma.next();
            self.remove_vma(vma);
        }
    }
}
