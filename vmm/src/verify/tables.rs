//! The guest's page tables, walked from the root: everything that is mapped, and the frames that the tables lie in.

use std::collections::HashSet;

use pagevisor_shared::pgtable::{Entry, PTRS_PER_TABLE, TOP_LEVEL, level_size};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE};

use super::Verifier;
use super::report::Place;
use super::rule::Rule;
use crate::kvm::CpuRegisters;
use crate::state::{GuestMemory, StateError};

/// The first entry of the top table that maps the upper half of addresses, which is the kernel's.
const UPPER_HALF: usize = PTRS_PER_TABLE / 2;

/// Most tables that are believed, beside one for each 64 MiB of memory.
const TABLES: u64 = 4096;

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
fn entries(memory: &dyn GuestMemory, table: u64) -> Result<Option<[Entry; PTRS_PER_TABLE]>, StateError> {
    let mut bytes = [0; PAGE_SIZE as usize];
    match memory.read(table, &mut bytes) {
        Ok(()) => {
            let mut entries = [Entry::NONE; PTRS_PER_TABLE];
            for (entry, bytes) in entries.iter_mut().zip(bytes.as_chunks().0) {
                *entry = Entry(u64::from_le_bytes(*bytes));
            }
            Ok(Some(entries))
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
        let Some(entries) = entries(self.verifier.view.memory(), at.table)? else {
            let evidence = format_args!("the table at {:#x}, level {}, is not in memory", at.table, at.level);
            self.verifier.findings.add(Rule::PageTable, Place::Virtual(at.virt), evidence);
            return Ok(());
        };
        let present = entries.iter().filter(|entry| entry.is_present()).count() as u32;
        self.tables.tables.push(Table { frame: at.table >> PAGE_SHIFT, level: at.level, virt: at.virt, present });
        for (index, entry) in (0u64..).zip(entries) {
            if entry.is_present() {
                self.entry(at, index, entry)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, at: At, index: u64, entry: Entry) -> Result<(), StateError> {
        let mut virt = at.virt | (index * level_size(at.level));
        if at.level == TOP_LEVEL && index >= UPPER_HALF as u64 {
            // The upper half: bits above 47 are copies of it.
            virt |= 0xffff << 48;
        }
        let writable = at.writable && entry.0 & Entry::WRITABLE != 0;
        let executable = at.executable && entry.0 & Entry::NO_EXECUTE == 0;
        if !entry.is_leaf(at.level) {
            let table = entry.address(at.level).raw();
            return self.table(At { table, level: at.level - 1, virt, writable, executable });
        }
        if at.level > 1 {
            let evidence = format_args!("entry {:#x} of level {} maps a page of that size", entry.0, at.level);
            self.verifier.findings.add(Rule::PageTable, Place::Virtual(virt), evidence);
            return Ok(());
        }
        self.leaf(virt, entry.address(at.level).raw(), level_size(at.level), (writable, executable));
        Ok(())
    }

    fn leaf(&mut self, virt: u64, gpa: u64, len: u64, (writable, executable): (bool, bool)) {
        self.tables.push(Mapping { virt, gpa, len, large: len != PAGE_SIZE, writable, executable });
    }
}

impl Verifier<'_> {
    /// Walks the tables under the kernel's root.
    pub(super) fn walk_tables(&mut self) -> Result<(), StateError> {
        let root = self.roots.pgd & Entry::ADDRESS;
        let most = TABLES + (self.view.memory().size() >> 26);
        let mut walk = Walk { verifier: self, tables: Tables::default(), seen: HashSet::new(), most, too_many: false };
        walk.table(At { table: root, level: TOP_LEVEL, virt: 0, writable: true, executable: true })?;
        let tables = walk.tables;
        self.checked.tables = tables.tables.len() as u64;
        self.tables = tables;
        Ok(())
    }

    /// Compares the vCPUs' roots with the kernel's: address spaces differ in the user's half only.
    pub(super) fn check_roots(&mut self, registers: &[CpuRegisters]) -> Result<(), StateError> {
        let memory = self.view.memory();
        let kernel = entries(memory, self.roots.pgd & Entry::ADDRESS)?;
        for (cpu, registers) in registers.iter().enumerate() {
            let root = registers.cr3() & Entry::ADDRESS;
            if !registers.has_paging() || root == self.roots.pgd & Entry::ADDRESS {
                continue;
            }
            let upper = |table: Option<[Entry; PTRS_PER_TABLE]>| {
                table.map(|table| table.into_iter().skip(UPPER_HALF).collect::<Vec<_>>())
            };
            let differs = upper(entries(memory, root)?) != upper(kernel);
            if differs {
                let evidence = format_args!("CR3 {root:#x} does not have the kernel's half of {:#x}", self.roots.pgd);
                self.findings.add(Rule::PageTableRoot, Place::Cpu(cpu), evidence);
            }
        }
        Ok(())
    }
}
