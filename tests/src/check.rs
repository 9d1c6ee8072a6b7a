//! A guest's views against its topology, against Linux's arithmetic and against each other.
//!
//! A guest that is ready idles, so that views taken one after another are of the same state.

use std::collections::BTreeMap;

use pagevisor::layout::Layout;
use pagevisor::topology::Topology;

use crate::linux;
use crate::views::{self, Counters, Pageset, ZoneInfo, ZoneKey, counter};

/// Zones that zoneinfo lists for every node.
const ZONE_NAMES: [&str; 5] = ["DMA", "DMA32", "Normal", "Movable", "Device"];

/// Where views come from: a guest on KVM, or what one under QEMU printed.
pub trait Source {
    /// The text of a view, named as in `pagevisor show`.
    fn view(&self, view: &str) -> String;
}

/// The zones of a guest as zoneinfo shows them, checked, and what the other views are compared with.
#[derive(Debug)]
pub struct Machine<'a> {
    topology: &'a Topology,
    zones: BTreeMap<ZoneKey, ZoneInfo>,
}

/// Checks all that `source` can show.
///
/// # Panics
/// At the first thing that is wrong.
pub fn all(source: &impl Source, topology: &Topology) {
    let machine = Machine::new(&source.view("zoneinfo"), topology);
    machine.arithmetic();
    machine.buddyinfo(&source.view("buddyinfo"));
    machine.pagetypeinfo(&source.view("pagetypeinfo"), &source.view("buddyinfo"));
    machine.kmem(&source.view("kmem -f"), &source.view("buddyinfo"));
    machine.memory(&source.view("meminfo"));
    machine.vmstat(&source.view("vmstat"));
    for node in 0..topology.nr_nodes() {
        machine.node(node, |file| source.view(&format!("node/{node}/{file}")));
    }
    machine.numa(&source.view("numa"));
    iomem(&source.view("iomem"), topology);
}

fn key(node: usize, zone: &str) -> ZoneKey {
    (u32::try_from(node).expect("node"), zone.to_owned())
}

impl<'a> Machine<'a> {
    /// Reads zoneinfo and checks which zones it has and how large they are.
    pub fn new(zoneinfo: &str, topology: &'a Topology) -> Self {
        let (zones, per_node) = views::zoneinfo(zoneinfo);
        let layout = Layout::place(topology).expect("a layout");
        let names: Vec<_> = zones.keys().cloned().collect();
        let mut expected: Vec<_> =
            (0..topology.nr_nodes()).flat_map(|node| ZONE_NAMES.map(|name| key(node, name))).collect();
        expected.sort();
        assert_eq!(names, expected, "zoneinfo lists every zone of every node");
        for node in 0..topology.nr_nodes() {
            let bytes = layout.zone_bytes(node);
            for (name, bytes) in ZONE_NAMES.iter().zip(bytes.into_iter().chain([0, 0])) {
                let zone = &zones[&key(node, name)];
                // Linux gives page 0 up before it counts.
                let first = u64::from(*name == "DMA" && layout.ram_of(node).any(|ram| ram.start == 0));
                assert_eq!(zone.page("present"), (bytes >> 12) - first, "present pages of node {node} zone {name}");
            }
            let with_memory = bytes != [0; 3];
            let id = u32::try_from(node).expect("node");
            assert_eq!(per_node.contains_key(&id), with_memory, "node {node} has per-node counters");
        }
        Self { topology, zones }
    }

    fn populated(&self) -> impl Iterator<Item = (&ZoneKey, &ZoneInfo)> {
        self.zones.iter().filter(|(_, zone)| zone.page("present") > 0)
    }

    fn sum(&self, node: Option<usize>, field: &str) -> u64 {
        self.zones
            .iter()
            .filter(|((n, _), _)| node.is_none_or(|node| *n as usize == node))
            .map(|(_, zone)| zone.page(field))
            .sum()
    }

    /// Watermarks, reserves, pagesets and thresholds are what Linux computes from the managed pages.
    pub fn arithmetic(&self) {
        let all = self.sum(None, "managed");
        let cpus = self.topology.nr_cpus() as u64;
        for ((node, name), zone) in &self.zones {
            let at = format!("node {node} zone {name}");
            let [managed, present, spanned] = ["managed", "present", "spanned"].map(|field| zone.page(field));
            assert!(managed <= present && present <= spanned, "{at}: {managed} of {present} of {spanned}");
            assert!(zone.page("free") <= managed, "{at}");
            let marks = ["min", "low", "high"].map(|field| zone.page(field));
            assert_eq!(marks, linux::watermarks(linux::min_free_kbytes(all), managed, all), "watermarks of {at}");
            let of_node = ZONE_NAMES.map(|zone| self.zones[&(*node, zone.to_owned())].page("managed"));
            let protection = linux::protection(linux::zone_number(name), of_node);
            assert_eq!(zone.protection, protection, "protection of {at}");
            if present == 0 {
                assert!(zone.pagesets.is_empty(), "{at} has no pagesets");
                continue;
            }
            let node_cpus = self.topology.nodes[*node as usize].cpus.len() as u64;
            let expected = (0..cpus).map(|cpu| Pageset {
                cpu,
                count: zone.pagesets.get(cpu as usize).map_or(0, |p| p.count),
                high: linux::high(zone, node_cpus, cpus),
                batch: linux::batch(managed),
                threshold: linux::stat_threshold(managed, cpus),
            });
            assert_eq!(zone.pagesets, expected.collect::<Vec<_>>(), "pagesets of {at}");
            assert_eq!(counter(&zone.counters, "nr_free_pages"), zone.page("free"), "{at}");
            let cached: u64 = zone.pagesets.iter().map(|p| p.count).sum();
            assert!(zone.page("free") + cached <= managed, "{at}: free and cached pages are managed ones");
        }
    }

    /// Free blocks add up to the free pages.
    pub fn buddyinfo(&self, text: &str) {
        let info = views::buddyinfo(text);
        let names: Vec<_> = info.keys().collect();
        assert_eq!(names, self.populated().map(|(key, _)| key).collect::<Vec<_>>(), "buddyinfo's zones");
        for (key, zone) in self.populated() {
            assert_eq!(info[key].len(), 11, "orders of {key:?}");
            assert_eq!(views::pages(&info[key]), zone.page("free"), "free pages of {key:?}");
        }
    }

    /// Free blocks of all types are those of buddyinfo, and every page block has one type.
    pub fn pagetypeinfo(&self, text: &str, buddyinfo: &str) {
        let info = views::pagetypeinfo(text);
        for (key, blocks) in views::buddyinfo(buddyinfo) {
            let mut sums = vec![0; blocks.len()];
            for ((_, _), counts) in info.free.iter().filter(|((zone, _), _)| *zone == key) {
                sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
            }
            assert_eq!(sums, blocks, "free blocks of all types of {key:?}");
            let zone = &self.zones[&key];
            let counted: u64 = info.blocks[&key].iter().map(|(_, count)| count).sum();
            let (least, most) = (zone.page("present") / 512, zone.page("spanned") / 512 + 2);
            assert!((least..=most).contains(&counted), "{counted} page blocks in {key:?}, of {least} to {most}");
        }
    }

    /// The walk of the free lists agrees with the counters and says so.
    pub fn kmem(&self, text: &str, buddyinfo: &str) {
        let (zones, last) = views::kmem_free(text);
        let free = self.sum(None, "free");
        assert_eq!(last, format!("nr_free_pages: {free} (verified)"));
        let blocks = views::buddyinfo(buddyinfo);
        for (key, zone) in self.populated() {
            let walked = &zones[key];
            let of_zone = (walked.size, walked.free, Some(walked.start >> 12));
            assert_eq!(of_zone, (zone.page("spanned"), zone.page("free"), zone.start_pfn), "{key:?}");
            let by_order: Vec<u64> = walked.areas.iter().map(|(blocks, _)| *blocks).collect();
            assert_eq!(by_order, blocks[key], "blocks of {key:?}");
            for (order, (blocks, pages)) in walked.areas.iter().enumerate() {
                assert_eq!(*pages, blocks << order, "pages of order {order} of {key:?}");
            }
        }
    }

    fn memory(&self, text: &str) {
        let info = views::meminfo(text);
        assert_eq!(counter(&info, "MemTotal"), self.sum(None, "managed") * 4);
        assert_eq!(counter(&info, "MemFree"), self.sum(None, "free") * 4);
        assert!(counter(&info, "MemAvailable") <= counter(&info, "MemFree"), "nothing but free memory is available");
    }

    fn vmstat(&self, text: &str) {
        let stat = views::vmstat(text);
        assert_eq!(counter(&stat, "nr_free_pages"), self.sum(None, "free"));
        for name in ["numa_hit", "numa_miss", "numa_foreign", "numa_interleave", "numa_local", "numa_other"] {
            let zones: u64 = self.populated().map(|(_, zone)| counter(&zone.counters, name)).sum();
            assert_eq!(counter(&stat, name), zones, "{name}");
        }
        assert_eq!(counter(&stat, "numa_hit") + counter(&stat, "numa_miss"), {
            counter(&stat, "numa_local") + counter(&stat, "numa_other")
        });
        assert_eq!(counter(&stat, "numa_miss"), counter(&stat, "numa_foreign"));
    }

    fn node(&self, node: usize, view: impl Fn(&str) -> String) {
        let distances = self.topology.distances[node].iter().map(|d| u64::from(*d)).collect::<Vec<_>>();
        assert_eq!(views::distance(&view("distance")), distances, "distances of node {node}");
        let mut cpus: Vec<u64> = self.topology.nodes[node].cpus.iter().map(|cpu| u64::from(*cpu)).collect();
        cpus.sort_unstable();
        assert_eq!(views::cpulist(&view("cpulist")), cpus, "CPUs of node {node}");
        let info = views::node_meminfo(&view("meminfo"), u32::try_from(node).expect("node"));
        let [total, free] = ["managed", "free"].map(|field| self.sum(Some(node), field) * 4);
        assert_eq!(counter(&info, "MemTotal"), total, "node {node}");
        assert_eq!(counter(&info, "MemFree"), free, "node {node}");
        assert_eq!(counter(&info, "MemUsed"), total - free, "node {node}");
        self.node_counters(node, &views::vmstat(&view("vmstat")), &views::vmstat(&view("numastat")));
    }

    fn node_counters(&self, node: usize, vmstat: &Counters, numastat: &Counters) {
        assert_eq!(counter(vmstat, "nr_free_pages"), self.sum(Some(node), "free"), "node {node}");
        for (stat, event) in [
            ("numa_hit", "numa_hit"),
            ("numa_miss", "numa_miss"),
            ("numa_foreign", "numa_foreign"),
            ("interleave_hit", "numa_interleave"),
            ("local_node", "numa_local"),
            ("other_node", "numa_other"),
        ] {
            let zones: u64 = self
                .populated()
                .filter(|((n, _), _)| *n as usize == node)
                .map(|(_, zone)| counter(&zone.counters, event))
                .sum();
            assert_eq!(counter(numastat, stat), zones, "{stat} of node {node}");
            assert_eq!(counter(vmstat, event), zones, "{event} of node {node}");
        }
    }

    /// `numactl --hardware`.
    fn numa(&self, text: &str) {
        let nodes = self.topology.nr_nodes();
        let list = if nodes == 1 { "0".to_owned() } else { format!("0-{}", nodes - 1) };
        let mut expected = format!("available: {nodes} nodes ({list})\n");
        for (node, of_topology) in self.topology.nodes.iter().enumerate() {
            let mut cpus = of_topology.cpus.clone();
            cpus.sort_unstable();
            let cpus: String = cpus.iter().map(|cpu| format!(" {cpu}")).collect();
            let [size, free] = ["managed", "free"].map(|field| self.sum(Some(node), field) >> 8);
            expected += &format!("node {node} cpus:{cpus}\nnode {node} size: {size} MB\nnode {node} free: {free} MB\n");
        }
        expected += "node distances:\nnode ";
        expected += &(0..nodes).map(|node| format!("{node:3} ")).collect::<String>();
        for (node, distances) in self.topology.distances.iter().enumerate() {
            expected += &format!("\n{node:3}: ");
            expected += &distances.iter().map(|d| format!("{d:3} ")).collect::<String>();
        }
        // Blanks at line ends are a matter of numactl's version.
        let trimmed = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
        assert_eq!(trimmed(text), trimmed(&expected));
    }
}

/// The RAM of the memory map, and the kernel in it.
fn iomem(text: &str, topology: &Topology) {
    let layout = Layout::place(topology).expect("a layout");
    let ram = layout.e820.iter().filter(|entry| entry.kind == pagevisor::layout::E820Kind::Ram);
    let lines: Vec<&str> = text.lines().collect();
    for entry in ram {
        // The first page is never the allocator's, and Linux shows it as reserved.
        let start = if entry.start == 0 { 0x1000 } else { entry.start };
        let line = format!("{start:08x}-{:08x} : System RAM", entry.start + entry.size - 1);
        assert!(lines.contains(&line.as_str()), "no '{line}' in\n{text}");
    }
    assert!(lines.iter().any(|line| line.starts_with("  ") && line.ends_with(" : Kernel code")), "{text}");
}

/// `Fallback order for Node N: ...` of the summary, for every node.
///
/// # Panics
/// If an order is missing or not Linux's.
pub fn fallback_orders(summary: &str, topology: &Topology) {
    let layout = Layout::place(topology).expect("a layout");
    let nodes = 0..topology.nr_nodes();
    let numa = linux::Numa {
        distance: topology.distances.iter().map(|row| row.iter().map(|d| u64::from(*d)).collect()).collect(),
        memory: nodes.map(|node| layout.zone_bytes(node) != [0; 3]).collect(),
        cpus: topology.nodes.iter().map(|node| !node.cpus.is_empty()).collect(),
    };
    for (node, order) in linux::fallback_orders(&numa).iter().enumerate() {
        let order: String = order.iter().map(|n| format!("{n} ")).collect();
        let line = format!("Fallback order for Node {node}: {order}");
        assert!(summary.lines().any(|l| l.trim() == line.trim()), "no '{line}' in\n{summary}");
    }
}
