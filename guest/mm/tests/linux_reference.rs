//! What zones keep in reserve, how large their pagesets are, and the order nodes are tried in: the formulas against
//! what Linux 6.1 printed on three machines and under many settings (`linux-6.1/README.md`).

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use pagevisor_mm::zone::watermark::{self, Watermarks};
use pagevisor_mm::zone::zonelist::{NodeLoad, NodeMap};
use pagevisor_shared::units::{NodeId, NodeMask};
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneType};
use proptest::prelude::*;

const MACHINES: [&str; 3] = ["T2", "T3", "T4"];

fn folder(machine: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/linux-6.1", machine].iter().collect()
}

fn read(machine: &str, file: &str) -> String {
    let path = folder(machine).join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A zone as `/proc/zoneinfo` shows it.
#[derive(Clone, Debug, Default)]
struct Zone {
    node: usize,
    kind: usize,
    /// The lines `name value`.
    pages: BTreeMap<String, u64>,
    protection: Vec<u64>,
    pagesets: Vec<Pageset>,
}

/// A CPU's lines of a zone.
#[derive(Clone, Copy, Debug, Default)]
struct Pageset {
    high: u32,
    batch: u32,
    threshold: u32,
}

impl Zone {
    fn pages(&self, name: &str) -> u64 {
        self.pages[name]
    }
}

fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect()
}

fn parse_zoneinfo(text: &str) -> Vec<Zone> {
    let mut zones: Vec<Zone> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("Node ") {
            let (node, kind) = rest.split_once(", zone").expect("a zone's first line");
            let kind = ZoneType::ALL.iter().position(|k| k.name() == kind.trim()).expect("a zone's name");
            zones.push(Zone { node: node.parse().unwrap(), kind, ..Zone::default() });
            continue;
        }
        let zone = zones.last_mut().expect("zones start with their name");
        let number = numbers(line).last().copied().unwrap_or_default();
        match line.trim().split([' ', ':']).next().unwrap_or_default() {
            "protection" => zone.protection = numbers(line),
            "cpu" => zone.pagesets.push(Pageset::default()),
            "count" => {}
            "batch" => zone.pagesets.last_mut().unwrap().batch = number as u32,
            "vm" => zone.pagesets.last_mut().unwrap().threshold = number as u32,
            // The watermark comes before the pagesets.
            "high" if !zone.pagesets.is_empty() => zone.pagesets.last_mut().unwrap().high = number as u32,
            "pages" => drop(zone.pages.insert("free".to_owned(), number)),
            name => drop(zone.pages.insert(name.to_owned(), number)),
        }
    }
    zones
}

/// What the settings were when a file was taken: defaults but for what its name lists.
#[derive(Clone, Debug)]
struct Settings {
    min_free_kbytes: u64,
    watermark_scale_factor: u32,
    lowmem_reserve_ratio: [u32; MAX_NR_ZONES],
    percpu_pagelist_high_fraction: u32,
}

/// `/proc/zoneinfo` of a machine under some settings.
#[derive(Debug)]
struct Case {
    /// For messages.
    name: String,
    settings: Settings,
    zones: Vec<Zone>,
    /// CPUs by node.
    cpus: Vec<u32>,
}

impl Case {
    fn load(machine: &str, file: &str) -> Self {
        let kbytes = read(machine, "wm/README");
        let line = kbytes.lines().find_map(|line| line.strip_prefix(&format!("{file}: "))).expect("a line per file");
        let mut settings = Settings {
            min_free_kbytes: numbers(line)[0],
            watermark_scale_factor: watermark::WATERMARK_SCALE_FACTOR,
            lowmem_reserve_ratio: watermark::LOWMEM_RESERVE_RATIO,
            percpu_pagelist_high_fraction: 0,
        };
        for setting in file.split(',') {
            match setting.split_once('=') {
                Some(("min_free_kbytes", value)) => assert_eq!(numbers(value), [settings.min_free_kbytes]),
                Some(("watermark_scale_factor", value)) => settings.watermark_scale_factor = value.parse().unwrap(),
                Some(("percpu_pagelist_high_fraction", value)) => {
                    settings.percpu_pagelist_high_fraction = value.parse().unwrap();
                }
                Some(("lowmem_reserve_ratio", value)) => {
                    let ratios: Vec<_> = numbers(value).into_iter().map(|ratio| ratio as u32).collect();
                    settings.lowmem_reserve_ratio = ratios.try_into().unwrap();
                }
                Some((name, _)) => panic!("{file}: setting {name} is not known"),
                None => assert!(["thp_never", "default", "restored", "thp_always_again"].contains(&setting)),
            }
        }
        let zones = parse_zoneinfo(&read(machine, &format!("wm/zoneinfo.{file}")));
        Self { name: format!("{machine}, {file}"), settings, zones, cpus: Numa::load(machine).cpus }
    }

    /// Every file whose figures follow from the managed pages it shows. That of the freshly booted system does not:
    /// they were computed before the kernel's init memory was given to the zones.
    fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for machine in MACHINES {
            for entry in fs::read_dir(folder(machine).join("wm")).expect("the reference files") {
                let name = entry.unwrap().file_name().into_string().unwrap();
                if let Some(file) = name.strip_prefix("zoneinfo.").filter(|file| *file != "default") {
                    cases.push(Self::load(machine, file));
                }
            }
        }
        assert_eq!(cases.len(), 3 * 12);
        cases
    }

    /// Zones with pages; the others show nothing but zeros.
    fn populated(&self) -> impl Iterator<Item = &Zone> {
        self.zones.iter().filter(|zone| zone.pages("present") != 0)
    }

    fn managed(&self) -> u64 {
        self.zones.iter().map(|zone| zone.pages("managed")).sum()
    }

    fn online_cpus(&self) -> u32 {
        self.cpus.iter().sum()
    }
}

#[test]
fn the_reference_is_read_as_it_is_written() {
    let case = Case::load("T2", "thp_never");
    assert_eq!(case.zones.len(), 2 * MAX_NR_ZONES);
    assert_eq!((case.populated().count(), &case.cpus[..]), (4, &[1, 1][..]));
    let dma32 = &case.zones[1];
    assert_eq!((dma32.node, dma32.kind), (0, ZoneType::Dma32 as usize));
    let shown = ["free", "min", "low", "high", "managed", "start_pfn"].map(|name| dma32.pages(name));
    assert_eq!(shown, [489_774, 864, 1356, 1848, 492_458, 4096]);
    assert_eq!(dma32.protection, [0, 0, 471, 471, 471]);
    let last = dma32.pagesets[1];
    assert_eq!((last.high, last.batch, last.threshold), (1356, 63, 20));
}

#[test]
fn watermarks() {
    for case in Case::all() {
        for zone in &case.zones {
            let Settings { min_free_kbytes, watermark_scale_factor, .. } = case.settings;
            let managed = zone.pages("managed");
            let got =
                watermark::setup_per_zone_wmarks(min_free_kbytes, managed, case.managed(), watermark_scale_factor);
            let (min, low, high) = (zone.pages("min"), zone.pages("low"), zone.pages("high"));
            let want = Watermarks { min, low, high, promo: high + (high - low) };
            assert_eq!(got, want, "{}: node {} zone {}", case.name, zone.node, zone.kind);
        }
    }
}

/// Turning transparent huge pages off recomputes `min_free_kbytes` from what is above the high watermarks then.
#[test]
fn min_free_kbytes() {
    for machine in MACHINES {
        let before = Case::load(machine, "default");
        let buffer_pages = before.zones.iter().map(|zone| zone.pages("managed").saturating_sub(zone.pages("high")));
        let want = Case::load(machine, "thp_never").settings.min_free_kbytes;
        assert_eq!(watermark::calculate_min_free_kbytes(buffer_pages.sum()), want, "{machine}");
    }
    assert_eq!(watermark::calculate_min_free_kbytes(1), 128, "never below 128 KiB");
    assert_eq!(watermark::calculate_min_free_kbytes(1 << 30), 262_144, "never above 256 MiB");
}

#[test]
fn lowmem_reserves() {
    for case in Case::all() {
        for zone in case.populated() {
            let mut managed = [0; MAX_NR_ZONES];
            for other in case.zones.iter().filter(|other| other.node == zone.node) {
                managed[other.kind] = other.pages("managed");
            }
            let ratio = case.settings.lowmem_reserve_ratio[zone.kind];
            let got = watermark::setup_per_zone_lowmem_reserve(&managed, zone.kind, ratio);
            assert_eq!(got[..], zone.protection[..], "{}: node {} zone {}", case.name, zone.node, zone.kind);
        }
    }
}

#[test]
fn pagesets() {
    for case in Case::all() {
        for zone in case.populated() {
            let managed = zone.pages("managed");
            let batch = watermark::zone_batchsize(managed);
            let fraction = case.settings.percpu_pagelist_high_fraction;
            let (of_node, online) = (case.cpus[zone.node], case.online_cpus());
            let high = watermark::zone_highsize(zone.pages("low"), managed, batch, fraction, of_node, online);
            assert_eq!(zone.pagesets.len(), online as usize);
            for pageset in &zone.pagesets {
                let want = (pageset.high, pageset.batch);
                assert_eq!((high, batch), want, "{}: node {} zone {}", case.name, zone.node, zone.kind);
            }
        }
    }
}

#[test]
fn vm_stat_thresholds() {
    for case in Case::all() {
        for zone in case.populated() {
            let got = watermark::calculate_normal_threshold(zone.pages("managed"), case.online_cpus());
            for pageset in &zone.pagesets {
                assert_eq!(got, pageset.threshold, "{}: node {} zone {}", case.name, zone.node, zone.kind);
            }
        }
    }
}

/// Nodes of a machine.
#[derive(Debug)]
struct Numa {
    distance: Vec<Vec<u8>>,
    cpus: Vec<u32>,
}

impl Numa {
    fn load(machine: &str) -> Self {
        let row = |node| numbers(&read(machine, &format!("node{node}.distance")));
        let nodes = row(0).len();
        let distance = (0..nodes).map(|node| row(node).into_iter().map(|d| d as u8).collect()).collect();
        // A range counts all between its ends: `0-1`.
        let count = |list: Vec<u64>| list.first().map_or(0, |first| list[list.len() - 1] - first + 1) as u32;
        let cpus = (0..nodes).map(|node| count(numbers(&read(machine, &format!("node{node}.cpulist")))));
        Self { distance, cpus: cpus.collect() }
    }
}

fn mask(nodes: impl IntoIterator<Item = bool>) -> NodeMask {
    let members = nodes.into_iter().enumerate().filter(|(_, member)| *member);
    members.fold(NodeMask::default(), |mask, (node, _)| mask.with(NodeId::new(node).unwrap()))
}

/// The fallback order of every node.
fn fallback_orders(distance: &[Vec<u8>], memory: NodeMask, cpus: NodeMask) -> Vec<Vec<usize>> {
    let between = |from: NodeId, to: NodeId| distance[from.index()][to.index()];
    let map = NodeMap { memory, cpus, distance: between };
    let mut load = NodeLoad::new();
    let nodes = (0..distance.len()).filter_map(NodeId::new);
    nodes.map(|node| map.fallback_order(node, &mut load).nodes().iter().map(|n| n.index()).collect()).collect()
}

#[test]
fn fallback_orders_of_linux() {
    for machine in MACHINES {
        let numa = Numa::load(machine);
        let memory = mask(numa.distance.iter().map(|_| true));
        let cpus = mask(numa.cpus.iter().map(|count| *count > 0));
        let log = read(machine, "dmesg");
        let lines = log.lines().filter_map(|line| line.strip_prefix("Fallback order for Node "));
        let want: Vec<Vec<u64>> = lines.map(|line| numbers(line)[1..].to_vec()).collect();
        let got = fallback_orders(&numa.distance, memory, cpus);
        let got: Vec<Vec<u64>> = got.iter().map(|order| order.iter().map(|node| *node as u64).collect()).collect();
        assert_eq!(got, want, "{machine}");
    }
}

/// Cases worked out by hand from `find_next_best_node`.
mod by_hand {
    use super::*;

    fn orders(distance: &[&[u8]], memory: u64, cpus: u64) -> Vec<Vec<usize>> {
        let distance: Vec<_> = distance.iter().map(|row| row.to_vec()).collect();
        fallback_orders(&distance, NodeMask(memory), NodeMask(cpus))
    }

    #[test]
    fn equal_distances_go_round() {
        // "Next node" penalty: from node 1 on, higher numbers come first, and the first of each list differs.
        let flat: [&[u8]; 4] = [&[10, 20, 20, 20], &[20, 10, 20, 20], &[20, 20, 10, 20], &[20, 20, 20, 10]];
        let want = [vec![0, 1, 2, 3], vec![1, 2, 3, 0], vec![2, 3, 0, 1], vec![3, 0, 1, 2]];
        assert_eq!(orders(&flat, 0b1111, 0b1111), want);
    }

    #[test]
    fn a_node_without_cpus_is_preferred() {
        let flat: [&[u8]; 3] = [&[10, 20, 20], &[20, 10, 20], &[20, 20, 10]];
        // Node 2 has no CPU: it wins among equals. For node 2 itself both others have CPUs and lower numbers.
        assert_eq!(orders(&flat, 0b111, 0b011), [vec![0, 2, 1], vec![1, 2, 0], vec![2, 0, 1]]);
    }

    #[test]
    fn nearer_wins_over_penalties() {
        let rows: [&[u8]; 3] = [&[10, 30, 25], &[30, 10, 21], &[25, 21, 10]];
        assert_eq!(orders(&rows, 0b111, 0b111), [vec![0, 2, 1], vec![1, 2, 0], vec![2, 1, 0]]);
    }

    #[test]
    fn a_node_without_memory_heads_its_own_list_only() {
        let rows: [&[u8]; 3] = [&[10, 20, 30], &[20, 10, 20], &[30, 20, 10]];
        assert_eq!(orders(&rows, 0b101, 0b111), [vec![0, 2], vec![1, 2, 0], vec![2, 0]]);
    }

    #[test]
    fn distances_may_be_asymmetric() {
        let rows: [&[u8]; 3] = [&[10, 40, 20], &[20, 10, 40], &[40, 20, 10]];
        assert_eq!(orders(&rows, 0b111, 0b111), [vec![0, 2, 1], vec![1, 0, 2], vec![2, 1, 0]]);
    }
}

/// The rule in other words: nearest first, where a lower number than one's own and having CPUs count as one step
/// further; among equals the one that was least often first of its distance, then the lower number.
fn model(distance: &[Vec<u8>], memory: &[bool], cpus: &[bool]) -> Vec<Vec<usize>> {
    let mut firsts = vec![0; distance.len()];
    let mut orders = Vec::new();
    for (own, row) in distance.iter().enumerate() {
        let mut order = vec![own];
        let mut left: Vec<usize> = (0..row.len()).filter(|node| memory[*node] && *node != own).collect();
        while !left.is_empty() {
            left.sort_by_key(|&n| (u32::from(row[n]) + u32::from(n < own) + u32::from(cpus[n]), firsts[n], n));
            let next = left.remove(0);
            if row[next] != row[order[order.len() - 1]] {
                firsts[next] += 1;
            }
            order.push(next);
        }
        orders.push(order);
    }
    orders
}

fn machines() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<bool>, Vec<bool>)> {
    use proptest::collection::vec;
    // Few different distances, so that groups of equals are large; up to as many nodes as there can be.
    prop_oneof![12 => 1..9_usize, 1 => 60..65_usize].prop_flat_map(|nodes| {
        let remote = prop_oneof![Just(11_u8), Just(12), Just(20), Just(21), Just(22), Just(255)];
        let square = vec(vec(remote, nodes), nodes).prop_map(|mut rows| {
            rows.iter_mut().enumerate().for_each(|(node, row)| row[node] = 10);
            rows
        });
        (square, vec(proptest::bool::weighted(0.8), nodes), vec(proptest::bool::weighted(0.7), nodes))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fallback_orders_of_any_machine((distance, memory, cpus) in machines()) {
        let got = fallback_orders(&distance, mask(memory.iter().copied()), mask(cpus.iter().copied()));
        prop_assert_eq!(got, model(&distance, &memory, &cpus));
    }
}
