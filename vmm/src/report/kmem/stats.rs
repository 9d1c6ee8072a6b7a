//! `kmem -V` and `kmem -z`: counters under the names of the kernel's enumerators.

use std::fmt::{self, Write};
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::region::zone::ZoneState;
use pagevisor_shared::report::{counters, vmstat as linux};
use pagevisor_shared::vmstat::{NodeStat, NumaStat, VmEvent, ZoneStat};
use pagevisor_shared::zone::{Watermark, ZoneIndex};
use serde_json::{Map, Value, json};

use super::{hex, zone_address};
use crate::state::StateView;

/// Enumerators whose names differ from those of `/proc/vmstat` in more than case.
const ENUMERATORS: &[(&str, &str)] = &[
    ("nr_free_cma", "NR_FREE_CMA_PAGES"),
    ("numa_interleave", "NUMA_INTERLEAVE_HIT"),
    ("nr_slab_reclaimable", "NR_SLAB_RECLAIMABLE_B"),
    ("nr_slab_unreclaimable", "NR_SLAB_UNRECLAIMABLE_B"),
    ("nr_anon_pages", "NR_ANON_MAPPED"),
    ("nr_mapped", "NR_FILE_MAPPED"),
    ("nr_dirty", "NR_FILE_DIRTY"),
    ("nr_shmem_hugepages", "NR_SHMEM_THPS"),
    ("nr_file_hugepages", "NR_FILE_THPS"),
    ("nr_anon_transparent_hugepages", "NR_ANON_THPS"),
    ("nr_vmscan_immediate_reclaim", "NR_VMSCAN_IMMEDIATE"),
    ("nr_kernel_stack", "NR_KERNEL_STACK_KB"),
    ("nr_page_table_pages", "NR_PAGETABLE"),
    ("nr_sec_page_table_pages", "NR_SECONDARY_PAGETABLE"),
    ("nr_swapcached", "NR_SWAPCACHE"),
    ("pgskip_dma", "PGSCAN_SKIP_DMA"),
    ("pgskip_dma32", "PGSCAN_SKIP_DMA32"),
    ("pgskip_normal", "PGSCAN_SKIP_NORMAL"),
    ("pgskip_movable", "PGSCAN_SKIP_MOVABLE"),
    ("pgskip_device", "PGSCAN_SKIP_DEVICE"),
    ("zone_reclaim_failed", "PGSCAN_ZONE_RECLAIM_FAILED"),
    ("numa_pages_migrated", "NUMA_PAGE_MIGRATE"),
    ("compact_migrate_scanned", "COMPACTMIGRATE_SCANNED"),
    ("compact_free_scanned", "COMPACTFREE_SCANNED"),
    ("compact_isolated", "COMPACTISOLATED"),
    ("compact_stall", "COMPACTSTALL"),
    ("compact_fail", "COMPACTFAIL"),
    ("compact_success", "COMPACTSUCCESS"),
    ("compact_daemon_wake", "KCOMPACTD_WAKE"),
    ("compact_daemon_migrate_scanned", "KCOMPACTD_MIGRATE_SCANNED"),
    ("compact_daemon_free_scanned", "KCOMPACTD_FREE_SCANNED"),
    ("htlb_buddy_alloc_success", "HTLB_BUDDY_PGALLOC"),
    ("htlb_buddy_alloc_fail", "HTLB_BUDDY_PGALLOC_FAIL"),
    ("unevictable_pgs_culled", "UNEVICTABLE_PGCULLED"),
    ("unevictable_pgs_scanned", "UNEVICTABLE_PGSCANNED"),
    ("unevictable_pgs_rescued", "UNEVICTABLE_PGRESCUED"),
    ("unevictable_pgs_mlocked", "UNEVICTABLE_PGMLOCKED"),
    ("unevictable_pgs_munlocked", "UNEVICTABLE_PGMUNLOCKED"),
    ("unevictable_pgs_cleared", "UNEVICTABLE_PGCLEARED"),
    ("unevictable_pgs_stranded", "UNEVICTABLE_PGSTRANDED"),
    ("direct_map_level2_splits", "DIRECT_MAP_LEVEL2_SPLIT"),
    ("direct_map_level3_splits", "DIRECT_MAP_LEVEL3_SPLIT"),
];

fn enumerator(name: &str) -> String {
    let other = ENUMERATORS.iter().find(|(known, _)| *known == name);
    other.map_or_else(|| name.to_ascii_uppercase(), |(_, other)| (*other).to_owned())
}

/// Named counters.
type Items = Vec<(&'static str, u64)>;

/// Rows whose names end in one column, `width` wide.
fn rows(items: &Items, width: usize, out: &mut dyn Write) -> fmt::Result {
    items.iter().try_for_each(|(name, value)| writeln!(out, "{:>width$}: {value}", enumerator(name)))
}

fn width<'n>(names: impl IntoIterator<Item = &'n &'static str>) -> usize {
    names.into_iter().map(|name| enumerator(name).len()).max().unwrap_or(0)
}

/// The tables of `kmem -V`, by heading.
fn tables(state: &StateView) -> [(&'static str, Items); 4] {
    let region = state.region();
    let mut all = Items::new();
    // Only the closure could fail, and it does not.
    let _ = linux::vmstat_items(&region, &mut |name, value| {
        all.push((name, value));
        Ok(())
    });
    let pick = |names: &[&'static str]| all.iter().filter(|(name, _)| names.contains(name)).copied().collect();
    [
        ("VM_ZONE_STAT", pick(&ZoneStat::NAMES)),
        ("VM_NODE_STAT", pick(&NodeStat::NAMES)),
        ("VM_NUMA_STAT", pick(&NumaStat::NAMES)),
        ("VM_EVENT_STATES", pick(&VmEvent::NAMES)),
    ]
}

/// `kmem -V`.
///
/// # Errors
/// Those of `out`.
pub fn vmstat(state: &StateView, out: &mut dyn Write) -> fmt::Result {
    let stats = width(ZoneStat::NAMES.iter().chain(&NodeStat::NAMES).chain(&NumaStat::NAMES));
    let events = width(&VmEvent::NAMES);
    for (position, (heading, items)) in tables(state).iter().enumerate() {
        writeln!(out, "{}  {heading}:", if position == 0 { "" } else { "\n" })?;
        rows(items, if *heading == "VM_EVENT_STATES" { events } else { stats }, out)?;
    }
    Ok(())
}

/// `kmem -V` as JSON.
pub fn vmstat_json(state: &StateView) -> Value {
    let object = |items: Items| {
        items.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect::<Map<_, _>>()
    };
    let tables = tables(state).map(|(heading, items)| (heading.to_ascii_lowercase(), Value::Object(object(items))));
    Value::Object(tables.into_iter().collect())
}

/// The zone's own counters.
fn zone_items(state: &StateView, index: ZoneIndex) -> Items {
    let mut items = Items::new();
    let _ = linux::zone_items(&state.region(), index, &mut |name, value| {
        items.push((name, value));
        Ok(())
    });
    items
}

fn marks(zone: &ZoneState) -> [u64; 3] {
    [Watermark::Min, Watermark::Low, Watermark::High].map(|mark| zone.watermark[mark as usize].load(Relaxed))
}

/// `kmem -z`.
///
/// # Errors
/// Those of `out`.
pub fn zones(state: &StateView, out: &mut dyn Write) -> fmt::Result {
    let width = width(&ZoneStat::NAMES);
    for node in state.online_nodes() {
        for (kind, index, zone) in counters::zones_of(&state.region(), node) {
            let (number, address) = (kind.index(), zone_address(state, index));
            writeln!(out, "NODE: {}  ZONE: {number}  ADDR: {address:x}  NAME: \"{}\"", node.index(), kind.name())?;
            let (spanned, present) = (zone.spanned_pages.load(Relaxed), zone.present_pages.load(Relaxed));
            if spanned == 0 {
                writeln!(out, "  [unpopulated]\n")?;
                continue;
            }
            write!(out, "  SIZE: {spanned}")?;
            if present < spanned {
                write!(out, "  PRESENT: {present}")?;
            }
            let [min, low, high] = marks(zone);
            writeln!(out, "  MIN/LOW/HIGH: {min}/{low}/{high}\n  VM_STAT:")?;
            rows(&zone_items(state, index), width, out)?;
            writeln!(out, "\n")?;
        }
    }
    Ok(())
}

/// `kmem -z` as JSON.
pub fn zones_json(state: &StateView) -> Value {
    let mut zones = Vec::new();
    for node in state.online_nodes() {
        for (kind, index, zone) in counters::zones_of(&state.region(), node) {
            let [min, low, high] = marks(zone);
            let items = zone_items(state, index).into_iter();
            zones.push(json!({
                "node": node.index(),
                "zone": kind.index(),
                "name": kind.name(),
                "address": hex(zone_address(state, index)),
                "size": zone.spanned_pages.load(Relaxed),
                "present": zone.present_pages.load(Relaxed),
                "min": min,
                "low": low,
                "high": high,
                "vm_stat": items.map(|(name, value)| (name.to_owned(), value.into())).collect::<Map<_, _>>(),
            }));
        }
    }
    json!({ "zones": zones })
}
