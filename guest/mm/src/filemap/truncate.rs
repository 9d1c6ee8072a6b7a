//! Files are cut, and who maps them loses the pages (`mm/truncate.c`, `unmap_mapping_range`).

use core::sync::atomic::Ordering::{Acquire, Release};

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::{F_SEAL_FUTURE_WRITE, F_SEAL_GROW, F_SEAL_SHRINK, F_SEAL_WRITE};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, Pfn};

use super::cache::mark_dirty;
use super::{FileMapping, MAX_PAGES};
use crate::Mm;
use crate::mmap::Vma;
use crate::platform::Platform;
use crate::raw::UserMemory;
use crate::rwsem;
use crate::sync::{self, Plain};

impl<P: Platform> Mm<P> {
    /// Makes a file `size` bytes large (`shmem_setattr`). What is cut off is not mapped any more, neither are private
    /// copies of it.
    ///
    /// # Errors
    /// EFBIG, EPERM for a sealed file.
    pub fn truncate(&self, mapping: FileMapping, size: u64) -> Result<(), Errno> {
        if size > MAX_PAGES * PAGE_SIZE {
            return Err(Errno::EFBIG);
        }
        let lock = &mapping.record().i_rwsem;
        rwsem::down_write(lock, |value| self.platform.wait_on(lock, value));
        let result = self.truncate_locked(mapping, size);
        rwsem::up_write(lock, || self.platform.wake_all(lock));
        result
    }

    fn truncate_locked(&self, mapping: FileMapping, size: u64) -> Result<(), Errno> {
        let record = mapping.record();
        let old = record.i_size.get();
        let sealed = if size < old { F_SEAL_SHRINK } else { F_SEAL_GROW };
        if size != old && record.seals.get() & sealed != 0 {
            return Err(Errno::EPERM);
        }
        // Release: who locks a page behind the end after this finds that it is.
        record.i_size.store(size, Release);
        if size < old {
            let first = size.div_ceil(PAGE_SIZE);
            self.unmap_mapping_range(mapping, first, MAX_PAGES - first, true);
            self.truncate_pages(mapping, first, MAX_PAGES);
            // Copies that were made until their pages were locked here.
            self.unmap_mapping_range(mapping, first, MAX_PAGES - first, true);
            // What lies behind the end in the last page, should the file grow again.
            self.zero_bytes(mapping, size, size.next_multiple_of(PAGE_SIZE));
        }
        Ok(())
    }

    /// Makes `len` bytes of a file from `offset` on zero, and gives up the pages that are all among them
    /// (`FALLOC_FL_PUNCH_HOLE`, `MADV_REMOVE`). Private copies stay.
    ///
    /// # Errors
    /// EINVAL for a range that is none, EPERM for a sealed file.
    pub fn punch_hole(&self, mapping: FileMapping, offset: u64, len: u64) -> Result<(), Errno> {
        let end = offset.checked_add(len).filter(|_| len != 0).ok_or(Errno::EINVAL)?.min(MAX_PAGES * PAGE_SIZE);
        let lock = &mapping.record().i_rwsem;
        rwsem::down_write(lock, |value| self.platform.wait_on(lock, value));
        let result = if mapping.record().seals.get() & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) != 0 {
            Err(Errno::EPERM)
        } else {
            let (first, behind) = (offset.div_ceil(PAGE_SIZE), end / PAGE_SIZE);
            if first < behind {
                self.unmap_mapping_range(mapping, first, behind - first, false);
                self.truncate_pages(mapping, first, behind);
            }
            self.zero_bytes(mapping, offset, end.min(offset.next_multiple_of(PAGE_SIZE)));
            if behind >= first {
                self.zero_bytes(mapping, behind * PAGE_SIZE, end);
            }
            Ok(())
        };
        rwsem::up_write(lock, || self.platform.wake_all(lock));
        result
    }

    /// Makes the bytes from `start` up to `end`, all of one page, zero, if the page is there.
    fn zero_bytes(&self, mapping: FileMapping, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let Some(frame) = self.find_get_page(mapping, start / PAGE_SIZE) else { return };
        self.lock_page(frame);
        if self.is_page_of(frame, mapping) {
            let zeros = [0; 256];
            let memory = UserMemory::new(self.direct_map());
            let mut at = start;
            while at < end {
                let now = &zeros[..zeros.len().min((end - at) as usize)];
                at += memory.write(Pfn::new(frame.into()), at & (PAGE_SIZE - 1), now) as u64;
            }
            mark_dirty(self.user_page(frame));
        }
        self.unlock_page(frame);
        self.put_file_page(frame);
    }

    /// Takes all pages from `first` up to `end` out of a file (`truncate_inode_pages_range`).
    pub(super) fn truncate_pages(&self, mapping: FileMapping, first: u64, end: u64) {
        let mut from = first;
        while let Some((index, frame)) = self.find_next_page(mapping, from) {
            if index >= end {
                self.put_file_page(frame);
                break;
            }
            self.lock_page(frame);
            if self.is_page_of(frame, mapping) {
                // Areas that are moving, or are being forked, may be missed once; no new entry is made meanwhile but
                // from another.
                while self.user_page(frame)._mapcount.load(Acquire) != 0 {
                    self.unmap_mapping_range(mapping, index, 1, false);
                    self.platform.relax();
                }
                self.delete_page(mapping, frame);
            }
            self.unlock_page(frame);
            self.put_file_page(frame);
            from = index + 1;
        }
    }

    /// Unmaps `count` pages of a file from page `first` on wherever they are mapped; with `even_cows` also what private
    /// areas have instead of them (`unmap_mapping_pages`).
    pub fn unmap_mapping_range(&self, mapping: FileMapping, first: u64, count: u64, even_cows: bool) {
        let end = first.saturating_add(count);
        self.lock_areas(mapping);
        let areas = core::iter::successors(mapping.first_area(), |vma| vma.shared_next());
        for vma in areas {
            let (from, to) = (vma.pgoff().max(first), (vma.pgoff() + vma.pages()).min(end));
            if from < to {
                let at = |index: u64| vma.start() + ((index - vma.pgoff()) << PAGE_SHIFT);
                self.zap_file_range(vma, at(from), at(to), even_cows);
            }
        }
        self.unlock_areas(mapping);
    }

    /// From now on the areas that map a file, and where they lie, stay as they are (`i_mmap_lock_write`).
    pub(crate) fn lock_areas(&self, mapping: FileMapping) {
        sync::lock(&mapping.record().i_mmap_lock, || self.platform.relax());
    }

    /// Gives that back.
    pub(crate) fn unlock_areas(&self, mapping: FileMapping) {
        sync::unlock(&mapping.record().i_mmap_lock);
    }

    /// Whether page of `vma` at `addr` is in memory although nobody may have mapped it (`mincore_page`).
    pub(crate) fn is_cached(&self, vma: Vma, addr: u64) -> bool {
        let mapping = vma.file().and_then(|file| file.mapping());
        mapping.is_some_and(|mapping| self.is_cached_at(mapping, vma.index_of(addr)))
    }

    /// Whether page `index` of a file is in memory.
    pub(crate) fn is_cached_at(&self, mapping: FileMapping, index: u64) -> bool {
        self.find_get_page(mapping, index).inspect(|frame| self.put_file_page(*frame)).is_some()
    }
}
