//! `kmem -f`: the free lists, walked in guest memory and compared with the counters.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::report::counters;
use pagevisor_shared::units::{NodeId, Order, PAGE_SHIFT, PAGE_SIZE};
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneIndex, ZoneType};
use serde_json::{Map, Value, json};

use super::just::{self, Just, just};
use super::{free_area_address, hex};
use crate::report::error::ReportError;
use crate::report::view::write_json;
use crate::state::{FreeWalk, Patience, Sections, StateView, ZoneWalk};

/// Most places named in an error.
const DETAILS_MAX: usize = 8;

/// What crash prints about where a zone is.
struct Place {
    spanned: u64,
    mem_map: u64,
    start_paddr: u64,
    start_mapnr: u64,
}

impl Place {
    fn of(state: &StateView, sections: &Sections, zone: ZoneIndex, node: NodeId) -> Self {
        let region = state.region();
        let record = region.zones().get(zone.index());
        let node = region.nodes().get(node.index());
        let start = record.map_or(0, |zone| zone.zone_start_pfn.load(Relaxed));
        let spanned = record.map_or(0, |zone| zone.spanned_pages.load(Relaxed));
        let node_start = node.map_or(0, |node| node.node_start_pfn.load(Relaxed));
        let mapped = spanned != 0 && sections.is_present(start);
        Self {
            spanned,
            mem_map: if mapped { state.page_address(start) } else { 0 },
            start_paddr: start << PAGE_SHIFT,
            // Counted from the node's first page.
            start_mapnr: if mapped { start.wrapping_sub(node_start) } else { 0 },
        }
    }
}

/// `kmem -f`. The lists of an area are counted together, under the address of the area.
///
/// # Errors
/// [`ReportError::Unverified`], after all was written, when lists and counters disagree.
pub fn free(state: &StateView, as_json: bool, out: &mut dyn Write) -> Result<(), ReportError> {
    let sections = state.sections()?;
    let walk = state.walk_free_lists(Patience::default())?;
    if as_json {
        write_json(&to_json(state, &sections, &walk), out)?;
    } else {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = to_text(state, &sections, &walk, &mut text);
        out.write_all(text.as_bytes()).map_err(ReportError::Write)?;
    }
    verified(&walk)
}

/// Whether lists and counters agree.
///
/// # Errors
/// [`ReportError::Unverified`], with the places where they do not.
pub fn verified(walk: &FreeWalk) -> Result<(), ReportError> {
    if walk.is_verified() {
        return Ok(());
    }
    Err(ReportError::Unverified { free: walk.free_pages(), found: walk.found_pages(), details: details(walk) })
}

fn to_text(state: &StateView, sections: &Sections, walk: &FreeWalk, out: &mut String) -> fmt::Result {
    let mut last_node = None;
    for zone in &walk.zones {
        if last_node == Some(zone.node) {
            writeln!(out)?;
        } else {
            if last_node.is_some() {
                writeln!(out, "\n{}\n", "-".repeat(74))?;
            }
            writeln!(out, "NODE\n {:>2}", zone.node.index())?;
        }
        last_node = Some(zone.node);
        zone_text(state, sections, zone, out)?;
    }
    let (free, found) = (walk.free_pages(), walk.found_pages());
    if walk.is_verified() {
        writeln!(out, "\nnr_free_pages: {free} (verified)")
    } else {
        writeln!(out, "\nnr_free_pages: {free} (found {found})")
    }
}

/// The rows of a zone above its areas, with its node.
pub(super) fn zone_heading(state: &StateView, sections: &Sections, zone: ZoneIndex, out: &mut String) -> fmt::Result {
    let free_pages = counters::zone_page_state_snapshot(&state.region(), zone, ZoneStat::NrFreePages);
    let node = NodeId::new(zone.index() / MAX_NR_ZONES).unwrap_or_default();
    let Some(zone_type) = ZoneType::ALL.get(zone.index() % MAX_NR_ZONES) else { return Ok(()) };
    writeln!(out, "NODE\n {:>2}", node.index())?;
    zone_row(&Place::of(state, sections, zone, node), *zone_type, free_pages, out)
}

fn zone_row(place: &Place, zone_type: ZoneType, free_pages: u64, out: &mut String) -> fmt::Result {
    let mem_map = just("MEM_MAP", 16, Just::Center);
    writeln!(out, "ZONE  NAME        SIZE    FREE  {mem_map}  START_PADDR  START_MAPNR")?;
    let (number, name) = (zone_type.index(), zone_type.name());
    write!(out, "{number:>3}   {name:<9} {:>6}  {free_pages:>6}  ", place.spanned)?;
    writeln!(
        out,
        "{}  {}  {}",
        just::hex(place.mem_map, 16, Just::Center),
        just::hex(place.start_paddr, 11, Just::CenterRight),
        just::dec(place.start_mapnr, 11, Just::CenterRight)
    )
}

fn zone_text(state: &StateView, sections: &Sections, zone: &ZoneWalk, out: &mut String) -> fmt::Result {
    zone_row(&Place::of(state, sections, zone.zone, zone.node), zone.zone_type, zone.free_pages, out)?;
    if zone.free_pages == 0 && zone.found.pages() == 0 {
        return Ok(());
    }
    writeln!(out, "AREA    SIZE  FREE_AREA_STRUCT  BLOCKS  PAGES")?;
    for (blocks, order) in zone.found.by_order().into_iter().zip(0u32..) {
        let size = format!("{}k", (PAGE_SIZE << order) / 1024);
        let address = Order::new(order).map_or(0, |order| free_area_address(state, zone.zone, order));
        let address = just::hex(address, 16, Just::Center);
        writeln!(out, "{order:>3}  {size:>7}  {address}  {blocks:>6} {:>6}", blocks << order)?;
    }
    Ok(())
}

/// Where lists and counters disagree.
fn details(walk: &FreeWalk) -> String {
    let mut places = Vec::new();
    for zone in walk.zones.iter().filter(|zone| !zone.is_verified()) {
        let name = format!("node {} zone {}", zone.node.index(), zone.zone_type.name());
        let (free, found) = (zone.free_pages, zone.found.pages());
        let unstable = if zone.stable { "" } else { " (it was changing)" };
        places.push(format!("{name}{unstable}: {free} counted, {found} found"));
        for damaged in &zone.faults {
            let (order, kind) = (damaged.order.raw(), damaged.kind.name());
            places.push(format!("{name}: corrupted free list of order {order}, {kind}: {}", damaged.fault));
        }
        for (order, (counted, found)) in zone.counted.0.iter().zip(&zone.found.0).enumerate() {
            for (kind, (counted, found)) in MigrateType::ALL.into_iter().zip(counted.iter().zip(found)) {
                if counted != found {
                    let kind = kind.name();
                    places.push(format!("{name}: order {order}, {kind}: nr_free {counted}, {found} blocks found"));
                }
            }
        }
    }
    let more = places.len().saturating_sub(DETAILS_MAX);
    let mut text: String = places.iter().take(DETAILS_MAX).map(|place| format!("; {place}")).collect();
    if more != 0 {
        let _ = write!(text, "; and {more} more");
    }
    text
}

fn to_json(state: &StateView, sections: &Sections, walk: &FreeWalk) -> Value {
    let zones = walk.zones.iter().map(|zone| {
        let place = Place::of(state, sections, zone.zone, zone.node);
        json!({
            "node": zone.node.index(),
            "zone": zone.zone_type.index(),
            "name": zone.zone_type.name(),
            "size": place.spanned,
            "free": zone.free_pages,
            "found": zone.found.pages(),
            "verified": zone.is_verified(),
            "stable": zone.stable,
            "mem_map": hex(place.mem_map),
            "start_paddr": place.start_paddr,
            "start_mapnr": place.start_mapnr,
            "areas": areas(state, zone),
            "faults": zone.faults.iter().map(|damaged| json!({
                "order": damaged.order.raw(),
                "migrate_type": damaged.kind.name(),
                "pfn": damaged.fault.pfn,
                "message": damaged.fault.to_string(),
                "seen": damaged.fault.seen,
            })).collect::<Vec<_>>(),
        })
    });
    json!({
        "zones": zones.collect::<Vec<_>>(),
        "nr_free_pages": walk.free_pages(),
        "found": walk.found_pages(),
        "verified": walk.is_verified(),
    })
}

fn areas(state: &StateView, zone: &ZoneWalk) -> Vec<Value> {
    let rows = zone.found.0.iter().zip(&zone.counted.0).zip(0u32..);
    let area = |((found, counted), order): ((&[u64; 6], &[u64; 6]), u32)| {
        let by_type = |counts: &[u64; 6]| {
            let names = MigrateType::ALL.into_iter().map(|kind| crate::report::json::snake_case(kind.name()));
            names.zip(counts.iter().map(|count| Value::from(*count))).collect::<Map<_, _>>()
        };
        let blocks = found.iter().fold(0, |sum: u64, count| sum.wrapping_add(*count));
        let address = Order::new(order).map_or(0, |order| free_area_address(state, zone.zone, order));
        json!({
            "order": order,
            "size_bytes": PAGE_SIZE << order,
            "free_area_struct": hex(address),
            "blocks": blocks,
            "pages": blocks << order,
            "found": by_type(found),
            "nr_free": by_type(counted),
        })
    };
    rows.map(area).collect()
}
