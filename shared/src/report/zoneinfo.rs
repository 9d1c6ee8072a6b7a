//! `/proc/zoneinfo`.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;

use super::counters;
use super::vmstat::{node_items, numa_items, zone_items};
use crate::region::RegionRef;
use crate::region::zone::ZoneState;
use crate::units::NodeId;
use crate::vmstat::ZoneStat;
use crate::zone::{Watermark, ZoneIndex};

/// `/proc/zoneinfo`: all zones of all online nodes.
///
/// # Errors
/// Those of `out`.
pub fn zoneinfo(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    for node in counters::online_nodes(region).iter() {
        let mut first_populated = true;
        for (kind, index, zone) in counters::zones_of(region, node) {
            write!(out, "Node {}, zone {:>8}", node.index(), kind.name())?;
            let populated = counters::is_populated(zone);
            if populated && first_populated {
                first_populated = false;
                show_node(region, node, out)?;
            }
            show_zone(region, index, zone, out)?;
            if populated {
                show_populated(region, index, zone, out)?;
            }
            out.write_char('\n')?;
        }
    }
    Ok(())
}

fn show_node(region: &RegionRef<'_>, node: NodeId, out: &mut dyn Write) -> fmt::Result {
    out.write_str("\n  per-node stats")?;
    node_items(region, node, &mut |name, value| write!(out, "\n      {name:<12} {value}"))
}

fn show_zone(region: &RegionRef<'_>, index: ZoneIndex, zone: &ZoneState, out: &mut dyn Write) -> fmt::Result {
    let free = counters::zone_page_state_snapshot(region, index, ZoneStat::NrFreePages);
    write!(out, "\n  pages free     {free}")?;
    let rows = [
        ("boost", zone.watermark_boost.load(Relaxed)),
        ("min", counters::wmark_pages(zone, Watermark::Min)),
        ("low", counters::wmark_pages(zone, Watermark::Low)),
        ("high", counters::wmark_pages(zone, Watermark::High)),
        ("spanned", zone.spanned_pages.load(Relaxed)),
        ("present", zone.present_pages.load(Relaxed)),
        ("managed", zone.managed_pages.load(Relaxed)),
        ("cma", zone.cma_pages.load(Relaxed)),
    ];
    for (name, value) in rows {
        write!(out, "\n        {name:<8} {value}")?;
    }
    out.write_str("\n        protection: ")?;
    for (position, reserve) in zone.lowmem_reserve.iter().enumerate() {
        write!(out, "{}{}", if position == 0 { "(" } else { ", " }, reserve.load(Relaxed))?;
    }
    out.write_char(')')
}

fn show_populated(region: &RegionRef<'_>, index: ZoneIndex, zone: &ZoneState, out: &mut dyn Write) -> fmt::Result {
    zone_items(region, index, &mut |name, value| write!(out, "\n      {name:<12} {value}"))?;
    numa_items(region, index, &mut |name, value| write!(out, "\n      {name:<12} {value}"))?;
    out.write_str("\n  pagesets")?;
    for cpu in counters::online_cpus(region).iter() {
        let Some(pcp) = counters::pcp(region, cpu, index) else { continue };
        write!(out, "\n    cpu: {}", cpu.index())?;
        write!(out, "\n              count: {}", pcp.count.load(Relaxed))?;
        write!(out, "\n              high:  {}", pcp.high.load(Relaxed))?;
        write!(out, "\n              batch: {}", pcp.batch.load(Relaxed))?;
        write!(out, "\n  vm stats threshold: {}", pcp.stat_threshold.load(Relaxed))?;
    }
    // There is no kswapd that could have given up, which is what Linux prints here.
    write!(out, "\n  node_unreclaimable:  0\n  start_pfn:           {}", zone.zone_start_pfn.load(Relaxed))
}
