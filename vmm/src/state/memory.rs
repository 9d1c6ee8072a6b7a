//! Guest memory by guest-physical address.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
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

    /// The addresses that have memory, ascending and apart from each other.
    fn ranges(&self) -> Vec<Range<u64>>;

    /// The first part of `within` that may hold anything but zeros; `None` when all of it is zero, or is no memory. It
    /// lies in one of [`Self::ranges`] and is never empty.
    ///
    /// # Errors
    /// When the host does not tell.
    fn next_data(&self, within: Range<u64>) -> Result<Option<Range<u64>>, StateError>;
}

/// Where data begin at or after `offset` of `file`, or where they end (`lseek` with `SEEK_DATA` or `SEEK_HOLE`). `None`
/// beyond the last of them. A file system that cannot tell says that everything is data.
fn seek(file: &File, offset: u64, whence: libc::c_int) -> io::Result<Option<u64>> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: takes three integers and touches no memory. Nobody relies on the file's position: all reads name theirs.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

impl Backing {
    /// The first data of this range in guest addresses `within`, which lie in the range.
    fn next_data(&self, within: &Range<u64>) -> io::Result<Option<Range<u64>>> {
        let place = |address: u64| self.offset.saturating_add(address - self.start);
        let Some(start) = seek(&self.file, place(within.start), libc::SEEK_DATA)? else { return Ok(None) };
        let end = seek(&self.file, start, libc::SEEK_HOLE)?.unwrap_or(u64::MAX);
        // The file is untrusted where it is a dump: what it says is kept within what was asked for.
        let address = |place: u64| place.saturating_sub(self.offset).saturating_add(self.start);
        let found = address(start).max(within.start)..address(end).min(within.end);
        Ok((found.start < found.end).then_some(found))
    }
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

    fn ranges(&self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for range in &self.ranges {
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.start + range.size,
                _ => ranges.push(range.start..range.start + range.size),
            }
        }
        ranges
    }

    fn next_data(&self, within: Range<u64>) -> Result<Option<Range<u64>>, StateError> {
        let first = self.ranges.partition_point(|range| range.start + range.size <= within.start);
        for range in self.ranges.iter().skip(first).take_while(|range| range.start < within.end) {
            let part = range.start.max(within.start)..(range.start + range.size).min(within.end);
            let found = range.next_data(&part).map_err(|source| StateError::Read { at: part.start, source })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// Reads a little-endian word of 64 bits.
pub(super) fn read_u64(memory: &dyn GuestMemory, gpa: u64) -> Result<u64, StateError> {
    let mut bytes = [0; 8];
    memory.read(gpa, &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
