//! What zones keep in reserve, how large their pagesets are, and the order nodes are tried in, against what Linux 6.1
//! printed on three machines and under many settings (`tests/linux-6.1/README.md`): each formula alone, and all of them
//! applied to machines of the same memory, CPUs and distances.

mod formulas;
mod machine;
mod orders;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use pagevisor_mm::zone::watermark;
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneType};

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
