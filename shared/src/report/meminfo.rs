//! `/proc/meminfo` and a node's `meminfo`.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;

use super::counters;
use super::kib;
use crate::layout::{VMALLOC_END, VMALLOC_START};
use crate::region::RegionRef;
use crate::region::zone::ZoneState;
use crate::units::NodeId;
use crate::vmstat::{NodeStat, ZoneStat};
use crate::zone::Watermark;

/// A number of these files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount {
    /// KiB, printed with `kB`.
    KiB(u64),
    /// A plain count.
    Count(u64),
}

impl Amount {
    /// The number without its unit.
    pub const fn value(self) -> u64 {
        match self {
            Self::KiB(value) | Self::Count(value) => value,
        }
    }
}

/// What is done with each line: its key and amount.
pub type Each<'f> = &'f mut dyn FnMut(&'static str, Amount) -> fmt::Result;

/// Size of the vmalloc area in KiB (`VMALLOC_TOTAL`, which leaves out the area's last byte).
const VMALLOC_TOTAL_KIB: u64 = (VMALLOC_END - VMALLOC_START) >> 10;
/// KiB of a huge page (`Hugepagesize`).
const HUGE_PAGE_KIB: u64 = 2048;

/// Lines of a file from a list of counters.
struct Lines<'f> {
    each: Each<'f>,
}

impl Lines<'_> {
    fn pages(&mut self, key: &'static str, pages: u64) -> fmt::Result {
        (self.each)(key, Amount::KiB(kib(pages)))
    }

    fn kib(&mut self, key: &'static str, kib: u64) -> fmt::Result {
        (self.each)(key, Amount::KiB(kib))
    }

    fn count(&mut self, key: &'static str, count: u64) -> fmt::Result {
        (self.each)(key, Amount::Count(count))
    }

    /// The lists of pages by age.
    fn lru(&mut self, state: impl Fn(NodeStat) -> u64) -> fmt::Result {
        let (active_anon, inactive_anon) = (state(NodeStat::NrActiveAnon), state(NodeStat::NrInactiveAnon));
        let (active_file, inactive_file) = (state(NodeStat::NrActiveFile), state(NodeStat::NrInactiveFile));
        self.pages("Active", active_anon.wrapping_add(active_file))?;
        self.pages("Inactive", inactive_anon.wrapping_add(inactive_file))?;
        self.pages("Active(anon)", active_anon)?;
        self.pages("Inactive(anon)", inactive_anon)?;
        self.pages("Active(file)", active_file)?;
        self.pages("Inactive(file)", inactive_file)?;
        self.pages("Unevictable", state(NodeStat::NrUnevictable))
    }

    /// Huge pages of anonymous, shared and file memory.
    fn thp(&mut self, state: impl Fn(NodeStat) -> u64) -> fmt::Result {
        self.pages("AnonHugePages", state(NodeStat::NrAnonTransparentHugepages))?;
        self.pages("ShmemHugePages", state(NodeStat::NrShmemHugepages))?;
        self.pages("ShmemPmdMapped", state(NodeStat::NrShmemPmdmapped))?;
        self.pages("FileHugePages", state(NodeStat::NrFileHugepages))?;
        self.pages("FilePmdMapped", state(NodeStat::NrFilePmdmapped))
    }

    fn slab(&mut self, state: impl Fn(NodeStat) -> u64) -> fmt::Result {
        let (reclaimable, unreclaimable) = (state(NodeStat::NrSlabReclaimable), state(NodeStat::NrSlabUnreclaimable));
        self.pages("KReclaimable", reclaimable.wrapping_add(state(NodeStat::NrKernelMiscReclaimable)))?;
        self.pages("Slab", reclaimable.wrapping_add(unreclaimable))?;
        self.pages("SReclaimable", reclaimable)?;
        self.pages("SUnreclaim", unreclaimable)
    }

    fn tables(&mut self, state: impl Fn(NodeStat) -> u64, bounce: u64) -> fmt::Result {
        self.kib("KernelStack", state(NodeStat::NrKernelStack))?;
        self.pages("PageTables", state(NodeStat::NrPageTablePages))?;
        self.pages("SecPageTables", state(NodeStat::NrSecPageTablePages))?;
        self.kib("NFS_Unstable", 0)?;
        self.pages("Bounce", bounce)?;
        self.pages("WritebackTmp", state(NodeStat::NrWritebackTemp))
    }
}

/// Pages that a new program could get without swapping (`si_mem_available`).
fn available_pages(region: &RegionRef<'_>) -> u64 {
    let signed = |pages: u64| pages as i64;
    let node_state = |item| signed(counters::global_node_page_state(region, item));
    let wmark_low = region
        .zones()
        .iter()
        .map(|zone| signed(counters::wmark_pages(zone, Watermark::Low)))
        .fold(0, i64::wrapping_add);
    // Half of what could be reclaimed is taken to be in use, but no more than the low watermarks.
    let usable = |pages: i64| pages.wrapping_sub((pages / 2).min(wmark_low));
    let free = signed(counters::global_zone_page_state(region, ZoneStat::NrFreePages));
    let cache = node_state(NodeStat::NrActiveFile).wrapping_add(node_state(NodeStat::NrInactiveFile));
    let reclaimable =
        node_state(NodeStat::NrSlabReclaimable).wrapping_add(node_state(NodeStat::NrKernelMiscReclaimable));
    let available = free
        .wrapping_sub(signed(counters::totalreserve_pages(region)))
        .wrapping_add(usable(cache))
        .wrapping_add(usable(reclaimable));
    available.max(0) as u64
}

/// Every line of `/proc/meminfo`, in order. What belongs to layers that do not exist (swap, huge page
/// pools) is 0, as in a Linux that does not use them.
///
/// # Errors
/// Those of `each`.
pub fn items(region: &RegionRef<'_>, each: Each<'_>) -> fmt::Result {
    let node_state = |item| counters::global_node_page_state(region, item);
    let zone_state = |item| counters::global_zone_page_state(region, item);
    let total = counters::totalram_pages(region);
    let swap_cached = node_state(NodeStat::NrSwapcached);
    let mut lines = Lines { each };
    lines.pages("MemTotal", total)?;
    lines.pages("MemFree", zone_state(ZoneStat::NrFreePages))?;
    lines.pages("MemAvailable", available_pages(region))?;
    lines.kib("Buffers", 0)?;
    lines.pages("Cached", node_state(NodeStat::NrFilePages).saturating_sub(swap_cached))?;
    lines.pages("SwapCached", swap_cached)?;
    lines.lru(node_state)?;
    lines.pages("Mlocked", zone_state(ZoneStat::NrMlock))?;
    lines.kib("SwapTotal", 0)?;
    lines.kib("SwapFree", 0)?;
    lines.kib("Zswap", 0)?;
    lines.kib("Zswapped", 0)?;
    lines.pages("Dirty", node_state(NodeStat::NrDirty))?;
    lines.pages("Writeback", node_state(NodeStat::NrWriteback))?;
    lines.pages("AnonPages", node_state(NodeStat::NrAnonPages))?;
    lines.pages("Mapped", node_state(NodeStat::NrMapped))?;
    lines.pages("Shmem", node_state(NodeStat::NrShmem))?;
    lines.slab(node_state)?;
    lines.tables(node_state, zone_state(ZoneStat::NrBounce))?;
    lines.pages("CommitLimit", region.sysctl().commit_limit(total))?;
    lines.pages("Committed_AS", region.header().roots.committed_as.load(Relaxed).max(0) as u64)?;
    lines.kib("VmallocTotal", VMALLOC_TOTAL_KIB)?;
    lines.pages("VmallocUsed", region.header().nr_vmalloc_pages.load(Relaxed))?;
    lines.kib("VmallocChunk", 0)?;
    lines.pages("Percpu", region.header().nr_percpu_pages.load(Relaxed))?;
    lines.kib("HardwareCorrupted", 0)?;
    lines.thp(node_state)?;
    let cma = counters::totalcma_pages(region);
    if cma != 0 {
        lines.pages("CmaTotal", cma)?;
        lines.pages("CmaFree", zone_state(ZoneStat::NrFreeCma))?;
    }
    for key in ["HugePages_Total", "HugePages_Free", "HugePages_Rsvd", "HugePages_Surp"] {
        lines.count(key, 0)?;
    }
    lines.kib("Hugepagesize", HUGE_PAGE_KIB)?;
    lines.kib("Hugetlb", 0)?;
    lines.kib("DirectMap4k", region.header().direct_map_4k.load(Relaxed) as u64)?;
    lines.kib("DirectMap2M", region.header().direct_map_2m.load(Relaxed))
}

/// Every line of a node's `meminfo`, in order.
///
/// # Errors
/// Those of `each`.
pub fn node_items(region: &RegionRef<'_>, node: NodeId, each: Each<'_>) -> fmt::Result {
    let node_state = |item| counters::node_page_state_snapshot(region, node, item);
    let zone_state = |item| counters::sum_zone_node_page_state(region, node, item);
    let managed = |zone: &ZoneState| zone.managed_pages.load(Relaxed);
    let total = counters::zones_of(region, node).fold(0u64, |sum, (_, _, zone)| sum.wrapping_add(managed(zone)));
    let free = zone_state(ZoneStat::NrFreePages);
    let mut lines = Lines { each };
    lines.pages("MemTotal", total)?;
    lines.pages("MemFree", free)?;
    lines.pages("MemUsed", total.saturating_sub(free))?;
    lines.pages("SwapCached", node_state(NodeStat::NrSwapcached))?;
    lines.lru(node_state)?;
    lines.pages("Mlocked", zone_state(ZoneStat::NrMlock))?;
    lines.pages("Dirty", node_state(NodeStat::NrDirty))?;
    lines.pages("Writeback", node_state(NodeStat::NrWriteback))?;
    lines.pages("FilePages", node_state(NodeStat::NrFilePages))?;
    lines.pages("Mapped", node_state(NodeStat::NrMapped))?;
    lines.pages("AnonPages", node_state(NodeStat::NrAnonPages))?;
    lines.pages("Shmem", node_state(NodeStat::NrShmem))?;
    lines.tables(node_state, zone_state(ZoneStat::NrBounce))?;
    lines.slab(node_state)?;
    lines.thp(node_state)?;
    for key in ["HugePages_Total", "HugePages_Free", "HugePages_Surp"] {
        lines.count(key, 0)?;
    }
    Ok(())
}

/// Writes one line: the key, then the number right-aligned in 8 places (a count in 5) behind a field of `field`
/// places for the key.
fn write_line(out: &mut dyn Write, key: &str, field: usize, amount: Amount) -> fmt::Result {
    let pad = field.saturating_sub(key.len() + 1);
    match amount {
        Amount::KiB(value) => writeln!(out, "{key}:{:pad$}{value:>8} kB", ""),
        Amount::Count(value) => writeln!(out, "{key}:{:pad$}{value:>5}", ""),
    }
}

/// `/proc/meminfo`.
///
/// # Errors
/// Those of `out`.
pub fn meminfo(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    items(region, &mut |key, amount| match amount {
        // A key that is too long for the field: Linux took the places from the number.
        Amount::KiB(value) if key == "HardwareCorrupted" => writeln!(out, "{key}: {value:>5} kB"),
        Amount::KiB(_) => write_line(out, key, 16, amount),
        Amount::Count(_) => write_line(out, key, 19, amount),
    })
}

/// `/sys/devices/system/node/nodeN/meminfo`.
///
/// # Errors
/// Those of `out`.
pub fn node_meminfo(region: &RegionRef<'_>, node: NodeId, out: &mut dyn Write) -> fmt::Result {
    node_items(region, node, &mut |key, amount| {
        write!(out, "Node {} ", node.index())?;
        match amount {
            // One place out of line in Linux too.
            Amount::KiB(_) if matches!(key, "FileHugePages" | "FilePmdMapped") => write_line(out, key, 15, amount),
            Amount::KiB(_) => write_line(out, key, 16, amount),
            Amount::Count(_) => write_line(out, key, 17, amount),
        }
    })
}
