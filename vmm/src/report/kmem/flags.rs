//! `kmem -g`: page flags by name.

use std::fmt::{self, Write};

use pagevisor_shared::page_flags::PageFlag;
use serde_json::{Value, json};

use super::hex;
use super::just::{Just, just};

/// The flags of `set`, all of them for `None`: names as in `enum pageflags`, bits.
fn listed(set: Option<u64>) -> impl Iterator<Item = (String, u32)> {
    // As crash has it, no bits at all means all flags.
    let set = set.filter(|set| *set != 0).unwrap_or(u64::MAX);
    PageFlag::NAMES
        .iter()
        .zip(0..)
        .filter(move |(_, bit)| set >> bit & 1 != 0)
        .map(|(name, bit)| (format!("PG_{name}"), bit))
}

/// `kmem -g [FLAGS]`.
///
/// # Errors
/// Those of `out`.
pub fn flags(set: Option<u64>, out: &mut dyn Write) -> fmt::Result {
    let longest = PageFlag::NAMES.iter().map(|name| name.len() + "PG_".len()).max().unwrap_or(0);
    let digits = PageFlag::NAMES.len() / 4 + 1;
    let indent = if set.is_some_and(|set| set != 0) { "  " } else { "" };
    if let Some(set) = set.filter(|set| *set != 0) {
        writeln!(out, "FLAGS: {set:x}")?;
    }
    writeln!(out, "{indent}{} BIT  VALUE", just("PAGE-FLAG", longest, Just::Left))?;
    let mut found = false;
    for (name, bit) in listed(set) {
        found = true;
        writeln!(out, "{indent}{}  {bit:>2}  {:0digits$x}", just(&name, longest, Just::Left), 1u64 << bit)?;
    }
    if found { Ok(()) } else { writeln!(out, "  (none found)") }
}

/// `kmem -g [FLAGS]` as JSON.
pub fn flags_json(set: Option<u64>) -> Value {
    let rows = listed(set).map(|(name, bit)| json!({ "name": name, "bit": bit, "value": 1u64 << bit }));
    json!({ "flags": set.map(hex), "page_flags": rows.collect::<Vec<_>>() })
}

/// Names of the flags in a page's flag word, without `PG_`.
pub(super) fn names(word: u32) -> impl Iterator<Item = &'static str> {
    PageFlag::NAMES.into_iter().zip(0..).filter(move |(_, bit)| word >> bit & 1 != 0).map(|(name, _)| name)
}
