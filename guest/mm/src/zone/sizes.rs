//! How large nodes and zones are (`free_area_init` and what it calls).

use pagevisor_shared::MAX_NUMNODES;
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::units::{NodeId, NodeMask};
use pagevisor_shared::zone::{MAX_DMA_PFN, MAX_DMA32_PFN, MAX_NR_ZONES, ZoneIndex, ZoneType};

use super::MovableStart;
use crate::memblock::Memblock;
use crate::raw::FrameTables;
use crate::sync::Plain;

/// The zone types with memory of their own and the frames each covers (`arch_zone_lowest_possible_pfn` and
/// `arch_zone_highest_possible_pfn`).
const LIMITS: [(ZoneType, u64, u64); 3] = [
    (ZoneType::Dma, 0, MAX_DMA_PFN),
    (ZoneType::Dma32, MAX_DMA_PFN, MAX_DMA32_PFN),
    (ZoneType::Normal, MAX_DMA32_PFN, u64::MAX),
];

/// Memory that belongs to one zone, without reservations taken off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ZoneRange {
    pub(crate) node: NodeId,
    pub(crate) zone: ZoneType,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Memblock's memory, lowest first, cut where zones meet. Memory without a node counts as node 0's.
pub(crate) fn zone_ranges(memblock: &Memblock, movable: &MovableStart) -> impl Iterator<Item = ZoneRange> {
    memblock.mem_pfn_ranges(None).flat_map(move |range| {
        let node = range.nid.unwrap_or_default();
        let cut = movable.on(node).unwrap_or(u64::MAX);
        let part = move |zone, low: u64, high: u64| {
            let (start, end) = (range.start.raw().max(low), range.end.raw().min(high));
            (start < end).then_some(ZoneRange { node, zone, start, end })
        };
        let fixed = LIMITS.iter().filter_map(move |&(zone, low, high)| part(zone, low, high.min(cut)));
        fixed.chain(part(ZoneType::Movable, cut, u64::MAX))
    })
}

/// Fills in sizes of nodes and zones and gives the nodes with memory (`free_area_init_node`,
/// `calculate_node_totalpages`, `zone_spanned_pages_in_node`, `zone_absent_pages_in_node`).
pub(crate) fn free_area_init(region: &RegionRef<'static>, memblock: &Memblock, movable: &MovableStart) -> NodeMask {
    let (nodes, zones) = (region.nodes(), region.zones());
    let mut memory = NodeMask::default();
    let mut ends = [0u64; MAX_NUMNODES];
    for range in zone_ranges(memblock, movable) {
        let index = ZoneIndex::of(range.node, range.zone).index();
        let (Some(node), Some(zone)) = (nodes.get(range.node.index()), zones.get(index)) else { continue };
        if !memory.contains(range.node) {
            memory = memory.with(range.node);
            node.node_start_pfn.set(range.start);
        }
        ends[range.node.index()] = range.end;
        zone.present_pages.bump(range.end - range.start);
        node.node_present_pages.bump(range.end - range.start);
    }
    for (index, zone) in zones.iter().enumerate() {
        zone.node.set((index / MAX_NR_ZONES) as u32);
        zone.zone_type.set((index % MAX_NR_ZONES) as u32);
    }
    for id in memory.iter() {
        let Some(node) = nodes.get(id.index()) else { continue };
        let (start, end) = (node.node_start_pfn.get(), ends[id.index()]);
        // `adjust_zone_range_for_zone_movable`: it takes the end of the others.
        let cut = movable.on(id).unwrap_or(u64::MAX);
        for (kind, low, high) in LIMITS.iter().copied().chain([(ZoneType::Movable, cut, u64::MAX)]) {
            let high = if kind == ZoneType::Movable { high } else { high.min(cut) };
            let (start, end) = (start.max(low), end.min(high));
            if start < end {
                let zone = &zones[ZoneIndex::of(id, kind).index()];
                zone.zone_start_pfn.set(start);
                zone.spanned_pages.set(end - start);
                node.node_spanned_pages.bump(end - start);
            }
        }
    }
    memory
}

/// Enters memblock's memory into the tables by frame.
pub(crate) fn mark_frames(frames: &FrameTables, memblock: &Memblock, movable: &MovableStart) {
    for range in zone_ranges(memblock, movable) {
        frames.mark(range.start, range.end, ZoneIndex::of(range.node, range.zone));
    }
}
