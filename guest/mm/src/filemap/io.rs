//! Reading and writing (`shmem_file_read_iter`, `generic_perform_write`).

use core::sync::atomic::Ordering::{Acquire, Release};

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::{F_SEAL_FUTURE_WRITE, F_SEAL_GROW, F_SEAL_WRITE};
use pagevisor_shared::units::{PAGE_SIZE, Pfn};

use super::cache::mark_dirty;
use super::{FileMapping, MAX_PAGES};
use crate::Mm;
use crate::platform::Platform;
use crate::raw::UserMemory;
use crate::rwsem;
use crate::sync::Plain;

/// Bytes that a file can have (`s_maxbytes`).
const MAX_BYTES: u64 = MAX_PAGES * PAGE_SIZE;

impl<P: Platform> Mm<P> {
    /// Reads a file from `offset` on; gives how many bytes there were. What was never written is zero, and takes no page.
    pub fn file_read(&self, mapping: FileMapping, offset: u64, to: &mut [u8]) -> usize {
        let mut done = 0;
        while done < to.len() {
            let at = offset.saturating_add(done as u64);
            let left = mapping.record().i_size.load(Acquire).saturating_sub(at);
            let in_page = at & (PAGE_SIZE - 1);
            let now = left.min(PAGE_SIZE - in_page).min((to.len() - done) as u64) as usize;
            if now == 0 {
                break;
            }
            let part = &mut to[done..done + now];
            match self.find_get_page(mapping, at / PAGE_SIZE) {
                Some(frame) => {
                    UserMemory::new(self.direct_map()).read(Pfn::new(frame.into()), in_page, part);
                    self.put_file_page(frame);
                }
                None => part.fill(0),
            }
            done += now;
        }
        done
    }

    /// Writes to a file from `offset` on, which becomes larger if need be; gives how many bytes were written.
    ///
    /// # Errors
    /// If none were: EFBIG, ENOSPC if there is no memory, EPERM for a sealed file.
    pub fn file_write(&self, mapping: FileMapping, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        if from.is_empty() {
            return Ok(0);
        }
        let from = match MAX_BYTES.checked_sub(offset) {
            None | Some(0) => return Err(Errno::EFBIG),
            Some(room) => &from[..from.len().min(room.min(usize::MAX as u64) as usize)],
        };
        let lock = &mapping.record().i_rwsem;
        rwsem::down_write(lock, |value| self.platform.wait_on(lock, value));
        let result = self.write_locked(mapping, offset, from);
        rwsem::up_write(lock, || self.platform.wake_all(lock));
        result
    }

    /// As [`Self::file_write`], to the end of the file; gives where it ended, too.
    ///
    /// # Errors
    /// As there.
    pub fn file_append(&self, mapping: FileMapping, from: &[u8]) -> Result<(u64, usize), Errno> {
        let lock = &mapping.record().i_rwsem;
        rwsem::down_write(lock, |value| self.platform.wait_on(lock, value));
        let end = mapping.record().i_size.get();
        let result = match MAX_BYTES.saturating_sub(end).min(usize::MAX as u64) as usize {
            _ if from.is_empty() => Ok(0),
            0 => Err(Errno::EFBIG),
            room => self.write_locked(mapping, end, &from[..from.len().min(room)]),
        };
        rwsem::up_write(lock, || self.platform.wake_all(lock));
        result.map(|written| (end + written as u64, written))
    }

    fn write_locked(&self, mapping: FileMapping, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        let record = mapping.record();
        let seals = record.seals.get();
        if seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE) != 0
            || seals & F_SEAL_GROW != 0 && offset + from.len() as u64 > record.i_size.get()
        {
            return Err(Errno::EPERM);
        }
        let mut done = 0;
        while done < from.len() {
            let at = offset + done as u64;
            let Ok(frame) = self.lock_file_page(mapping, at / PAGE_SIZE, false) else { break };
            let memory = UserMemory::new(self.direct_map());
            done += memory.write(Pfn::new(frame.into()), at & (PAGE_SIZE - 1), &from[done..]);
            mark_dirty(self.user_page(frame));
            let end = offset + done as u64;
            if end > record.i_size.get() {
                // Release: who finds the file that large finds what was written.
                record.i_size.store(end, Release);
            }
            self.unlock_page(frame);
            self.put_file_page(frame);
        }
        if done == 0 { Err(Errno::ENOSPC) } else { Ok(done) }
    }
}
