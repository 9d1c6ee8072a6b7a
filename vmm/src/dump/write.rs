//! Writing a dump.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::layout::{PAGE_OFFSET, START_KERNEL_MAP};
use pagevisor_shared::region::records::ResourceKind;

use super::format::{
    self, Description, DumpNode, EHDR_SIZE, FORMAT, NT_DESCRIPTION, NT_PRSTATUS, OWNER, PAGE, PHDR_SIZE, Segment,
};
use super::{DumpError, Dumped};
use crate::kvm::CpuRegisters;
use crate::state::StateView;

/// Bytes that are copied at a time.
const CHUNK: u64 = 1 << 20;

/// A range of guest memory and its place in the file.
#[derive(Clone, Debug)]
struct Placed {
    memory: Range<u64>,
    offset: u64,
}

/// Removes what is half written, unless all went well.
struct Partial {
    path: PathBuf,
    done: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.done {
            // There is nothing else to be done about it, and an error is on its way already.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes the guest's memory, state region and registers to an ELF core file at `path`. The guest does not run
/// meanwhile.
///
/// The file has holes where the guest's memory has them. It is written as `path.part` and gets its name when it is
/// complete.
///
/// # Errors
/// When the file cannot be written, such as on a full disk; then there is none.
pub fn write(view: &StateView, registers: &[CpuRegisters], path: &Path) -> Result<Dumped, DumpError> {
    let mut name = path.file_name().ok_or_else(|| DumpError::NoFile(path.into()))?.to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let failed = |source| DumpError::Write { path: path.into(), source };
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&part).map_err(failed)?;
    let mut partial = Partial { path: part, done: false };
    let writer = Writer { view, file: &file, path };
    let dumped = writer.write(registers)?;
    std::fs::rename(&partial.path, path).map_err(failed)?;
    partial.done = true;
    Ok(dumped)
}

/// As [`write()`], into an empty file; `name` is what errors call it.
///
/// # Errors
/// When the file cannot be written; what is in it then is no dump.
pub fn write_to(view: &StateView, registers: &[CpuRegisters], file: &File, name: &Path) -> Result<Dumped, DumpError> {
    Writer { view, file, path: name }.write(registers)
}

struct Writer<'w> {
    view: &'w StateView,
    file: &'w File,
    path: &'w Path,
}

impl Writer<'_> {
    fn write(&self, registers: &[CpuRegisters]) -> Result<Dumped, DumpError> {
        let region = self.view.region_bytes();
        let memory = self.view.memory().ranges();
        let mut description = self.describe(registers, region.len() as u64);
        // The notes tell where the region is, and where it is depends on their length: leave room for the longest number.
        let room = notes(&description, registers).len() + 32;
        let headers = EHDR_SIZE + PHDR_SIZE * (memory.len() + 4);
        let region_offset = ((headers + room) as u64).next_multiple_of(PAGE);
        description.region_offset = region_offset;
        let notes = notes(&description, registers);
        let mut offset = region_offset + (region.len() as u64).next_multiple_of(PAGE);
        let mut placed = Vec::new();
        for range in memory {
            let size = range.end - range.start;
            placed.push(Placed { memory: range, offset });
            offset += size.next_multiple_of(PAGE);
        }
        let head = self.head(&description, &placed, &notes);
        let total = offset;
        self.file.set_len(total).map_err(|source| self.failed(source))?;
        self.put(&head, 0)?;
        self.put(&region, region_offset)?;
        let mut written = (head.len() + region.len()) as u64;
        for range in &placed {
            written += self.copy(range)?;
        }
        Ok(Dumped { size: total, written })
    }

    fn failed(&self, source: io::Error) -> DumpError {
        DumpError::Write { path: self.path.into(), source }
    }

    fn put(&self, bytes: &[u8], offset: u64) -> Result<(), DumpError> {
        self.file.write_all_at(bytes, offset).map_err(|source| self.failed(source))
    }

    /// What the dump says of itself; the region's place is not known yet.
    fn describe(&self, registers: &[CpuRegisters], region_size: u64) -> Description {
        let region = self.view.region();
        let nodes = region.nodes().iter().map(|node| DumpNode {
            cpus: (0..region.nr_cpus()).filter(|cpu| node.cpus.load(Relaxed) >> cpu & 1 != 0).collect(),
            pages: node.node_present_pages.load(Relaxed),
        });
        let distances = region.distances().iter().map(|distance| distance.load(Relaxed)).collect::<Vec<_>>();
        Description {
            format: FORMAT,
            abi: pagevisor_shared::ABI_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            nodes: nodes.collect(),
            distances: distances.chunks(region.nr_nodes().max(1)).map(<[u8]>::to_vec).collect(),
            region_phys: region.header().roots.region_phys.load(Relaxed),
            region_offset: 0,
            region_size,
            registers: registers.to_vec(),
        }
    }

    /// Header, program headers and notes.
    fn head(&self, description: &Description, placed: &[Placed], notes: &[u8]) -> Vec<u8> {
        let mut segments: Vec<Segment> = placed
            .iter()
            .map(|Placed { memory, offset }| {
                let virt = PAGE_OFFSET.wrapping_add(memory.start);
                Segment::data(memory.start, virt, memory.end - memory.start, *offset)
            })
            .collect();
        let virt = self.view.region().header().roots.region_virt.load(Relaxed);
        let Description { region_phys, region_offset, region_size, .. } = *description;
        segments.push(Segment::data(region_phys, virt, region_size, region_offset));
        segments.extend(self.image(placed));
        segments.sort_by_key(|segment| segment.virt);
        let count = segments.len() + 1;
        let mut head = format::header(u16::try_from(count).unwrap_or(u16::MAX));
        let notes_offset = (EHDR_SIZE + PHDR_SIZE * count) as u64;
        Segment::notes(notes.len() as u64, notes_offset).write(&mut head);
        segments.iter().for_each(|segment| segment.write(&mut head));
        head.extend(notes);
        head
    }

    /// The kernel's image at the addresses it is linked for, out of the same bytes of the file.
    fn image(&self, placed: &[Placed]) -> Option<Segment> {
        let parts =
            [ResourceKind::KernelCode, ResourceKind::KernelRodata, ResourceKind::KernelData, ResourceKind::KernelBss];
        let region = self.view.region();
        let records = region.resources().iter();
        let records = records.filter(|record| parts.iter().any(|kind| *kind as u32 == record.kind.load(Relaxed)));
        let ranges = records.map(|record| (record.start.load(Relaxed), record.end.load(Relaxed)));
        let (start, last) = ranges.reduce(|all, range| (all.0.min(range.0), all.1.max(range.1)))?;
        let start = start & !(PAGE - 1);
        let end = last.checked_add(1)?.checked_next_multiple_of(PAGE)?;
        let place = placed.iter().find(|place| place.memory.start <= start && end <= place.memory.end)?;
        let size = end.checked_sub(start)?;
        let offset = place.offset + (start - place.memory.start);
        Some(Segment::image(start, START_KERNEL_MAP.wrapping_add(start), size, offset))
    }

    /// Copies a range of memory, but for what is zero; gives how many bytes it wrote.
    fn copy(&self, place: &Placed) -> Result<u64, DumpError> {
        let mut buffer = vec![0; CHUNK as usize];
        let (mut next, mut written) = (place.memory.start, 0);
        while let Some(data) = self.view.memory().next_data(next..place.memory.end)? {
            let len = (data.end - data.start).min(CHUNK);
            let Some(bytes) = buffer.get_mut(..len as usize) else { break };
            self.view.memory().read(data.start, bytes)?;
            let offset = place.offset + (data.start - place.memory.start);
            written += self.put_sparse(bytes, offset)?;
            next = data.start + len;
        }
        Ok(written)
    }

    /// Writes the pages of `bytes` that are not zero.
    fn put_sparse(&self, bytes: &[u8], offset: u64) -> Result<u64, DumpError> {
        let mut written = 0;
        let is_zero = |page: &&[u8]| page.iter().all(|byte| *byte == 0);
        let pages: Vec<&[u8]> = bytes.chunks(PAGE as usize).collect();
        let mut at = 0;
        for group in pages.chunk_by(|one, other| is_zero(one) == is_zero(other)) {
            let len = group.iter().map(|page| page.len()).sum::<usize>();
            if !group.first().is_some_and(is_zero) {
                self.put(bytes.get(at..at + len).unwrap_or(&[]), offset + at as u64)?;
                written += len as u64;
            }
            at += len;
        }
        Ok(written)
    }
}

/// The registers of all vCPUs, and the description.
fn notes(description: &Description, registers: &[CpuRegisters]) -> Vec<u8> {
    let mut notes = Vec::new();
    for (cpu, registers) in registers.iter().enumerate() {
        format::write_note(&mut notes, "CORE", NT_PRSTATUS, &format::prstatus(cpu, registers));
    }
    // Numbers and strings: this cannot fail.
    let text = serde_json::to_vec(description).unwrap_or_default();
    format::write_note(&mut notes, OWNER, NT_DESCRIPTION, &text);
    notes
}
