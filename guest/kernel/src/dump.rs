//! `dump=a,b`: tables on the serial console, in Linux's format, for machines whose host cannot read the region.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::MIGRATE_TYPES;
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::report;
use pagevisor_shared::units::{NodeId, PAGEBLOCK_NR_PAGES, Pfn};
use pagevisor_shared::zone::ZoneIndex;

use crate::platform;
use crate::serial::Serial;

/// Prints the tables named in `names`, separated by commas, each under a line with its name. Unknown names are
/// reported in their place.
pub fn print(region: &RegionRef<'_>, names: &str) {
    for name in names.split(',').filter(|name| !name.is_empty()) {
        // The serial port takes everything.
        let _ = writeln!(Serial, "== {name}");
        if table(region, name, &mut Serial).is_none() {
            let _ = writeln!(Serial, "dump: no table is named {name}");
        }
    }
    let _ = writeln!(Serial, "== end");
}

/// Writes the table `name`; `None` if there is none of that name.
pub fn table(region: &RegionRef<'_>, name: &str, out: &mut dyn Write) -> Option<fmt::Result> {
    Some(match name {
        "buddyinfo" => report::buddyinfo(region, out),
        "pagetypeinfo" => report::pagetypeinfo(region, &|zone| block_counts(region, zone), out),
        "zoneinfo" => report::zoneinfo(region, out),
        "meminfo" => report::meminfo(region, out),
        "vmstat" => report::vmstat(region, out),
        "iomem" => report::iomem(region, out),
        "numa" => report::numa_hardware(region, out),
        _ => return node_table(region, name, out),
    })
}

/// Page blocks of `zone` by migrate type (`pagetypeinfo_showblockcount_print`).
fn block_counts(region: &RegionRef<'_>, zone: ZoneIndex) -> [u64; MIGRATE_TYPES] {
    let mut counts = [0; MIGRATE_TYPES];
    let (Some(mm), Some(record)) = (platform::mm(), region.zones().get(zone.index())) else { return counts };
    let start = record.zone_start_pfn.load(Relaxed);
    let end = start + record.spanned_pages.load(Relaxed);
    for pfn in (start..end).step_by(PAGEBLOCK_NR_PAGES as usize).map(Pfn::new) {
        if mm.page_zone(pfn) == Some(zone) {
            counts[mm.pageblock_migratetype(pfn).index()] += 1;
        }
    }
    counts
}

/// Writes the table `node/N/...`.
fn node_table(region: &RegionRef<'_>, name: &str, out: &mut dyn Write) -> Option<fmt::Result> {
    let (node, name) = name.strip_prefix("node/")?.split_once('/')?;
    let node = NodeId::new(node.parse().ok()?).filter(|node| node.index() < region.nr_nodes())?;
    Some(match name {
        "meminfo" => report::node_meminfo(region, node, out),
        "numastat" => report::node_numastat(region, node, out),
        "vmstat" => report::node_vmstat(region, node, out),
        "distance" => report::node_distance(region, node, out),
        "cpulist" => report::node_cpulist(region, node, out),
        _ => return None,
    })
}
