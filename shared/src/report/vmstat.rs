//! `/proc/vmstat`, a node's `vmstat` and `numastat`.

use core::fmt::{self, Write};

use super::counters::{self, clamp};
use crate::region::RegionRef;
use crate::units::NodeId;
use crate::vmstat::{NodeStat, NumaStat, VmEvent, ZoneStat};
use crate::zone::ZoneIndex;

/// What is done with each item: its name and value.
pub type Each<'f> = &'f mut dyn FnMut(&'static str, u64) -> fmt::Result;

/// Base pages in a huge page (`HPAGE_PMD_NR`).
const HPAGE_PMD_NR: u64 = 512;

/// Share of the dirtyable memory, in pages of 4096 parts, at which writers are throttled (`vm_dirty_ratio` 20) and
/// at which writing back starts (`dirty_background_ratio` 10): `ratio * PAGE_SIZE / 100`.
const DIRTY_RATIO: u64 = 20 * 4096 / 100;
const DIRTY_BACKGROUND_RATIO: u64 = 10 * 4096 / 100;

/// A node counter as it is printed: those of huge pages are kept in base pages and printed in huge pages
/// (`vmstat_item_print_in_thp`).
fn printed(item: usize, pages: i64) -> u64 {
    const IN_THP: [NodeStat; 5] = [
        NodeStat::NrAnonTransparentHugepages,
        NodeStat::NrFileHugepages,
        NodeStat::NrShmemHugepages,
        NodeStat::NrShmemPmdmapped,
        NodeStat::NrFilePmdmapped,
    ];
    let pages = clamp(pages);
    if IN_THP.iter().any(|huge| huge.index() == item) { pages / HPAGE_PMD_NR } else { pages }
}

/// Zone counters of one zone.
///
/// # Errors
/// Those of `each`.
pub fn zone_items(region: &RegionRef<'_>, zone: ZoneIndex, each: Each<'_>) -> fmt::Result {
    let mut names = ZoneStat::NAMES.into_iter().enumerate();
    names.try_for_each(|(item, name)| each(name, clamp(counters::exact_zone_state(region, zone, item))))
}

/// NUMA events of one zone.
///
/// # Errors
/// Those of `each`.
pub fn numa_items(region: &RegionRef<'_>, zone: ZoneIndex, each: Each<'_>) -> fmt::Result {
    let mut names = NumaStat::NAMES.into_iter().enumerate();
    names.try_for_each(|(item, name)| each(name, counters::folded_numa_event(region, zone, item)))
}

/// Counters of one node.
///
/// # Errors
/// Those of `each`.
pub fn node_items(region: &RegionRef<'_>, node: NodeId, each: Each<'_>) -> fmt::Result {
    let mut names = NodeStat::NAMES.into_iter().enumerate();
    names.try_for_each(|(item, name)| each(name, printed(item, counters::exact_node_state(region, node, item))))
}

/// NUMA event number `item` summed over the zones of `node`.
fn node_numa_event(region: &RegionRef<'_>, node: NodeId, item: usize) -> u64 {
    let zones = counters::zones_of(region, node);
    zones.fold(0, |sum, (_, zone, _)| sum.wrapping_add(counters::folded_numa_event(region, zone, item)))
}

/// Every line of `/proc/vmstat`, in order.
///
/// # Errors
/// Those of `each`.
pub fn vmstat_items(region: &RegionRef<'_>, each: Each<'_>) -> fmt::Result {
    for (item, name) in ZoneStat::NAMES.into_iter().enumerate() {
        each(name, clamp(counters::global_zone_state(region, item)))?;
    }
    for (item, name) in NumaStat::NAMES.into_iter().enumerate() {
        let nodes = counters::possible_nodes(region).iter();
        each(name, nodes.fold(0, |sum, node| sum.wrapping_add(node_numa_event(region, node, item))))?;
    }
    for (item, name) in NodeStat::NAMES.into_iter().enumerate() {
        each(name, printed(item, counters::global_node_state(region, item)))?;
    }
    let (background, threshold) = dirty_limits(region);
    each("nr_dirty_threshold", threshold)?;
    each("nr_dirty_background_threshold", background)?;
    for (item, name) in VmEvent::NAMES.into_iter().enumerate() {
        each(name, counters::vm_event_at(region, item))?;
    }
    // Kept by Linux for old readers.
    each("nr_unstable", 0)
}

/// Every line of a node's `vmstat`, in order.
///
/// # Errors
/// Those of `each`.
pub fn node_vmstat_items(region: &RegionRef<'_>, node: NodeId, each: Each<'_>) -> fmt::Result {
    for (item, name) in ZoneStat::NAMES.into_iter().enumerate() {
        let zones = counters::zones_of(region, node);
        let state = |zone| clamp(counters::exact_zone_state(region, zone, item));
        each(name, zones.fold(0, |sum, (_, zone, _)| sum.wrapping_add(state(zone))))?;
    }
    for (item, name) in NumaStat::NAMES.into_iter().enumerate() {
        each(name, node_numa_event(region, node, item))?;
    }
    node_items(region, node, each)
}

/// Every line of a node's `numastat`, in order, with the names that file uses.
///
/// # Errors
/// Those of `each`.
pub fn node_numastat_items(region: &RegionRef<'_>, node: NodeId, each: Each<'_>) -> fmt::Result {
    let names = ["numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node"];
    names.into_iter().enumerate().try_for_each(|(item, name)| each(name, node_numa_event(region, node, item)))
}

/// `global_dirty_limits` at the default ratios: background threshold and threshold, in pages.
fn dirty_limits(region: &RegionRef<'_>) -> (u64, u64) {
    let free = counters::global_zone_page_state(region, ZoneStat::NrFreePages);
    // `global_dirtyable_memory`; the one at the end keeps Linux's divisors above zero.
    let available = free
        .saturating_sub(counters::totalreserve_pages(region))
        .wrapping_add(counters::global_node_page_state(region, NodeStat::NrInactiveFile))
        .wrapping_add(counters::global_node_page_state(region, NodeStat::NrActiveFile))
        .wrapping_add(1);
    let threshold = available.wrapping_mul(DIRTY_RATIO) / 4096;
    let background = available.wrapping_mul(DIRTY_BACKGROUND_RATIO) / 4096;
    (if background >= threshold { threshold / 2 } else { background }, threshold)
}

/// `/proc/vmstat`.
///
/// # Errors
/// Those of `out`.
pub fn vmstat(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    vmstat_items(region, &mut |name, value| writeln!(out, "{name} {value}"))
}

/// `/sys/devices/system/node/nodeN/vmstat`.
///
/// # Errors
/// Those of `out`.
pub fn node_vmstat(region: &RegionRef<'_>, node: NodeId, out: &mut dyn Write) -> fmt::Result {
    node_vmstat_items(region, node, &mut |name, value| writeln!(out, "{name} {value}"))
}

/// `/sys/devices/system/node/nodeN/numastat`.
///
/// # Errors
/// Those of `out`.
pub fn node_numastat(region: &RegionRef<'_>, node: NodeId, out: &mut dyn Write) -> fmt::Result {
    node_numastat_items(region, node, &mut |name, value| writeln!(out, "{name} {value}"))
}
