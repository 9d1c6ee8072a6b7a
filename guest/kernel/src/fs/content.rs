//! What is in regular files: pages that the memory stack keeps, whether they are read, written or mapped
//! (`fs/ramfs`, `mm/shmem.c`). There is no other copy.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::filemap::{FileMapping, MappingKind};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::F_SEAL_SEAL;

use crate::platform;

/// File systems, by the number of the device that files of them are said to be on (`get_anon_bdev`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileSystem {
    /// Files without a name: those of `memfd_create` (`shm_mnt`).
    Unnamed = 1,
    /// The root, a ramfs.
    Root = 2,
    /// `/proc`.
    Proc = 3,
    /// `/tmp`, a tmpfs.
    Temporary = 4,
    /// `/dev/shm`, another one.
    Shared = 5,
    /// Pipes.
    Pipes = 6,
}

impl FileSystem {
    /// Its number, as `stat` and `maps` show it: a minor one, the major one is 0.
    pub const fn device(self) -> u32 {
        self as u32
    }

    /// Whether its files are shared memory: they can be sealed, and have holes punched into them.
    pub const fn is_shmem(self) -> bool {
        matches!(self.kind(), MappingKind::Shmem)
    }

    /// Lets its files have half of all memory (`shmem_default_max_blocks`).
    pub fn limit_to_half(self) {
        if let Some(mm) = platform::mm() {
            let pages: u64 = mm.region().zones().iter().map(|zone| zone.managed_pages.load(Relaxed)).sum();
            mm.set_file_system_limit(self.device(), (pages / 2).max(1));
        }
    }

    /// Pages that its files may have, 0 for any number, and those that they have.
    pub fn usage(self) -> (u64, u64) {
        platform::mm().map_or((0, 0), |mm| mm.file_system_usage(self.device()))
    }

    /// Its type, as `statfs` tells it (`uapi/linux/magic.h`).
    pub const fn magic(self) -> u64 {
        match self {
            Self::Unnamed | Self::Temporary | Self::Shared => 0x0102_1994,
            Self::Root => 0x8584_58f6,
            Self::Proc => 0x9fa0,
            Self::Pipes => 0x5049_5045,
        }
    }

    /// How pages of its files count.
    const fn kind(self) -> MappingKind {
        match self {
            Self::Unnamed | Self::Temporary | Self::Shared => MappingKind::Shmem,
            Self::Root | Self::Proc | Self::Pipes => MappingKind::Ram,
        }
    }
}

/// What is in a regular file.
#[derive(Debug)]
pub struct Content(FileMapping);

impl Drop for Content {
    fn drop(&mut self) {
        if let Some(mm) = platform::mm() {
            mm.mapping_put(self.0);
        }
    }
}

impl Content {
    /// Nothing yet, of the file with number `number`. It may be sealed if `may_be_sealed`.
    ///
    /// # Errors
    /// ENOSPC.
    pub fn new(system: FileSystem, number: u64, may_be_sealed: bool) -> Result<Self, Errno> {
        let mm = platform::mm().ok_or(Errno::ENOSPC)?;
        let mapping = mm.mapping_create(system.kind(), system.device(), number).ok_or(Errno::ENOSPC)?;
        if !may_be_sealed {
            // Nobody has sealed it yet, so nothing forbids that.
            mm.add_seals(mapping, F_SEAL_SEAL)?;
        }
        Ok(Self(mapping))
    }

    /// The pages. They may be used as long as this lives, and longer by who takes a reference.
    pub const fn mapping(&self) -> FileMapping {
        self.0
    }
}
