//! `vtop`: a walk through the guest's page tables, as crash prints it for x86-64 with four levels.

use std::fmt::{self, Write as _};
use std::io::Write;

use pagevisor_shared::layout::PAGE_OFFSET;
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::PAGE_SHIFT;
use serde_json::{Value, json};

use super::error::ReportError;
use super::kmem::just::{Just, just};
use super::kmem::{hex, pages};
use super::view::{PageSpec, write_json};
use crate::state::{PageSize, StateView, TableStep, Translation};

/// Names of the entries below the top level.
const LEVELS: [&str; 4] = ["PGD", "PUD", "PMD", "PTE"];

fn flags(entry: u64) -> Vec<&'static str> {
    Entry(entry).flags().collect()
}

/// `vtop ADDRESS`.
///
/// # Errors
/// When a page table lies outside memory.
pub(super) fn vtop(state: &StateView, address: u64, as_json: bool, out: &mut dyn Write) -> Result<(), ReportError> {
    if address < PAGE_OFFSET {
        return Err(ReportError::NotKernel { address });
    }
    let (steps, found) = state.trace(address)?;
    if as_json {
        return write_json(&to_json(address, state.roots().pgd, &steps, found), out);
    }
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = walk_text(state, address, &steps, found, &mut text);
    out.write_all(text.as_bytes()).map_err(ReportError::Write)?;
    if let Some(page) = found
        && state.sections()?.is_present(page.gpa >> PAGE_SHIFT)
    {
        pages(state, Some(PageSpec::Pfn(page.gpa >> PAGE_SHIFT)), false, out)?;
    }
    Ok(())
}

fn walk_text(
    state: &StateView,
    address: u64,
    steps: &[TableStep],
    found: Option<Translation>,
    out: &mut String,
) -> fmt::Result {
    writeln!(out, "{:<16}  {:<16}", "VIRTUAL", "PHYSICAL")?;
    match found {
        Some(page) => writeln!(out, "{address:<16x}  {:<16x}\n", page.gpa)?,
        None => writeln!(out, "{address:<16x}  (not mapped)\n")?,
    }
    writeln!(out, "PGD DIRECTORY: {:x}", state.direct_address(state.roots().pgd >> PAGE_SHIFT))?;
    for (position, (step, level)) in steps.iter().zip(LEVELS).enumerate() {
        match position {
            0 => writeln!(out, "PAGE DIRECTORY: {:x}", step.entry)?,
            _ => writeln!(out, "   {level}: {:x} => {:x}", step.at, step.entry)?,
        }
    }
    entry_text(found, out)?;
    writeln!(out)
}

/// What the page is, and its entry.
fn entry_text(found: Option<Translation>, out: &mut String) -> fmt::Result {
    if let Some(page) = found {
        let size = match page.size {
            PageSize::Small => "",
            PageSize::Large => "  (2MB)",
            PageSize::Huge => "  (1GB)",
        };
        writeln!(out, "  PAGE: {:x}{size}\n", page.entry & Entry::ADDRESS)?;
        let (entry, physical) = (format!("{:x}", page.entry), format!("{:x}", page.entry & Entry::ADDRESS));
        let (first, second) = (entry.len().max("PTE".len()), physical.len().max("PHYSICAL".len()));
        writeln!(out, "{}  {}  FLAGS", just("PTE", first, Just::Center), just("PHYSICAL", second, Just::Center))?;
        let (entry, physical) = (just(&entry, first, Just::CenterRight), just(&physical, second, Just::CenterRight));
        writeln!(out, "{entry}  {physical}  ({})", flags(page.entry).join("|"))?;
    }
    Ok(())
}

/// The walk for a program's address (`x86_64_uvtop_level4`): tables in physical memory throughout.
pub(super) fn user_text(
    address: u64,
    steps: &[TableStep],
    found: Option<Translation>,
    out: &mut String,
) -> fmt::Result {
    writeln!(out, "{:<10}  {:<16}", "VIRTUAL", "PHYSICAL")?;
    match found {
        Some(page) => writeln!(out, "{address:<10x}  {:<16x}\n", page.gpa)?,
        None => writeln!(out, "{address:<10x}  (not mapped)\n")?,
    }
    for (step, level) in steps.iter().zip(LEVELS) {
        writeln!(out, "   {level}: {:x} => {:x}", step.at, step.entry)?;
    }
    entry_text(found, out)?;
    writeln!(out)
}

/// The walk for programs.
pub(super) fn to_json(address: u64, pgd: u64, steps: &[TableStep], found: Option<Translation>) -> Value {
    let entries = steps.iter().zip(LEVELS);
    let entries = entries.map(|(step, level)| json!({ "level": level, "at": hex(step.at), "entry": hex(step.entry) }));
    json!({
        "virtual": hex(address),
        "physical": found.map(|page| page.gpa),
        "pgd_directory": hex(pgd),
        "entries": entries.collect::<Vec<_>>(),
        "page": found.map(|page| page.gpa & !(page.size.bytes() - 1)),
        "page_bytes": found.map(|page| page.size.bytes()),
        "flags": found.map(|page| flags(page.entry)),
    })
}
