//! What a file must not suffer any more (`mm/memfd.c`).

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::{F_SEAL_FUTURE_WRITE, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE};

use super::FileMapping;
use crate::Mm;
use crate::platform::Platform;
use crate::rwsem;
use crate::sync::Plain;

/// All seals (`F_ALL_SEALS`).
const ALL: u32 = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE;

impl<P: Platform> Mm<P> {
    /// Adds seals to a file (`memfd_add_seals`).
    ///
    /// # Errors
    /// EINVAL for seals that there are not, EPERM if no more may be added, EBUSY if somebody who maps the file may write
    /// to it.
    pub fn add_seals(&self, mapping: FileMapping, seals: u32) -> Result<(), Errno> {
        if seals & !ALL != 0 {
            return Err(Errno::EINVAL);
        }
        let record = mapping.record();
        rwsem::down_write(&record.i_rwsem, |value| self.platform.wait_on(&record.i_rwsem, value));
        // Areas come under this lock, so none comes between the look at them and the seal.
        self.lock_areas(mapping);
        let result = if record.seals.get() & F_SEAL_SEAL != 0 {
            Err(Errno::EPERM)
        } else if seals & F_SEAL_WRITE != 0
            && record.seals.get() & F_SEAL_WRITE == 0
            && record.i_mmap_writable.get() != 0
        {
            Err(Errno::EBUSY)
        } else {
            record.seals.set(record.seals.get() | seals);
            Ok(())
        };
        self.unlock_areas(mapping);
        rwsem::up_write(&record.i_rwsem, || self.platform.wake_all(&record.i_rwsem));
        result
    }

    /// The seals of a file (`memfd_get_seals`).
    pub fn seals(&self, mapping: FileMapping) -> u32 {
        mapping.record().seals.get()
    }
}
