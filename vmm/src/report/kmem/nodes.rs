//! `kmem -n`: nodes, zones and sections.

use std::fmt;
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::layout::VMEMMAP_START;
use pagevisor_shared::report::counters;
use pagevisor_shared::units::{NodeId, PAGE_SHIFT};
use pagevisor_shared::zone::ZoneIndex;
use serde_json::{Value, json};

use super::just::{self, Just, just};
use super::{hex, node_address, zone_address};
use crate::state::{Sections, StateView};

/// Every section that exists is present, has its memory map, is online, and was there at boot.
const SECTION_STATE: &str = "PMOE";

/// A node's numbers.
struct Node {
    id: NodeId,
    start: u64,
    spanned: u64,
    present: u64,
    mem_map: u64,
}

fn mem_map(state: &StateView, sections: &Sections, pfn: u64) -> u64 {
    if sections.is_present(pfn) { state.page_address(pfn) } else { 0 }
}

fn all(state: &StateView, sections: &Sections) -> Vec<Node> {
    let region = state.region();
    let node = |id: NodeId| {
        let record = region.nodes().get(id.index())?;
        let start = record.node_start_pfn.load(Relaxed);
        Some(Node {
            id,
            start,
            spanned: record.node_spanned_pages.load(Relaxed),
            present: record.node_present_pages.load(Relaxed),
            mem_map: mem_map(state, sections, start),
        })
    };
    state.online_nodes().filter_map(node).collect()
}

/// Address of the section's entry in the section table.
fn section_address(state: &StateView, number: u64) -> u64 {
    let roots = state.roots();
    roots.page_offset.wrapping_add(roots.sections).wrapping_add(number.wrapping_mul(2))
}

/// `kmem -n`.
///
/// # Errors
/// Those of `out`.
pub fn nodes(state: &StateView, sections: &Sections, out: &mut dyn Write) -> fmt::Result {
    for (position, node) in all(state, sections).iter().enumerate() {
        if position != 0 {
            write!(out, "\n{}\n\n", "-".repeat(67))?;
        }
        node_text(state, node, out)?;
        zones_text(state, sections, node, out)?;
    }
    sections_text(state, sections, out)
}

fn node_text(state: &StateView, node: &Node, out: &mut dyn Write) -> fmt::Result {
    let center = |text| just(text, 16, Just::Center);
    let (list, boot, zones) = (center("PGLIST_DATA"), center("BOOTMEM_DATA"), center("NODE_ZONES"));
    writeln!(out, "NODE  {}  {list}  {boot}  {zones}", just("SIZE", 8, Just::Center))?;
    let size = just::dec(node.spanned, 8, Just::Center);
    let address = just::hex(node_address(state, node.id), 16, Just::Center);
    let indent = 12 + size.len() + address.len() + 16;
    write!(out, " {:>2}   {size}  {address}  {}  ", node.id.index(), center("----"))?;
    for (kind, index, _) in counters::zones_of(&state.region(), node.id) {
        let indent = if kind.index() == 0 { 0 } else { indent };
        writeln!(out, "{:indent$}{:x}", "", zone_address(state, index))?;
    }
    writeln!(out, "{}     START_PADDR    START_MAPNR", center("MEM_MAP"))?;
    writeln!(
        out,
        "{}  {}  {}",
        just::hex(node.mem_map, 16, Just::Center),
        just::hex(node.start << PAGE_SHIFT, 16, Just::CenterRight),
        just::dec(node.start, 11, Just::CenterRight)
    )
}

fn zones_text(state: &StateView, sections: &Sections, node: &Node, out: &mut dyn Write) -> fmt::Result {
    let map = just("MEM_MAP", 16, Just::CenterRight);
    writeln!(out, "\nZONE  NAME         SIZE  {map}  START_PADDR  START_MAPNR")?;
    for (kind, _, zone) in counters::zones_of(&state.region(), node.id) {
        let start = zone.zone_start_pfn.load(Relaxed);
        let spanned = zone.spanned_pages.load(Relaxed);
        let (number, name) = (kind.index(), kind.name());
        let map = if spanned == 0 { 0 } else { mem_map(state, sections, start) };
        let mapnr = if spanned == 0 { 0 } else { start };
        writeln!(out, " {number:>2}   {name:<9} {spanned:>7}  {map:>16x}  {:>11x}  {mapnr:>11}", start << PAGE_SHIFT)?;
    }
    Ok(())
}

fn sections_text(state: &StateView, sections: &Sections, out: &mut dyn Write) -> fmt::Result {
    let center = |text| just(text, 16, Just::Center);
    let (section, coded, map) = (center("SECTION"), center("CODED_MEM_MAP"), center("MEM_MAP"));
    writeln!(out, "\n{}\n\nNR  {section}  {coded}  {map}  STATE PFN", "-".repeat(67))?;
    for number in sections.present() {
        let pfn = Sections::first_pfn(number);
        writeln!(
            out,
            "{number:>2}  {}  {}  {}  {} {pfn:<16}",
            just::hex(section_address(state, number), 16, Just::Center),
            // Encoded so that a frame number is enough to index it: the same for all sections.
            just::hex(VMEMMAP_START, 16, Just::CenterRight),
            just::hex(state.page_address(pfn), 16, Just::CenterRight),
            just(SECTION_STATE, 5, Just::Center)
        )?;
    }
    Ok(())
}

/// `kmem -n` as JSON.
pub fn nodes_json(state: &StateView, sections: &Sections) -> Value {
    let nodes = all(state, sections).into_iter().map(|node| {
        let zones = counters::zones_of(&state.region(), node.id).map(|(kind, index, zone)| {
            let start = zone.zone_start_pfn.load(Relaxed);
            json!({
                "zone": kind.index(),
                "name": kind.name(),
                "address": hex(zone_address(state, index)),
                "size": zone.spanned_pages.load(Relaxed),
                "mem_map": hex(mem_map(state, sections, start)),
                "start_paddr": start << PAGE_SHIFT,
                "start_mapnr": start,
            })
        });
        json!({
            "node": node.id.index(),
            "size": node.spanned,
            "present": node.present,
            "pglist_data": hex(node_address(state, node.id)),
            "mem_map": hex(node.mem_map),
            "start_paddr": node.start << PAGE_SHIFT,
            "start_mapnr": node.start,
            "zones": zones.collect::<Vec<_>>(),
        })
    });
    let present = sections.present().map(|number| {
        let pfn = Sections::first_pfn(number);
        let zone = sections.zone_of(pfn).map(|ZoneIndex(zone)| zone);
        json!({
            "section": number,
            "address": hex(section_address(state, number)),
            "mem_map": hex(state.page_address(pfn)),
            "state": SECTION_STATE,
            "pfn": pfn,
            "first_page_zone": zone,
        })
    });
    json!({ "nodes": nodes.collect::<Vec<_>>(), "sections": present.collect::<Vec<_>>() })
}
