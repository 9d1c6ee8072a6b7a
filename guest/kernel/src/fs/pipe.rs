//! Pipes (`fs/pipe.c`).

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use pagevisor_shared::errno::Errno;

use super::content::FileSystem;
use super::file::{End, File, Name, O_RDONLY, O_WRONLY};
use super::inode::{Inode, Kind};
use super::mode;
use crate::sync::SpinLock;
use crate::task::{Sleep, WaitQueue};

/// Bytes that a pipe holds.
const CAPACITY: usize = 64 << 10;
/// What is written at once comes out in one piece up to this size (`PIPE_BUF`).
const ATOMIC: usize = 4096;

/// A pipe.
#[derive(Debug)]
pub struct Pipe {
    bytes: SpinLock<VecDeque<u8>>,
    readers: AtomicU32,
    writers: AtomicU32,
    changed: WaitQueue,
}

impl Pipe {
    /// A pipe's two ends, to be opened with `flags` beside their direction: the one to read, the one to write.
    pub fn create(flags: u32) -> [Arc<File>; 2] {
        let pipe = Arc::new(Self {
            bytes: SpinLock::new(VecDeque::new()),
            readers: AtomicU32::new(1),
            writers: AtomicU32::new(1),
            changed: WaitQueue::new(),
        });
        let inode = Inode::new(FileSystem::Pipes, mode::PIPE | 0o600, Kind::Pipe);
        [O_RDONLY, O_WRONLY]
            .map(|direction| File::new(Arc::clone(&inode), flags | direction, End::Pipe(Arc::clone(&pipe)), Name::None))
    }

    /// Reads what is there, at least one byte; waits for it unless `now`. Nothing when nobody can write.
    ///
    /// # Errors
    /// EINTR; EAGAIN with `now`.
    pub fn read(&self, to: &mut [u8], now: bool) -> Result<usize, Errno> {
        if to.is_empty() {
            return Ok(0);
        }
        let mut take = || {
            let mut bytes = self.bytes.lock();
            let len = bytes.len().min(to.len());
            for (slot, byte) in to.iter_mut().zip(bytes.drain(..len)) {
                *slot = byte;
            }
            (len > 0 || self.writers.load(Acquire) == 0).then_some(len)
        };
        let taken = match take() {
            None if now => return Err(Errno::EAGAIN),
            None => self.changed.wait_for(Sleep::LIGHT, take)?,
            Some(len) => len,
        };
        if taken > 0 {
            self.changed.wake_all();
        }
        Ok(taken)
    }

    /// Writes the start of `from` and gives how much of it; waits for room unless `now`.
    ///
    /// # Errors
    /// EPIPE when nobody can read, EINTR; EAGAIN with `now`.
    pub fn write(&self, from: &[u8], now: bool) -> Result<usize, Errno> {
        let wanted = if from.len() <= ATOMIC { from.len() } else { 1 };
        let put = || {
            if self.readers.load(Acquire) == 0 {
                return Some(Err(Errno::EPIPE));
            }
            let mut bytes = self.bytes.lock();
            let room = CAPACITY - bytes.len();
            if room < wanted {
                return None;
            }
            let len = room.min(from.len());
            bytes.extend(&from[..len]);
            Some(Ok(len))
        };
        let written = match put() {
            None if now => return Err(Errno::EAGAIN),
            None => self.changed.wait_for(Sleep::LIGHT, put)?,
            Some(result) => result,
        }?;
        self.changed.wake_all();
        Ok(written)
    }

    /// Bytes that can be read at once, and whether somebody could write more; whether there is room, and somebody to read it.
    pub fn poll(&self) -> (usize, bool, bool, bool) {
        let len = self.bytes.lock().len();
        (len, self.writers.load(Relaxed) > 0, len < CAPACITY, self.readers.load(Relaxed) > 0)
    }

    /// One of its ends is closed.
    pub fn close(&self, reads: bool) {
        let end = if reads { &self.readers } else { &self.writers };
        end.fetch_sub(1, AcqRel);
        self.changed.wake_all();
    }
}
