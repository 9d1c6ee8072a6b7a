//! The layout of an ELF core file, as far as dumps need it: 64-bit, little-endian, x86-64.

use serde::{Deserialize, Serialize};

use crate::kvm::{CpuRegisters, USER_REGISTERS};

/// Version of what is in [`Description`]; a reader refuses any other.
pub const FORMAT: u32 = 1;

pub(super) const PAGE: u64 = 4096;
pub(super) const EHDR_SIZE: usize = 64;
pub(super) const PHDR_SIZE: usize = 56;
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const IDENT: [u8; 16] = [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub(super) const PT_LOAD: u32 = 1;
pub(super) const PT_NOTE: u32 = 4;
const PF_X: u32 = 1;
const PF_W: u32 = 2;
const PF_R: u32 = 4;

/// Registers of a thread, owned by `CORE`.
pub(super) const NT_PRSTATUS: u32 = 1;
/// [`Description`] as JSON, owned by [`OWNER`].
pub(super) const NT_DESCRIPTION: u32 = 0x5056_0001;
/// Owner of our own note.
pub(super) const OWNER: &str = "PAGEVISOR";

/// Bytes of `struct elf_prstatus`.
const PRSTATUS_SIZE: usize = 336;
/// Where the thread's number is in it, and the registers.
const PRSTATUS_PID: usize = 32;
const PRSTATUS_REGISTERS: usize = 112;

/// What a dump says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Description {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the contract between host and guest.
    pub abi: u32,
    /// Version of the program that wrote it.
    pub version: String,
    /// NUMA nodes, by number.
    pub nodes: Vec<DumpNode>,
    /// Distances, by row (from), then column (to).
    pub distances: Vec<Vec<u8>>,
    /// Where the state region is in guest-physical memory.
    pub region_phys: u64,
    /// Where it is in the file.
    pub region_offset: u64,
    /// Bytes of it.
    pub region_size: u64,
    /// The vCPUs' registers, by CPU; also in the `NT_PRSTATUS` notes, but for the control registers.
    pub registers: Vec<CpuRegisters>,
}

/// A node in a dump.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DumpNode {
    /// Its CPUs.
    pub cpus: Vec<usize>,
    /// Pages of memory it has.
    pub pages: u64,
}

/// A segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Segment {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub virt: u64,
    pub phys: u64,
    pub size: u64,
}

impl Segment {
    /// Memory that can be read and written.
    pub const fn data(phys: u64, virt: u64, size: u64, offset: u64) -> Self {
        Self { kind: PT_LOAD, flags: PF_R | PF_W, offset, virt, phys, size }
    }

    /// The kernel's image.
    pub const fn image(phys: u64, virt: u64, size: u64, offset: u64) -> Self {
        Self { kind: PT_LOAD, flags: PF_R | PF_W | PF_X, offset, virt, phys, size }
    }

    /// Notes.
    pub const fn notes(size: u64, offset: u64) -> Self {
        Self { kind: PT_NOTE, flags: PF_R, offset, virt: 0, phys: 0, size }
    }

    pub fn write(&self, out: &mut Vec<u8>) {
        let (memory, align) = if self.kind == PT_LOAD { (self.size, PAGE) } else { (0, 4) };
        out.extend(self.kind.to_le_bytes());
        out.extend(self.flags.to_le_bytes());
        for word in [self.offset, self.virt, self.phys, self.size, memory, align] {
            out.extend(word.to_le_bytes());
        }
    }

    pub fn read(bytes: &[u8; PHDR_SIZE]) -> Self {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes.get(at + i).copied().unwrap_or(0)));
        Self {
            kind: word(0) as u32,
            flags: (word(0) >> 32) as u32,
            offset: word(8),
            virt: word(16),
            phys: word(24),
            size: word(32),
        }
    }
}

/// The header of a core file with `segments` program headers right behind it.
pub(super) fn header(segments: u16) -> Vec<u8> {
    let mut out = IDENT.to_vec();
    out.extend(ET_CORE.to_le_bytes());
    out.extend(EM_X86_64.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    // Entry, program headers, section headers.
    for word in [0, EHDR_SIZE as u64, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend(0u32.to_le_bytes());
    for half in [EHDR_SIZE as u16, PHDR_SIZE as u16, segments, 0, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    out
}

/// Where the program headers are and how many, if the bytes are the header of such a file.
pub(super) fn parse_header(bytes: &[u8; EHDR_SIZE]) -> Option<(u64, u16)> {
    let half = |at: usize| Some(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let is_core = bytes.starts_with(&IDENT[..6]) && half(16)? == ET_CORE && half(18)? == EM_X86_64;
    let offset = u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?);
    (is_core && usize::from(half(54)?) == PHDR_SIZE).then_some((offset, half(56)?))
}

/// Whether the bytes start an ELF core file.
pub(super) fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(&IDENT[..4])
}

/// Appends a note.
pub(super) fn write_note(out: &mut Vec<u8>, owner: &str, kind: u32, content: &[u8]) {
    out.extend((owner.len() as u32 + 1).to_le_bytes());
    out.extend((content.len() as u32).to_le_bytes());
    out.extend(kind.to_le_bytes());
    for bytes in [&[owner.as_bytes(), &[0]].concat(), content] {
        out.extend(bytes);
        out.resize(out.len().next_multiple_of(4), 0);
    }
}

/// The content of the first note of `kind` that `owner` has; nothing in notes that are not well-formed.
pub(super) fn find_note<'n>(mut notes: &'n [u8], owner: &str, kind: u32) -> Option<&'n [u8]> {
    loop {
        let (head, rest) = notes.split_at_checked(12)?;
        let word = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
        let (name_len, len) = (word(0)? as usize, word(4)? as usize);
        let (name, rest) = rest.split_at_checked(name_len.checked_next_multiple_of(4)?)?;
        let (content, rest) = rest.split_at_checked(len.checked_next_multiple_of(4)?)?;
        if word(8)? == kind && name.get(..name_len)? == [owner.as_bytes(), &[0]].concat() {
            return content.get(..len);
        }
        notes = rest;
    }
}

/// `struct elf_prstatus` of vCPU `cpu`, whose thread number is one more: 0 is nobody.
pub(super) fn prstatus(cpu: usize, registers: &CpuRegisters) -> [u8; PRSTATUS_SIZE] {
    let mut status = [0; PRSTATUS_SIZE];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = status.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(PRSTATUS_PID, &(cpu as u32 + 1).to_le_bytes());
    for (index, word) in registers.user.iter().enumerate() {
        put(PRSTATUS_REGISTERS + index * 8, &word.to_le_bytes());
    }
    status
}

const _: () = assert!(PRSTATUS_REGISTERS + USER_REGISTERS * 8 + 8 == PRSTATUS_SIZE);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn headers_read_as_they_were_written() {
        let bytes = header(7);
        let bytes: [u8; EHDR_SIZE] = bytes.try_into().unwrap();
        assert_eq!(parse_header(&bytes), Some((64, 7)));
        for damaged in [0, 4, 16, 18, 54] {
            let mut bytes = bytes;
            bytes[damaged] ^= 1;
            assert_eq!(parse_header(&bytes), None, "byte {damaged}");
        }
        let segment = Segment { kind: PT_LOAD, flags: 6, offset: 4096, virt: 1 << 63, phys: 1 << 40, size: 12288 };
        let mut bytes = Vec::new();
        segment.write(&mut bytes);
        assert_eq!(Segment::read(&bytes.try_into().unwrap()), segment);
    }

    #[test]
    fn notes_are_found_among_others_and_broken_ones_are_not() {
        let mut notes = Vec::new();
        write_note(&mut notes, "CORE", NT_PRSTATUS, &[1; 336]);
        write_note(&mut notes, OWNER, 7, b"no");
        write_note(&mut notes, OWNER, NT_DESCRIPTION, b"yes!!");
        assert_eq!(find_note(&notes, OWNER, NT_DESCRIPTION), Some(&b"yes!!"[..]));
        assert_eq!(find_note(&notes, "OTHER", NT_DESCRIPTION), None);
        for len in 0..notes.len() - 3 {
            assert_eq!(find_note(&notes[..len], OWNER, NT_DESCRIPTION), None, "{len} bytes");
        }
        let huge = [&u32::MAX.to_le_bytes()[..], &u32::MAX.to_le_bytes(), &[0; 8]].concat();
        assert_eq!(find_note(&huge, OWNER, NT_DESCRIPTION), None);
    }
}
