mod areas;
mod process;
mod slabs;
mod zeroed;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page::encode_next;
use pagevisor_shared::units::NodeId;
use serde_json::{Value, json};

use super::*;
use crate::state::StateView;
use crate::state::fake::{DMA32, FakeGuest, NORMAL};

fn view(name: &str) -> View {
    name.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn text(state: &StateView, name: &str) -> String {
    let mut bytes = Vec::new();
    view(name).render(state, false, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn json_of(state: &StateView, name: &str) -> Value {
    let mut bytes = Vec::new();
    view(name).render(state, true, &mut bytes).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[track_caller]
fn starts_with(text: &str, expected: &str) {
    for (found, expected) in text.lines().zip(expected.lines()) {
        assert_eq!(found, expected);
    }
    assert!(text.starts_with(expected));
}

#[test]
fn views_have_names() {
    for name in View::KNOWN {
        let plain = name.split(" [").next().unwrap().replace("node/N/{meminfo", "node/3/meminfo");
        let plain = plain.split(',').next().unwrap().replace("ADDRESS", "ffff888000001000");
        let plain = plain.replace("{maps", "maps").replace("PID", "7");
        assert_eq!(view(&plain).to_string(), plain);
    }
    assert_eq!(view("kmem-f"), View::KmemFree);
    assert_eq!(view(" kmem  -V "), View::KmemVmstat);
    assert_eq!(view("node/2/meminfo"), View::Node(NodeId::new(2).unwrap(), NodeFile::Meminfo));
    assert_eq!(view("kmem -p 4096"), View::KmemPages(Some(PageSpec::Pfn(4096))));
    assert_eq!(view("kmem -p 0x1000"), View::KmemPages(Some(PageSpec::Pfn(4096))));
    assert_eq!(view("kmem -p 1fe00"), View::KmemPages(Some(PageSpec::Pfn(0x1fe00))));
    assert_eq!(view("kmem -p ffffea0000000040"), View::KmemPages(Some(PageSpec::Page(0xffff_ea00_0000_0040))));
    assert_eq!(view("kmem -g 4080"), View::KmemFlags(Some(0x4080)));
}

#[test]
fn an_unknown_view_is_answered_with_those_there_are() {
    for name in [
        "",
        "buddy",
        "kmem",
        "kmem -x",
        "kmem -f now",
        "kmem x",
        "vtop",
        "vtop x",
        "kmem -s a b",
        "kmem -i 1",
        "node/64/meminfo",
        "node/+1/meminfo",
        "node/1",
        "kmem -p x",
        "pid/1/mem",
        "pid/+1/maps",
        "pid/x/maps",
        "vm",
        "vm x",
        "vtop 1 x",
        "ps 1",
    ] {
        let error = name.parse::<View>().unwrap_err().to_string();
        assert!(error.contains("buddyinfo, pagetypeinfo") && error.contains("kmem -g [FLAGS]"), "{error}");
        assert!(error.contains(&format!("'{name}'")), "{error}");
    }
}

#[test]
fn kmem_f_is_crash_s() {
    let guest = FakeGuest::used();
    let state = guest.view();
    let found = text(&state, "kmem -f");
    let address = |order: u64| {
        let region = state.region();
        let area = region.zone_offset(pagevisor_shared::zone::ZoneIndex(0)) + 16 + order * (6 * 8 + 6 * 8);
        format!("{:x}", 0xffff_ffff_0000_0000 + area)
    };
    let mut expected = "\
NODE
  0
ZONE  NAME        SIZE    FREE      MEM_MAP       START_PADDR  START_MAPNR
  0   DMA         4095    3120  ffffea0000000020      1000          0     
AREA    SIZE  FREE_AREA_STRUCT  BLOCKS  PAGES
"
    .to_owned();
    let rows = [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 3];
    for (order, blocks) in rows.into_iter().enumerate() {
        let size = format!("{}k", 4 << order);
        expected += &format!("{order:>3}  {size:>7}  {}  {blocks:>6} {:>6}\n", address(order as u64), blocks << order);
    }
    expected += "
ZONE  NAME        SIZE    FREE      MEM_MAP       START_PADDR  START_MAPNR
  1   DMA32      28672   19972  ffffea0000020000    1000000        4095   
AREA    SIZE  FREE_AREA_STRUCT  BLOCKS  PAGES
";
    starts_with(&found, &expected);
    let unpopulated = "
ZONE  NAME        SIZE    FREE      MEM_MAP       START_PADDR  START_MAPNR
  2   Normal         0       0         0               0            0     
";
    assert!(found.contains(unpopulated), "{found}");
    let next_node = format!("\n{}\n\nNODE\n  1\n", "-".repeat(74));
    assert!(found.contains(&next_node), "{found}");
    assert!(found.ends_with("\nnr_free_pages: 86580 (verified)\n"), "{found}");
}

#[test]
fn kmem_f_tells_lists_from_counters() {
    let guest = FakeGuest::used();
    guest.region().zones()[NORMAL].free_area[10].nr_free[1].fetch_add(1, Relaxed);
    guest.region().zones()[DMA32].vm_stat[0].fetch_add(3, Relaxed);
    guest.set_meta(0x3005, 4, encode_next(0x3005, 0x3001));
    let mut bytes = Vec::new();
    let error = View::KmemFree.render(&guest.view(), false, &mut bytes).unwrap_err();
    assert!(error.is_corrupt());
    let message = error.to_string();
    starts_with(
        &message,
        "free lists and counters disagree: 86583 pages counted, 86580 found; \
         node 0 zone DMA32: 19975 counted, 19972 found; \
         node 0 zone DMA32: corrupted free list of order 0, Unmovable: \
         frame 0x3001 links back to 0x0, reached from 0x3005; \
         node 1 zone Normal: 63488 counted, 63488 found; \
         node 1 zone Normal: order 10, Movable: nr_free 63, 62 blocks found",
    );
    let printed = String::from_utf8(bytes).unwrap();
    assert!(printed.ends_with("\nnr_free_pages: 86583 (found 86580)\n"), "{printed}");

    let mut bytes = Vec::new();
    assert!(View::KmemFree.render(&guest.view(), true, &mut bytes).is_err());
    let value: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(value["verified"], false);
    assert_eq!(value["zones"][DMA32]["faults"][0]["seen"], json!([0x3001, 0x3005]));
}

#[test]
fn kmem_p_is_crash_s() {
    let guest = FakeGuest::used();
    guest.set_meta(0x3300, 0, 1 << 31 | 1 << 16 | 1 << 9);
    guest.set_meta(0x3300, 1, 2);
    guest.set_meta(0x3300, 6, 0xabc);
    guest.set_meta(0x3300, 7, 0x13b67);
    let state = guest.view();
    let row = |pfn: &str| text(&state, &format!("kmem -p {pfn}")).lines().nth(1).unwrap().to_owned();
    assert_eq!(row("0x3300"), "ffffea0000066000   3300000              abc    13b67  2 10200 slab,head");
    assert_eq!(row("0xffffea0000066000"), row("13056"));
    // Reserved at boot and never touched; a hole in a section; free and never touched.
    assert_eq!(row("0x1000"), "ffffea0000020000   1000000                0        0  1 1000 reserved");
    assert_eq!(row("0xa0"), "ffffea0000001400     a0000                0        0  1 1000 reserved");
    assert_eq!(row("0x3800"), "ffffea0000070000   3800000                0        0  0 0");

    let all = text(&state, "kmem -p");
    assert_eq!(all.lines().count(), 1 + 3 * 32768);
    starts_with(&all, "      PAGE        PHYSICAL      MAPPING       INDEX CNT FLAGS\n");
    assert!(all.ends_with("\nffffea00021fffe0 10ffff000                0        0  0 0\n"));

    let rows = json_of(&state, "kmem -p 0x3300");
    assert_eq!(rows["pages"][0]["flag_names"], json!(["slab", "head"]));
    assert_eq!((&rows["pages"][0]["flags"], &rows["pages"][0]["raw_flags"]), (&json!(0x10200), &json!(0x8001_0200u32)));
    assert_eq!(rows["pages"][0]["physical"], 0x330_0000);
    assert_eq!(json_of(&state, "kmem -p")["pages"].as_array().unwrap().len(), 3 * 32768);
    for page in ["0x8000", "0xffffea0000000010", "0xfffffffff"] {
        let error = view(&format!("kmem -p {page}")).render(&state, false, &mut Vec::new()).unwrap_err();
        assert!(error.is_usage() && !error.is_corrupt(), "{error}");
    }
}

/// A pipe whose reader has gone.
struct Closed(usize);

impl std::io::Write for Closed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += 1;
        if self.0 > 1 { Err(std::io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn kmem_p_stops_when_nobody_reads() {
    let guest = FakeGuest::used();
    let mut out = Closed(0);
    let error = View::KmemPages(None).render(&guest.view(), false, &mut out).unwrap_err();
    assert!(matches!(error, ReportError::Write(_)));
    assert_eq!(out.0, 2);
}

#[test]
fn kmem_n_is_crash_s() {
    let guest = FakeGuest::used();
    let state = guest.view();
    let region = state.region();
    let node = |id| 0xffff_ffff_0000_0000 + region.node_offset(NodeId::new(id).unwrap());
    let zone = |index| 0xffff_ffff_0000_0000 + region.zone_offset(pagevisor_shared::zone::ZoneIndex(index));
    let blank = " ".repeat(52);
    let expected = format!(
        "\
NODE    SIZE      PGLIST_DATA       BOOTMEM_DATA       NODE_ZONES   
  0    32767    {:x}        ----        {:x}
{blank}{:x}
{blank}{:x}
{blank}{:x}
{blank}{:x}
    MEM_MAP          START_PADDR    START_MAPNR
ffffea0000000020        1000             1     

ZONE  NAME         SIZE       MEM_MAP      START_PADDR  START_MAPNR
  0   DMA          4095  ffffea0000000020         1000            1
  1   DMA32       28672  ffffea0000020000      1000000         4096
  2   Normal          0                 0            0            0
  3   Movable         0                 0            0            0
  4   Device          0                 0            0            0

{}

",
        node(0),
        zone(0),
        zone(1),
        zone(2),
        zone(3),
        zone(4),
        "-".repeat(67)
    );
    let found = text(&state, "kmem -n");
    starts_with(&found, &expected);
    let sections = "
-------------------------------------------------------------------

NR      SECTION        CODED_MEM_MAP        MEM_MAP       STATE PFN
 0  ffff888001800000  ffffea0000000000  ffffea0000000000  PMOE  0               
32  ffff888001800040  ffffea0000000000  ffffea0002000000  PMOE  1048576         
33  ffff888001800042  ffffea0000000000  ffffea0002100000  PMOE  1081344         
";
    assert!(found.ends_with(sections), "{found}");
    let value = json_of(&state, "kmem -n");
    assert_eq!(value["nodes"][1]["zones"][2]["mem_map"], "0xffffea0002000000");
    assert_eq!(value["sections"][2]["pfn"], 1_081_344);
}

#[test]
fn kmem_v_and_z_use_the_enumerators() {
    let guest = FakeGuest::used();
    guest.region().cpus()[1].vm_events[9].store(7, Relaxed);
    let state = guest.view();
    let found = text(&state, "kmem -V");
    starts_with(&found, "  VM_ZONE_STAT:\n             NR_FREE_PAGES: 86580\n     NR_ZONE_INACTIVE_ANON: 0\n");
    for line in ["\n  VM_NODE_STAT:\n", "\n  VM_NUMA_STAT:\n", " NUMA_INTERLEAVE_HIT: 0\n", "\n  VM_EVENT_STATES:\n"] {
        assert!(found.contains(line), "{line}");
    }
    assert!(found.contains(" ALLOCSTALL_DMA: 7\n") && found.contains(" PGSCAN_SKIP_DMA32: 0\n"));
    assert_eq!(json_of(&state, "kmem -V")["vm_event_states"]["allocstall_dma"], 7);

    let found = text(&state, "kmem -z");
    let address = 0xffff_ffff_0000_0000 + state.region().zone_offset(pagevisor_shared::zone::ZoneIndex(0));
    starts_with(
        &found,
        &format!(
            "NODE: 0  ZONE: 0  ADDR: {address:x}  NAME: \"DMA\"\n  SIZE: 4095  PRESENT: 3999  MIN/LOW/HIGH: 10/20/30\n  \
             VM_STAT:\n        NR_FREE_PAGES: 3120\nNR_ZONE_INACTIVE_ANON: 0\n"
        ),
    );
    assert!(found.contains("NAME: \"Movable\"\n  [unpopulated]\n\nNODE: "));
    assert_eq!(json_of(&state, "kmem -z")["zones"][NORMAL]["vm_stat"]["nr_free_pages"], 63488);
}

#[test]
fn kmem_g_is_crash_s() {
    let guest = FakeGuest::new();
    let state = guest.view();
    let expected = "\
FLAGS: 10200
  PAGE-FLAG       BIT  VALUE
  PG_slab           9  0000200
  PG_head          16  0010000
";
    assert_eq!(text(&state, "kmem -g 10200"), expected);
    let all = text(&state, "kmem -g");
    starts_with(&all, "PAGE-FLAG       BIT  VALUE\nPG_locked         0  0000001\n");
    assert_eq!(all.lines().count(), 26);
    assert_eq!(text(&state, "kmem -g 80000000").lines().last(), Some("  (none found)"));
    assert_eq!(json_of(&state, "kmem -g 200")["page_flags"], json!([{ "name": "PG_slab", "bit": 9, "value": 512 }]));
}

#[test]
fn fragmentation_is_linux_s() {
    let guest = FakeGuest::used();
    let state = guest.view();
    // 3120 pages: 3 blocks of order 10, one of order 5, one of order 4.
    let expected = "Node 0, zone      DMA 0.000 0.000 0.000 0.000 0.000 0.005 0.015 0.015 0.015 0.015 0.015 \n";
    starts_with(&text(&state, "unusable_index"), expected);
    let unusable = json_of(&state, "unusable_index");
    let row = json!({ "node": 0, "zone": "DMA", "thousandths": [0, 0, 0, 0, 0, 5, 15, 15, 15, 15, 15] });
    assert_eq!(unusable["zones"][0], row);
    assert_eq!(json_of(&state, "extfrag_index")["zones"][0]["thousandths"], json!(vec![-1000; 11]));
}

#[test]
fn json_has_the_numbers_of_the_text() {
    let guest = FakeGuest::used();
    let state = guest.view();
    assert_eq!(
        json_of(&state, "buddyinfo")["zones"][0],
        json!({ "node": 0, "zone": "DMA", "nr_free": [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 3] })
    );
    let types = json_of(&state, "pagetypeinfo");
    assert_eq!(types["zones"][1]["blocks"]["reclaimable"], 1);
    assert_eq!(types["zones"][1]["nr_free"]["unmovable"][0], 2);
    let zones = json_of(&state, "zoneinfo");
    assert_eq!(zones["zones"][DMA32]["pagesets"][0]["count"], 10);
    assert_eq!((&zones["zones"][2]["populated"], &zones["zones"][2]["free"]), (&json!(false), &json!(0)));
    let memory = json_of(&state, "meminfo");
    assert_eq!((&memory["mem_free_kb"], &memory["huge_pages_total"]), (&json!(86580 * 4), &json!(0)));
    assert_eq!(json_of(&state, "vmstat")["nr_free_pages"], 86580);
    assert_eq!(json_of(&state, "node/1/meminfo")["mem_free_kb"], 63488 * 4);
    assert_eq!(json_of(&state, "node/0/numastat")["interleave_hit"], 0);
    assert_eq!(json_of(&state, "node/2/cpulist"), json!({ "node": 2, "cpus": [] }));
    assert_eq!(json_of(&state, "node/2/distance")["distances"][1], json!({ "node": 1, "distance": 40 }));
    assert_eq!(json_of(&state, "numa")["nodes"][0]["cpus"], json!([0]));
    assert_eq!(json_of(&state, "iomem")["resources"][0]["name"], "System RAM");
    assert_eq!(json_of(&state, "kmem-f")["zones"][0]["areas"][10]["found"]["movable"], 3);
}

#[test]
fn keys_are_in_snake_case() {
    for (name, key) in [
        ("MemTotal", "mem_total"),
        ("Active(anon)", "active_anon"),
        ("KReclaimable", "k_reclaimable"),
        ("NFS_Unstable", "nfs_unstable"),
        ("Committed_AS", "committed_as"),
        ("HugePages_Total", "huge_pages_total"),
        ("Hugepagesize", "hugepagesize"),
        ("DirectMap4k", "direct_map_4k"),
        ("DirectMap2M", "direct_map_2m"),
        ("HighAtomic", "high_atomic"),
        ("CMA", "cma"),
    ] {
        assert_eq!(json::snake_case(name), key);
    }
}

#[test]
fn a_node_that_is_not_there_is_an_error() {
    let guest = FakeGuest::new();
    for json in [false, true] {
        let error = view("node/7/meminfo").render(&guest.view(), json, &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "there is no node 7: the machine has nodes 0-2");
    }
}

#[test]
fn the_tree_has_the_files_of_proc_and_sys() {
    let guest = FakeGuest::used();
    let state = guest.view();
    let files: BTreeMap<String, String> = proc_tree(&state).unwrap().into_iter().collect();
    assert_eq!(files["proc/buddyinfo"], text(&state, "buddyinfo"));
    assert_eq!(files["proc/pagetypeinfo"], text(&state, "pagetypeinfo"));
    let node = |name: &str| files[&format!("sys/devices/system/node/{name}")].as_str();
    assert_eq!((node("online"), node("possible"), node("has_cpu")), ("0-2\n", "0-2\n", "0-1\n"));
    assert_eq!((node("has_memory"), node("has_normal_memory")), ("0-1\n", "0-1\n"));
    assert_eq!((node("node1/cpulist"), node("node1/cpumap"), node("node1/distance")), ("1\n", "2\n", "20 10 40\n"));
    assert_eq!(node("node2/cpulist"), "\n");
    assert_eq!(node("node0/meminfo"), text(&state, "node/0/meminfo"));
    let sysctl = files.iter().filter_map(|(path, value)| Some((path.strip_prefix("proc/sys/vm/")?, value)));
    let sysctl: String = sysctl.filter(|(_, value)| !value.is_empty()).map(|(n, v)| format!("vm.{n} = {v}")).collect();
    assert_eq!(sysctl, text(&state, "sysctl"));
    assert_eq!(files["proc/sys/vm/drop_caches"], "");
    assert_eq!(files.len(), 8 + 13 + 5 + 3 * 6);
}

#[test]
fn the_summary_has_a_line_per_node_and_zone() {
    let guest = FakeGuest::used();
    let mut found = String::new();
    summary(&guest.view(), &mut found).unwrap();
    let expected = "\
node  zone       present    managed       free       min       low      high  cpus
   0  all          32671      32471      23092         -         -         -  0
   0  DMA           3999       3899       3120        10        20        30
   0  DMA32        28672      28572      19972        10        20        30
   1  all          65536      65436      63488         -         -         -  1
   1  Normal       65536      65436      63488        10        20        30
   2  all              0          0          0         -         -         -  -
Fallback order for Node 0: 0 1 
Fallback order for Node 1: 1 0 
Fallback order for Node 2: 0 1 
";
    assert_eq!(found, expected);
    let value = summary_json(&guest.view());
    assert_eq!(value["nodes"][1]["zones"][0]["managed"], 65436);
    assert_eq!(value["nodes"][2]["fallback_order"], json!([0, 1]));
}

#[test]
fn pagetypeinfo_reads_the_page_blocks() {
    let guest = FakeGuest::used();
    guest.free_block(DMA32, 0x7800, 3, MigrateType::HighAtomic);
    let found = text(&guest.view(), "pagetypeinfo");
    assert!(
        found.contains("Node 0, zone    DMA32            1           54            1            0            0 \n"),
        "{found}"
    );
    assert!(found.contains("Node    0, zone    DMA32, type   HighAtomic      0      0      0      1 "), "{found}");
}
