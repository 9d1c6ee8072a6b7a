//! How much a file system in memory may hold (`shmem_sb_info`).

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use pagevisor_shared::mm_types::AddressSpace;

use super::FileMapping;
use super::cache::is_shmem;
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// File systems that can have a limit: those of the lowest numbers.
const SYSTEMS: usize = 8;

/// Pages of a file system's files.
#[derive(Debug)]
struct Blocks {
    /// At most; 0 for as many as there are (`max_blocks`).
    max: AtomicU64,
    /// Now (`used_blocks`).
    used: AtomicU64,
}

/// Pages of file systems, by the number of their device.
#[derive(Debug)]
pub(crate) struct Limits([Blocks; SYSTEMS]);

impl Limits {
    pub(crate) const fn new() -> Self {
        Self([const { Blocks { max: AtomicU64::new(0), used: AtomicU64::new(0) } }; SYSTEMS])
    }

    fn of(&self, dev: u32) -> Option<&Blocks> {
        self.0.get(dev as usize)
    }
}

impl<P: Platform> Mm<P> {
    /// Lets files of shared memory on `dev`, whose number is below 8, have no more than `pages`, 0 for any number: for who
    /// mounts it, before it has files.
    pub fn set_file_system_limit(&self, dev: u32, pages: u64) {
        if let Some(blocks) = self.files.limits.of(dev) {
            blocks.max.store(pages, Relaxed);
        }
    }

    /// Pages that the files of shared memory on `dev` may have, 0 for any number, and those that they have (`shmem_statfs`).
    pub fn file_system_usage(&self, dev: u32) -> (u64, u64) {
        self.files.limits.of(dev).map_or((0, 0), |blocks| (blocks.max.load(Relaxed), blocks.used.load(Relaxed)))
    }

    /// Counts a page more of a file's, if its file system may have one (`shmem_inode_acct_block`).
    pub(super) fn take_block(&self, mapping: FileMapping) -> bool {
        let Some(blocks) = self.blocks_of(mapping) else { return true };
        let max = blocks.max.get();
        let more = |used: u64| if used >= max { None } else { Some(used + 1) };
        blocks.used.fetch_update(AcqRel, Acquire, more).is_ok()
    }

    /// Counts a page less (`shmem_inode_unacct_blocks`).
    pub(super) fn give_block(&self, mapping: FileMapping) {
        if let Some(blocks) = self.blocks_of(mapping) {
            blocks.used.fetch_sub(1, AcqRel);
        }
    }

    fn blocks_of(&self, mapping: FileMapping) -> Option<&Blocks> {
        let record: &AddressSpace = mapping.record();
        if !is_shmem(mapping) {
            return None;
        }
        // Who may have any number is not counted: all programs share the memory without a name.
        self.files.limits.of(record.dev.get()).filter(|blocks| blocks.max.get() != 0)
    }
}
