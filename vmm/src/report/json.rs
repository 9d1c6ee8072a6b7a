//! Linux's files as JSON: the same numbers, as numbers, under their names in snake case.
//!
//! Amounts in KiB have keys that end in `_kb`, as the files say kB; everything else is in pages or a plain count.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::{MIGRATE_TYPES, MigrateType};
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::region::records::{CmaRecord, FaultState, ResourceKind};
use pagevisor_shared::region::zone::ZoneState;
use pagevisor_shared::report::cma as areas;
use pagevisor_shared::report::counters::{self, FreeCounts};
use pagevisor_shared::report::meminfo::{self, Amount};
use pagevisor_shared::report::{ContigPageInfo, distance, vmstat as counted_by};
use pagevisor_shared::units::{CpuMask, MAX_ORDER, NodeId, PAGE_SIZE, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER};
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::{Watermark, ZoneIndex, ZoneType};
use serde_json::{Map, Value, json};

use super::view::NodeFile;

/// `MemTotal` as `mem_total`, `NFS_Unstable` as `nfs_unstable`, `Active(anon)` as `active_anon`.
pub(super) fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    let mut before = '_';
    let letters: Vec<char> = name.chars().collect();
    for (index, &letter) in letters.iter().enumerate() {
        let next_is_small = letters.get(index + 1).is_some_and(char::is_ascii_lowercase);
        let starts_word = match letter {
            'A'..='Z' => before.is_ascii_lowercase() || before.is_ascii_uppercase() && next_is_small,
            '0'..='9' => before.is_ascii_lowercase(),
            _ => false,
        };
        if starts_word {
            snake.push('_');
        }
        match letter {
            '(' => snake.push('_'),
            ')' => {}
            _ => snake.push(letter.to_ascii_lowercase()),
        }
        before = letter;
    }
    snake
}

fn cpus(mask: CpuMask) -> Vec<usize> {
    mask.iter().map(|cpu| cpu.index()).collect()
}

/// Collects named numbers.
fn counted(list: impl FnOnce(counted_by::Each<'_>) -> std::fmt::Result) -> Value {
    let mut map = Map::new();
    // Only the closure could fail, and it does not.
    let _ = list(&mut |name, value| {
        map.insert(name.to_owned(), value.into());
        Ok(())
    });
    Value::Object(map)
}

fn amounts(list: impl FnOnce(meminfo::Each<'_>) -> std::fmt::Result) -> Value {
    let mut map = Map::new();
    let _ = list(&mut |name, amount| {
        let name = snake_case(name);
        match amount {
            Amount::KiB(value) => map.insert(name + "_kb", value.into()),
            Amount::Count(value) => map.insert(name, value.into()),
        };
        Ok(())
    });
    Value::Object(map)
}

/// All zones of the online nodes.
fn zones<'a>(region: &RegionRef<'a>) -> impl Iterator<Item = (NodeId, ZoneType, ZoneIndex, &'a ZoneState)> {
    let region = region.clone();
    counters::online_nodes(&region).iter().flat_map(move |node| {
        counters::zones_of(&region, node).map(move |(kind, index, zone)| (node, kind, index, zone))
    })
}

pub(super) fn buddyinfo(region: &RegionRef<'_>) -> Value {
    let rows = zones(region).filter(|(.., zone)| counters::is_populated(zone)).map(|(node, kind, _, zone)| {
        json!({ "node": node.index(), "zone": kind.name(), "nr_free": FreeCounts::read(zone).by_order() })
    });
    json!({ "zones": rows.collect::<Vec<_>>() })
}

/// An index of each order, in thousandths.
pub(super) fn extfrag(region: &RegionRef<'_>, index: fn(&ContigPageInfo, usize) -> i64) -> Value {
    let rows = zones(region).filter(|(.., zone)| counters::is_populated(zone)).map(|(node, kind, _, zone)| {
        let blocks = FreeCounts::read(zone).by_order();
        let indices = (0..MAX_ORDER).map(|order| index(&ContigPageInfo::new(&blocks, order), order));
        json!({ "node": node.index(), "zone": kind.name(), "thousandths": indices.collect::<Vec<_>>() })
    });
    json!({ "zones": rows.collect::<Vec<_>>() })
}

pub(super) fn pagetypeinfo(region: &RegionRef<'_>, blocks: &[[u64; MIGRATE_TYPES]]) -> Value {
    let rows = zones(region).filter(|(.., zone)| counters::is_populated(zone)).map(|(node, kind, index, zone)| {
        let free = FreeCounts::read(zone);
        let blocks = blocks.get(index.index()).copied().unwrap_or_default();
        let mut free_by_type = Map::new();
        let mut blocks_by_type = Map::new();
        for (migrate, count) in MigrateType::ALL.into_iter().zip(blocks) {
            let column: Vec<u64> = free.0.iter().map(|row| row[migrate.index()]).collect();
            free_by_type.insert(snake_case(migrate.name()), column.into());
            blocks_by_type.insert(snake_case(migrate.name()), count.into());
        }
        json!({ "node": node.index(), "zone": kind.name(), "nr_free": free_by_type, "blocks": blocks_by_type })
    });
    json!({
        "page_block_order": PAGEBLOCK_ORDER,
        "pages_per_block": PAGEBLOCK_NR_PAGES,
        "zones": rows.collect::<Vec<_>>(),
    })
}

pub(super) fn zoneinfo(region: &RegionRef<'_>) -> Value {
    let nodes = counters::online_nodes(region).iter().map(|node| {
        json!({
            "node": node.index(),
            "stats": counted(|each| counted_by::node_items(region, node, each)),
            "node_unreclaimable": false,
        })
    });
    let zones = zones(region).map(|(node, kind, index, zone)| zoneinfo_zone(region, node, kind, index, zone));
    json!({ "nodes": nodes.collect::<Vec<_>>(), "zones": zones.collect::<Vec<_>>() })
}

fn zoneinfo_zone(region: &RegionRef<'_>, node: NodeId, kind: ZoneType, index: ZoneIndex, zone: &ZoneState) -> Value {
    let pagesets = counters::online_cpus(region).iter().filter_map(|cpu| {
        let pcp = counters::pcp(region, cpu, index)?;
        Some(json!({
            "cpu": cpu.index(),
            "count": pcp.count.load(Relaxed),
            "high": pcp.high.load(Relaxed),
            "batch": pcp.batch.load(Relaxed),
            "vm_stats_threshold": pcp.stat_threshold.load(Relaxed),
        }))
    });
    let populated = counters::is_populated(zone);
    json!({
        "node": node.index(),
        "zone": kind.name(),
        "populated": populated,
        "free": counters::zone_page_state_snapshot(region, index, ZoneStat::NrFreePages),
        "boost": zone.watermark_boost.load(Relaxed),
        "min": counters::wmark_pages(zone, Watermark::Min),
        "low": counters::wmark_pages(zone, Watermark::Low),
        "high": counters::wmark_pages(zone, Watermark::High),
        "spanned": zone.spanned_pages.load(Relaxed),
        "present": zone.present_pages.load(Relaxed),
        "managed": zone.managed_pages.load(Relaxed),
        "cma": zone.cma_pages.load(Relaxed),
        "protection": zone.lowmem_reserve.iter().map(|reserve| reserve.load(Relaxed)).collect::<Vec<_>>(),
        "stats": counted(|each| counted_by::zone_items(region, index, each)),
        "numa": counted(|each| counted_by::numa_items(region, index, each)),
        "pagesets": if populated { pagesets.collect() } else { Vec::new() },
        "start_pfn": zone.zone_start_pfn.load(Relaxed),
    })
}

pub(super) fn meminfo(region: &RegionRef<'_>) -> Value {
    amounts(|each| meminfo::items(region, each))
}

pub(super) fn vmstat(region: &RegionRef<'_>) -> Value {
    counted(|each| counted_by::vmstat_items(region, each))
}

pub(super) fn iomem(region: &RegionRef<'_>) -> Value {
    let rows = region.resources().iter().map(|record| {
        let name = ResourceKind::ALL.get(record.kind.load(Relaxed) as usize).map(|kind| kind.name());
        json!({
            "start": record.start.load(Relaxed),
            "end": record.end.load(Relaxed),
            "depth": record.depth.load(Relaxed),
            "name": name,
        })
    });
    json!({ "resources": rows.collect::<Vec<_>>() })
}

pub(super) fn node(region: &RegionRef<'_>, node: NodeId, file: NodeFile) -> Value {
    let mut value = match file {
        NodeFile::Meminfo => amounts(|each| meminfo::node_items(region, node, each)),
        NodeFile::Numastat => counted(|each| counted_by::node_numastat_items(region, node, each)),
        NodeFile::Vmstat => counted(|each| counted_by::node_vmstat_items(region, node, each)),
        NodeFile::Distance => json!({ "distances": distances(region, node) }),
        NodeFile::Cpulist | NodeFile::Cpumap => json!({ "cpus": cpus(counters::cpus_of_node(region, node)) }),
    };
    value["node"] = node.index().into();
    value
}

/// Distances to the online nodes.
fn distances(region: &RegionRef<'_>, from: NodeId) -> Vec<Value> {
    let to = counters::online_nodes(region).iter();
    to.map(|to| json!({ "node": to.index(), "distance": distance(region, from, to) })).collect()
}

pub(super) fn numa(region: &RegionRef<'_>) -> Value {
    let nodes = counters::online_nodes(region).iter().map(|node| {
        let managed: u64 = counters::zones_of(region, node)
            .fold(0, |sum, (_, _, zone)| sum.wrapping_add(zone.managed_pages.load(Relaxed)));
        let free = counters::sum_zone_node_page_state(region, node, ZoneStat::NrFreePages);
        json!({
            "node": node.index(),
            "cpus": cpus(counters::cpus_of_node(region, node)),
            "size_bytes": managed.wrapping_mul(PAGE_SIZE),
            "free_bytes": free.wrapping_mul(PAGE_SIZE),
            "distances": distances(region, node),
        })
    });
    json!({ "nodes": nodes.collect::<Vec<_>>() })
}

/// The settings.
pub(super) fn sysctl(region: &RegionRef<'_>) -> Value {
    let settings = region.sysctl();
    json!({
        "lowmem_reserve_ratio": settings.lowmem_reserve_ratio.each_ref().map(|ratio| ratio.load(Relaxed)),
        "max_map_count": settings.max_map_count.load(Relaxed),
        "min_free_kbytes": settings.min_free_kbytes.load(Relaxed),
        "mmap_min_addr": settings.mmap_min_addr.load(Relaxed),
        "numa_zonelist_order": "Node",
        "overcommit_kbytes": settings.overcommit_kbytes.load(Relaxed),
        "overcommit_memory": settings.overcommit_memory.load(Relaxed),
        "overcommit_ratio": settings.overcommit_ratio.load(Relaxed),
        "percpu_pagelist_high_fraction": settings.percpu_pagelist_high_fraction.load(Relaxed),
        "watermark_boost_factor": settings.watermark_boost_factor.load(Relaxed),
        "watermark_scale_factor": settings.watermark_scale_factor.load(Relaxed),
        "zone_reclaim_mode": settings.zone_reclaim_mode.load(Relaxed),
    })
}

/// Fault injection into allocations of pages.
pub(super) fn fail_page_alloc(region: &RegionRef<'_>) -> Value {
    let state = &region.sysctl().fail_page_alloc;
    let mut value = fault(state);
    value["ignore_gfp_highmem"] = json!(state.ignore_gfp_highmem.load(Relaxed) != 0);
    value["min_order"] = json!(state.min_order.load(Relaxed));
    value["nth_min_order"] = json!(state.nth_min_order.load(Relaxed));
    value
}

/// Fault injection into allocations of objects.
pub(super) fn failslab(region: &RegionRef<'_>) -> Value {
    let state = &region.sysctl().failslab;
    let mut value = fault(state);
    value["cache_filter"] = json!(state.cache_filter.load(Relaxed) != 0);
    value
}

/// What is the same for all.
fn fault(state: &FaultState) -> Value {
    json!({
        "ignore_gfp_wait": state.ignore_gfp_reclaim.load(Relaxed) != 0,
        "interval": state.interval.load(Relaxed),
        "probability": state.probability.load(Relaxed),
        "space": state.space.load(Relaxed),
        "times": state.times.load(Relaxed).cast_signed(),
        "gfp": state.gfp.load(Relaxed),
        "nth": state.nth.load(Relaxed),
        "nth_cpu": Some(state.nth_cpu.load(Relaxed)).filter(|cpu| *cpu != u32::MAX),
        "nth_gfp": state.nth_gfp.load(Relaxed),
        "looked_at": state.looked_at.load(Relaxed),
        "failed": state.failed.load(Relaxed),
    })
}

/// Contiguous memory areas.
pub(super) fn cma(region: &RegionRef<'_>) -> Value {
    let area = |record: &CmaRecord| {
        let CmaRecord { base_pfn, count, used, order_per_bit, .. } = record;
        json!({
            "name": areas::Name(record).to_string(),
            "base_pfn": base_pfn.load(Relaxed),
            "count": count.load(Relaxed),
            "order_per_bit": order_per_bit.load(Relaxed),
            "used": used.load(Relaxed),
        })
    };
    json!({ "areas": areas::areas(region).map(area).collect::<Vec<_>>() })
}
