//! Reading a dump. The file is not trusted: offsets and sizes are checked, and its memory is no better than a guest's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use pagevisor_shared::layout::{PAGE_OFFSET, STATE_REGION_WINDOW};

use super::DumpError;
use super::format::{
    self, Description, EHDR_SIZE, FORMAT, NT_DESCRIPTION, OWNER, PHDR_SIZE, PT_LOAD, PT_NOTE, Segment,
};
use crate::kvm::CpuRegisters;
use crate::state::{Backing, MemfdMemory, StateView};

/// Most bytes of notes.
const MAX_NOTES: u64 = 4 << 20;

/// A dump that was opened.
#[derive(Debug)]
pub struct Dump {
    /// The guest as it was.
    pub view: StateView,
    /// What the dump says of itself.
    pub description: Description,
}

impl Dump {
    /// Opens the dump at `path`.
    ///
    /// # Errors
    /// When it is none, is damaged, or belongs to another version.
    pub fn open(path: &Path) -> Result<Self, DumpError> {
        let file = File::open(path).map_err(|source| DumpError::Read { path: path.into(), source })?;
        Self::of_file(file, path)
    }

    /// The dump in `file`; `name` is what errors call it.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of_file(file: File, name: &Path) -> Result<Self, DumpError> {
        Reader { path: name, len: length(&file, name)?, file: Arc::new(file) }.read()
    }

    /// The vCPUs' registers, by CPU.
    pub fn registers(&self) -> &[CpuRegisters] {
        &self.description.registers
    }

    /// Whether the file at `path` looks like a dump.
    pub fn is_at(path: &Path) -> bool {
        let mut magic = [0; 4];
        File::open(path).is_ok_and(|file| file.read_exact_at(&mut magic, 0).is_ok()) && format::is_elf(&magic)
    }
}

/// Bytes of a regular file: reading a pipe or a device might never end.
fn length(file: &File, path: &Path) -> Result<u64, DumpError> {
    let data = file.metadata().map_err(|source| DumpError::Read { path: path.into(), source })?;
    if data.is_file() { Ok(data.len()) } else { Err(DumpError::NoFile(path.into())) }
}

struct Reader<'r> {
    path: &'r Path,
    len: u64,
    file: Arc<File>,
}

impl Reader<'_> {
    fn damaged(&self, what: &'static str) -> DumpError {
        DumpError::Damaged { path: self.path.into(), what }
    }

    /// The bytes at `offset`.
    fn bytes(&self, offset: u64, len: u64, what: &'static str) -> Result<Vec<u8>, DumpError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(self.damaged(what));
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| self.damaged(what))?];
        self.file.read_exact_at(&mut bytes, offset).map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => self.damaged(what),
            _ => DumpError::Read { path: self.path.into(), source },
        })?;
        Ok(bytes)
    }

    fn read(&self) -> Result<Dump, DumpError> {
        let header = self.bytes(0, EHDR_SIZE as u64, "its ELF header is cut off")?;
        let header = header.first_chunk().and_then(format::parse_header);
        let (offset, count) = header.ok_or_else(|| self.damaged("it is no ELF core file of an x86-64 machine"))?;
        let headers = self.bytes(offset, u64::from(count) * PHDR_SIZE as u64, "its program headers are cut off")?;
        let segments: Vec<Segment> = headers.as_chunks::<PHDR_SIZE>().0.iter().map(Segment::read).collect();
        let description = self.description(&segments)?;
        if description.region_size > STATE_REGION_WINDOW {
            return Err(self.damaged("its state region is too large"));
        }
        let region = self.bytes(description.region_offset, description.region_size, "its state region is cut off")?;
        let memory = MemfdMemory::new(self.memory(&segments)?);
        Ok(Dump { view: StateView::of_dump(&region, Box::new(memory))?, description })
    }

    fn description(&self, segments: &[Segment]) -> Result<Description, DumpError> {
        for notes in segments.iter().filter(|segment| segment.kind == PT_NOTE && segment.size <= MAX_NOTES) {
            let bytes = self.bytes(notes.offset, notes.size, "its notes are cut off")?;
            let Some(text) = format::find_note(&bytes, OWNER, NT_DESCRIPTION) else { continue };
            let value: serde_json::Value =
                serde_json::from_slice(text).map_err(|_| self.damaged("its description is no JSON"))?;
            let number = |key: &str| value.get(key).and_then(serde_json::Value::as_u64);
            let (format, abi) = (number("format"), number("abi"));
            if format != Some(FORMAT.into()) || abi != Some(pagevisor_shared::ABI_VERSION.into()) {
                let found = (format.unwrap_or(0), abi.unwrap_or(0));
                return Err(DumpError::Version { path: self.path.into(), format: found.0, abi: found.1 });
            }
            return serde_json::from_value(value).map_err(|_| self.damaged("its description lacks something"));
        }
        Err(self.damaged("it was not written by `pagevisor dump`"))
    }

    /// The guest's memory: the segments at the addresses of the direct map. Others are the same bytes once more.
    fn memory(&self, segments: &[Segment]) -> Result<Vec<Backing>, DumpError> {
        let ram = segments
            .iter()
            .filter(|segment| segment.kind == PT_LOAD && segment.virt == PAGE_OFFSET.wrapping_add(segment.phys));
        ram.map(|segment| {
            if segment.offset.checked_add(segment.size).is_none_or(|end| end > self.len) {
                return Err(self.damaged("its memory is cut off"));
            }
            Ok(Backing { start: segment.phys, size: segment.size, file: self.file.clone(), offset: segment.offset })
        })
        .collect()
    }
}
