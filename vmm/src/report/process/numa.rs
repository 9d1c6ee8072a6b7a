//! `/proc/PID/numa_maps` (`show_numa_map`). There are no policies: all memory has the default one.

use std::collections::BTreeMap;

use pagevisor_shared::mm_types::MappingId;
use pagevisor_shared::page_flags::PageFlag;
use serde_json::{Map, Value};

use super::maps::area_json;
use super::{Process, Shown};
use crate::report::error::ReportError;
use crate::state::AreaInfo;

/// What is counted of an area's pages (`struct numa_maps`).
#[derive(Default)]
struct Counts {
    pages: u64,
    anon: u64,
    active: u64,
    dirty: u64,
    mapcount_max: u64,
    frames: Vec<u64>,
}

impl Counts {
    /// Names and numbers in Linux's order, but for nodes; what goes without saying is left out.
    fn rows(&self) -> Vec<(&'static str, u64)> {
        let rows = [
            ("anon", self.anon, self.anon != 0),
            ("dirty", self.dirty, self.dirty != 0),
            ("mapped", self.pages, self.pages != self.anon && self.pages != self.dirty),
            ("mapmax", self.mapcount_max, self.mapcount_max > 1),
            ("active", self.active, self.active < self.pages),
        ];
        rows.into_iter().filter(|(.., shown)| *shown).map(|(name, number, _)| (name, number)).collect()
    }
}

/// Counts an area's pages (`gather_stats`); reserved ones are left out (`can_gather_numa_stats`).
fn count(process: &mut Process<'_>, area: &AreaInfo) -> Result<Counts, ReportError> {
    let mut counts = Counts::default();
    process.pages(area.start, area.end, &mut |page, meta| {
        let Some(meta) = meta.filter(|meta| meta.flags & PageFlag::Reserved.mask() == 0) else { return };
        let has = |flag: PageFlag| meta.flags & flag.mask() != 0;
        counts.pages += 1;
        counts.anon += u64::from(MappingId::from_word(meta.mapping).is_some_and(MappingId::is_anon));
        counts.dirty += u64::from(page.entry.is_dirty() || has(PageFlag::Dirty));
        counts.active += u64::from(has(PageFlag::Active) || has(PageFlag::Unevictable));
        counts.mapcount_max = counts.mapcount_max.max(meta.mapcount.into());
        counts.frames.push(page.pfn());
    })?;
    Ok(counts)
}

/// `numa_maps`
pub(super) fn numa_maps(process: &mut Process<'_>) -> Result<Shown, ReportError> {
    let areas = process.areas.list.clone();
    let (mut text, mut values) = (String::new(), Vec::new());
    for area in &areas {
        let counts = count(process, area)?;
        let mut nodes = BTreeMap::<usize, u64>::new();
        counts.frames.iter().for_each(|pfn| *nodes.entry(process.node(*pfn)).or_default() += 1);
        text += &format!("{:08x} default", area.start);
        text += &match (&area.file, process.special_name(area)) {
            (Some(file), _) => format!(" file={}", file.path.replace(' ', "\\040").replace('=', "\\075")),
            (None, Some(name)) => format!(" {}", name.trim_matches(['[', ']'])),
            (None, None) => String::new(),
        };
        let mut value = area_json(process, area);
        if counts.pages != 0 {
            counts.rows().iter().for_each(|(name, number)| text += &format!(" {name}={number}"));
            nodes.iter().for_each(|(node, pages)| text += &format!(" N{node}={pages}"));
            text += " kernelpagesize_kB=4";
        }
        text.push('\n');
        if let Value::Object(value) = &mut value {
            let rows = counts.rows().into_iter().map(|(name, number)| (name.to_owned(), Value::from(number)));
            value.extend(rows);
            let nodes: Map<String, Value> =
                nodes.iter().map(|(node, pages)| (node.to_string(), (*pages).into())).collect();
            value.insert("nodes".to_owned(), nodes.into());
        }
        values.push(value);
    }
    Ok(Shown { text, value: values.into(), damage: process.areas.damage })
}
