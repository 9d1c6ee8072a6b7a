//! Mem-Info: what the kernel logs when an allocation failed, and on request (`show_mem`, `show_free_areas`).

use core::fmt::{self, Display, Write};
use core::sync::atomic::Ordering::Relaxed;

use super::counters::{self, FreeCounts};
use super::kib;
use crate::migrate::MigrateType;
use crate::region::RegionRef;
use crate::region::zone::ZoneState;
use crate::units::{CpuId, NodeId, NodeMask, PAGE_SIZE};
use crate::vmstat::{NodeStat, ZoneStat};
use crate::zone::{Watermark, ZoneIndex, ZoneType};

/// Receives the lines of the report, without line ends; each is a record of the kernel log.
pub type Sink<'f> = &'f mut dyn FnMut(fmt::Arguments<'_>);

/// What a Mem-Info is to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemInfo {
    /// The CPU that asks, whose pagesets are `local_pcp`.
    pub local_cpu: CpuId,
    /// Only these nodes (`SHOW_MEM_FILTER_NODES` with a node mask); all when `None`.
    pub nodes: Option<NodeMask>,
    /// No zone above this one (`gfp_zone` of the allocation that failed).
    pub max_zone: ZoneType,
}

impl MemInfo {
    /// Everything, as the SysRq key shows it.
    pub const fn all(local_cpu: CpuId) -> Self {
        Self { local_cpu, nodes: None, max_zone: ZoneType::Device }
    }

    fn shows(&self, node: NodeId) -> bool {
        self.nodes.is_none_or(|nodes| nodes.contains(node))
    }

    /// The nodes the report names.
    fn nodes(self, region: &RegionRef<'_>) -> impl Iterator<Item = NodeId> + use<> {
        let nodes = counters::online_nodes(region);
        (0..region.nr_nodes()).filter_map(NodeId::new).filter(move |&node| nodes.contains(node) && self.shows(node))
    }

    /// The populated zones the report names.
    fn zones<'a>(
        self,
        region: &RegionRef<'a>,
    ) -> impl Iterator<Item = (NodeId, ZoneType, ZoneIndex, &'a ZoneState)> + use<'a> {
        let region = region.clone();
        self.nodes(&region)
            .flat_map(move |node| {
                counters::zones_of(&region, node).map(move |(kind, index, zone)| (node, kind, index, zone))
            })
            .filter(move |(_, kind, _, zone)| *kind <= self.max_zone && counters::is_populated(zone))
    }
}

/// The report, line by line, from `Mem-Info:` to the page totals.
pub fn mem_info(region: &RegionRef<'_>, what: &MemInfo, sink: Sink<'_>) {
    sink(format_args!("Mem-Info:"));
    totals(region, what, sink);
    for node in what.nodes(region) {
        let mut zones = counters::zones_of(region, node);
        // `node_has_managed_zones`
        if zones.any(|(kind, _, zone)| kind <= what.max_zone && zone.managed_pages.load(Relaxed) != 0) {
            sink(format_args!("{}", node_line(region, node)));
        }
    }
    for (node, kind, index, zone) in what.zones(region) {
        let line = zone_line(region, what.local_cpu, index, zone);
        sink(format_args!("Node {} {} {line}", node.index(), kind.name()));
        sink(format_args!("lowmem_reserve[]:{}", lowmem_reserve(zone)));
    }
    for (node, kind, _, zone) in what.zones(region) {
        sink(format_args!("Node {} {}: {}", node.index(), kind.name(), free_blocks(&FreeCounts::read(zone))));
    }
    for node in what.nodes(region) {
        sink(format_args!(
            "Node {} hugepages_total=0 hugepages_free=0 hugepages_surp=0 hugepages_size=2048kB",
            node.index()
        ));
    }
    sink(format_args!("{} total pagecache pages", global(region, NodeStat::NrFilePages)));
    sink(format_args!("{} pages in swap cache", global(region, NodeStat::NrSwapcached)));
    sink(format_args!("Free swap  = 0kB"));
    sink(format_args!("Total swap = 0kB"));
    page_totals(region, sink);
}

/// The report as text.
///
/// # Errors
/// Those of `out`.
pub fn mem_info_text(region: &RegionRef<'_>, what: &MemInfo, out: &mut dyn Write) -> fmt::Result {
    let mut result = Ok(());
    mem_info(region, what, &mut |line| result = result.and_then(|()| writeln!(out, "{line}")));
    result
}

fn global(region: &RegionRef<'_>, item: NodeStat) -> u64 {
    counters::global_node_page_state_stored(region, item)
}

/// The block of counters of the whole machine.
fn totals(region: &RegionRef<'_>, what: &MemInfo, sink: Sink<'_>) {
    let node = |item| global(region, item);
    let zone = |item| counters::global_zone_page_state_stored(region, item);
    let free_pcp =
        what.zones(region).fold(0u64, |sum, (_, _, index, _)| sum.wrapping_add(counters::free_pcp(region, index)));
    sink(format_args!(
        "active_anon:{} inactive_anon:{} isolated_anon:{}",
        node(NodeStat::NrActiveAnon),
        node(NodeStat::NrInactiveAnon),
        node(NodeStat::NrIsolatedAnon)
    ));
    sink(format_args!(
        " active_file:{} inactive_file:{} isolated_file:{}",
        node(NodeStat::NrActiveFile),
        node(NodeStat::NrInactiveFile),
        node(NodeStat::NrIsolatedFile)
    ));
    sink(format_args!(
        " unevictable:{} dirty:{} writeback:{}",
        node(NodeStat::NrUnevictable),
        node(NodeStat::NrDirty),
        node(NodeStat::NrWriteback)
    ));
    sink(format_args!(
        " slab_reclaimable:{} slab_unreclaimable:{}",
        node(NodeStat::NrSlabReclaimable),
        node(NodeStat::NrSlabUnreclaimable)
    ));
    sink(format_args!(
        " mapped:{} shmem:{} pagetables:{}",
        node(NodeStat::NrMapped),
        node(NodeStat::NrShmem),
        node(NodeStat::NrPageTablePages)
    ));
    sink(format_args!(" sec_pagetables:{} bounce:{}", node(NodeStat::NrSecPageTablePages), zone(ZoneStat::NrBounce)));
    sink(format_args!(" kernel_misc_reclaimable:{}", node(NodeStat::NrKernelMiscReclaimable)));
    sink(format_args!(
        " free:{} free_pcp:{free_pcp} free_cma:{}",
        zone(ZoneStat::NrFreePages),
        zone(ZoneStat::NrFreeCma)
    ));
}

/// `Node N active_anon:...`
fn node_line<'a>(region: &'a RegionRef<'_>, node: NodeId) -> impl Display + use<'a> {
    const FIELDS: [(&str, NodeStat); 17] = [
        ("active_anon:", NodeStat::NrActiveAnon),
        ("inactive_anon:", NodeStat::NrInactiveAnon),
        ("active_file:", NodeStat::NrActiveFile),
        ("inactive_file:", NodeStat::NrInactiveFile),
        ("unevictable:", NodeStat::NrUnevictable),
        ("isolated(anon):", NodeStat::NrIsolatedAnon),
        ("isolated(file):", NodeStat::NrIsolatedFile),
        ("mapped:", NodeStat::NrMapped),
        ("dirty:", NodeStat::NrDirty),
        ("writeback:", NodeStat::NrWriteback),
        ("shmem:", NodeStat::NrShmem),
        ("shmem_thp: ", NodeStat::NrShmemHugepages),
        ("shmem_pmdmapped: ", NodeStat::NrShmemPmdmapped),
        ("anon_thp: ", NodeStat::NrAnonTransparentHugepages),
        ("writeback_tmp:", NodeStat::NrWritebackTemp),
        ("pagetables:", NodeStat::NrPageTablePages),
        ("sec_pagetables:", NodeStat::NrSecPageTablePages),
    ];
    fmt::from_fn(move |f| {
        write!(f, "Node {}", node.index())?;
        for (name, item) in FIELDS {
            if item == NodeStat::NrPageTablePages {
                let stack = counters::node_page_state(region, node, NodeStat::NrKernelStack);
                write!(f, " kernel_stack:{stack}kB")?;
            }
            write!(f, " {name}{}kB", kib(counters::node_page_state(region, node, item)))?;
        }
        // There is no kswapd that could have given up.
        f.write_str(" all_unreclaimable? no")
    })
}

/// `free:... boost:...` of a zone.
fn zone_line<'a>(
    region: &'a RegionRef<'_>,
    local_cpu: CpuId,
    index: ZoneIndex,
    zone: &'a ZoneState,
) -> impl Display + use<'a> {
    let state = move |item| kib(counters::zone_page_state(zone, item));
    let mark = move |mark| kib(counters::wmark_pages(zone, mark));
    let local = counters::pcp(region, local_cpu, index).map_or(0, |pcp| pcp.count.load(Relaxed) as u64);
    fmt::from_fn(move |f| {
        write!(f, "free:{}kB", state(ZoneStat::NrFreePages))?;
        write!(f, " boost:{}kB", kib(zone.watermark_boost.load(Relaxed)))?;
        write!(f, " min:{}kB", mark(Watermark::Min))?;
        write!(f, " low:{}kB", mark(Watermark::Low))?;
        write!(f, " high:{}kB", mark(Watermark::High))?;
        // Linux writes KB here.
        write!(f, " reserved_highatomic:{}KB", kib(zone.nr_reserved_highatomic.load(Relaxed)))?;
        write!(f, " active_anon:{}kB", state(ZoneStat::NrZoneActiveAnon))?;
        write!(f, " inactive_anon:{}kB", state(ZoneStat::NrZoneInactiveAnon))?;
        write!(f, " active_file:{}kB", state(ZoneStat::NrZoneActiveFile))?;
        write!(f, " inactive_file:{}kB", state(ZoneStat::NrZoneInactiveFile))?;
        write!(f, " unevictable:{}kB", state(ZoneStat::NrZoneUnevictable))?;
        write!(f, " writepending:{}kB", state(ZoneStat::NrZoneWritePending))?;
        write!(f, " present:{}kB", kib(zone.present_pages.load(Relaxed)))?;
        write!(f, " managed:{}kB", kib(zone.managed_pages.load(Relaxed)))?;
        write!(f, " mlocked:{}kB", state(ZoneStat::NrMlock))?;
        write!(f, " bounce:{}kB", state(ZoneStat::NrBounce))?;
        write!(f, " free_pcp:{}kB", kib(counters::free_pcp(region, index)))?;
        write!(f, " local_pcp:{}kB", kib(local))?;
        write!(f, " free_cma:{}kB", state(ZoneStat::NrFreeCma))
    })
}

fn lowmem_reserve(zone: &ZoneState) -> impl Display {
    fmt::from_fn(|f| zone.lowmem_reserve.iter().try_for_each(|reserve| write!(f, " {}", reserve.load(Relaxed))))
}

/// `29*4kB (UME) ... = 444852kB`: blocks by order, with the letters of the migrate types that have some.
fn free_blocks(counts: &FreeCounts) -> impl Display {
    fmt::from_fn(|f| {
        for ((row, blocks), order) in counts.0.iter().zip(counts.by_order()).zip(0u32..) {
            write!(f, "{blocks}*{}kB ", (PAGE_SIZE >> 10) << order)?;
            if blocks != 0 {
                f.write_char('(')?;
                let present = MigrateType::ALL.into_iter().zip(row).filter(|(_, count)| **count != 0);
                present.map(|(kind, _)| kind.letter()).try_for_each(|letter| f.write_char(letter))?;
                f.write_str(") ")?;
            }
        }
        write!(f, "= {}kB", kib(counts.pages()))
    })
}

/// The last lines: what RAM there is.
fn page_totals(region: &RegionRef<'_>, sink: Sink<'_>) {
    let (mut total, mut reserved) = (0u64, 0u64);
    for zone in region.zones() {
        let present = zone.present_pages.load(Relaxed);
        total = total.wrapping_add(present);
        reserved = reserved.wrapping_add(present.saturating_sub(zone.managed_pages.load(Relaxed)));
    }
    sink(format_args!("{total} pages RAM"));
    // x86-64 has no highmem, and ZONE_MOVABLE counts here only where it is made of it.
    sink(format_args!("0 pages HighMem/MovableOnly"));
    sink(format_args!("{reserved} pages reserved"));
    let cma = counters::totalcma_pages(region);
    if cma != 0 {
        sink(format_args!("{cma} pages cma reserved"));
    }
    sink(format_args!("0 pages hwpoisoned"));
}
