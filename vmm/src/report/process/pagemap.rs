//! `/proc/PID/pagemap` (`pte_to_pagemap_entry`): Linux's words of 64 bits, but as text, and only those that say more than
//! that there is no page: `ADDRESS WORD`, both hexadecimal.

use pagevisor_shared::mm_types::{MappingId, VmaFlags};
use serde_json::{Value, json};

use super::{Process, Shown};
use crate::report::error::ReportError;
use crate::report::kmem::hex;

/// Bits that are a frame number.
const FRAME: u64 = (1 << 55) - 1;
/// `PM_SOFT_DIRTY`.
const SOFT_DIRTY: u64 = 1 << 55;
/// `PM_MMAP_EXCLUSIVE`: mapped once.
const EXCLUSIVE: u64 = 1 << 56;
/// `PM_FILE`: a page of a file or shared memory.
const FILE: u64 = 1 << 61;
/// `PM_PRESENT`.
const PRESENT: u64 = 1 << 63;

/// `pagemap`
pub(super) fn pagemap(process: &mut Process<'_>) -> Result<Shown, ReportError> {
    let areas = process.areas.list.clone();
    let mut rows = Vec::new();
    for area in &areas {
        let soft = if area.flags.contains(VmaFlags::SOFTDIRTY) { SOFT_DIRTY } else { 0 };
        process.pages(area.start, area.end, &mut |page, meta| {
            let mut word = page.pfn() & FRAME | PRESENT | soft;
            if let Some(meta) = meta {
                let anon = MappingId::from_word(meta.mapping).is_some_and(MappingId::is_anon);
                word |= if anon { 0 } else { FILE } | if meta.mapcount == 1 { EXCLUSIVE } else { 0 };
            }
            rows.push((page.address, word));
        })?;
    }
    let values: Vec<Value> =
        rows.iter().map(|(address, word)| json!({ "address": hex(*address), "entry": hex(*word) })).collect();
    let text = rows.iter().map(|(address, word)| format!("{address:012x} {word:016x}\n")).collect();
    Ok(Shown { text, value: values.into(), damage: process.areas.damage })
}
