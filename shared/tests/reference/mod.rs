//! A state region filled with the numbers of a reference machine: the texts printed from it must be the texts the
//! numbers came from.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::{RegionLayout, RegionRef};
use pagevisor_shared::units::{CpuId, NodeId};
use pagevisor_shared::vmstat::{NodeStat, NumaStat, VmEvent, ZoneStat};
use pagevisor_shared::zone::{ZoneIndex, ZoneType};

/// A region in memory of its own.
pub struct Buffer {
    base: NonNull<u8>,
    memory: Layout,
    layout: RegionLayout,
}

impl Buffer {
    pub fn new(nodes: u32, cpus: u32) -> Self {
        let layout = RegionLayout::new(nodes, cpus);
        let memory = Layout::from_size_align(layout.size as usize, 64).unwrap();
        // SAFETY: the layout is not empty.
        let base = NonNull::new(unsafe { alloc_zeroed(memory) }).unwrap();
        // SAFETY: `base` is aligned to 64 and points to zeroed memory of the layout's size.
        unsafe {
            RegionRef::header_at(base).publish_early();
            RegionRef::create(base, layout.clone());
        }
        Self { base, memory, layout }
    }

    pub fn region(&self) -> RegionRef<'_> {
        // SAFETY: the memory lives as long as `self` and is only accessed through the region's atomics.
        unsafe { RegionRef::open(self.base, self.layout.size) }.unwrap()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.memory) }
    }
}

/// The text of a reference file.
pub fn file(machine: &str, name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/linux-6.1").join(machine).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The number that is the first word of `text` after `key`.
pub fn number_after(text: &str, key: &str) -> Option<u64> {
    let rest = &text[text.find(key)? + key.len()..];
    let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The nodes and CPUs of a reference machine.
pub fn machine(name: &str) -> (u32, u32) {
    match name {
        "T3" => (4, 4),
        _ => (2, 2),
    }
}

pub fn node(index: usize) -> NodeId {
    NodeId::new(index).unwrap()
}

/// The index of the zone that a line `Node N, zone  NAME ...` or `Node N NAME ...` is about.
pub fn zone_of_line(line: &str) -> Option<ZoneIndex> {
    let mut words =
        line.strip_prefix("Node")?.split([' ', ',', ':']).filter(|word| !word.is_empty() && *word != "zone");
    let id = words.next()?.parse().ok()?;
    let name = words.next()?;
    let kind = ZoneType::ALL.into_iter().find(|kind| kind.name() == name)?;
    Some(ZoneIndex::of(node(id), kind))
}

/// A region with the topology and the zoneinfo of `name`.
pub fn filled(name: &str) -> Buffer {
    let (nodes, cpus) = machine(name);
    let buffer = Buffer::new(nodes, cpus);
    let region = buffer.region();
    fill_topology(&region, name);
    fill_zoneinfo(&region, &file(name, "zoneinfo"));
    buffer
}

fn fill_topology(region: &RegionRef<'_>, name: &str) {
    region.header().nodes_online.store((1 << region.nr_nodes()) - 1, Relaxed);
    region.header().cpus_online.store((1 << region.nr_cpus()) - 1, Relaxed);
    let fallback = file(name, "fallback");
    for (index, record) in region.nodes().iter().enumerate() {
        let cpus = file(name, &format!("node{index}.cpulist"));
        let mut ends = cpus.trim().split('-').filter_map(|end| end.parse::<u64>().ok());
        if let Some(first) = ends.next() {
            let last = ends.next().unwrap_or(first);
            record.cpus.store((first..=last).fold(0, |mask, cpu| mask | 1 << cpu), Relaxed);
        }
        let distances = file(name, &format!("node{index}.distance"));
        let row = region.distances().chunks_exact(region.nr_nodes()).nth(index).unwrap();
        for (distance, text) in row.iter().zip(distances.split_whitespace()) {
            distance.store(text.parse().unwrap(), Relaxed);
        }
        let order = fallback.lines().nth(index).unwrap().split(": ").nth(1).unwrap();
        for (slot, text) in record.fallback_order.iter().zip(order.split_whitespace()) {
            slot.store(text.parse().unwrap(), Relaxed);
            record.nr_fallback.fetch_add(1, Relaxed);
        }
    }
}

/// Fills the zones from a text of `/proc/zoneinfo`. What CPUs may hold back is held back, to see it added.
fn fill_zoneinfo(region: &RegionRef<'_>, text: &str) {
    let mut zone = ZoneIndex(0);
    let mut cpu = 0;
    for line in text.lines() {
        if let Some(index) = zone_of_line(line) {
            zone = index;
            continue;
        }
        if let Some(number) = number_after(line, "cpu:") {
            cpu = number as usize;
            continue;
        }
        let pcp = &region.pcps_of(CpuId::new(cpu).unwrap())[zone.index()];
        let record = &region.zones()[zone.index()];
        let mut words = line.split_whitespace();
        let key = words.next().unwrap();
        let value = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match key {
            "count:" => pcp.count.store(value as u32, Relaxed),
            "high:" => pcp.high.store(value as u32, Relaxed),
            "batch:" => pcp.batch.store(value as u32, Relaxed),
            "vm" => pcp.stat_threshold.store(number_after(line, "threshold:").unwrap() as u32, Relaxed),
            "min" => record.watermark[0].store(value, Relaxed),
            "low" => record.watermark[1].store(value, Relaxed),
            "high" => record.watermark[2].store(value, Relaxed),
            "spanned" => record.spanned_pages.store(value, Relaxed),
            "present" => record.present_pages.store(value, Relaxed),
            "managed" => record.managed_pages.store(value, Relaxed),
            "start_pfn:" => record.zone_start_pfn.store(value, Relaxed),
            "protection:" => {
                let reserves = line.split(['(', ')', ',']).filter_map(|word| word.trim().parse().ok());
                record.lowmem_reserve.iter().zip(reserves).for_each(|(slot, value)| slot.store(value, Relaxed));
            }
            _ => fill_counter(region, zone, key, value),
        }
    }
}

fn fill_counter(region: &RegionRef<'_>, zone: ZoneIndex, name: &str, value: u64) {
    let record = &region.zones()[zone.index()];
    let held_back = value.min(7);
    let last_cpu = CpuId::new(region.nr_cpus() - 1).unwrap();
    let pcp = &region.pcps_of(last_cpu)[zone.index()];
    if let Some(item) = ZoneStat::NAMES.iter().position(|known| *known == name) {
        record.vm_stat[item].store((value - held_back) as i64, Relaxed);
        pcp.vm_stat_diff[item].store(held_back as i32, Relaxed);
    } else if let Some(item) = NumaStat::NAMES.iter().position(|known| *known == name) {
        record.vm_numa_event[item].store(value - held_back, Relaxed);
        pcp.vm_numa_event[item].store(held_back, Relaxed);
    } else if let Some(item) = NodeStat::NAMES.iter().position(|known| *known == name) {
        let node = zone.index() / ZoneType::ALL.len();
        region.nodes()[node].vm_stat[item].store(value as i64 + 3, Relaxed);
        region.node_cpus()[node].vm_node_stat_diff[item].store(-3, Relaxed);
    }
}

/// Fills the free areas from a text of `/proc/buddyinfo`, or from the free lists of `/proc/pagetypeinfo`.
pub fn fill_free_areas(region: &RegionRef<'_>, text: &str) {
    for line in text.lines().filter(|line| line.starts_with("Node")) {
        let Some(zone) = zone_of_line(line) else { continue };
        let mut words = line.split_whitespace().skip(4);
        let kind = if line.contains(", type") {
            let name = words.by_ref().nth(1).unwrap();
            MigrateType::ALL.into_iter().find(|kind| kind.name() == name).unwrap()
        } else {
            MigrateType::Movable
        };
        let counts: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
        if counts.len() != 11 {
            continue;
        }
        for (area, count) in region.zones()[zone.index()].free_area.iter().zip(counts) {
            area.nr_free[kind.index()].store(count, Relaxed);
        }
    }
}

/// What `print` writes.
pub fn text(print: impl FnOnce(&mut dyn std::fmt::Write) -> std::fmt::Result) -> String {
    let mut text = String::new();
    print(&mut text).unwrap();
    text
}

/// Compares line by line first, for a message that can be read.
#[track_caller]
pub fn assert_same(found: &str, expected: &str) {
    for (number, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "line {}", number + 1);
    }
    assert_eq!(found, expected);
}

/// Moves everything a file counts into node 0 and its first zone, whatever was there.
pub fn only(region: &RegionRef<'_>, items: &[(&str, u64)]) {
    for zone in region.zones() {
        zone.vm_stat.iter().for_each(|stat| stat.store(0, Relaxed));
        zone.vm_numa_event.iter().for_each(|event| event.store(0, Relaxed));
    }
    for pcp in region.pcps() {
        pcp.vm_stat_diff.iter().for_each(|diff| diff.store(0, Relaxed));
        pcp.vm_numa_event.iter().for_each(|event| event.store(0, Relaxed));
    }
    region.nodes().iter().flat_map(|node| &node.vm_stat).for_each(|stat| stat.store(0, Relaxed));
    region.node_cpus().iter().flat_map(|cpu| &cpu.vm_node_stat_diff).for_each(|diff| diff.store(0, Relaxed));
    for &(name, value) in items {
        if let Some(item) = ZoneStat::NAMES.iter().position(|known| *known == name) {
            // Spread over two zones, with one too many that a CPU has yet to take back.
            let moved = value.min(5) as i64;
            region.zones()[0].vm_stat[item].store(value as i64 - moved, Relaxed);
            region.zones()[2].vm_stat[item].store(moved + 1, Relaxed);
            region.pcps()[2].vm_stat_diff[item].store(-1, Relaxed);
        } else if let Some(item) = NumaStat::NAMES.iter().position(|known| *known == name) {
            region.zones()[2].vm_numa_event[item].store(value, Relaxed);
        } else if let Some(item) = NodeStat::NAMES.iter().position(|known| *known == name) {
            region.nodes()[0].vm_stat[item].store(value as i64, Relaxed);
        } else if let Some(item) = VmEvent::NAMES.iter().position(|known| *known == name) {
            region.cpus()[0].vm_events[item].store(value / 2, Relaxed);
            region.cpus()[1].vm_events[item].store(value - value / 2, Relaxed);
        }
    }
}
