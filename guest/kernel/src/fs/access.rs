//! A file is written to or executed, but not both (`get_write_access`, `deny_write_access`): a count of who has it open for
//! writing, or, below 0, of who executes it (`i_writecount`).

use alloc::sync::Arc;
use core::ops::Deref;
use core::sync::atomic::AtomicI32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use pagevisor_shared::errno::Errno;

use super::inode::Inode;

/// The count.
#[derive(Debug, Default)]
pub struct WriteCount(AtomicI32);

impl WriteCount {
    /// Takes a step away from 0, unless others are on its other side.
    fn step(&self, by: i32) -> Result<(), Errno> {
        let next = |count: i32| if count.signum() == -by { None } else { count.checked_add(by) };
        self.0.fetch_update(AcqRel, Acquire, next).map(drop).map_err(|_| Errno::ETXTBSY)
    }

    fn step_back(&self, by: i32) {
        self.0.fetch_sub(by, AcqRel);
    }
}

/// Somebody may write to a file; while this lives nobody executes it.
#[derive(Debug)]
pub struct Written(Arc<Inode>);

impl Written {
    /// For who is going to write to `inode` (`get_write_access`).
    ///
    /// # Errors
    /// ETXTBSY if it is executed.
    pub fn new(inode: &Arc<Inode>) -> Result<Self, Errno> {
        inode.writers.step(1)?;
        Ok(Self(Arc::clone(inode)))
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        self.0.writers.step_back(1);
    }
}

/// Somebody executes a file; while this lives nobody writes to it.
#[derive(Debug)]
pub struct Executed(Arc<Inode>);

impl Executed {
    /// For who is going to execute `inode` (`deny_write_access`).
    ///
    /// # Errors
    /// ETXTBSY if it is open for writing, or mapped so.
    pub fn new(inode: &Arc<Inode>) -> Result<Self, Errno> {
        inode.writers.step(-1)?;
        let executed = Self(Arc::clone(inode));
        // In Linux an area keeps its file open; here it keeps what is in it.
        let is_mapped = inode.mapping().is_some_and(|mapping| mapping.i_mmap_writable.load(Relaxed) != 0);
        if is_mapped { Err(Errno::ETXTBSY) } else { Ok(executed) }
    }
}

impl Clone for Executed {
    fn clone(&self) -> Self {
        // Below 0 already, so nobody is on the other side.
        self.0.writers.0.fetch_sub(1, AcqRel);
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Executed {
    fn drop(&mut self) {
        self.0.writers.step_back(-1);
    }
}

impl Deref for Executed {
    type Target = Arc<Inode>;

    fn deref(&self) -> &Arc<Inode> {
        &self.0
    }
}
