//! Reports of pages in a state they must not be in (`bad_page`, `dump_page`).

use core::fmt;

use pagevisor_shared::layout::VMEMMAP_START;
use pagevisor_shared::page::{PAGE_STRUCT_SIZE, PAGE_TYPE_BASE, Page};
use pagevisor_shared::page_flags::{NR_PAGEFLAGS, PageFlag};
use pagevisor_shared::units::Pfn;
use pagevisor_shared::zone::MAX_NR_ZONES;

use super::free::allocated_order;
use crate::Mm;
use crate::platform::{Level, Platform};
use crate::sync::Plain;

/// Linux's `%pGp`: `0x10000(head|node=0|zone=2)`.
struct Flags {
    flags: u32,
    node: usize,
    zone: usize,
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}(", self.flags)?;
        for (bit, name) in PageFlag::NAMES.iter().enumerate() {
            if self.flags >> bit & 1 != 0 {
                write!(f, "{name}|")?;
            }
        }
        write!(f, "node={}|zone={})", self.node, self.zone)
    }
}

/// The words of a page, as `print_hex_dump` writes them.
struct Raw<'a>(&'a Page);

impl fmt::Display for Raw<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let page = self.0;
        let words = [
            [&page.flags, &page._refcount],
            [&page._mapcount, &page.private],
            [&page.next, &page.prev],
            [&page.mapping, &page.index],
        ];
        words.iter().enumerate().try_for_each(|(at, [low, high])| {
            let gap = if at == 0 { "" } else { " " };
            write!(f, "{gap}{:08x}{:08x}", high.get(), low.get())
        })
    }
}

impl<P: Platform> Mm<P> {
    /// Reports a page that was found in a wrong state. The caller keeps it off the lists.
    #[cold]
    #[inline(never)]
    pub(super) fn bad_page(&self, pfn: Pfn, reason: &str) {
        let Some(suppressed) = self.reports.allow_bad_page(self.platform.now()) else { return };
        if suppressed != 0 {
            let line = format_args!("BUG: Bad page state: {suppressed} messages suppressed");
            self.platform.log(Level::Alert, line);
        }
        self.bad_page_state(pfn);
        self.dump_page(pfn, reason);
        self.platform.dump_stack();
    }

    /// Writes the state of a page to the log (`dump_page`).
    pub fn dump_page(&self, pfn: Pfn, reason: &str) {
        let Some(zone) = self.page_zone(pfn) else { return self.report_no_page(pfn, reason) };
        let page = self.memmap().page(pfn.raw() as u32);
        let addr = VMEMMAP_START.wrapping_add(pfn.raw().wrapping_mul(PAGE_STRUCT_SIZE));
        let word = page._mapcount.get();
        let mapcount = if word & PAGE_TYPE_BASE == 0 { word } else { 0 };
        self.platform.log(
            Level::Warning,
            format_args!(
                "page:{addr:016x} refcount:{} mapcount:{mapcount} mapping:{:016x} index:{:#x} pfn:{:#x}",
                page._refcount.get(),
                page.mapping.get(),
                page.index.get(),
                pfn.raw(),
            ),
        );
        let flags = page.flags.get();
        if flags & PageFlag::Head.mask() != 0 {
            self.platform.log(Level::Warning, format_args!("head:{addr:016x} order:{}", allocated_order(flags)));
        }
        let mut flags = flags & ((1 << NR_PAGEFLAGS) - 1);
        // Boot leaves reserved pages untouched; the table of reserved memory stands for the flag.
        if self.is_reserved(pfn) {
            flags |= PageFlag::Reserved.mask();
        }
        let flags = Flags { flags, node: zone.index() / MAX_NR_ZONES, zone: zone.index() % MAX_NR_ZONES };
        self.platform.log(Level::Warning, format_args!("flags: {flags}"));
        self.platform.log(Level::Warning, format_args!("raw: {}", Raw(page)));
        self.platform.log(Level::Warning, format_args!("page dumped because: {reason}"));
    }

    fn bad_page_state(&self, pfn: Pfn) {
        let comm = self.platform.current().comm;
        let line = format_args!("BUG: Bad page state in process {comm}  pfn:{:05x}", pfn.raw());
        self.platform.log(Level::Alert, line);
    }

    /// Reports a frame number that names no memory.
    #[cold]
    #[inline(never)]
    pub(super) fn report_no_page(&self, pfn: Pfn, reason: &str) {
        if self.reports.allow_bad_page(self.platform.now()).is_some() {
            self.bad_page_state(pfn);
            self.platform.log(Level::Warning, format_args!("page dumped because: {reason}"));
            self.platform.dump_stack();
        }
    }
}
