//! The state region, mapped read-only.

use std::fs::File;
use std::io;
use std::ptr::NonNull;

use pagevisor_shared::region::{Header, RegionRef};
use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

use super::error::StateError;

/// A mapping of a state region whose header was checked.
#[derive(Debug)]
pub struct RegionMapping {
    /// Points into `_map`, which lives as long: never handed out for longer than `self` is borrowed.
    region: RegionRef<'static>,
    _map: MmapRegion,
}

impl RegionMapping {
    /// Maps `file` and checks what is in it.
    ///
    /// # Errors
    /// [`StateError::Map`] when it cannot be mapped, [`StateError::Region`] when it is not a region.
    pub fn open(file: &File) -> Result<Self, StateError> {
        let invalid = |text: &'static str| StateError::Map(io::Error::new(io::ErrorKind::InvalidData, text));
        let size = file.metadata().map_err(StateError::Map)?.len();
        if size < size_of::<Header>().next_multiple_of(4096) as u64 {
            return Err(invalid("it is too small"));
        }
        let len = usize::try_from(size).map_err(|_| invalid("it is too large"))?;
        let offset = FileOffset::new(file.try_clone().map_err(StateError::Map)?, 0);
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let map = MmapRegion::build(Some(offset), len, libc::PROT_READ, flags)
            .map_err(|error| StateError::Map(io::Error::other(error)))?;
        let base = NonNull::new(map.as_ptr()).ok_or_else(|| invalid("it has no address"))?;
        // SAFETY: the mapping is page-aligned, `size` bytes long and lives in the same value as the reference, which
        // never hands it out for longer. It is read-only and only accessed through the region's atomics.
        let region = unsafe { RegionRef::open(base, size) }?;
        Ok(Self { region, _map: map })
    }

    /// The region.
    pub fn region(&self) -> RegionRef<'_> {
        self.region.clone()
    }
}
