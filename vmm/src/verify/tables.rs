//! The guest's page tables, walked from the root: everything that is mapped, and the frames that the tables lie in.

use std::collections::HashSet;

use pagevisor_shared::units::PAGE_SHIFT;

use super::Verifier;
use super::report::Place;
use super::rule::Rule;
use crate::kvm::CpuRegisters;
use crate::state::{GuestMemory, StateError};

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Most tables that are believed, beside one for each 64 MiB of memory.
const TABLES: u64 = 4096;
const TABLE_BYTES: usize = 4096;

/// Pages next to each other in both address spaces, mapped alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mapping {
    /// First guest-virtual address.
    pub virt: u64,
    /// What it is mapped to.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
    /// By pages of 2 MiB.
    pub large: bool,
    pub writable: bool,
    pub executable: bool,
}

impl Mapping {
    /// First virtual address behind.
    pub const fn end(&self) -> u64 {
        self.virt.wrapping_add(self.len)
    }

    /// The frames it maps.
    pub const fn frames(&self) -> std::ops::Range<u64> {
        self.gpa >> PAGE_SHIFT..self.gpa.saturating_add(self.len).div_ceil(1 << PAGE_SHIFT)
    }

    /// The part of it at virtual addresses from `start` up to `end`.
    pub fn part(&self, start: u64, end: u64) -> Option<Self> {
        let from = self.virt.max(start);
        let to = self.virt.saturating_add(self.len).min(end);
        (from < to).then(|| Self { virt: from, gpa: self.gpa + (from - self.virt), len: to - from, ..*self })
    }
}

/// What an address space maps.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// In order of address.
    pub mappings: Vec<Mapping>,
    /// The tables.
    pub tables: Vec<Table>,
}

/// A page table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    /// The frame that it lies in.
    pub frame: u64,
    /// 3 for the top.
    pub level: u32,
    /// First address it maps.
    pub virt: u64,
    /// Entries that map or lead somewhere.
    pub present: u32,
}

impl Tables {
    /// The mappings of addresses from `start` up to `end`, as far as they lie there.
    pub fn within(&self, start: u64, end: u64) -> impl Iterator<Item = Mapping> + '_ {
        let first = self.mappings.partition_point(|mapping| mapping.virt.saturating_add(mapping.len) <= start);
        let mappings = self.mappings.get(first..).unwrap_or(&[]).iter();
        mappings.take_while(move |mapping| mapping.virt < end).filter_map(move |mapping| mapping.part(start, end))
    }

    fn push(&mut self, mapping: Mapping) {
        if let Some(last) = self.mappings.last_mut()
            && last.end() == mapping.virt
            && last.gpa.checked_add(last.len) == Some(mapping.gpa)
            && (last.large, last.writable, last.executable) == (mapping.large, mapping.writable, mapping.executable)
        {
            last.len += mapping.len;
        } else {
            self.mappings.push(mapping);
        }
    }
}

/// A walk through the tables.
struct Walk<'w, 'v> {
    verifier: &'w mut Verifier<'v>,
    tables: Tables,
    seen: HashSet<u64>,
    most: u64,
    /// There are more than that.
    too_many: bool,
}

/// Where a table stands.
#[derive(Clone, Copy)]
struct At {
    /// Physical address.
    table: u64,
    /// 3 for the top.
    level: u32,
    /// First address it maps.
    virt: u64,
    writable: bool,
    executable: bool,
}

/// The entries of a table; `None` when it lies outside memory.
fn entries(memory: &dyn GuestMemory, table: u64) -> Result<Option<[u64; 512]>, StateError> {
    let mut bytes = [0; TABLE_BYTES];
    match memory.read(table, &mut bytes) {
        Ok(()) => {
            let mut words = [0; 512];
            for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            Ok(Some(words))
        }
        Err(error) if error.is_corrupt() => Ok(None),
        Err(error) => Err(error),
    }
}

impl Walk<'_, '_> {
    fn table(&mut self, at: At) -> Result<(), StateError> {
        let found = &mut self.verifier.findings;
        if self.tables.tables.len() as u64 >= self.most {
            if !std::mem::replace(&mut self.too_many, true) {
                found.add(Rule::PageTable, Place::Virtual(at.virt), format_args!("more than {} tables", self.most));
            }
            return Ok(());
        }
        if !self.seen.insert(at.table) {
            let evidence = format_args!("the table at {:#x} is used a second time", at.table);
            found.add(Rule::PageTable, Place::Virtual(at.virt), evidence);
            return Ok(());
        }
        let Some(words) = entries(self.verifier.view.memory(), at.table)? else {
            let evidence = format_args!("the table at {:#x}, level {}, is not in memory", at.table, at.level);
            self.verifier.findings.add(Rule::PageTable, Place::Virtual(at.virt), evidence);
            return Ok(());
        };
        let present = words.iter().filter(|entry| *entry & PRESENT != 0).count() as u32;
        self.tables.tables.push(Table { frame: at.table >> PAGE_SHIFT, level: at.level, virt: at.virt, present });
        for (index, entry) in (0u64..).zip(words) {
            if entry & PRESENT != 0 {
                self.entry(at, index, entry)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, at: At, index: u64, entry: u64) -> Result<(), StateError> {
        let shift = PAGE_SHIFT + 9 * at.level;
        let mut virt = at.virt | index << shift;
        if at.level == 3 && index >= 256 {
            // The upper half: bits above 47 are copies of it.
            virt |= 0xffff << 48;
        }
        let (writable, executable) = (at.writable && entry & WRITABLE != 0, at.executable && entry & NO_EXECUTE == 0);
        let large = entry & LARGE != 0;
        match at.level {
            0 => self.leaf(virt, entry & ADDRESS, 1 << 12, (writable, executable)),
            1 if large => self.leaf(virt, entry & ADDRESS & !0x1f_ffff, 1 << 21, (writable, executable)),
            2 | 3 if large => {
                let evidence = format_args!("entry {entry:#x} of level {} maps a page of that size", at.level);
                self.verifier.findings.add(Rule::PageTable, Place::Virtual(virt), evidence);
            }
            _ => {
                let below = At { table: entry & ADDRESS, level: at.level - 1, virt, writable, executable };
                return self.table(below);
            }
        }
        Ok(())
    }

    fn leaf(&mut self, virt: u64, gpa: u64, len: u64, (writable, executable): (bool, bool)) {
        self.tables.push(Mapping { virt, gpa, len, large: len != 1 << 12, writable, executable });
    }
}

impl Verifier<'_> {
    /// Walks the tables under the kernel's root.
    pub(super) fn walk_tables(&mut self) -> Result<(), StateError> {
        let root = self.roots.pgd & ADDRESS;
        let most = TABLES + (self.view.memory().size() >> 26);
        let mut walk = Walk { verifier: self, tables: Tables::default(), seen: HashSet::new(), most, too_many: false };
        walk.table(At { table: root, level: 3, virt: 0, writable: true, executable: true })?;
        let tables = walk.tables;
        self.checked.tables = tables.tables.len() as u64;
        self.tables = tables;
        Ok(())
    }

    /// Compares the vCPUs' roots with the kernel's: address spaces differ in the user's half only.
    pub(super) fn check_roots(&mut self, registers: &[CpuRegisters]) -> Result<(), StateError> {
        let memory = self.view.memory();
        let kernel = entries(memory, self.roots.pgd & ADDRESS)?;
        for (cpu, registers) in registers.iter().enumerate() {
            let root = registers.cr3() & ADDRESS;
            if !registers.has_paging() || root == self.roots.pgd & ADDRESS {
                continue;
            }
            let upper = |table: Option<[u64; 512]>| table.map(|table| table.into_iter().skip(256).collect::<Vec<_>>());
            let differs = upper(entries(memory, root)?) != upper(kernel);
            if differs {
                let evidence = format_args!("CR3 {root:#x} does not have the kernel's half of {:#x}", self.roots.pgd);
                self.findings.add(Rule::PageTableRoot, Place::Cpu(cpu), evidence);
            }
        }
        Ok(())
    }
}
