//! Executables: ELF files of x86-64, linked statically (`fs/binfmt_elf.c`).

use alloc::vec::Vec;

use pagevisor_shared::errno::Errno;
use pagevisor_shared::layout::TASK_SIZE_MAX;
use pagevisor_shared::mm_types::uapi::{PROT_EXEC, PROT_READ, PROT_WRITE};
use pagevisor_shared::units::PAGE_SIZE;

/// Bytes of the file's header and of a program header.
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Most bytes of program headers (`ELF_MIN_ALIGN`).
const MAX_HEADERS: usize = PAGE_SIZE as usize;

const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;
/// It is executed (`PF_X`).
const EXECUTES: u32 = 1;

/// Where programs go that can be anywhere (`ELF_ET_DYN_BASE`), without randomization.
const DYN_BASE: u64 = 0x5555_5555_4000;

/// Little-endian numbers in a structure.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(self, at: usize) -> [u8; N] {
        self.0.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }

    fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
}

/// A part of the file that is to be in memory (`PT_LOAD`).
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Where, the base added.
    pub addr: u64,
    /// Bytes there.
    pub size: u64,
    /// Where in the file.
    pub offset: u64,
    /// Bytes of the file; zeros follow.
    pub file_size: u64,
    /// `PROT_*`.
    pub prot: u32,
}

impl Segment {
    /// First byte of its first page.
    pub const fn first_page(&self) -> u64 {
        self.addr & !(PAGE_SIZE - 1)
    }

    /// First byte behind its last page.
    pub const fn end_page(&self) -> u64 {
        (self.addr + self.size).next_multiple_of(PAGE_SIZE)
    }
}

/// What the headers say.
#[derive(Debug)]
pub struct Program {
    /// Where it begins to execute.
    pub entry: u64,
    /// Where it has its program headers; 0 if nowhere.
    pub headers: u64,
    /// How many.
    pub headers_count: u64,
    /// Whether it executes what is on its stack.
    pub executes_stack: bool,
    /// What is to be in memory, upwards.
    pub segments: Vec<Segment>,
}

/// Reads the headers of a file; `read` reads it at an offset and gives how much there was.
///
/// # Errors
/// ENOEXEC if it is no such file, EINVAL if it begins nowhere; ENOENT if it wants an interpreter, of which there is none.
pub fn parse(read: impl Fn(u64, &mut [u8]) -> usize) -> Result<Program, Errno> {
    let mut header = [0; HEADER];
    if read(0, &mut header) < HEADER {
        return Err(Errno::ENOEXEC);
    }
    let fields = Fields(&header);
    // 64 bits, little-endian.
    let kind = fields.u16(16);
    let fits =
        header.starts_with(b"\x7fELF\x02\x01") && matches!(kind, ET_EXEC | ET_DYN) && fields.u16(18) == EM_X86_64;
    let (start, size, count) = (fields.u64(32), fields.u16(54) as usize, fields.u16(56) as usize);
    if !fits || size != PROGRAM_HEADER || count == 0 || count * size > MAX_HEADERS {
        return Err(Errno::ENOEXEC);
    }
    let mut table = alloc::vec![0; count * size];
    if read(start, &mut table) < table.len() {
        return Err(Errno::ENOEXEC);
    }
    let base = if kind == ET_DYN { DYN_BASE & !(alignment(&table) - 1) } else { 0 };
    let (mut segments, mut headers, mut executes_stack) = (Vec::new(), 0, false);
    for header in table.chunks_exact(PROGRAM_HEADER).map(Fields) {
        match header.u32(0) {
            PT_INTERP => return Err(Errno::ENOENT),
            PT_PHDR => headers = base + header.u64(16),
            PT_GNU_STACK => executes_stack = header.u32(4) & EXECUTES != 0,
            PT_LOAD => segments.push(segment(header, base)?),
            _ => {}
        }
    }
    segments.retain(|segment: &Segment| segment.size > 0);
    // Two may share a page: the second one's is there then.
    if segments.is_empty() || !segments.is_sorted_by(|a, b| a.addr + a.size <= b.addr) {
        return Err(Errno::ENOEXEC);
    }
    if headers == 0 {
        let holds = |segment: &&Segment| start >= segment.offset && start - segment.offset < segment.file_size;
        headers = segments.iter().find(holds).map_or(0, |segment| segment.addr + (start - segment.offset));
    }
    let entry = base.checked_add(fields.u64(24)).filter(|entry| *entry < TASK_SIZE_MAX).ok_or(Errno::EINVAL)?;
    Ok(Program { entry, headers, headers_count: count as u64, executes_stack, segments })
}

/// What the segments of `table` want their base to be a multiple of (`maximum_alignment`).
fn alignment(table: &[u8]) -> u64 {
    let headers = table.chunks_exact(PROGRAM_HEADER).map(Fields).filter(|header| header.u32(0) == PT_LOAD);
    headers.map(|header| header.u64(48)).filter(|align| align.is_power_of_two()).fold(PAGE_SIZE, u64::max)
}

fn segment(header: Fields<'_>, base: u64) -> Result<Segment, Errno> {
    let flags = header.u32(4);
    let [offset, virt, file_size, size] = [8, 16, 32, 40].map(|at| header.u64(at));
    let rights = [(4, PROT_READ), (2, PROT_WRITE), (EXECUTES, PROT_EXEC)];
    let prot = rights.iter().filter(|(bit, _)| flags & bit != 0).fold(0, |prot, (_, right)| prot | right);
    let addr = base.checked_add(virt).ok_or(Errno::ENOEXEC)?;
    let fits = file_size <= size && size <= TASK_SIZE_MAX && addr <= TASK_SIZE_MAX - size;
    let congruent = (addr ^ offset) & (PAGE_SIZE - 1) == 0 || file_size == 0;
    if !fits || !congruent {
        return Err(Errno::ENOEXEC);
    }
    Ok(Segment { addr, size, offset, file_size, prot })
}
