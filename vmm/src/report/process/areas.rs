//! `/proc/PID/{maps,smaps,smaps_rollup,numa_maps,pagemap}` (`fs/proc/task_mmu.c`): the texts that the guest's own files
//! have, by the same code.

use std::fmt::Write;

use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::report::process::{Area, NumaPages, Sizes, pagemap};
use serde_json::{Map, Value, json};

use super::{Process, Shown};
use crate::report::error::ReportError;
use crate::report::kmem::hex;
use crate::state::AreaInfo;

impl Process<'_> {
    /// An area as the files show it.
    fn shown<'a>(&self, area: &'a AreaInfo) -> Area<'a> {
        let (start, end) = (area.start, area.end);
        let name = self.memory.map_or("", |memory| memory.name_of(start, end));
        let anonymous = Area { start, end, flags: area.flags, name, ..Area::default() };
        match &area.file {
            Some(file) => Area {
                pgoff: area.pgoff,
                device: [file.dev >> 20, file.dev & 0xf_ffff],
                inode: file.ino,
                name: &file.path,
                ..anonymous
            },
            None => anonymous,
        }
    }
}

/// An area for programs.
pub(super) fn area_json(process: &Process<'_>, area: &AreaInfo) -> Value {
    let shown = process.shown(area);
    let [major, minor] = shown.device;
    let file = area.file.as_ref();
    json!({
        "start": hex(area.start),
        "end": hex(area.end),
        "permissions": shown.permissions().iter().collect::<String>(),
        "offset": file.map(|_| area.pgoff.wrapping_shl(pagevisor_shared::units::PAGE_SHIFT)),
        "device": file.map(|_| format!("{major:02x}:{minor:02x}")),
        "inode": file.map(|file| file.ino),
        "name": shown.name,
    })
}

fn object<'n>(rows: impl Iterator<Item = (&'n str, u64)>, value: &mut Value) {
    if let Value::Object(value) = value {
        value.extend(rows.map(|(name, number)| (name.to_owned(), number.into())));
    }
}

/// `maps`
pub(super) fn maps(process: &Process<'_>) -> Result<Shown, ReportError> {
    let areas = &process.areas.list;
    let mut text = String::new();
    for area in areas {
        process.shown(area).line(&mut text)?;
    }
    let value = areas.iter().map(|area| area_json(process, area)).collect();
    Ok(Shown { text, value, damage: process.areas.damage })
}

fn sizes(process: &mut Process<'_>, area: &AreaInfo) -> Result<Sizes, ReportError> {
    let mut sizes = Sizes::default();
    let locked = area.flags.contains(VmaFlags::LOCKED);
    process.pages(area.start, area.end, &mut |_, page| {
        page.iter().for_each(|page| sizes.add(page, locked));
    })?;
    Ok(sizes)
}

/// `smaps`
pub(super) fn smaps(process: &mut Process<'_>) -> Result<Shown, ReportError> {
    let areas = process.areas.list.clone();
    let (mut text, mut values) = (String::new(), Vec::new());
    for area in &areas {
        let sizes = sizes(process, area)?;
        let shown = process.shown(area);
        shown.smaps(&sizes, &mut text)?;
        let mut value = area_json(process, area);
        object(shown.sizes().into_iter().chain(sizes.rows(false)), &mut value);
        value["VmFlags"] = shown.flag_names().collect();
        values.push(value);
    }
    Ok(Shown { text, value: values.into(), damage: process.areas.damage })
}

/// `smaps_rollup`; nothing for a task without areas.
pub(super) fn rollup(process: &mut Process<'_>) -> Result<Shown, ReportError> {
    let areas = process.areas.list.clone();
    let mut sum = Sizes::default();
    for area in &areas {
        sum.merge(&sizes(process, area)?);
    }
    let (mut text, mut value) = (String::new(), Value::Object(Map::new()));
    if let (Some(first), Some(last)) = (areas.first(), areas.last()) {
        let all = Area { start: first.start, end: last.end, name: "[rollup]", ..Area::default() };
        all.line(&mut text)?;
        sum.lines(true, &mut text)?;
        object(sum.rows(true), &mut value);
    }
    Ok(Shown { text, value, damage: process.areas.damage })
}

/// `numa_maps`. There are no policies: all memory has the default one.
pub(super) fn numa_maps(process: &mut Process<'_>) -> Result<Shown, ReportError> {
    let areas = process.areas.list.clone();
    let (mut text, mut values) = (String::new(), Vec::new());
    for area in &areas {
        let mut pages = NumaPages::default();
        process.pages(area.start, area.end, &mut |_, page| page.iter().for_each(|page| pages.add(page)))?;
        pages.line(&process.shown(area), "default", &mut text)?;
        let mut value = area_json(process, area);
        object(pages.rows(), &mut value);
        value["nodes"] = pages.nodes().map(|(node, pages)| (node.to_string(), pages)).collect();
        values.push(value);
    }
    Ok(Shown { text, value: values.into(), damage: process.areas.damage })
}

/// `pagemap`: Linux's words of 64 bits, but as text, and only those of pages: `ADDRESS WORD`, both hexadecimal.
pub(super) fn pagemap(process: &mut Process<'_>) -> Result<Shown, ReportError> {
    let areas = process.areas.list.clone();
    let mut rows = Vec::new();
    for area in &areas {
        let soft = if area.flags.contains(VmaFlags::SOFTDIRTY) { pagemap::SOFT_DIRTY } else { 0 };
        process.pages(area.start, area.end, &mut |page, known| {
            rows.push((page.address, pagemap::word(page.pfn(), known.as_ref()) | soft));
        })?;
    }
    let mut text = String::new();
    rows.iter().try_for_each(|(address, word)| writeln!(text, "{address:012x} {word:016x}"))?;
    let row = |(address, word): &(u64, u64)| json!({ "address": hex(*address), "entry": hex(*word) });
    Ok(Shown { text, value: rows.iter().map(row).collect(), damage: process.areas.damage })
}
