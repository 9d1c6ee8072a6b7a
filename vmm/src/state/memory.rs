//! Guest memory by guest-physical address.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::error::{Corrupt, StateError};

/// Reads a guest's memory. The guest may write at the same time: what is read is a copy, and may be a mixture.
pub trait GuestMemory: fmt::Debug + Send + Sync {
    /// Copies the bytes at `gpa`.
    ///
    /// # Errors
    /// [`Corrupt`] when part of the range is not memory, which only an address that came from the guest can cause.
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), StateError>;

    /// Bytes of memory in all: what bounds any walk through it.
    fn size(&self) -> u64;
}

/// A range of guest memory and the file behind it.
#[derive(Clone, Debug)]
pub struct Backing {
    /// Guest-physical address of the first byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// The file.
    pub file: Arc<File>,
    /// Where the range starts in the file.
    pub offset: u64,
}

/// The memory files of a guest.
///
/// They are read, not mapped: a read of memory that the guest never touched gives zeros and leaves it that way,
/// where touching a mapping would allocate the page. Looking at a sparse 1 TiB guest must not make it a dense one.
#[derive(Debug, Default)]
pub struct MemfdMemory {
    /// In order of address, without overlap.
    ranges: Vec<Backing>,
}

impl MemfdMemory {
    /// The memory made of `ranges`; of ranges that overlap, the part in the lower one counts.
    pub fn new(ranges: impl IntoIterator<Item = Backing>) -> Self {
        let mut ranges: Vec<Backing> = ranges.into_iter().collect();
        ranges.sort_by_key(|range| range.start);
        let mut end = 0;
        for range in &mut ranges {
            let cut = u64::saturating_sub(end, range.start).min(range.size);
            range.start = range.start.saturating_add(cut);
            range.offset = range.offset.saturating_add(cut);
            range.size = (range.size - cut).min(u64::MAX - range.start);
            end = end.max(range.start.saturating_add(range.size));
        }
        ranges.retain(|range| range.size != 0);
        Self { ranges }
    }

    /// The range that holds `gpa`.
    fn find(&self, gpa: u64) -> Option<&Backing> {
        let behind = self.ranges.partition_point(|range| range.start <= gpa);
        self.ranges.get(behind.checked_sub(1)?).filter(|range| gpa - range.start < range.size)
    }
}

impl GuestMemory for MemfdMemory {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), StateError> {
        let mut rest = buf;
        let mut at = gpa;
        while !rest.is_empty() {
            let range = self.find(at).ok_or(Corrupt { what: "guest-physical address", at: gpa, found: at })?;
            let inside = at - range.start;
            let here = (range.size - inside).min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at_mut(here);
            let offset = range.offset.saturating_add(inside);
            range.file.read_exact_at(now, offset).map_err(|source| StateError::Read { at, source })?;
            at = at.saturating_add(here as u64);
            rest = later;
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.ranges.iter().fold(0, |sum, range| sum.saturating_add(range.size))
    }
}

/// Reads a little-endian word of 64 bits.
pub(super) fn read_u64(memory: &dyn GuestMemory, gpa: u64) -> Result<u64, StateError> {
    let mut bytes = [0; 8];
    memory.read(gpa, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
