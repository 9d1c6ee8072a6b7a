//! `/proc/buddyinfo` and `/proc/pagetypeinfo`.

use core::fmt::{self, Write};

use super::counters::{self, FreeCounts};
use crate::migrate::{MIGRATE_TYPES, MigrateType};
use crate::region::RegionRef;
use crate::units::{MAX_ORDER, NodeId, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER};
use crate::zone::ZoneIndex;

/// From this many blocks on `pagetypeinfo` stops counting a list, as Linux does, and prints `>` before the number.
const LONG_LIST: u64 = 100_000;

/// Number of page blocks of a zone by migrate type. The page-block table is in guest memory, not in the region, so
/// who wants the text says how to read it.
pub trait BlockCounts {
    /// Blocks of `zone` by migrate type, as `pagetypeinfo_showblockcount_print` counts them: one per step of
    /// [`PAGEBLOCK_NR_PAGES`] from the zone's first frame, in sections that exist and belong to the zone.
    fn block_counts(&self, zone: ZoneIndex) -> [u64; MIGRATE_TYPES];
}

impl<F: Fn(ZoneIndex) -> [u64; MIGRATE_TYPES]> BlockCounts for F {
    fn block_counts(&self, zone: ZoneIndex) -> [u64; MIGRATE_TYPES] {
        self(zone)
    }
}

/// `/proc/buddyinfo`: free blocks by order, a line per populated zone.
///
/// # Errors
/// Those of `out`.
pub fn buddyinfo(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    for node in counters::online_nodes(region).iter() {
        for (kind, _, zone) in counters::zones_of(region, node).filter(|(_, _, zone)| counters::is_populated(zone)) {
            write!(out, "Node {}, zone {:>8} ", node.index(), kind.name())?;
            for blocks in FreeCounts::read(zone).by_order() {
                write!(out, "{blocks:>6} ")?;
            }
            out.write_char('\n')?;
        }
    }
    Ok(())
}

/// The migrate types that the texts name: all, without those a machine without contiguous memory areas has not.
fn shown_types(region: &RegionRef<'_>) -> impl Iterator<Item = MigrateType> + Clone + use<> {
    let cma = counters::totalcma_pages(region) != 0;
    MigrateType::ALL.into_iter().filter(move |&kind| kind != MigrateType::Cma || cma)
}

/// `/proc/pagetypeinfo`: free blocks by order and migrate type, and page blocks by migrate type, for each node with
/// memory.
///
/// # Errors
/// Those of `out`.
pub fn pagetypeinfo(region: &RegionRef<'_>, blocks: &dyn BlockCounts, out: &mut dyn Write) -> fmt::Result {
    for node in counters::nodes_with_memory(region).iter() {
        writeln!(out, "Page block order: {PAGEBLOCK_ORDER}")?;
        writeln!(out, "Pages per block:  {PAGEBLOCK_NR_PAGES}")?;
        out.write_char('\n')?;
        show_free(region, node, out)?;
        show_block_counts(region, node, blocks, out)?;
    }
    Ok(())
}

/// `pagetypeinfo_showfree`.
fn show_free(region: &RegionRef<'_>, node: NodeId, out: &mut dyn Write) -> fmt::Result {
    write!(out, "{:<43} ", "Free pages count per migrate type at order")?;
    for order in 0..MAX_ORDER {
        write!(out, "{order:>6} ")?;
    }
    out.write_char('\n')?;
    for (zone_type, _, zone) in counters::zones_of(region, node).filter(|(_, _, zone)| counters::is_populated(zone)) {
        let counts = FreeCounts::read(zone);
        for kind in shown_types(region) {
            write!(out, "Node {:>4}, zone {:>8}, type {:>12} ", node.index(), zone_type.name(), kind.name())?;
            for row in &counts.0 {
                let count = row[kind.index()];
                let more = if count >= LONG_LIST { ">" } else { "" };
                write!(out, "{more}{:>6} ", count.min(LONG_LIST))?;
            }
            out.write_char('\n')?;
        }
    }
    Ok(())
}

/// `pagetypeinfo_showblockcount`.
fn show_block_counts(
    region: &RegionRef<'_>,
    node: NodeId,
    blocks: &dyn BlockCounts,
    out: &mut dyn Write,
) -> fmt::Result {
    write!(out, "\n{:<23}", "Number of blocks type ")?;
    for kind in shown_types(region) {
        write!(out, "{:>12} ", kind.name())?;
    }
    out.write_char('\n')?;
    for (zone_type, index, _) in counters::zones_of(region, node).filter(|(_, _, zone)| counters::is_populated(zone)) {
        write!(out, "Node {}, zone {:>8} ", node.index(), zone_type.name())?;
        let counts = blocks.block_counts(index);
        for kind in shown_types(region) {
            write!(out, "{:>12} ", counts[kind.index()])?;
        }
        out.write_char('\n')?;
    }
    Ok(())
}
