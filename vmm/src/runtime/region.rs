//! A guest's state region, mapped by somebody who may only look.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

use pagevisor_shared::region::log::{LOG_BYTES, LogRing};
use pagevisor_shared::region::{GuestState, Header, RegionLayout, RegionRef};
use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

/// The mapping. It stays valid when the guest ends, and shows how it ended.
#[derive(Debug)]
pub struct RegionMap(MmapRegion);

impl RegionMap {
    /// Maps the region behind `fd`.
    ///
    /// # Errors
    /// When it is shorter than a region can be, or cannot be mapped.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let size = file.metadata()?.len();
        // The smallest region: reading beyond a file's end would be a fault, not an error.
        if size < RegionLayout::new(1, 1).size || size < RegionLayout::LOG_OFFSET + LOG_BYTES + 64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a state region of {size} bytes")));
        }
        let offset = Some(FileOffset::new(file, 0));
        let map = MmapRegion::build(offset, size as usize, libc::PROT_READ, libc::MAP_SHARED);
        let map = map.map_err(io::Error::other)?;
        if map.as_ptr().is_null() { Err(io::ErrorKind::InvalidData.into()) } else { Ok(Self(map)) }
    }

    fn base(&self) -> NonNull<u8> {
        // SAFETY: `new` refuses a null mapping.
        unsafe { NonNull::new_unchecked(self.0.as_ptr()) }
    }

    /// The log ring, which is there before anything else is.
    pub fn log(&self) -> LogRing<'_> {
        // SAFETY: `new` mapped that many bytes, page-aligned, for the life of `self`; this process only reads them,
        // as atomics. (`LogRing::write` would fault; nothing here calls it.)
        unsafe { RegionRef::log_at(self.base()) }
    }

    /// The header, which may hold anything.
    fn header(&self) -> &Header {
        // SAFETY: as in `log`.
        unsafe { RegionRef::header_at(self.base()) }
    }

    /// How far the guest has come; `None` when the word holds no such state.
    pub fn state(&self) -> Option<GuestState> {
        GuestState::new(self.header().state.load(Ordering::Acquire))
    }
}
