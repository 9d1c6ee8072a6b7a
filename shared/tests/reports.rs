//! The reports against the files of real Linux machines.

#[allow(dead_code, reason = "each test uses a part of it")]
mod reference;

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::{MIGRATE_TYPES, MigrateType};
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::region::records::ResourceKind;
use pagevisor_shared::report::{self, slabinfo::SlabInfo};
use pagevisor_shared::units::CpuMask;
use pagevisor_shared::vmstat::{NodeStat, NumaStat, ZoneStat};
use pagevisor_shared::zone::ZoneIndex;
use reference::{Buffer, assert_same, file, fill_free_areas, filled, node, number_after, only, text, zone_of_line};

const MACHINES: [&str; 3] = ["T2", "T3", "T4"];

#[test]
fn zoneinfo_is_linux_s() {
    for machine in MACHINES {
        let buffer = filled(machine);
        assert_same(&text(|out| report::zoneinfo(&buffer.region(), out)), &file(machine, "zoneinfo"));
    }
}

#[test]
fn zoneinfo_adds_the_boost_to_the_watermarks() {
    let buffer = filled("T2");
    let region = buffer.region();
    region.zones()[1].watermark_boost.store(1000, Relaxed);
    let printed = text(|out| report::zoneinfo(&region, out));
    let min = region.zones()[1].watermark[0].load(Relaxed);
    assert!(printed.contains(&format!("        boost    1000\n        min      {}\n", min + 1000)));
}

#[test]
fn a_node_without_memory_has_five_short_zones_and_no_buddy_lines() {
    let buffer = Buffer::new(2, 1);
    let region = buffer.region();
    region.header().nodes_online.store(0b10, Relaxed);
    let printed = text(|out| report::zoneinfo(&region, out));
    assert_eq!(printed.matches("Node 1, zone").count(), 5);
    assert_eq!(printed.lines().count(), 5 * 11);
    assert!(!printed.contains("per-node") && !printed.contains("pagesets") && !printed.contains("Node 0"));
    assert_eq!(text(|out| report::buddyinfo(&region, out)), "");
    assert_eq!(text(|out| report::pagetypeinfo(&region, &|_: ZoneIndex| [0; MIGRATE_TYPES], out)), "");
}

#[test]
fn buddyinfo_is_linux_s() {
    for machine in MACHINES {
        let buffer = filled(machine);
        fill_free_areas(&buffer.region(), &file(machine, "buddyinfo"));
        assert_same(&text(|out| report::buddyinfo(&buffer.region(), out)), &file(machine, "buddyinfo"));
    }
}

/// Of T4 the indices were taken while nothing changed the free lists.
#[test]
fn extfrag_is_linux_s() {
    let buffer = filled("T4");
    fill_free_areas(&buffer.region(), &file("T4", "buddyinfo"));
    let expected = |name: &str| file("T4", &format!("extfrag.{name}"));
    assert_same(&text(|out| report::extfrag_index(&buffer.region(), out)), &expected("extfrag_index"));
    assert_same(&text(|out| report::unusable_index(&buffer.region(), out)), &expected("unusable_index"));
}

/// Block counts as the tables at the end of each node's part of `pagetypeinfo` give them.
fn block_counts(expected: &str, zone: ZoneIndex) -> [u64; MIGRATE_TYPES] {
    let line = expected
        .lines()
        .find(|line| line.starts_with("Node") && !line.contains("type") && zone_of_line(line) == Some(zone))
        .unwrap();
    let numbers: Vec<u64> = line.split_whitespace().skip(4).map(|word| word.parse().unwrap()).collect();
    let mut counts = [0; MIGRATE_TYPES];
    let shown = MigrateType::ALL.into_iter().filter(|kind| *kind != MigrateType::Cma);
    shown.zip(numbers).for_each(|(kind, number)| counts[kind.index()] = number);
    counts
}

#[test]
fn pagetypeinfo_is_linux_s() {
    for machine in MACHINES {
        let expected = file(machine, "pagetypeinfo");
        let buffer = filled(machine);
        fill_free_areas(&buffer.region(), &expected);
        let counts = |zone: ZoneIndex| block_counts(&expected, zone);
        assert_same(&text(|out| report::pagetypeinfo(&buffer.region(), &counts, out)), &expected);
    }
}

#[test]
fn pagetypeinfo_stops_counting_long_lists_and_shows_cma_where_there_is_some() {
    let buffer = filled("T2");
    let region = buffer.region();
    let area = &region.zones()[2].free_area[10];
    area.nr_free[MigrateType::Movable.index()].store(262_144, Relaxed);
    region.zones()[2].cma_pages.store(512, Relaxed);
    area.nr_free[MigrateType::Cma.index()].store(99_999, Relaxed);
    let printed = text(|out| report::pagetypeinfo(&region, &|_: ZoneIndex| [7; MIGRATE_TYPES], out));
    assert!(printed.contains(
        "type      Movable      0      0      0      0      0      0      0      0      0      0 >100000 \n"
    ));
    assert!(
        printed.contains(
            "type          CMA      0      0      0      0      0      0      0      0      0      0  99999 \n"
        )
    );
    assert!(printed.contains("Reclaimable   HighAtomic          CMA      Isolate \n"));
}

fn items(text: &str) -> Vec<(&str, u64)> {
    text.lines().map(|line| line.split_once(' ').unwrap()).map(|(key, value)| (key, value.parse().unwrap())).collect()
}

#[test]
fn vmstat_is_linux_s() {
    for machine in MACHINES {
        let expected = file(machine, "vmstat");
        let buffer = filled(machine);
        only(&buffer.region(), &items(&expected));
        assert_same(&text(|out| report::vmstat(&buffer.region(), out)), &expected);
    }
}

#[test]
fn huge_pages_are_counted_in_base_pages_and_printed_in_huge_ones() {
    let buffer = filled("T2");
    let region = buffer.region();
    region.nodes()[0].vm_stat[NodeStat::NrAnonTransparentHugepages.index()].store(1024, Relaxed);
    region.node_cpus()[0].vm_node_stat_diff[NodeStat::NrAnonTransparentHugepages.index()].store(0, Relaxed);
    assert!(text(|out| report::vmstat(&region, out)).contains("nr_anon_transparent_hugepages 2\n"));
    assert!(text(|out| report::meminfo(&region, out)).contains("AnonHugePages:      4096 kB\n"));
}

#[test]
fn node_files_are_linux_s() {
    for machine in MACHINES {
        let (nodes, _) = reference::machine(machine);
        let buffer = filled(machine);
        let region = buffer.region();
        let zeros = NodeStat::NAMES.map(|name| (name, 0));
        only(&region, &zeros);
        for id in 0..nodes as usize {
            let path = |name: &str| format!("node{id}.{name}");
            fill_node(&region, id, &file(machine, &path("vmstat")));
            assert_same(&text(|out| report::node_vmstat(&region, node(id), out)), &file(machine, &path("vmstat")));
            fill_node(&region, id, &numastat_as_vmstat(&file(machine, &path("numastat"))));
            assert_same(&text(|out| report::node_numastat(&region, node(id), out)), &file(machine, &path("numastat")));
            assert_same(&text(|out| report::node_distance(&region, node(id), out)), &file(machine, &path("distance")));
            assert_same(&text(|out| report::node_cpulist(&region, node(id), out)), &file(machine, &path("cpulist")));
            let map = number_after(&file(machine, "node.sysfs"), &format!("node{id}/cpumap:")).unwrap();
            assert_same(&text(|out| report::node_cpumap(&region, node(id), out)), &format!("{map}\n"));
        }
    }
}

fn fill_node(region: &RegionRef<'_>, id: usize, vmstat: &str) {
    let zones = &region.zones()[id * 5..id * 5 + 5];
    for (name, value) in items(vmstat) {
        if let Some(item) = ZoneStat::NAMES.iter().position(|known| *known == name) {
            zones.iter().for_each(|zone| zone.vm_stat[item].store(0, Relaxed));
            zones[1].vm_stat[item].store(value as i64, Relaxed);
        } else if let Some(item) = NumaStat::NAMES.iter().position(|known| *known == name) {
            zones.iter().for_each(|zone| zone.vm_numa_event[item].store(0, Relaxed));
            zones[2].vm_numa_event[item].store(value, Relaxed);
        } else {
            let item = NodeStat::NAMES.iter().position(|known| *known == name).unwrap();
            region.nodes()[id].vm_stat[item].store(value as i64, Relaxed);
        }
    }
}

fn numastat_as_vmstat(text: &str) -> String {
    let text = text.replace("interleave_hit", "numa_interleave");
    text.replace("local_node", "numa_local").replace("other_node", "numa_other")
}

/// `(counter of /proc/vmstat, key of meminfo, units per KiB)`
const MEMINFO_COUNTERS: [(&str, &str, u64); 19] = [
    ("nr_free_pages", "MemFree:", 4),
    ("nr_active_anon", "Active(anon):", 4),
    ("nr_inactive_anon", "Inactive(anon):", 4),
    ("nr_active_file", "Active(file):", 4),
    ("nr_inactive_file", "Inactive(file):", 4),
    ("nr_unevictable", "Unevictable:", 4),
    ("nr_mlock", "Mlocked:", 4),
    ("nr_dirty", "Dirty:", 4),
    ("nr_writeback", "Writeback:", 4),
    ("nr_anon_pages", "AnonPages:", 4),
    ("nr_mapped", "Mapped:", 4),
    ("nr_shmem", "Shmem:", 4),
    ("nr_slab_reclaimable", "SReclaimable:", 4),
    ("nr_slab_unreclaimable", "SUnreclaim:", 4),
    ("nr_kernel_stack", "KernelStack:", 1),
    ("nr_page_table_pages", "PageTables:", 4),
    ("nr_sec_page_table_pages", "SecPageTables:", 4),
    ("nr_bounce", "Bounce:", 4),
    ("nr_swapcached", "SwapCached:", 4),
];

fn meminfo_counters<'a>(text: &str, files_key: &str) -> Vec<(&'a str, u64)> {
    let pages = |key: &str| number_after(text, key).unwrap();
    let mut counters: Vec<_> = MEMINFO_COUNTERS.iter().map(|(name, key, unit)| (*name, pages(key) / unit)).collect();
    counters.push(("nr_file_pages", pages(files_key) / 4));
    counters
}

#[test]
fn meminfo_is_linux_s() {
    for machine in MACHINES {
        let expected = file(machine, "meminfo");
        let buffer = filled(machine);
        let region = buffer.region();
        only(&region, &meminfo_counters(&expected, "Cached:"));
        region.header().direct_map_4k.store(number_after(&expected, "DirectMap4k:").unwrap() as u32, Relaxed);
        region.header().direct_map_2m.store(number_after(&expected, "DirectMap2M:").unwrap(), Relaxed);
        region.header().nr_vmalloc_pages.store(number_after(&expected, "VmallocUsed:").unwrap() / 4, Relaxed);
        region.header().nr_percpu_pages.store(number_after(&expected, "Percpu:").unwrap() / 4, Relaxed);
        region.sysctl().overcommit_ratio.store(50, Relaxed);
        let promised = number_after(&expected, "Committed_AS:").unwrap() / 4;
        region.header().roots.committed_as.store(promised as i64, Relaxed);
        assert_same(&text(|out| report::meminfo(&region, out)), &expected);
        // An amount in KiB goes before the ratio.
        region.sysctl().overcommit_kbytes.store(4096, Relaxed);
        assert_eq!(number_after(&text(|out| report::meminfo(&region, out)), "CommitLimit:"), Some(4096));
    }
}

#[test]
fn settings_are_in_sysctl_s_order() {
    let buffer = filled(MACHINES[0]);
    let region = buffer.region();
    let settings = region.sysctl();
    settings.overcommit_memory.store(2, Relaxed);
    settings.overcommit_ratio.store(50, Relaxed);
    settings.overcommit_kbytes.store(1 << 40, Relaxed);
    settings.max_map_count.store(65530, Relaxed);
    settings.mmap_min_addr.store(65536, Relaxed);
    let found = text(|out| report::sysctl(&region, out));
    let mut names: Vec<&str> = found.lines().filter_map(|line| line.split(" = ").next()).collect();
    for line in [
        "vm.overcommit_memory = 2",
        "vm.overcommit_ratio = 50",
        "vm.overcommit_kbytes = 1099511627776",
        "vm.max_map_count = 65530",
        "vm.mmap_min_addr = 65536",
    ] {
        assert!(found.lines().any(|found| found == line), "no {line} in {found}");
    }
    let order = names.clone();
    names.sort_unstable();
    assert_eq!(order, names);
}

#[test]
fn node_meminfo_is_linux_s() {
    for machine in MACHINES {
        let expected = file(machine, "node0.meminfo");
        let buffer = filled(machine);
        only(&buffer.region(), &meminfo_counters(&expected, "FilePages:"));
        assert_same(&text(|out| report::node_meminfo(&buffer.region(), node(0), out)), &expected);
    }
}

#[test]
fn iomem_is_linux_s() {
    for machine in MACHINES {
        let buffer = filled(machine);
        let region = buffer.region();
        let mut expected = String::new();
        for line in file(machine, "iomem").lines() {
            let (range, name) = line.trim_start().split_once(" : ").unwrap();
            let Some(kind) = ResourceKind::ALL.into_iter().find(|kind| kind.name() == name) else { continue };
            let (start, end) = range.split_once('-').unwrap();
            let slot = &region.resource_slots()[region.header().nr_resources.fetch_add(1, Relaxed) as usize];
            slot.start.store(u64::from_str_radix(start, 16).unwrap(), Relaxed);
            slot.end.store(u64::from_str_radix(end, 16).unwrap(), Relaxed);
            slot.kind.store(kind as u32, Relaxed);
            slot.depth.store(((line.len() - line.trim_start().len()) / 2) as u32, Relaxed);
            writeln!(expected, "{line}").unwrap();
        }
        assert!(expected.lines().count() > 10);
        assert_same(&text(|out| report::iomem(&region, out)), &expected);
    }
}

#[test]
fn fallback_orders_are_logged_as_linux_does() {
    for machine in MACHINES {
        let buffer = filled(machine);
        assert_same(&text(|out| report::fallback_orders(&buffer.region(), out)), &file(machine, "fallback"));
    }
}

#[test]
fn numactl_prints_the_hardware() {
    let buffer = filled("T4");
    let expected = "\
available: 2 nodes (0-1)
node 0 cpus: 0 1
node 0 size: 3921 MB
node 0 free: 3871 MB
node 1 cpus:
node 1 size: 2015 MB
node 1 free: 1998 MB
node distances:
node   0   1 
  0:  10  40 
  1:  40  10 
";
    assert_same(&text(|out| report::numa_hardware(&buffer.region(), out)), expected);
}

#[test]
fn cpu_masks_are_as_wide_as_the_machine() {
    let map = |mask, cpus| report::cpumap(CpuMask(mask), cpus).to_string();
    assert_eq!(map(0x2, 2), "2");
    assert_eq!(map(0x2, 8), "02");
    assert_eq!(map(0xff, 32), "000000ff");
    assert_eq!(map(0x1_0000_0001, 33), "1,00000001");
    assert_eq!(map(u64::MAX, 64), "ffffffff,ffffffff");
}

/// A line of Linux's file, taken apart.
fn slab_info(line: &str) -> SlabInfo<'_> {
    let mut words = line.split_whitespace().filter(|word| ![":", "tunables", "slabdata"].contains(word));
    let name = words.next().unwrap();
    let numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
    let [
        active_objs,
        num_objs,
        objsize,
        objperslab,
        pagesperslab,
        limit,
        batch,
        shared,
        active_slabs,
        num_slabs,
        avail,
    ] = numbers.try_into().unwrap();
    let small = |number: u64| u32::try_from(number).unwrap();
    SlabInfo {
        name,
        active_objs,
        num_objs,
        objsize: small(objsize),
        objperslab: small(objperslab),
        pagesperslab: small(pagesperslab),
        limit: small(limit),
        batchcount: small(batch),
        sharedfactor: small(shared),
        active_slabs,
        num_slabs,
        sharedavail: avail,
    }
}

#[test]
fn slabinfo_is_linux_s() {
    let expected = file("T2", "slabinfo");
    let printed = text(|out| {
        report::slabinfo::header(out)?;
        expected.lines().skip(2).try_for_each(|line| slab_info(line).line(out))
    });
    assert_same(&printed, &expected);
}
