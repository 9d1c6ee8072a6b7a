//! The allocator's counters, by node and zone.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::{MIGRATE_TYPES, MigrateType};
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::report::counters::{self, FreeCounts};
use pagevisor_shared::units::{CpuId, CpuMask, MAX_ORDER, NodeId, Order};
use pagevisor_shared::vmstat::{NR_VM_NUMA_EVENT_ITEMS, NR_VM_ZONE_STAT_ITEMS, NumaStat, VmEvent, ZoneStat};
use pagevisor_shared::zone::{MAX_NR_ZONES, NR_WMARK, Watermark, ZoneType};

/// The allocator's counters at some moment. Each zone's free areas are of one moment; the rest is of about the same one,
/// unless the guest was paused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// Online nodes.
    pub nodes: Vec<NodeCounters>,
    /// `/proc/vmstat`'s events, in Linux's order.
    pub events: Vec<u64>,
    /// Pages that may be allocated (`totalram_pages`).
    pub total_pages: u64,
    /// Pages that the watermarks keep (`totalreserve_pages`).
    pub reserve_pages: u64,
}

/// Counters of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeCounters {
    /// Its number.
    pub id: NodeId,
    /// Its CPUs.
    pub cpus: CpuMask,
    /// Its populated zones, lowest first.
    pub zones: Vec<ZoneCounters>,
}

/// Counters of a zone. All are pages, unless said otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZoneCounters {
    /// Its node.
    pub node: NodeId,
    /// Its type.
    pub kind: ZoneType,
    /// First frame.
    pub start: u64,
    /// Frames from the first to the last one.
    pub spanned: u64,
    /// Of these, pages.
    pub present: u64,
    /// Of these, those that the allocator has.
    pub managed: u64,
    /// Of these, those of contiguous memory areas.
    pub cma: u64,
    /// Free blocks by order, then migrate type.
    pub free_area: [[u64; MIGRATE_TYPES]; MAX_ORDER],
    /// Watermarks by [`Watermark`], without the boost.
    pub watermarks: [u64; NR_WMARK],
    /// What a fallback has raised them by.
    pub boost: u64,
    /// What is kept for allocations that could use lower zones only, by the highest zone that an allocation may use.
    pub lowmem_reserve: [u64; MAX_NR_ZONES],
    /// Pages set aside for high-order atomic allocations.
    pub highatomic: u64,
    /// `/proc/zoneinfo`'s counters with what the CPUs hold back, by [`ZoneStat`].
    pub stat: [u64; NR_VM_ZONE_STAT_ITEMS],
    /// NUMA events by [`NumaStat`].
    pub numa: [u64; NR_VM_NUMA_EVENT_ITEMS],
    /// The pagesets of the online CPUs.
    pub pagesets: Vec<PcpCounters>,
}

/// Counters of a CPU's pageset for a zone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PcpCounters {
    /// The CPU.
    pub cpu: CpuId,
    /// Pages in it.
    pub count: u64,
    /// Pages at which it is emptied.
    pub high: u64,
    /// Pages that go to the zone or come from it at a time.
    pub batch: u64,
}

impl State {
    /// The counters in a state region.
    pub fn read(region: &RegionRef<'_>) -> Self {
        let node = |id| NodeCounters {
            id,
            cpus: counters::cpus_of_node(region, id),
            zones: counters::zones_of(region, id)
                .filter(|(_, _, zone)| counters::is_populated(zone))
                .map(|(kind, ..)| ZoneCounters::read(region, id, kind))
                .collect(),
        };
        Self {
            nodes: counters::online_nodes(region).iter().map(node).collect(),
            events: (0..VmEvent::NAMES.len()).map(|item| counters::vm_event_at(region, item)).collect(),
            total_pages: counters::totalram_pages(region),
            reserve_pages: counters::totalreserve_pages(region),
        }
    }

    /// The counters of a node.
    pub fn node(&self, id: NodeId) -> Option<&NodeCounters> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The counters of a zone, if it is populated.
    pub fn zone(&self, node: NodeId, kind: ZoneType) -> Option<&ZoneCounters> {
        self.node(node)?.zones.iter().find(|zone| zone.kind == kind)
    }

    /// All zones, node by node.
    pub fn zones(&self) -> impl Iterator<Item = &ZoneCounters> {
        self.nodes.iter().flat_map(|node| &node.zones)
    }

    /// Free pages of all zones, those in pagesets not among them.
    pub fn free_pages(&self) -> u64 {
        self.zones().map(ZoneCounters::free_pages).sum()
    }

    /// Pages in all pagesets.
    pub fn cached_pages(&self) -> u64 {
        self.zones().map(ZoneCounters::cached_pages).sum()
    }

    /// How often an event happened.
    pub fn event(&self, event: VmEvent) -> u64 {
        self.events.get(event.index()).copied().unwrap_or(0)
    }

    /// A NUMA event of all zones.
    pub fn numa(&self, item: NumaStat) -> u64 {
        self.zones().map(|zone| zone.numa(item)).sum()
    }
}

impl NodeCounters {
    /// Free pages of its zones.
    pub fn free_pages(&self) -> u64 {
        self.zones.iter().map(ZoneCounters::free_pages).sum()
    }

    /// A NUMA event of its zones.
    pub fn numa(&self, item: NumaStat) -> u64 {
        self.zones.iter().map(|zone| zone.numa(item)).sum()
    }
}

impl ZoneCounters {
    fn read(region: &RegionRef<'_>, node: NodeId, kind: ZoneType) -> Self {
        let index = pagevisor_shared::zone::ZoneIndex::of(node, kind);
        let record = region.zones().get(index.index());
        let record = record.unwrap_or(&EMPTY);
        let mut stat = [0; NR_VM_ZONE_STAT_ITEMS];
        for item in ZoneStat::ALL {
            stat[item.index()] = counters::zone_page_state_snapshot(region, index, item);
        }
        let mut numa = [0; NR_VM_NUMA_EVENT_ITEMS];
        for item in NumaStat::ALL {
            numa[item.index()] = counters::zone_numa_event(region, index, item);
        }
        let pageset = |cpu: CpuId| {
            let pcp = counters::pcp(region, cpu, index)?;
            let [count, high, batch] = [&pcp.count, &pcp.high, &pcp.batch].map(|word| word.load(Relaxed).into());
            Some(PcpCounters { cpu, count, high, batch })
        };
        Self {
            node,
            kind,
            start: record.zone_start_pfn.load(Relaxed),
            spanned: record.spanned_pages.load(Relaxed),
            present: record.present_pages.load(Relaxed),
            managed: record.managed_pages.load(Relaxed),
            cma: record.cma_pages.load(Relaxed),
            free_area: FreeCounts::read(record).0,
            watermarks: record.watermark.each_ref().map(|mark| mark.load(Relaxed)),
            boost: record.watermark_boost.load(Relaxed),
            lowmem_reserve: record.lowmem_reserve.each_ref().map(|pages| pages.load(Relaxed)),
            highatomic: record.nr_reserved_highatomic.load(Relaxed),
            stat,
            numa,
            pagesets: counters::online_cpus(region).iter().filter_map(pageset).collect(),
        }
    }

    /// Free pages, those in pagesets not among them.
    pub fn free_pages(&self) -> u64 {
        self.stat(ZoneStat::NrFreePages)
    }

    /// Pages in its pagesets.
    pub fn cached_pages(&self) -> u64 {
        self.pagesets.iter().map(|pageset| pageset.count).sum()
    }

    /// A counter.
    pub fn stat(&self, item: ZoneStat) -> u64 {
        self.stat[item.index()]
    }

    /// A NUMA event.
    pub fn numa(&self, item: NumaStat) -> u64 {
        self.numa[item.index()]
    }

    /// A watermark, with the boost (`wmark_pages`).
    pub fn watermark(&self, mark: Watermark) -> u64 {
        self.watermarks[mark as usize].saturating_add(self.boost)
    }

    /// Free blocks of an order.
    pub fn free_blocks(&self, order: Order) -> u64 {
        self.free_area[order.index()].iter().sum()
    }

    /// Free blocks of an order on the list of a migrate type.
    pub fn free_blocks_of(&self, order: Order, kind: MigrateType) -> u64 {
        self.free_area[order.index()][kind as usize]
    }

    /// The pageset of a CPU.
    pub fn pageset(&self, cpu: u32) -> Option<&PcpCounters> {
        self.pagesets.iter().find(|pageset| pageset.cpu.index() == cpu as usize)
    }
}

/// A zone that is not there.
static EMPTY: pagevisor_shared::region::zone::ZoneState = pagevisor_shared::region::zone::ZoneState::new();

/// A line per zone, as `buddyinfo`, with free pages, pages in pagesets and watermarks.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for zone in self.zones() {
            write!(f, "Node {}, zone {:>8}", zone.node.index(), zone.kind.name())?;
            for order in zone.free_area {
                write!(f, " {:>6}", order.iter().sum::<u64>())?;
            }
            let [min, low, high, _] = zone.watermarks;
            let (free, cached) = (zone.free_pages(), zone.cached_pages());
            writeln!(f, "  free {free} cached {cached} min {min} low {low} high {high} boost {}", zone.boost)?;
        }
        Ok(())
    }
}
