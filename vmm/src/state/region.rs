//! The state region, mapped read-only.

use std::fs::File;
use std::io;
use std::ptr::NonNull;

use pagevisor_shared::region::{Header, RegionRef};
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, VolatileMemory};

use super::error::StateError;

/// A mapping of a state region whose header was checked.
#[derive(Debug)]
pub struct RegionMapping {
    /// Points into `map`, which lives as long: never handed out for longer than `self` is borrowed.
    region: RegionRef<'static>,
    map: MmapRegion,
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
        Ok(Self { region, map })
    }

    /// A region in memory of this process, whose content is `bytes`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let invalid = |text: &'static str| StateError::Map(io::Error::new(io::ErrorKind::InvalidData, text));
        if bytes.len() < size_of::<Header>().next_multiple_of(4096) {
            return Err(invalid("it is too small"));
        }
        let map: MmapRegion = MmapRegion::new(bytes.len()).map_err(|error| StateError::Map(io::Error::other(error)))?;
        map.as_volatile_slice().copy_from(bytes);
        let base = NonNull::new(map.as_ptr()).ok_or_else(|| invalid("it has no address"))?;
        // SAFETY: as in `open`.
        let region = unsafe { RegionRef::open(base, bytes.len() as u64) }?;
        Ok(Self { region, map })
    }

    /// A copy of the region's bytes, as many as its layout has.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.region.layout().size as usize];
        self.map.as_volatile_slice().copy_to(&mut bytes);
        bytes
    }

    /// The region.
    pub fn region(&self) -> RegionRef<'_> {
        self.region.clone()
    }
}
