//! `zeroed`: what is known about pages being zero. Linux clears every page for who wants zeros, and has no file for this.
//!
//! By CPU, pages that were cleared, that needed no clearing since they were known to be zero, and that were cleared because
//! there was nothing else to do. By zone, free pages and those of them that are known to be zero, on the free lists and on
//! the CPUs' own (`pcp`), both walked in guest memory.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::iter::Sum;
use std::ops::Add;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::report::counters;
use pagevisor_shared::units::{CpuId, NodeId};
use pagevisor_shared::zone::{ZoneIndex, ZoneType};
use serde_json::{Value, json};

use super::error::ReportError;
use super::kmem;
use super::view::write_json;
use crate::state::{FreeWalk, Patience, StateError, StateView, ZoneWalk};

/// Numbers in a row.
#[derive(Clone, Copy)]
struct Row<const N: usize>([u64; N]);

impl<const N: usize> Add for Row<N> {
    type Output = Self;

    /// What the guest counts may be anything, so it wraps.
    fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at].wrapping_add(other.0[at])))
    }
}

impl<const N: usize> Sum for Row<N> {
    fn sum<I: Iterator<Item = Self>>(rows: I) -> Self {
        rows.fold(Self([0; N]), Self::add)
    }
}

impl<const N: usize> fmt::Display for Row<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|number| write!(f, " {number:>14}"))
    }
}

/// Counts of a CPU.
type Counts = Row<3>;
const COUNTS: [&str; 3] = ["pages_cleared", "clears_saved", "idle_cleared"];

/// Pages of a zone.
type Pages = Row<4>;
const PAGES: [&str; 4] = ["free", "known_zero", "pcp", "pcp_known_zero"];

/// A populated zone.
struct Zone {
    node: NodeId,
    kind: ZoneType,
    pages: Pages,
}

/// All that the view shows.
struct Zeroed {
    cpus: Vec<(CpuId, Counts)>,
    zones: Vec<Zone>,
}

impl Zeroed {
    fn of(state: &StateView, walk: &FreeWalk) -> Result<Self, StateError> {
        let region = state.region();
        let cpus = counters::online_cpus(&region).iter().filter_map(|cpu| {
            let record = region.cpus().get(cpu.index())?;
            let counts = [&record.pages_cleared, &record.clears_saved, &record.idle_cleared];
            Some((cpu, Row(counts.map(|count| count.load(Relaxed)))))
        });
        let cpus: Vec<_> = cpus.collect();
        let populated = |zone: &&ZoneWalk| region.zones().get(zone.zone.index()).is_some_and(counters::is_populated);
        let zones = walk.zones.iter().filter(populated).map(|zone| {
            let [pcp, pcp_known_zero] = pcp_pages(state, cpus.iter().map(|(cpu, _)| *cpu), zone.zone)?;
            let pages = Row([zone.found.pages(), zone.known_zero, pcp, pcp_known_zero]);
            Ok(Zone { node: zone.node, kind: zone.zone_type, pages })
        });
        let zones = zones.collect::<Result<_, StateError>>()?;
        Ok(Self { cpus, zones })
    }

    fn counts(&self) -> Counts {
        self.cpus.iter().map(|(_, counts)| *counts).sum()
    }

    /// Pages of the zones of `node`, or of all nodes.
    fn pages(&self, node: Option<NodeId>) -> Pages {
        self.zones.iter().filter(|zone| node.is_none_or(|node| node == zone.node)).map(|zone| zone.pages).sum()
    }

    fn to_text(&self, out: &mut String) -> fmt::Result {
        writeln!(out, " cpu         {}", headings(COUNTS))?;
        for (cpu, counts) in &self.cpus {
            writeln!(out, "{:>4}         {counts}", cpu.index())?;
        }
        writeln!(out, " all         {}\n", self.counts())?;
        writeln!(out, "node  zone   {}", headings(PAGES))?;
        let mut last = None;
        for Zone { node, kind, pages } in &self.zones {
            if last.replace(node) != Some(node) {
                writeln!(out, "{:>4}  {:<7}{}", node.index(), "all", self.pages(Some(*node)))?;
            }
            writeln!(out, "{:>4}  {:<7}{pages}", node.index(), kind.name())?;
        }
        writeln!(out, " all         {}", self.pages(None))
    }

    fn to_json(&self) -> Value {
        let cpus = self.cpus.iter().map(|(cpu, counts)| named(json!({ "cpu": cpu.index() }), COUNTS, *counts));
        let zones = self
            .zones
            .iter()
            .map(|zone| named(json!({ "node": zone.node.index(), "zone": zone.kind.name() }), PAGES, zone.pages));
        let all = named(named(json!({}), COUNTS, self.counts()), PAGES, self.pages(None));
        json!({ "cpus": cpus.collect::<Vec<_>>(), "zones": zones.collect::<Vec<_>>(), "all": all })
    }
}

/// Pages on the CPUs' own lists of a zone, and those of them that are known to be zero.
fn pcp_pages(state: &StateView, cpus: impl Iterator<Item = CpuId>, zone: ZoneIndex) -> Result<[u64; 2], StateError> {
    let mut pages = Row([0; 2]);
    for cpu in cpus {
        if let Some(walk) = state.walk_pcp(cpu, zone, Patience::default().tries)? {
            pages = pages + Row([walk.pages(), walk.known_zero]);
        }
    }
    Ok(pages.0)
}

fn headings<const N: usize>(names: [&'static str; N]) -> String {
    names.map(|name| format!(" {name:>14}")).concat()
}

/// `value` with the numbers of `row` under their names.
fn named<const N: usize>(mut value: Value, names: [&'static str; N], row: Row<N>) -> Value {
    names.into_iter().zip(row.0).for_each(|(name, number)| value[name] = number.into());
    value
}

/// Writes the view.
///
/// # Errors
/// [`ReportError::Unverified`], after all was written, when free lists and counters disagree.
pub fn zeroed(state: &StateView, as_json: bool, out: &mut dyn Write) -> Result<(), ReportError> {
    let walk = state.walk_free_lists(Patience::default())?;
    let zeroed = Zeroed::of(state, &walk)?;
    if as_json {
        write_json(&zeroed.to_json(), out)?;
    } else {
        let mut text = String::new();
        zeroed.to_text(&mut text)?;
        out.write_all(text.as_bytes()).map_err(ReportError::Write)?;
    }
    kmem::verified(&walk)
}
