//! Mem-Info against the reports of real Linux machines.

#[allow(dead_code, reason = "each test uses a part of it")]
mod reference;

use std::cell::RefCell;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::report;
use pagevisor_shared::units::{CpuId, NodeMask};
use pagevisor_shared::vmstat::NodeStat;
use pagevisor_shared::zone::{ZoneIndex, ZoneType};
use reference::{assert_same, file, filled, number_after, only, text, zone_of_line};

/// The lines of a Mem-Info without the log's time stamps, and without the verdict of kswapd, which is not there.
fn mem_info_lines(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split_once("] ").unwrap().1);
    let lines = lines.skip_while(|line| *line != "Mem-Info:");
    lines.map(|line| line.replace("all_unreclaimable? yes", "all_unreclaimable? no")).collect()
}

fn fill_mem_info(region: &RegionRef<'_>, lines: &[String], local_cpu: usize) {
    only(region, &[]);
    for zone in region.zones().iter().flat_map(|zone| &zone.free_area).flat_map(|area| &area.nr_free) {
        zone.store(0, Relaxed);
    }
    for line in lines {
        let Some(zone) = zone_of_line(line) else {
            match number_after(line, "Node").map(|id| id as usize) {
                Some(id) => fill_mem_info_node(region, id, line),
                None => fill_mem_info_totals(region, line),
            }
            continue;
        };
        let record = &region.zones()[zone.index()];
        if line.contains("boost:") {
            let kib = |key: &str| number_after(line, key).unwrap() / 4;
            record.vm_stat[0].store(kib(" free:") as i64, Relaxed);
            for (item, key) in [
                (1, "inactive_anon:"),
                (2, " active_anon:"),
                (3, "inactive_file:"),
                (4, " active_file:"),
                (5, "unevictable:"),
                (7, "mlocked:"),
            ] {
                record.vm_stat[item].store(kib(key) as i64, Relaxed);
            }
            [" min:", " low:", " high:"]
                .iter()
                .zip(&record.watermark)
                .for_each(|(key, mark)| mark.store(kib(key), Relaxed));
            record.present_pages.store(kib("present:"), Relaxed);
            record.managed_pages.store(kib("managed:"), Relaxed);
            let pcps: Vec<_> = region.pcps().iter().skip(zone.index()).step_by(region.zones().len()).collect();
            pcps.iter().for_each(|pcp| pcp.count.store(0, Relaxed));
            pcps[local_cpu].count.store(kib("local_pcp:") as u32, Relaxed);
            let other = (local_cpu + 1) % pcps.len();
            pcps[other].count.fetch_add((kib("free_pcp:") - kib("local_pcp:")) as u32, Relaxed);
        } else {
            fill_free_line(region, zone, line);
        }
    }
    for (zone, line) in lines.iter().filter(|line| line.starts_with("lowmem_reserve")).enumerate() {
        // These lines follow their zones' in order.
        let zones = region.zones().iter().filter(|zone| zone.present_pages.load(Relaxed) != 0);
        let record = zones.into_iter().nth(zone).unwrap();
        let reserves = line.split_whitespace().skip(1).map(|word| word.parse().unwrap());
        record.lowmem_reserve.iter().zip(reserves).for_each(|(slot, value)| slot.store(value, Relaxed));
    }
}

/// `29*4kB (UME) ...`: one block for each letter, the rest for the last.
fn fill_free_line(region: &RegionRef<'_>, zone: ZoneIndex, line: &str) {
    let mut order = 0;
    let mut blocks = 0;
    for word in line.split_whitespace() {
        if let Some((count, _)) = word.split_once('*') {
            blocks = count.parse().unwrap();
            order += 1;
        } else if let Some(letters) = word.strip_prefix('(') {
            let area = &region.zones()[zone.index()].free_area[order - 1];
            let mut rest = blocks;
            for letter in letters.trim_end_matches(')').chars() {
                let kind = MigrateType::ALL.into_iter().find(|kind| kind.letter() == letter).unwrap();
                area.nr_free[kind.index()].store(1, Relaxed);
                rest -= 1;
            }
            let last = letters.trim_end_matches(')').chars().last().unwrap();
            let kind = MigrateType::ALL.into_iter().find(|kind| kind.letter() == last).unwrap();
            area.nr_free[kind.index()].fetch_add(rest, Relaxed);
        }
    }
}

fn fill_mem_info_node(region: &RegionRef<'_>, id: usize, line: &str) {
    let counters = [
        (NodeStat::NrActiveAnon, " active_anon:", 4),
        (NodeStat::NrInactiveAnon, "inactive_anon:", 4),
        (NodeStat::NrInactiveFile, "inactive_file:", 4),
        (NodeStat::NrUnevictable, "unevictable:", 4),
        (NodeStat::NrIsolatedAnon, "isolated(anon):", 4),
        (NodeStat::NrMapped, "mapped:", 4),
        (NodeStat::NrShmem, "shmem:", 4),
        (NodeStat::NrKernelStack, "kernel_stack:", 1),
        (NodeStat::NrPageTablePages, " pagetables:", 4),
    ];
    for (item, key, unit) in counters {
        if let Some(value) = number_after(line, key) {
            region.nodes()[id].vm_stat[item.index()].store((value / unit) as i64, Relaxed);
        }
    }
}

fn fill_mem_info_totals(region: &RegionRef<'_>, line: &str) {
    let counters =
        [(NodeStat::NrSlabReclaimable, " slab_reclaimable:"), (NodeStat::NrSlabUnreclaimable, "slab_unreclaimable:")];
    for (item, key) in counters {
        if let Some(value) = number_after(line, key) {
            region.nodes()[0].vm_stat[item.index()].store(value as i64, Relaxed);
        }
    }
    if line.ends_with("total pagecache pages") {
        let pages: i64 = line.split(' ').next().unwrap().parse().unwrap();
        region.nodes()[0].vm_stat[NodeStat::NrFilePages.index()].store(pages, Relaxed);
    }
}

/// Puts `number` behind the first `key`.
fn replace_number(lines: &mut [String], key: &str, number: i64) {
    let line = lines.iter_mut().find(|line| line.contains(key)).unwrap();
    let start = line.find(key).unwrap() + key.len();
    let end = line[start..].find(' ').map_or(line.len(), |len| start + len);
    line.replace_range(start..end, &number.to_string());
}

#[test]
fn mem_info_is_linux_s() {
    let reports = [
        ("T2", "events/sysrq-m"),
        ("T2", "events/warn_alloc-order10"),
        ("T2", "events/warn_alloc-thisnode1-order3"),
        ("T3", "events/sysrq-m"),
        ("T4", "events/sysrq-m"),
    ];
    for (machine, path) in reports {
        let mut expected = mem_info_lines(&file(machine, path));
        let buffer = filled(machine);
        let region = buffer.region();
        fill_mem_info(&region, &expected, 1);
        let what = report::MemInfo::all(CpuId::new(1).unwrap());
        let printed = text(|out| report::mem_info_text(&region, &what, out));
        // Linux reads totals and parts at different moments, and some machines changed in between: take the sums.
        let nodes = region.nodes().iter();
        let tables: i64 = nodes.map(|node| node.vm_stat[NodeStat::NrPageTablePages.index()].load(Relaxed)).sum();
        replace_number(&mut expected, " pagetables:", tables);
        let free_pcp: u32 = region.pcps().iter().map(|pcp| pcp.count.load(Relaxed)).sum();
        replace_number(&mut expected, " free_pcp:", free_pcp.into());
        assert_same(&printed, &(expected.join("\n") + "\n"));
    }
}

#[test]
fn mem_info_keeps_to_the_nodes_and_zones_asked_for() {
    let buffer = filled("T2");
    let what = report::MemInfo {
        nodes: Some(NodeMask(0b01)),
        max_zone: ZoneType::Dma32,
        ..report::MemInfo::all(CpuId::new(0).unwrap())
    };
    let lines = RefCell::new(Vec::new());
    report::mem_info(&buffer.region(), &what, &mut |line| lines.borrow_mut().push(line.to_string()));
    let lines = lines.into_inner();
    assert!(lines.iter().all(|line| !line.starts_with("Node 1") && !line.contains("Normal")));
    assert_eq!(lines.iter().filter(|line| line.starts_with("Node 0 DMA")).count(), 4);
}
