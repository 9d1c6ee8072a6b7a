//! `kmem -p`: page metadata.

use std::fmt::Write as _;
use std::io::Write;

use pagevisor_shared::page_flags::{NR_PAGEFLAGS, PageFlag};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, PAGES_PER_SECTION};
use serde_json::json;

use super::flags::names;
use super::hex;
use super::just::{Just, just};
use crate::report::error::ReportError;
use crate::report::view::PageSpec;
use crate::state::{PageMeta, PageOwner, Sections, StateView};

/// Text is written in pieces of about this size.
const CHUNK: usize = 64 << 10;

/// The flags that Linux has. Above them the guest keeps words of its own, where Linux keeps zone and node.
const fn linux_flags(meta: &PageMeta) -> u32 {
    meta.flags & ((1 << NR_PAGEFLAGS) - 1)
}

/// What is being written.
struct Printer<'a> {
    state: &'a StateView,
    sections: Sections,
    out: &'a mut dyn Write,
    text: String,
    /// Width of the PHYSICAL column.
    physical: usize,
    json: bool,
    rows: u64,
}

/// `kmem -p [PFN|PAGE]`: a row for every page of every section, or for one page. Rows are written as they are read.
///
/// Where nobody has written metadata because the memory was reserved at boot, or is not there at all, Linux would
/// have a reserved page with one reference: so it is shown.
///
/// # Errors
/// [`ReportError::NoPage`] for a page that does not exist, or when guest memory cannot be read.
pub fn pages(state: &StateView, page: Option<PageSpec>, json: bool, out: &mut dyn Write) -> Result<(), ReportError> {
    let sections = state.sections()?;
    let highest = state.roots().max_pfn.saturating_mul(PAGE_SIZE);
    let physical = format!("{highest:x}").len().max("PHYSICAL".len());
    let mut printer = Printer { state, sections, out, text: String::new(), physical, json, rows: 0 };
    match page {
        Some(page) => printer.one(page),
        None => printer.all(),
    }
}

impl Printer<'_> {
    fn one(&mut self, page: PageSpec) -> Result<(), ReportError> {
        let pfn = match page {
            PageSpec::Pfn(pfn) => pfn,
            PageSpec::Page(address) => self.state.page_at(address).ok_or(ReportError::NoPage { pfn: address })?,
        };
        if !self.sections.is_present(pfn) {
            return Err(ReportError::NoPage { pfn });
        }
        let meta = self.state.memmap().get(pfn)?;
        self.header();
        self.row(pfn, meta);
        self.footer()
    }

    fn all(&mut self) -> Result<(), ReportError> {
        self.header();
        let mut memmap = self.state.memmap();
        let mut pages = Vec::new();
        for section in 0..self.sections.len() {
            let start = Sections::first_pfn(section);
            if !self.sections.is_present(start) {
                continue;
            }
            let mut pfn = start;
            while pfn < start + PAGES_PER_SECTION {
                if memmap.get_chunk(pfn, &mut pages)? && !pages.is_empty() {
                    let left = (start + PAGES_PER_SECTION - pfn) as usize;
                    for meta in pages.iter().take(left) {
                        self.row(pfn, Some(*meta));
                        pfn += 1;
                    }
                } else {
                    self.row(pfn, None);
                    pfn += 1;
                }
                self.flush(CHUNK)?;
            }
        }
        self.footer()
    }

    /// Writes what there is, if it is at least `size` bytes.
    fn flush(&mut self, size: usize) -> Result<(), ReportError> {
        if self.text.len() >= size {
            self.out.write_all(self.text.as_bytes()).map_err(ReportError::Write)?;
            self.text.clear();
        }
        Ok(())
    }

    fn header(&mut self) {
        if self.json {
            self.text += "{\"pages\":[";
            return;
        }
        self.text += &format!(
            "{} {} {} {}CNT FLAGS\n",
            just("PAGE", 16, Just::Center),
            just("PHYSICAL", self.physical, Just::Right),
            just("MAPPING", 16, Just::CenterRight),
            just("INDEX", 8, Just::CenterRight)
        );
    }

    fn footer(&mut self) -> Result<(), ReportError> {
        if self.json {
            self.text += "\n]}\n";
        }
        self.flush(0)?;
        self.out.flush().map_err(ReportError::Write)
    }

    /// The metadata as Linux would have it.
    fn shown(&self, pfn: u64, meta: PageMeta) -> PageMeta {
        if meta.is_untouched() && self.sections.owner(pfn) != PageOwner::Memory {
            PageMeta { flags: PageFlag::Reserved.mask(), refcount: 1, ..meta }
        } else {
            meta
        }
    }

    fn row(&mut self, pfn: u64, meta: Option<PageMeta>) {
        let meta = meta.map(|meta| self.shown(pfn, meta));
        if self.json {
            self.json_row(pfn, meta);
        } else {
            // Writing to a string cannot fail.
            let _ = self.text_row(pfn, meta);
        }
        self.rows += 1;
    }

    fn text_row(&mut self, pfn: u64, meta: Option<PageMeta>) -> std::fmt::Result {
        let (page, width) = (self.state.page_address(pfn), self.physical);
        write!(self.text, "{page:<16x} {:>width$x} ", pfn << PAGE_SHIFT)?;
        let Some(meta) = meta else {
            // The metadata itself is not mapped: crash leaves the columns empty.
            return writeln!(self.text, "{:16} {:8}  {:2} ", "", "", "");
        };
        let count = meta.refcount as i32;
        write!(self.text, "{:>16x} {:>8x} {count:>2} {:x}", meta.mapping, meta.index, linux_flags(&meta))?;
        for (position, name) in names(meta.flags).enumerate() {
            write!(self.text, "{}{name}", if position == 0 { ' ' } else { ',' })?;
        }
        writeln!(self.text)
    }

    fn json_row(&mut self, pfn: u64, meta: Option<PageMeta>) {
        let mut row = json!({
            "pfn": pfn,
            "page": hex(self.state.page_address(pfn)),
            "physical": pfn << PAGE_SHIFT,
        });
        if let Some(meta) = meta {
            row["mapping"] = meta.mapping.into();
            row["index"] = meta.index.into();
            row["count"] = (meta.refcount as i32).into();
            row["flags"] = linux_flags(&meta).into();
            row["raw_flags"] = meta.flags.into();
            row["flag_names"] = names(meta.flags).collect();
        }
        self.text += if self.rows == 0 { "\n" } else { ",\n" };
        self.text += &row.to_string();
    }
}
