//! What an experiment prints: a line for each combination, the median over its seeds.

use std::fmt::Write;

use pagevisor_shared::units::PAGEBLOCK_ORDER;

use super::matrix::Setting;
use super::record::{Indices, Measures, Record};
use crate::workload::Value;

/// The results as a table of text: a line for each topology, workload and setting, in the order of `records`; figures
/// are medians over the seeds. Settings that are the same everywhere are said once, above the table.
pub fn summary(records: &[&Record]) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned).to_vec()];
    let mut groups: Vec<Vec<&Record>> = Vec::new();
    for record in records {
        match groups.iter_mut().find(|group| group.first().is_some_and(|first| alike(first, record))) {
            Some(group) => group.push(record),
            None => groups.push(vec![record]),
        }
    }
    let common: Vec<(Setting, &Value)> = common_settings(records);
    rows.extend(groups.iter().map(|group| row(group, &common)));
    // Nobody needs a column that says nothing.
    let kept: Vec<usize> =
        (0..HEADINGS.len()).filter(|&column| rows.iter().skip(1).any(|row| row[column] != "-")).collect();
    let mut text = String::new();
    if !common.is_empty() {
        let settings: Vec<String> = common.iter().map(|(setting, value)| setting.with(value)).collect();
        text += &format!("everywhere: {}\n", settings.join(" "));
    }
    for row in &rows {
        let mut line = String::new();
        for &column in &kept {
            let width = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            let cell = &row[column];
            // Writing to a string cannot fail.
            let _ = match column < TEXTS {
                true => write!(line, "{cell:<width$}  "),
                false => write!(line, "{cell:>width$}  "),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text + NOTE
}

const HEADINGS: [&str; 14] = [
    "topology",
    "workload",
    "settings",
    "runs",
    "failed",
    "guest ms",
    "allocs",
    "no memory",
    "hits",
    "zone fb",
    "node fb",
    "local %",
    "modelled ms",
    "unusable 9",
];

/// Columns that are text, and left-aligned.
const TEXTS: usize = 3;

const NOTE: &str = "\
guest ms: by the guest's time stamp counter, on this host. hits: large blocks got. zone fb, node fb: pages that fell back
to a lower zone, another node. modelled ms: a model, accesses times latency of their node pair. unusable 9: the part of
free memory of no use for blocks of order 9 in the end (Linux's unusable_index).
";

/// The order in the last heading.
const HUGE: usize = PAGEBLOCK_ORDER as usize;

fn alike(a: &Record, b: &Record) -> bool {
    a.topology == b.topology && a.workload == b.workload && a.settings == b.settings
}

/// The settings that all records have with the same value.
fn common_settings<'a>(records: &[&'a Record]) -> Vec<(Setting, &'a Value)> {
    let Some((first, others)) = records.split_first() else { return Vec::new() };
    let same = |setting: &Setting, value: &Value| others.iter().all(|other| other.settings.get(setting) == Some(value));
    let settings = first.settings.iter().filter(|(setting, value)| same(setting, value));
    settings.map(|(setting, value)| (*setting, value)).collect()
}

fn row(group: &[&Record], common: &[(Setting, &Value)]) -> Vec<String> {
    let measured: Vec<&Measures> = group.iter().filter_map(|record| record.measures()).collect();
    let median = |value: &dyn Fn(&Measures) -> Option<f64>| {
        let mut values: Vec<f64> = measured.iter().filter_map(|measures| value(measures)).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = values.get(middle).copied();
        let lower = if values.len().is_multiple_of(2) { values.get(middle.wrapping_sub(1)).copied() } else { upper };
        upper.zip(lower).map(|(upper, lower)| (upper + lower) / 2.0)
    };
    let number = |decimals: usize, value: &dyn Fn(&Measures) -> Option<f64>| {
        median(value).map_or_else(|| "-".to_owned(), |number| format!("{number:.decimals$}"))
    };
    let count = |value: fn(&Measures) -> u64| number(0, &|measures| Some(value(measures) as f64));
    let first = group.first();
    let is_common = |setting: &Setting| common.iter().any(|(other, _)| other == setting);
    let settings = first.into_iter().flat_map(|record| &record.settings).filter(|(setting, _)| !is_common(setting));
    let settings: Vec<String> = settings.map(|(setting, value)| setting.with(value)).collect();
    vec![
        first.map_or_else(String::new, |record| record.topology.clone()),
        first.map_or_else(String::new, |record| record.workload.to_string()),
        if settings.is_empty() { "-".to_owned() } else { settings.join(" ") },
        group.len().to_string(),
        match group.len() - measured.len() {
            0 => "-".to_owned(),
            failed => failed.to_string(),
        },
        number(1, &|measures| Some(measures.guest_ns()? as f64 / 1e6)),
        count(|measures| measures.allocs),
        count(|measures| measures.failed),
        match measured.iter().any(|measures| measures.tries != 0) {
            true => number(0, &|measures| (measures.tries != 0).then_some(measures.hits as f64)),
            false => "-".to_owned(),
        },
        count(|measures| measures.fallbacks.zone),
        count(|measures| measures.fallbacks.node),
        number(1, &|measures| Some(measures.local_ratio()? * 100.0)),
        number(3, &|measures| Some(measures.modelled_ns() as f64 / 1e6)),
        number(3, &|measures| {
            let index = Indices::of(&measures.free_blocks()).unusable.get(HUGE).copied()?;
            Some(index as f64 / 1000.0)
        }),
    ]
}
