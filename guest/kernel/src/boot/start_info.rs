//! What the loader tells: PVH's `hvm_start_info`.

use core::ops::Range;

use super::low::{self, Fields};
use crate::sync::Once;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// Bytes of the structure, and of an entry of the lists it leads to.
const SIZE: u64 = 56;
const MODULE_SIZE: u64 = 32;
const MEMMAP_SIZE: u64 = 24;
/// Most entries that are looked at.
const MAX_MODULES: u32 = 8;
const MAX_MEMMAP: u32 = 1024;
/// Longest command line (`COMMAND_LINE_SIZE`).
pub const COMMAND_LINE_SIZE: u64 = 2048;

/// Types of memory (e820's).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryKind {
    /// RAM.
    Ram,
    /// ACPI tables.
    Acpi,
    /// ACPI storage that must be kept.
    Nvs,
    /// Everything else.
    Reserved,
}

/// The start info.
#[derive(Clone, Copy, Debug)]
pub struct StartInfo {
    addr: u64,
    fields: Fields,
}

impl StartInfo {
    /// The start info at `addr`; `None` if there is none.
    pub fn at(addr: u64) -> Option<Self> {
        let fields = Fields::at(addr, SIZE)?;
        (fields.u32(0) == MAGIC).then_some(Self { addr, fields })
    }

    /// Where the ACPI root pointer is; 0 when the loader does not know.
    pub fn rsdp(self) -> u64 {
        self.fields.u64(32)
    }

    /// A copy of the command line, which outlives the loader's memory.
    pub fn command_line(self) -> &'static str {
        static COPY: Once<([u8; COMMAND_LINE_SIZE as usize], usize)> = Once::new();
        let (bytes, len) = COPY.get().unwrap_or_else(|| {
            let line = low::string(self.fields.u64(24), COMMAND_LINE_SIZE);
            let mut copy = [0; COMMAND_LINE_SIZE as usize];
            copy[..line.len()].copy_from_slice(line);
            COPY.set((copy, line.len()))
        });
        core::str::from_utf8(&bytes[..*len]).unwrap_or("")
    }

    fn list(self, addr: u64, count: u32, size: u64) -> impl Iterator<Item = Fields> {
        let bytes = low::bytes(addr, count as u64 * size).unwrap_or(&[]);
        bytes.chunks_exact(size as usize).map(Fields)
    }

    /// Modules (the initrd), as ranges of physical addresses.
    pub fn modules(self) -> impl Iterator<Item = Range<u64>> {
        let list = self.list(self.fields.u64(16), self.fields.u32(12).min(MAX_MODULES), MODULE_SIZE);
        list.map(|module| module.u64(0)..module.u64(0).saturating_add(module.u64(8)))
    }

    /// The memory map, as the loader gives it: ascending, not overlapping.
    pub fn memory_map(self) -> impl Iterator<Item = (Range<u64>, MemoryKind)> {
        let count = if self.fields.u32(4) == 0 { 0 } else { self.fields.u32(48) };
        self.list(self.fields.u64(40), count.min(MAX_MEMMAP), MEMMAP_SIZE).map(|entry| {
            let kind = match entry.u32(16) {
                1 => MemoryKind::Ram,
                3 => MemoryKind::Acpi,
                4 => MemoryKind::Nvs,
                _ => MemoryKind::Reserved,
            };
            (entry.u64(0)..entry.u64(0).saturating_add(entry.u64(8)), kind)
        })
    }

    /// What the loader wrote and boot still reads.
    pub fn own_ranges(self) -> impl Iterator<Item = Range<u64>> {
        let command_line = self.fields.u64(24);
        let memmap = self.fields.u64(40);
        let memmap_len = self.fields.u32(48) as u64 * MEMMAP_SIZE;
        [
            self.addr..self.addr + SIZE,
            command_line..command_line.saturating_add(COMMAND_LINE_SIZE),
            memmap..memmap.saturating_add(memmap_len),
        ]
        .into_iter()
        .chain(self.modules())
    }
}
