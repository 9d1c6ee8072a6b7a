//! Texts about nodes: distances, CPUs, fallback order, and `numactl --hardware`.

use core::fmt::{self, Display, Write};
use core::sync::atomic::Ordering::Relaxed;

use super::counters;
use crate::region::RegionRef;
use crate::units::{CpuMask, NodeId, PAGE_SHIFT};
use crate::vmstat::ZoneStat;

/// Distance between nodes as `node_distance` gives it; 0 for a node beyond the region.
pub fn distance(region: &RegionRef<'_>, from: NodeId, to: NodeId) -> u8 {
    let row = region.distances().chunks_exact(region.nr_nodes()).nth(from.index()).unwrap_or(&[]);
    row.get(to.index()).map_or(0, |distance| distance.load(Relaxed))
}

/// `/sys/devices/system/node/nodeN/distance`: to every online node.
///
/// # Errors
/// Those of `out`.
pub fn node_distance(region: &RegionRef<'_>, node: NodeId, out: &mut dyn Write) -> fmt::Result {
    for (position, to) in counters::online_nodes(region).iter().enumerate() {
        write!(out, "{}{}", if position == 0 { "" } else { " " }, distance(region, node, to))?;
    }
    out.write_char('\n')
}

/// `/sys/devices/system/node/nodeN/cpulist`: the node's online CPUs as a list of ranges.
///
/// # Errors
/// Those of `out`.
pub fn node_cpulist(region: &RegionRef<'_>, node: NodeId, out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "{}", counters::cpus_of_node(region, node))
}

/// `/sys/devices/system/node/nodeN/cpumap`: the node's online CPUs as a mask.
///
/// # Errors
/// Those of `out`.
pub fn node_cpumap(region: &RegionRef<'_>, node: NodeId, out: &mut dyn Write) -> fmt::Result {
    writeln!(out, "{}", cpumap(counters::cpus_of_node(region, node), region.nr_cpus()))
}

/// A CPU mask as Linux's `%*pb` prints it for `nr_cpus` possible CPUs: 32 bits a group, zero-filled to the width.
pub fn cpumap(cpus: CpuMask, nr_cpus: usize) -> impl Display {
    let digits = |bits: usize| bits.div_ceil(4).max(1);
    fmt::from_fn(move |f| {
        if nr_cpus > 32 {
            let width = digits(nr_cpus - 32);
            write!(f, "{:0width$x},{:08x}", cpus.0 >> 32, cpus.0 as u32)
        } else {
            let width = digits(nr_cpus);
            write!(f, "{:0width$x}", cpus.0)
        }
    })
}

/// `Fallback order for Node N: ...` as the kernel logs it (the blank at the end included), without a line end.
///
/// # Errors
/// Those of `out`.
pub fn write_fallback_order(region: &RegionRef<'_>, node: NodeId, out: &mut dyn Write) -> fmt::Result {
    write!(out, "Fallback order for Node {}: ", node.index())?;
    let Some(record) = region.nodes().get(node.index()) else { return Ok(()) };
    let count = record.nr_fallback.load(Relaxed) as usize;
    for other in record.fallback_order.iter().take(count) {
        write!(out, "{} ", other.load(Relaxed))?;
    }
    Ok(())
}

/// The fallback order of every node, a line each.
///
/// # Errors
/// Those of `out`.
pub fn fallback_orders(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    for node in counters::possible_nodes(region).iter() {
        write_fallback_order(region, node, out)?;
        out.write_char('\n')?;
    }
    Ok(())
}

/// What `numactl --hardware` prints.
///
/// # Errors
/// Those of `out`.
pub fn numa_hardware(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    let nodes = counters::online_nodes(region);
    writeln!(out, "available: {} nodes ({nodes})", nodes.weight())?;
    for node in nodes.iter() {
        write!(out, "node {} cpus:", node.index())?;
        for cpu in counters::cpus_of_node(region, node).iter() {
            write!(out, " {}", cpu.index())?;
        }
        let managed =
            |sum: u64, zone: &crate::region::zone::ZoneState| sum.wrapping_add(zone.managed_pages.load(Relaxed));
        let size = counters::zones_of(region, node).fold(0, |sum, (_, _, zone)| managed(sum, zone));
        let free = counters::sum_zone_node_page_state(region, node, ZoneStat::NrFreePages);
        let mib = |pages: u64| pages >> (20 - PAGE_SHIFT);
        writeln!(out, "\nnode {} size: {} MB", node.index(), mib(size))?;
        writeln!(out, "node {} free: {} MB", node.index(), mib(free))?;
    }
    out.write_str("node distances:\nnode ")?;
    for node in nodes.iter() {
        // C's "% 3d": a blank in place of the sign, three wide.
        write!(out, " {:>2} ", node.index())?;
    }
    out.write_char('\n')?;
    for from in nodes.iter() {
        write!(out, " {:>2}: ", from.index())?;
        for to in nodes.iter() {
            write!(out, " {:>2} ", distance(region, from, to))?;
        }
        out.write_char('\n')?;
    }
    Ok(())
}
