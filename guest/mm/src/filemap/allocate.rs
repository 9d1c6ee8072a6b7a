//! Files get pages before anybody writes to them (`shmem_fallocate`).

use core::sync::atomic::Ordering::Release;

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::AddressSpace;
use pagevisor_shared::mm_types::uapi::F_SEAL_GROW;
use pagevisor_shared::units::PAGE_SIZE;

use super::{FileMapping, MAX_PAGES};
use crate::Mm;
use crate::platform::Platform;
use crate::rwsem;
use crate::sync::Plain;

impl<P: Platform> Mm<P> {
    /// Gives a file of shared memory pages for `len` bytes from `offset` on, and makes it that large unless `keep_size`;
    /// then, other than in Linux, nothing is kept behind the end.
    ///
    /// # Errors
    /// EINVAL for a range that is none, EOPNOTSUPP for other files, EFBIG, EPERM for a sealed file; ENOSPC, and then the file
    /// has nothing more behind its end than before.
    pub fn fallocate(&self, mapping: FileMapping, offset: u64, len: u64, keep_size: bool) -> Result<(), Errno> {
        let end = offset.checked_add(len).filter(|_| len != 0).ok_or(Errno::EINVAL)?;
        if mapping.record().flags.get() & AddressSpace::SHMEM == 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if end > MAX_PAGES * PAGE_SIZE {
            return Err(Errno::EFBIG);
        }
        let lock = &mapping.record().i_rwsem;
        rwsem::down_write(lock, |value| self.platform.wait_on(lock, value));
        let result = self.fallocate_locked(mapping, offset, end, keep_size);
        rwsem::up_write(lock, || self.platform.wake_all(lock));
        result
    }

    fn fallocate_locked(&self, mapping: FileMapping, offset: u64, end: u64, keep_size: bool) -> Result<(), Errno> {
        let record = mapping.record();
        let size = record.i_size.get();
        if !keep_size && record.seals.get() & F_SEAL_GROW != 0 && end > size {
            return Err(Errno::EPERM);
        }
        let end = if keep_size { end.min(size) } else { end };
        let (first, behind) = (offset / PAGE_SIZE, end.div_ceil(PAGE_SIZE));
        for index in first..behind {
            // What was there before stays whatever comes.
            if self.is_cached_at(mapping, index) {
                continue;
            }
            match self.lock_file_page(mapping, index, false) {
                Ok(frame) => {
                    self.unlock_page(frame);
                    self.put_file_page(frame);
                }
                Err(_) => {
                    self.truncate_pages(mapping, size.div_ceil(PAGE_SIZE).max(first), behind);
                    return Err(Errno::ENOSPC);
                }
            }
        }
        if end > size {
            // Release: as for who writes.
            record.i_size.store(end, Release);
        }
        Ok(())
    }
}
