//! A program's segments become areas of its address space: of the file, and of zeros behind what the file has (`elf_map`,
//! `set_brk`, `padzero`).

use core::ops::Range;

use pagevisor_mm::mmap::{Limits, MappedFileRef, MmapRequest, Space};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::MappedFile;
use pagevisor_shared::mm_types::uapi::{MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_PRIVATE, PROT_WRITE};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, VirtAddr};

use super::elf::Segment;
use crate::fs::inode::Inode;
use crate::platform::{self, Kernel};

/// The kernel's memory stack.
type Mm = pagevisor_mm::Mm<Kernel>;

/// Where and how to map.
struct Map<'a> {
    mm: &'a Mm,
    space: Space,
    file: MappedFileRef,
    limits: &'a Limits,
}

/// Gives the reference to the file back.
impl Drop for Map<'_> {
    fn drop(&mut self) {
        self.mm.mapped_file_put(self.file);
    }
}

/// Maps `segments` of `file`, which is called `path`, into `space`.
///
/// # Errors
/// ENOEXEC if the file ends before a segment does, EACCES if it is no regular file; ENOMEM and what else `mmap` gives.
pub fn segments(space: Space, file: &Inode, path: &str, segments: &[Segment], limits: &Limits) -> Result<(), Errno> {
    let mm = platform::mm().ok_or(Errno::ENOMEM)?;
    let mapping = file.mapping().ok_or(Errno::EACCES)?;
    let mode = MappedFile::READ | MappedFile::EXEC;
    let file = mm.mapped_file_new(mapping, path.as_bytes(), mode).ok_or(Errno::ENOMEM)?;
    mm.set_exe_file(space, file);
    let size = mapping.i_size.load(core::sync::atomic::Ordering::Relaxed);
    let (map, Some(first)) = (Map { mm, space, file, limits }, segments.first()) else { return Err(Errno::ENOEXEC) };
    segments.iter().try_for_each(|segment| {
        if segment.file_size != 0 && segment.offset.checked_add(segment.file_size).is_none_or(|end| end > size) {
            return Err(Errno::ENOEXEC);
        }
        map.segment(segment, core::ptr::eq(segment, first))
    })
}

impl Map<'_> {
    /// Maps `segment`: the first where nothing is, the others over what they share a page with.
    fn segment(&self, segment: &Segment, first: bool) -> Result<(), Errno> {
        let place = if first { MAP_FIXED_NOREPLACE } else { MAP_FIXED };
        let start = segment.first_page();
        let behind = segment.addr + segment.file_size;
        let mut zeros = start;
        if segment.file_size != 0 {
            // It begins with what is before the segment in the page.
            let pgoff = segment.offset >> PAGE_SHIFT;
            zeros = behind.next_multiple_of(PAGE_SIZE);
            self.area(start..zeros, segment.prot, place, Some((self.file, pgoff)))?;
        }
        if segment.size > segment.file_size && segment.prot & PROT_WRITE != 0 && behind < zeros {
            let len = (zeros - behind) as usize;
            let page = [0; PAGE_SIZE as usize];
            if self.mm.write_remote_vm(self.space, VirtAddr::new(behind), &page[..len]) != len {
                return Err(Errno::ENOMEM);
            }
        }
        let end = segment.end_page();
        if end > zeros { self.area(zeros..end, segment.prot, place, None) } else { Ok(()) }
    }

    fn area(&self, range: Range<u64>, prot: u32, place: u32, file: Option<(MappedFileRef, u64)>) -> Result<(), Errno> {
        let kind = if file.is_none() { MAP_ANONYMOUS } else { 0 };
        let (addr, len, flags) = (VirtAddr::new(range.start), range.end - range.start, MAP_PRIVATE | place | kind);
        let (file, pgoff) = file.unzip();
        let request = MmapRequest { addr, len, prot, flags, file, pgoff: pgoff.unwrap_or(0) };
        self.mm.do_mmap(self.space, &request, self.limits).map(drop)
    }
}
