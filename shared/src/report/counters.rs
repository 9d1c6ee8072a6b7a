//! The numbers behind the texts: sums over zones, nodes and CPUs as Linux forms them.
//!
//! Names are Linux's: `zone_page_state`, `node_page_state`, `sum_zone_node_page_state`, `global_zone_page_state`.
//! A negative sum reads as 0, as in Linux.

use core::sync::atomic::Ordering::Relaxed;

use crate::migrate::MIGRATE_TYPES;
use crate::region::RegionRef;
use crate::region::seq;
use crate::region::zone::{PcpState, ZoneState};
use crate::units::{CpuId, CpuMask, MAX_ORDER, NodeId, NodeMask};
use crate::vmstat::{NodeStat, NumaStat, VmEvent, ZoneStat};
use crate::zone::{MAX_NR_ZONES, Watermark, ZoneIndex, ZoneType};

/// How often a reader looks again when a zone changes under it, before it takes what it sees.
const SEQ_TRIES: u32 = 1000;

/// Mask of the lowest `count` bits.
const fn low_bits(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// Nodes that exist in the region (`node_possible_map`).
pub fn possible_nodes(region: &RegionRef<'_>) -> NodeMask {
    NodeMask(low_bits(region.nr_nodes()))
}

/// Online nodes (`node_online_map`).
pub fn online_nodes(region: &RegionRef<'_>) -> NodeMask {
    NodeMask(region.header().nodes_online.load(Relaxed) & possible_nodes(region).0)
}

/// Online CPUs (`cpu_online_mask`).
pub fn online_cpus(region: &RegionRef<'_>) -> CpuMask {
    CpuMask(region.header().cpus_online.load(Relaxed) & low_bits(region.nr_cpus()))
}

/// Online CPUs of `node` (`cpumask_of_node`).
pub fn cpus_of_node(region: &RegionRef<'_>, node: NodeId) -> CpuMask {
    let cpus = region.nodes().get(node.index()).map_or(0, |record| record.cpus.load(Relaxed));
    CpuMask(cpus & online_cpus(region).0)
}

/// Online nodes with an online CPU (`N_CPU`).
pub fn nodes_with_cpus(region: &RegionRef<'_>) -> NodeMask {
    filter(online_nodes(region), |node| cpus_of_node(region, node).0 != 0)
}

/// Online nodes with memory (`N_MEMORY`).
pub fn nodes_with_memory(region: &RegionRef<'_>) -> NodeMask {
    filter(online_nodes(region), |node| zones_of(region, node).any(|(_, _, zone)| is_populated(zone)))
}

/// Online nodes with memory in a zone that is not movable (`N_NORMAL_MEMORY`).
pub fn nodes_with_normal_memory(region: &RegionRef<'_>) -> NodeMask {
    filter(online_nodes(region), |node| {
        zones_of(region, node).any(|(kind, _, zone)| kind <= ZoneType::Normal && is_populated(zone))
    })
}

fn filter(nodes: NodeMask, keep: impl Fn(NodeId) -> bool) -> NodeMask {
    nodes.iter().filter(|&node| keep(node)).fold(NodeMask(0), NodeMask::with)
}

/// The zones of `node`, lowest first; none for a node beyond the region.
pub fn zones_of<'a>(
    region: &RegionRef<'a>,
    node: NodeId,
) -> impl Iterator<Item = (ZoneType, ZoneIndex, &'a ZoneState)> + use<'a> {
    let start = node.index() * MAX_NR_ZONES;
    let zones = region.zones().get(start..start + MAX_NR_ZONES).unwrap_or(&[]);
    ZoneType::ALL.into_iter().zip(zones).map(move |(kind, zone)| (kind, ZoneIndex::of(node, kind), zone))
}

/// Whether the zone has pages (`populated_zone`).
pub fn is_populated(zone: &ZoneState) -> bool {
    zone.present_pages.load(Relaxed) != 0
}

/// The zone's pagesets by CPU, online or not.
pub fn pcps_of_zone<'a>(region: &RegionRef<'a>, zone: ZoneIndex) -> impl Iterator<Item = &'a PcpState> + use<'a> {
    let zones = region.nr_nodes() * MAX_NR_ZONES;
    region.pcps().iter().skip(zone.index()).step_by(zones)
}

/// The pageset of `cpu` for `zone`.
pub fn pcp<'a>(region: &RegionRef<'a>, cpu: CpuId, zone: ZoneIndex) -> Option<&'a PcpState> {
    region.pcps_of(cpu).get(zone.index())
}

/// Pages on the online CPUs' lists of `zone` (`free_pcp` of Mem-Info).
pub fn free_pcp(region: &RegionRef<'_>, zone: ZoneIndex) -> u64 {
    let count = |cpu| pcp(region, cpu, zone).map_or(0, |pcp| pcp.count.load(Relaxed) as u64);
    online_cpus(region).iter().map(count).sum()
}

/// A zone counter without what the CPUs hold back (`zone_page_state`).
pub fn zone_page_state(zone: &ZoneState, item: ZoneStat) -> u64 {
    clamp(zone.vm_stat[item.index()].load(Relaxed))
}

/// A zone counter with what the CPUs hold back: the exact value (`zone_page_state_snapshot`).
pub fn zone_page_state_snapshot(region: &RegionRef<'_>, zone: ZoneIndex, item: ZoneStat) -> u64 {
    clamp(exact_zone_state(region, zone, item.index()))
}

/// The exact value of zone counter number `item`, which must be below the number of items.
pub(super) fn exact_zone_state(region: &RegionRef<'_>, zone: ZoneIndex, item: usize) -> i64 {
    let stored = region.zones().get(zone.index()).map_or(0, |zone| zone.vm_stat[item].load(Relaxed));
    let pending = pcps_of_zone(region, zone).map(|pcp| pcp.vm_stat_diff[item].load(Relaxed) as i64);
    pending.fold(stored, i64::wrapping_add)
}

/// A NUMA event of a zone, folded (`zone_numa_event_state` after `fold_vm_numa_events`).
pub fn zone_numa_event(region: &RegionRef<'_>, zone: ZoneIndex, item: NumaStat) -> u64 {
    folded_numa_event(region, zone, item.index())
}

/// NUMA event number `item`, which must be below the number of items.
pub(super) fn folded_numa_event(region: &RegionRef<'_>, zone: ZoneIndex, item: usize) -> u64 {
    let stored = region.zones().get(zone.index()).map_or(0, |zone| zone.vm_numa_event[item].load(Relaxed));
    let pending = pcps_of_zone(region, zone).map(|pcp| pcp.vm_numa_event[item].load(Relaxed));
    pending.fold(stored, u64::wrapping_add)
}

/// A node counter without what the CPUs hold back (`node_page_state_pages`).
pub fn node_page_state(region: &RegionRef<'_>, node: NodeId, item: NodeStat) -> u64 {
    clamp(stored_node_state(region, node, item.index()))
}

fn stored_node_state(region: &RegionRef<'_>, node: NodeId, item: usize) -> i64 {
    region.nodes().get(node.index()).map_or(0, |node| node.vm_stat[item].load(Relaxed))
}

/// A node counter with what the CPUs hold back.
pub fn node_page_state_snapshot(region: &RegionRef<'_>, node: NodeId, item: NodeStat) -> u64 {
    clamp(exact_node_state(region, node, item.index()))
}

/// The exact value of node counter number `item`, which must be below the number of items.
pub(super) fn exact_node_state(region: &RegionRef<'_>, node: NodeId, item: usize) -> i64 {
    let records = region.node_cpus().iter().skip(node.index()).step_by(region.nr_nodes());
    let pending = records.map(|cpu| cpu.vm_node_stat_diff[item].load(Relaxed) as i64);
    pending.fold(stored_node_state(region, node, item), i64::wrapping_add)
}

/// A zone counter summed over a node's zones, exact (`sum_zone_node_page_state`).
pub fn sum_zone_node_page_state(region: &RegionRef<'_>, node: NodeId, item: ZoneStat) -> u64 {
    zones_of(region, node).fold(0, |sum, (_, zone, _)| sum.wrapping_add(zone_page_state_snapshot(region, zone, item)))
}

/// A NUMA event summed over a node's zones (`sum_zone_numa_event_state`).
pub fn sum_zone_numa_event(region: &RegionRef<'_>, node: NodeId, item: NumaStat) -> u64 {
    zones_of(region, node).fold(0, |sum, (_, zone, _)| sum.wrapping_add(zone_numa_event(region, zone, item)))
}

/// Every zone of the region, populated or not.
pub fn all_zones(region: &RegionRef<'_>) -> impl Iterator<Item = ZoneIndex> + use<> {
    (0..region.nr_nodes() * MAX_NR_ZONES).map(|zone| ZoneIndex(zone as u16))
}

/// A zone counter of the machine, exact (`global_zone_page_state` after the fold).
pub fn global_zone_page_state(region: &RegionRef<'_>, item: ZoneStat) -> u64 {
    clamp(global_zone_state(region, item.index()))
}

/// The exact sum of zone counter number `item`.
pub(super) fn global_zone_state(region: &RegionRef<'_>, item: usize) -> i64 {
    all_zones(region).fold(0, |sum, zone| sum.wrapping_add(exact_zone_state(region, zone, item)))
}

/// A zone counter of the machine without what the CPUs hold back.
pub fn global_zone_page_state_stored(region: &RegionRef<'_>, item: ZoneStat) -> u64 {
    clamp(region.zones().iter().fold(0, |sum, zone| sum.wrapping_add(zone.vm_stat[item.index()].load(Relaxed))))
}

/// A NUMA event of the machine.
pub fn global_numa_event(region: &RegionRef<'_>, item: NumaStat) -> u64 {
    all_zones(region).fold(0, |sum, zone| sum.wrapping_add(zone_numa_event(region, zone, item)))
}

/// A node counter of the machine, exact.
pub fn global_node_page_state(region: &RegionRef<'_>, item: NodeStat) -> u64 {
    clamp(global_node_state(region, item.index()))
}

/// The exact sum of node counter number `item`.
pub(super) fn global_node_state(region: &RegionRef<'_>, item: usize) -> i64 {
    possible_nodes(region).iter().fold(0, |sum, node| sum.wrapping_add(exact_node_state(region, node, item)))
}

/// A node counter of the machine without what the CPUs hold back.
pub fn global_node_page_state_stored(region: &RegionRef<'_>, item: NodeStat) -> u64 {
    let nodes = possible_nodes(region).iter();
    clamp(nodes.fold(0, |sum, node| sum.wrapping_add(stored_node_state(region, node, item.index()))))
}

/// An event of the machine, summed over the CPUs (`all_vm_events`).
pub fn vm_event(region: &RegionRef<'_>, item: VmEvent) -> u64 {
    vm_event_at(region, item.index())
}

/// As [`vm_event`], by the item's number; 0 for a number that no item has.
pub fn vm_event_at(region: &RegionRef<'_>, item: usize) -> u64 {
    let events = region.cpus().iter().filter_map(|cpu| cpu.vm_events.get(item));
    events.fold(0, |sum, event| sum.wrapping_add(event.load(Relaxed)))
}

/// Pages the allocator was given (`totalram_pages`).
pub fn totalram_pages(region: &RegionRef<'_>) -> u64 {
    region.zones().iter().fold(0, |sum, zone| sum.wrapping_add(zone.managed_pages.load(Relaxed)))
}

/// Pages in contiguous memory areas (`totalcma_pages`). Where there are none the texts leave them out, as a Linux
/// built without them does.
pub fn totalcma_pages(region: &RegionRef<'_>) -> u64 {
    region.zones().iter().fold(0, |sum, zone| sum.wrapping_add(zone.cma_pages.load(Relaxed)))
}

/// A watermark with the boost on top (`wmark_pages`).
pub fn wmark_pages(zone: &ZoneState, mark: Watermark) -> u64 {
    zone.watermark[mark as usize].load(Relaxed).wrapping_add(zone.watermark_boost.load(Relaxed))
}

/// Pages that allocations cannot count on (`calculate_totalreserve_pages`).
pub fn totalreserve_pages(region: &RegionRef<'_>) -> u64 {
    let mut total = 0u64;
    for node in online_nodes(region).iter() {
        for (kind, _, zone) in zones_of(region, node) {
            let reserves = zone.lowmem_reserve.iter().skip(kind.index());
            let largest = reserves.map(|reserve| reserve.load(Relaxed)).max().unwrap_or(0);
            let reserved = largest.wrapping_add(wmark_pages(zone, Watermark::High));
            total = total.wrapping_add(reserved.min(zone.managed_pages.load(Relaxed)));
        }
    }
    total
}

/// Number of free blocks of a zone by order and migrate type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FreeCounts(
    /// Blocks, by order, then migrate type.
    pub [[u64; MIGRATE_TYPES]; MAX_ORDER],
);

impl FreeCounts {
    /// Reads the zone's free areas as one state, or as they are when a writer is always in the way.
    pub fn read(zone: &ZoneState) -> Self {
        seq::read(&zone.seq, SEQ_TRIES, || Self::read_now(zone)).unwrap_or_else(|| Self::read_now(zone))
    }

    /// Reads the zone's free areas without looking at the sequence counter.
    pub fn read_now(zone: &ZoneState) -> Self {
        let mut counts = Self::default();
        for (row, area) in counts.0.iter_mut().zip(&zone.free_area) {
            for (count, stored) in row.iter_mut().zip(&area.nr_free) {
                *count = stored.load(Relaxed);
            }
        }
        counts
    }

    /// Blocks by order, all migrate types together (`nr_free` of Linux's `free_area`).
    pub fn by_order(&self) -> [u64; MAX_ORDER] {
        self.0.map(|row| row.into_iter().fold(0, u64::wrapping_add))
    }

    /// Pages in all blocks.
    pub fn pages(&self) -> u64 {
        self.by_order().into_iter().zip(0u32..).fold(0, |sum, (blocks, order)| sum.wrapping_add(blocks << order))
    }
}

/// Linux's view of a counter that ran below zero between two folds.
pub(super) const fn clamp(value: i64) -> u64 {
    if value < 0 { 0 } else { value as u64 }
}
