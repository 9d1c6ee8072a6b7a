//! What `pagevisor run` prints at the end: nodes, zones, fallback order.

use std::fmt::{self, Write};
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::region::zone::ZoneState;
use pagevisor_shared::report::{self, counters};
use pagevisor_shared::units::NodeId;
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::{Watermark, ZoneIndex};
use serde_json::{Value, json};

use crate::state::StateView;

/// Numbers of a zone.
#[derive(Clone, Copy, Default)]
struct Pages {
    present: u64,
    managed: u64,
    free: u64,
}

impl Pages {
    fn of(state: &StateView, index: ZoneIndex, zone: &ZoneState) -> Self {
        Self {
            present: zone.present_pages.load(Relaxed),
            managed: zone.managed_pages.load(Relaxed),
            free: counters::zone_page_state_snapshot(&state.region(), index, ZoneStat::NrFreePages),
        }
    }

    fn of_node(state: &StateView, node: NodeId) -> Self {
        counters::zones_of(&state.region(), node).fold(Self::default(), |sum, (_, index, zone)| {
            let pages = Self::of(state, index, zone);
            Self {
                present: sum.present.wrapping_add(pages.present),
                managed: sum.managed.wrapping_add(pages.managed),
                free: sum.free.wrapping_add(pages.free),
            }
        })
    }
}

/// A line for each online node and each populated zone in it, in pages, and the nodes' fallback orders as Linux
/// logs them.
///
/// # Errors
/// Those of `out`.
pub fn summary(state: &StateView, out: &mut dyn Write) -> fmt::Result {
    let region = state.region();
    writeln!(out, "node  zone       present    managed       free       min       low      high  cpus")?;
    for node in counters::online_nodes(&region).iter() {
        let Pages { present, managed, free } = Pages::of_node(state, node);
        let cpus = match counters::cpus_of_node(&region, node) {
            none if none.0 == 0 => "-".to_owned(),
            cpus => cpus.to_string(),
        };
        let (id, none) = (node.index(), "-");
        writeln!(
            out,
            "{id:>4}  {:<7} {present:>10} {managed:>10} {free:>10} {none:>9} {none:>9} {none:>9}  {cpus}",
            "all"
        )?;
        for (kind, index, zone) in counters::zones_of(&region, node) {
            if !counters::is_populated(zone) {
                continue;
            }
            let Pages { present, managed, free } = Pages::of(state, index, zone);
            let [min, low, high] =
                [Watermark::Min, Watermark::Low, Watermark::High].map(|mark| counters::wmark_pages(zone, mark));
            let name = kind.name();
            writeln!(out, "{id:>4}  {name:<7} {present:>10} {managed:>10} {free:>10} {min:>9} {low:>9} {high:>9}")?;
        }
    }
    report::fallback_orders(&region, out)
}

/// The summary as JSON.
pub fn summary_json(state: &StateView) -> Value {
    let region = state.region();
    let nodes = counters::online_nodes(&region).iter().map(|node| {
        let Pages { present, managed, free } = Pages::of_node(state, node);
        let zones = counters::zones_of(&region, node).filter(|(_, _, zone)| counters::is_populated(zone));
        let zones = zones.map(|(kind, index, zone)| {
            let Pages { present, managed, free } = Pages::of(state, index, zone);
            json!({
                "zone": kind.name(),
                "present": present,
                "managed": managed,
                "free": free,
                "min": counters::wmark_pages(zone, Watermark::Min),
                "low": counters::wmark_pages(zone, Watermark::Low),
                "high": counters::wmark_pages(zone, Watermark::High),
            })
        });
        let cpus = counters::cpus_of_node(&region, node).iter().map(|cpu| cpu.index());
        json!({
            "node": node.index(),
            "cpus": cpus.collect::<Vec<_>>(),
            "present": present,
            "managed": managed,
            "free": free,
            "zones": zones.collect::<Vec<_>>(),
            "fallback_order": fallback_order(state, node),
        })
    });
    json!({ "nodes": nodes.collect::<Vec<_>>() })
}

fn fallback_order(state: &StateView, node: NodeId) -> Vec<u8> {
    let region = state.region();
    let Some(record) = region.nodes().get(node.index()) else { return Vec::new() };
    let count = record.nr_fallback.load(Relaxed) as usize;
    record.fallback_order.iter().take(count).map(|node| node.load(Relaxed)).collect()
}
