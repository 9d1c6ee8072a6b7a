//! `/proc/PID/smaps` and `smaps_rollup` (`show_smap`, `show_smaps_rollup`).

use std::fmt::Write;

use pagevisor_shared::mm_types::{MappingId, VmaFlags};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::pgtable::{Entry, level_size};
use serde_json::{Map, Value};

use super::maps::{area_json, area_line, line};
use super::{Process, Shown};
use crate::report::error::ReportError;
use crate::state::{AreaInfo, PageMeta, UserPage};

/// Fraction bits of proportional sizes.
const PSS_SHIFT: u32 = 12;

/// What an area maps, in bytes (`struct mem_size_stats`); proportional sizes with [`PSS_SHIFT`] more bits.
#[derive(Clone, Copy, Default)]
struct MemSize {
    resident: u64,
    shared_clean: u64,
    shared_dirty: u64,
    private_clean: u64,
    private_dirty: u64,
    referenced: u64,
    anonymous: u64,
    lazyfree: u64,
    pss: u64,
    pss_anon: u64,
    pss_file: u64,
    pss_shmem: u64,
    pss_dirty: u64,
    pss_locked: u64,
}

impl MemSize {
    /// Counts a page that is mapped (`smaps_account`).
    fn account(&mut self, page: UserPage, meta: PageMeta, locked: bool, shmem: bool) {
        let size = level_size(page.level);
        let has = |flag: PageFlag| meta.flags & flag.mask() != 0;
        let anonymous = MappingId::from_word(meta.mapping).is_some_and(MappingId::is_anon);
        let dirty = page.entry.is_dirty() || has(PageFlag::Dirty);
        if anonymous {
            self.anonymous += size;
            if !has(PageFlag::Swapbacked) && !dirty {
                self.lazyfree += size;
            }
        }
        self.resident += size;
        if page.entry.0 & Entry::ACCESSED != 0 || has(PageFlag::Referenced) {
            self.referenced += size;
        }
        // One reference means one mapping.
        let mappings = if meta.refcount == 1 { 1 } else { u64::from(meta.mapcount).max(1) };
        let pss = (size << PSS_SHIFT) / mappings;
        self.pss += pss;
        *match (anonymous, shmem || has(PageFlag::Swapbacked)) {
            (true, _) => &mut self.pss_anon,
            (false, true) => &mut self.pss_shmem,
            (false, false) => &mut self.pss_file,
        } += pss;
        self.pss_locked += if locked { pss } else { 0 };
        self.pss_dirty += if dirty { pss } else { 0 };
        *match (mappings > 1, dirty) {
            (true, true) => &mut self.shared_dirty,
            (true, false) => &mut self.shared_clean,
            (false, true) => &mut self.private_dirty,
            (false, false) => &mut self.private_clean,
        } += size;
    }

    fn add(&mut self, other: &Self) {
        self.resident += other.resident;
        self.shared_clean += other.shared_clean;
        self.shared_dirty += other.shared_dirty;
        self.private_clean += other.private_clean;
        self.private_dirty += other.private_dirty;
        self.referenced += other.referenced;
        self.anonymous += other.anonymous;
        self.lazyfree += other.lazyfree;
        self.pss += other.pss;
        self.pss_anon += other.pss_anon;
        self.pss_file += other.pss_file;
        self.pss_shmem += other.pss_shmem;
        self.pss_dirty += other.pss_dirty;
        self.pss_locked += other.pss_locked;
    }

    /// The sizes by name, in the order of Linux (`__show_smap`). What a guest without swap, huge user pages and huge page
    /// pools cannot have is 0.
    fn rows(&self, rollup: bool) -> Vec<(&'static str, u64)> {
        let share = |bytes: u64| bytes >> PSS_SHIFT;
        let mut rows = vec![("Rss", self.resident), ("Pss", share(self.pss)), ("Pss_Dirty", share(self.pss_dirty))];
        if rollup {
            rows.extend([
                ("Pss_Anon", share(self.pss_anon)),
                ("Pss_File", share(self.pss_file)),
                ("Pss_Shmem", share(self.pss_shmem)),
            ]);
        }
        rows.extend([
            ("Shared_Clean", self.shared_clean),
            ("Shared_Dirty", self.shared_dirty),
            ("Private_Clean", self.private_clean),
            ("Private_Dirty", self.private_dirty),
            ("Referenced", self.referenced),
            ("Anonymous", self.anonymous),
            ("LazyFree", self.lazyfree),
            ("AnonHugePages", 0),
            ("ShmemPmdMapped", 0),
            ("FilePmdMapped", 0),
            ("Shared_Hugetlb", 0),
            ("Private_Hugetlb", 0),
            ("Swap", 0),
            ("SwapPss", 0),
            ("Locked", share(self.pss_locked)),
        ]);
        rows
    }
}

/// `NAME:  BYTES kB`, the number at Linux's place.
fn row(name: &str, bytes: u64, text: &mut String) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{:<16}{:>8} kB", format!("{name}:"), bytes >> 10);
}

fn sizes(process: &mut Process<'_>, area: &AreaInfo) -> Result<MemSize, ReportError> {
    let mut sizes = MemSize::default();
    let locked = area.flags.contains(VmaFlags::LOCKED);
    let shmem = area.file.as_ref().is_some_and(|file| file.shmem);
    process.pages(area.start, area.end, &mut |page, meta| {
        if let Some(meta) = meta {
            sizes.account(page, meta, locked, shmem);
        }
    })?;
    Ok(sizes)
}

fn flag_names(flags: VmaFlags) -> impl Iterator<Item = &'static str> {
    VmaFlags::NAMED.iter().filter(move |(flag, _)| flags.contains(*flag)).map(|(_, name)| *name)
}

fn object(rows: &[(&str, u64)], value: &mut Map<String, Value>) {
    rows.iter().for_each(|(name, bytes)| {
        value.insert((*name).to_owned(), (*bytes).into());
    });
}

/// `smaps`
pub(super) fn smaps(process: &mut Process<'_>) -> Result<Shown, ReportError> {
    let areas = process.areas.list.clone();
    let (mut text, mut values) = (String::new(), Vec::new());
    for area in &areas {
        text += &area_line(process, area);
        let sizes = sizes(process, area)?;
        let mut rows = vec![("Size", area.end - area.start), ("KernelPageSize", 4096), ("MMUPageSize", 4096)];
        rows.extend(sizes.rows(false));
        rows.iter().for_each(|(name, bytes)| row(name, *bytes, &mut text));
        text += "THPeligible:    0\nVmFlags: ";
        flag_names(area.flags).for_each(|name| text.extend([name, " "]));
        text.push('\n');
        let mut value = area_json(process, area);
        if let Value::Object(value) = &mut value {
            object(&rows, value);
            value.insert("VmFlags".to_owned(), flag_names(area.flags).collect());
        }
        values.push(value);
    }
    Ok(Shown { text, value: values.into(), damage: process.areas.damage })
}

/// `smaps_rollup`; nothing for a task without areas.
pub(super) fn rollup(process: &mut Process<'_>) -> Result<Shown, ReportError> {
    let areas = process.areas.list.clone();
    let mut sum = MemSize::default();
    for area in &areas {
        sum.add(&sizes(process, area)?);
    }
    let (mut text, mut value) = (String::new(), Map::new());
    if let (Some(first), Some(last)) = (areas.first(), areas.last()) {
        text = line((first.start, last.end), "---p", [0; 3], "[rollup]");
        sum.rows(true).iter().for_each(|(name, bytes)| row(name, *bytes, &mut text));
        object(&sum.rows(true), &mut value);
    }
    Ok(Shown { text, value: value.into(), damage: process.areas.damage })
}
