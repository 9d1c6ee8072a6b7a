//! The guest's page tables.

use pagevisor_shared::pgtable::{Entry, TOP_LEVEL, level_size, table_index};

use super::error::{Corrupt, StateError};
use super::memory::{GuestMemory, read_u64};

/// Size of a mapped page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageSize {
    /// 4 KiB, from a page table.
    Small,
    /// 2 MiB, from a page directory.
    Large,
    /// 1 GiB, from a page-directory-pointer table.
    Huge,
}

impl PageSize {
    /// The size of what an entry of `level` maps.
    const fn of_level(level: u32) -> Self {
        match level {
            0 => Self::Small,
            1 => Self::Large,
            _ => Self::Huge,
        }
    }

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        level_size(self as u32)
    }
}

/// What a virtual address is mapped to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// Guest-physical address of the byte.
    pub gpa: u64,
    /// The page it is in.
    pub size: PageSize,
    /// The entry that maps the page.
    pub entry: u64,
}

impl Translation {
    /// Bytes from the address to the end of its page.
    pub const fn rest(&self) -> u64 {
        self.size.bytes() - (self.gpa & (self.size.bytes() - 1))
    }
}

/// An entry that a walk has come by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableStep {
    /// Guest-physical address of the entry.
    pub at: u64,
    /// What it holds.
    pub entry: u64,
}

/// Translates `address` by the four levels of tables under `pgd`; `None` when nothing is mapped there.
///
/// # Errors
/// [`Corrupt`] when an entry points outside memory.
pub(super) fn walk(memory: &dyn GuestMemory, pgd: u64, address: u64) -> Result<Option<Translation>, StateError> {
    trace(memory, pgd, address, &mut |_| {})
}

/// As [`walk`], and tells `step` every entry on the way, present or not.
fn trace(
    memory: &dyn GuestMemory,
    pgd: u64,
    address: u64,
    step: &mut dyn FnMut(TableStep),
) -> Result<Option<Translation>, StateError> {
    // Not canonical: the bits above 47 must all equal bit 47.
    if !matches!(address >> 47, 0 | 0x1_ffff) {
        return Ok(None);
    }
    let mut table = pgd & Entry::ADDRESS;
    for level in (0..=TOP_LEVEL).rev() {
        let at = table + table_index(address, level) as u64 * size_of::<Entry>() as u64;
        let entry = read_u64(memory, at).map_err(|error| match error {
            StateError::Corrupt(_) => Corrupt { what: "page table", at, found: table }.into(),
            other => other,
        })?;
        step(TableStep { at, entry });
        let decoded = Entry(entry);
        if !decoded.is_present() {
            return Ok(None);
        }
        // The top level's bit for large pages means nothing.
        if level != TOP_LEVEL && decoded.is_leaf(level) {
            let size = PageSize::of_level(level);
            let gpa = decoded.address(level).raw() | address & (size.bytes() - 1);
            return Ok(Some(Translation { gpa, size, entry }));
        }
        table = entry & Entry::ADDRESS;
    }
    Ok(None)
}

impl super::StateView {
    /// What the kernel's page tables map `address` to; `None` when nothing.
    ///
    /// # Errors
    /// [`Corrupt`] when a table lies outside memory.
    pub fn translate(&self, address: u64) -> Result<Option<Translation>, StateError> {
        walk(self.memory(), self.roots().pgd, address)
    }

    /// As [`Self::translate`], with the entries that it goes by: of the top table first.
    ///
    /// # Errors
    /// [`Corrupt`] when a table lies outside memory.
    pub fn trace(&self, address: u64) -> Result<(Vec<TableStep>, Option<Translation>), StateError> {
        let mut steps = Vec::new();
        let found = trace(self.memory(), self.roots().pgd, address, &mut |step| steps.push(step))?;
        Ok((steps, found))
    }

    /// As [`Self::trace`], by the tables of a program under the top table at physical address `pgd`.
    ///
    /// # Errors
    /// [`Corrupt`] when a table lies outside memory.
    pub fn trace_user(&self, pgd: u64, address: u64) -> Result<(Vec<TableStep>, Option<Translation>), StateError> {
        let mut steps = Vec::new();
        let found = trace(self.memory(), pgd, address, &mut |step| steps.push(step))?;
        Ok((steps, found))
    }

    /// Copies the bytes at a guest-virtual address; `false` when some of them are not mapped.
    ///
    /// # Errors
    /// [`Corrupt`] when a table or a page lies outside memory.
    pub fn read_virtual(&self, address: u64, buf: &mut [u8]) -> Result<bool, StateError> {
        let mut rest = buf;
        let mut at = address;
        while !rest.is_empty() {
            let Some(page) = self.translate(at)? else { return Ok(false) };
            let here = page.rest().min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at_mut(here);
            self.memory().read(page.gpa, now)?;
            at = at.wrapping_add(here as u64);
            rest = later;
        }
        Ok(true)
    }
}
