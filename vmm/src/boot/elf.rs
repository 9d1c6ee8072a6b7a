//! A PVH kernel's ELF: checked first, so that a bad one gets a clear message, then loaded by `linux-loader`.

use std::io::Cursor;

use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use object::elf::{EM_X86_64, FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, FileKind};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::layout::LEGACY_HOLE;
use crate::topology::AddrRange;

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// Something else altogether.
    #[error("not an ELF file")]
    NotElf,
    /// An ELF of another kind.
    #[error("not an ELF for x86-64")]
    NotX86,
    /// Its end is missing, or its headers are nonsense.
    #[error("the ELF is damaged: {0}")]
    Damaged(String),
    /// Nothing to load.
    #[error("the ELF has nothing to load into memory")]
    NoSegments,
    /// No way in.
    #[error(
        "the ELF has no PVH entry (a note of type 18, owner Xen); Linux has one when built with CONFIG_PVH, in \
         vmlinux but not in bzImage"
    )]
    NoPvhEntry,
    /// A part of it goes where nothing can be.
    #[error("the ELF wants to be loaded at {:#x}-{:#x}, where this machine has no RAM for it", .0.start, .0.end())]
    OutsideRam(AddrRange),
    /// Its entry is elsewhere.
    #[error("the PVH entry {0:#x} is not in what the ELF loads")]
    EntryOutside(u64),
}

/// A part of a kernel's image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Where it is loaded.
    pub physical: AddrRange,
    /// The address it is linked for.
    pub virtual_start: u64,
}

/// An ELF that was checked.
#[derive(Debug)]
pub struct KernelElf<'a> {
    bytes: &'a [u8],
    segments: Vec<Segment>,
}

impl<'a> KernelElf<'a> {
    /// Checks what can be checked without knowing the machine.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        match FileKind::parse(bytes) {
            Ok(FileKind::Elf64) => {}
            Ok(FileKind::Elf32) => return Err(ElfError::NotX86),
            _ => return Err(ElfError::NotElf),
        }
        let damaged = |error: object::Error| ElfError::Damaged(error.to_string());
        let header = FileHeader64::<Endianness>::parse(bytes).map_err(damaged)?;
        let endian = header.endian().map_err(damaged)?;
        if header.e_machine.get(endian) != EM_X86_64 || endian != Endianness::Little {
            return Err(ElfError::NotX86);
        }
        let headers = header.program_headers(endian, bytes).map_err(damaged)?;
        let mut segments = Vec::new();
        for part in headers {
            let data = part.data(endian, bytes);
            let data = data.map_err(|()| ElfError::Damaged("a segment lies beyond the end of the file".into()))?;
            if part.p_type(endian) == PT_LOAD {
                let physical = AddrRange { start: part.p_paddr(endian), size: part.p_memsz(endian) };
                if (data.len() as u64) > physical.size || physical.start.checked_add(physical.size).is_none() {
                    return Err(ElfError::Damaged("a segment is larger in the file than in memory".into()));
                }
                if physical.size > 0 {
                    segments.push(Segment { physical, virtual_start: part.p_vaddr(endian) });
                }
            }
        }
        if segments.is_empty() { Err(ElfError::NoSegments) } else { Ok(Self { bytes, segments }) }
    }

    /// The parts of the image.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Loads the image and gives the address of its PVH entry.
    pub fn load(&self, ram: &GuestMemoryMmap) -> Result<u64, ElfError> {
        for segment in &self.segments {
            let AddrRange { start, size } = segment.physical;
            // Below the end of the legacy hole lie boot data and firmware tables.
            let fits = usize::try_from(size).is_ok_and(|size| ram.check_range(GuestAddress(start), size));
            if start < LEGACY_HOLE.end() || !fits {
                return Err(ElfError::OutsideRam(segment.physical));
            }
        }
        let loaded: KernelLoaderResult = Elf::load(ram, None, &mut Cursor::new(self.bytes), None)
            .map_err(|error| ElfError::Damaged(error.to_string()))?;
        let PvhBootCapability::PvhEntryPresent(GuestAddress(entry)) = loaded.pvh_boot_cap else {
            return Err(ElfError::NoPvhEntry);
        };
        let inside = |segment: &Segment| segment.physical.contains(&AddrRange { start: entry, size: 1 });
        if self.segments.iter().any(inside) { Ok(entry) } else { Err(ElfError::EntryOutside(entry)) }
    }
}
