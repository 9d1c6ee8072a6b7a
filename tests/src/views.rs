//! Reads the views back into numbers, by Linux's formats alone: nothing here knows the code that printed them.
//!
//! A line that does not fit panics with the line, since to a test that is the failure to report.

use std::collections::BTreeMap;

/// A node and the name of a zone in it.
pub type ZoneKey = (u32, String);

/// Named numbers, in the order of the text.
pub type Counters = Vec<(String, u64)>;

/// The number of `name`.
///
/// # Panics
/// If it is not there.
#[track_caller]
pub fn counter(counters: &Counters, name: &str) -> u64 {
    counters.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1
}

#[track_caller]
fn number(word: &str) -> u64 {
    word.trim().parse().unwrap_or_else(|_| panic!("not a number: '{word}'"))
}

#[track_caller]
fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().map(number).collect()
}

/// `Node 0, zone      DMA<rest>` as key and rest.
#[track_caller]
fn zone_line(line: &str) -> (ZoneKey, &str) {
    let inner = || {
        let (node, rest) = line.strip_prefix("Node ")?.split_once(", zone ")?;
        let rest = rest.trim_start();
        let end = rest.find([' ', ',']).unwrap_or(rest.len());
        Some(((node.trim().parse().ok()?, rest[..end].to_owned()), &rest[end..]))
    };
    inner().unwrap_or_else(|| panic!("not a zone line: '{line}'"))
}

/// `/proc/buddyinfo`: free blocks by order.
pub fn buddyinfo(text: &str) -> BTreeMap<ZoneKey, Vec<u64>> {
    text.lines()
        .map(|line| {
            let (key, rest) = zone_line(line);
            assert!(line.ends_with(' '), "buddyinfo's lines end in a space: '{line}'");
            (key, numbers(rest))
        })
        .collect()
}

/// Pages in free blocks counted by order.
pub fn pages(by_order: &[u64]) -> u64 {
    by_order.iter().enumerate().map(|(order, blocks)| blocks << order).sum()
}

/// `/proc/pagetypeinfo`.
#[derive(Debug, Default)]
pub struct PageTypeInfo {
    /// Free blocks by order, for each zone and migrate type.
    pub free: BTreeMap<(ZoneKey, String), Vec<u64>>,
    /// Page blocks of each migrate type, by zone; the types in the order of the header line.
    pub blocks: BTreeMap<ZoneKey, Vec<(String, u64)>>,
}

/// Reads `/proc/pagetypeinfo`.
pub fn pagetypeinfo(text: &str) -> PageTypeInfo {
    let mut info = PageTypeInfo::default();
    let mut types: Vec<String> = Vec::new();
    for line in text.lines() {
        if let Some(header) = line.strip_prefix("Number of blocks type") {
            types = header.split_whitespace().map(str::to_owned).collect();
        } else if line.starts_with("Node ") && line.contains(", type ") {
            let (key, rest) = zone_line(line);
            let rest = rest.strip_prefix(", type").unwrap_or_else(|| panic!("no type: '{line}'")).trim_start();
            let (name, counts) = rest.split_once(' ').unwrap_or_else(|| panic!("no counts: '{line}'"));
            // Linux prints ">100000" for what it did not count to the end.
            info.free.insert((key, name.to_owned()), numbers(&counts.replace('>', " ")));
        } else if line.starts_with("Node ") {
            let (key, rest) = zone_line(line);
            let counts = numbers(rest);
            assert_eq!(counts.len(), types.len(), "'{line}'");
            info.blocks.insert(key, types.iter().cloned().zip(counts).collect());
        } else {
            let known = ["Page block order:", "Pages per block:", "Free pages count per migrate type at order", ""];
            assert!(known.iter().any(|k| if k.is_empty() { line.is_empty() } else { line.starts_with(k) }), "'{line}'");
        }
    }
    info
}

/// One CPU's pageset in zoneinfo.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pageset {
    /// CPU number.
    pub cpu: u64,
    /// Pages on its lists.
    pub count: u64,
    /// Most it keeps.
    pub high: u64,
    /// Pages moved at a time.
    pub batch: u64,
    /// `vm stats threshold`.
    pub threshold: u64,
}

/// One zone of `/proc/zoneinfo`.
#[derive(Clone, Debug, Default)]
pub struct ZoneInfo {
    /// `pages free` and the lines under it (`min`, `low`, `high`, `spanned`, `present`, `managed`...).
    pub pages: Counters,
    /// `protection`; empty in a zone without memory.
    pub protection: Vec<u64>,
    /// The zone's counters.
    pub counters: Counters,
    /// By CPU.
    pub pagesets: Vec<Pageset>,
    /// `start_pfn`.
    pub start_pfn: Option<u64>,
}

/// Reads `/proc/zoneinfo`: zones, and the per-node counters by node.
pub fn zoneinfo(text: &str) -> (BTreeMap<ZoneKey, ZoneInfo>, BTreeMap<u32, Counters>) {
    let mut zones: BTreeMap<ZoneKey, ZoneInfo> = BTreeMap::new();
    let mut nodes: BTreeMap<u32, Counters> = BTreeMap::new();
    let mut zone: Option<&mut ZoneInfo> = None;
    let mut node = 0;
    let mut per_node = false;
    for line in text.lines() {
        let trimmed = line.trim();
        if line.starts_with("Node ") {
            let (key, rest) = zone_line(line);
            assert!(rest.is_empty(), "'{line}'");
            node = key.0;
            zone = Some(zones.entry(key).or_default());
            per_node = false;
        } else if trimmed == "per-node stats" {
            per_node = true;
            nodes.insert(node, Counters::new());
        } else if trimmed.starts_with("pages free") {
            per_node = false;
            zone_detail(zone.as_deref_mut().expect("a zone"), trimmed);
        } else if per_node {
            nodes.entry(node).or_default().push(pair(trimmed));
        } else {
            zone_detail(zone.as_deref_mut().expect("a zone"), trimmed);
        }
    }
    (zones, nodes)
}

#[track_caller]
fn pair(line: &str) -> (String, u64) {
    let (name, value) = line.split_once([' ', ':']).unwrap_or_else(|| panic!("no value: '{line}'"));
    (name.to_owned(), number(value.trim_start_matches([':', ' '])))
}

#[track_caller]
fn zone_detail(zone: &mut ZoneInfo, line: &str) {
    if let Some(list) = line.strip_prefix("protection: (") {
        zone.protection = list.trim_end_matches(')').split(", ").map(number).collect();
    } else if let Some(value) = line.strip_prefix("pages free") {
        zone.pages.push(("free".to_owned(), number(value)));
    } else if line == "pagesets" {
    } else if let Some(cpu) = line.strip_prefix("cpu:") {
        zone.pagesets.push(Pageset { cpu: number(cpu), ..Pageset::default() });
    } else if let Some(value) = line.strip_prefix("start_pfn:") {
        zone.start_pfn = Some(number(value));
    } else if let Some(value) = line.strip_prefix("node_unreclaimable:") {
        assert_eq!(number(value), 0);
    } else if let Some(pageset) = zone.pagesets.last_mut() {
        let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("pageset: '{line}'"));
        let field = match name {
            "count" => &mut pageset.count,
            "high" => &mut pageset.high,
            "batch" => &mut pageset.batch,
            "vm stats threshold" => &mut pageset.threshold,
            _ => panic!("pageset: '{line}'"),
        };
        *field = number(value);
    } else if line.starts_with("nr_") || line.starts_with("numa_") {
        zone.counters.push(pair(line));
    } else {
        zone.pages.push(pair(line));
    }
}

impl ZoneInfo {
    /// A line under `pages free`.
    ///
    /// # Panics
    /// If it is not there.
    #[track_caller]
    pub fn page(&self, name: &str) -> u64 {
        counter(&self.pages, name)
    }
}

/// `/proc/meminfo`: kB by name.
pub fn meminfo(text: &str) -> Counters {
    text.lines()
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("meminfo: '{line}'"));
            (name.to_owned(), number(value.trim_end_matches(" kB")))
        })
        .collect()
}

/// `nodeN/meminfo`: kB by name; every line names the node.
pub fn node_meminfo(text: &str, node: u32) -> Counters {
    let prefix = format!("Node {node} ");
    let lines: Vec<&str> =
        text.lines().map(|l| l.strip_prefix(&prefix).unwrap_or_else(|| panic!("not of node {node}: '{l}'"))).collect();
    meminfo(&lines.join("\n"))
}

/// `vmstat`, `nodeN/vmstat`, `nodeN/numastat`.
pub fn vmstat(text: &str) -> Counters {
    text.lines().map(pair).collect()
}

/// `nodeN/distance`.
pub fn distance(text: &str) -> Vec<u64> {
    numbers(text)
}

/// `nodeN/cpulist`.
pub fn cpulist(text: &str) -> Vec<u64> {
    let list = text.trim();
    if list.is_empty() {
        return Vec::new();
    }
    list.split(',')
        .flat_map(|part| match part.split_once('-') {
            Some((first, last)) => number(first)..number(last) + 1,
            None => number(part)..number(part) + 1,
        })
        .collect()
}

/// A zone of crash's `kmem -f`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KmemZone {
    /// `SIZE`: pages spanned.
    pub size: u64,
    /// `FREE`: pages free by the zone's counter.
    pub free: u64,
    /// `START_PADDR`.
    pub start: u64,
    /// Blocks and pages found by the walk, by order.
    pub areas: Vec<(u64, u64)>,
}

/// Crash's `kmem -f`: zones by node and name, and the last line.
pub fn kmem_free(text: &str) -> (BTreeMap<ZoneKey, KmemZone>, String) {
    let mut zones = BTreeMap::new();
    let mut node = 0;
    let mut current: Option<ZoneKey> = None;
    let mut heading = "";
    let mut last = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with("nr_free_pages:") {
            last = line.to_owned();
        } else if words == ["NODE"] || words.first() == Some(&"ZONE") || words.first() == Some(&"AREA") {
            heading = words[0];
        } else if words.is_empty() || words[0].starts_with('-') || words[0].starts_with('=') {
        } else if heading == "NODE" {
            node = u32::try_from(number(words[0])).expect("node");
        } else if heading == "ZONE" {
            // number, name, size, free, mem_map, start_paddr, start_mapnr
            assert!(words.len() >= 7, "zone: '{line}'");
            let key = (node, words[1].to_owned());
            let start = u64::from_str_radix(words[5], 16).unwrap_or_else(|_| panic!("START_PADDR: '{line}'"));
            let zone = KmemZone { size: number(words[2]), free: number(words[3]), start, areas: Vec::new() };
            zones.insert(key.clone(), zone);
            current = Some(key);
        } else {
            // area, size in kB ("4k"), free_area struct, blocks, pages
            assert_eq!(words.len(), 5, "area: '{line}'");
            let zone = current.as_ref().and_then(|key| zones.get_mut(key)).expect("an area belongs to a zone");
            assert_eq!(number(words[0]), zone.areas.len() as u64, "'{line}'");
            zone.areas.push((number(words[3]), number(words[4])));
        }
    }
    (zones, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Lines as Debian's Linux 6.1.192 and crash print them.
    #[test]
    fn linux_lines_are_read() {
        let line =
            "Node 0, zone    DMA32      2      2      2      2      1      2      1      1      2      3    476 \n";
        let info = buddyinfo(line);
        let blocks = &info[&(0, "DMA32".to_owned())];
        assert_eq!((blocks.len(), blocks[10], pages(blocks)), (11, 476, 489_774));

        let text = "Page block order: 9\nPages per block:  512\n\n\
            Free pages count per migrate type at order       0      1      2      3      4      5      6      7      8      9     10 \n\
            Node    0, zone      DMA, type      Movable      0      0      0      0      0      0      0      0      0      1      3 \n\n\
            Number of blocks type     Unmovable      Movable  Reclaimable   HighAtomic      Isolate \n\
            Node 0, zone      DMA            1            7            0            0            0 \n";
        let info = pagetypeinfo(text);
        assert_eq!(info.free[&((0, "DMA".to_owned()), "Movable".to_owned())][10], 3);
        assert_eq!(info.blocks[&(0, "DMA".to_owned())][1], ("Movable".to_owned(), 7));

        assert_eq!(cpulist("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(counter(&node_meminfo("Node 1 MemTotal:        2468084 kB\n", 1), "MemTotal"), 2_468_084);
    }

    #[test]
    fn zoneinfo_of_linux_is_read() {
        let text = "Node 0, zone      DMA\n  per-node stats\n      nr_inactive_anon 380\n      nr_mapped    443\n  \
            pages free     3584\n        boost    0\n        min      6\n        managed  3840\n        \
            protection: (0, 1923, 2395, 2395, 2395)\n      nr_free_pages 3584\n      numa_hit     1\n  pagesets\n    \
            cpu: 0\n              count: 2\n              high:  9\n              batch: 1\n  \
            vm stats threshold: 4\n  node_unreclaimable:  0\n  start_pfn:           1\nNode 0, zone  Movable\n  \
            pages free     0\n        min      0\n        protection: (0, 0, 0, 0, 0)\n";
        let (zones, nodes) = zoneinfo(text);
        let dma = &zones[&(0, "DMA".to_owned())];
        assert_eq!((dma.page("free"), dma.page("managed"), dma.start_pfn), (3584, 3840, Some(1)));
        assert_eq!(dma.pagesets, [Pageset { cpu: 0, count: 2, high: 9, batch: 1, threshold: 4 }]);
        assert_eq!(counter(&dma.counters, "numa_hit"), 1);
        assert_eq!(counter(&nodes[&0], "nr_mapped"), 443);
        assert!(zones[&(0, "Movable".to_owned())].pagesets.is_empty());
    }

    #[test]
    fn kmem_of_crash_is_read() {
        let text = "NODE\n  0\nZONE  NAME        SIZE    FREE      MEM_MAP       START_PADDR  START_MAPNR\n  \
            0   DMA         4095    3584  ffffea0000000020      1000            1\n\
            AREA    SIZE  FREE_AREA_STRUCT  BLOCKS  PAGES\n  \
            0       4k  ffff88807fffa058       2      2\n  1       8k  ffff88807fffa0b0       1      2\n\n\
            nr_free_pages: 4 (verified)\n";
        let (zones, last) = kmem_free(text);
        let dma = &zones[&(0, "DMA".to_owned())];
        assert_eq!((dma.size, dma.free, dma.start), (4095, 3584, 0x1000));
        assert_eq!(dma.areas, [(2, 2), (1, 2)]);
        assert_eq!(last, "nr_free_pages: 4 (verified)");
    }
}
