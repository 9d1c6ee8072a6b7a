//! Machines with the memory, CPUs and distances of those that Linux ran on.

use pagevisor_mm::hosted::{Machine, Topology};
use pagevisor_mm::sync::Plain;
use pagevisor_shared::region::records::{ZONELIST_FALLBACK, ZONELIST_NOFALLBACK};
use pagevisor_shared::region::zone::ZoneState;
use pagevisor_shared::units::{CpuId, NodeId};
use pagevisor_shared::zone::{MAX_NR_ZONES, Watermark, ZoneIndex, ZoneRef, ZoneType};

use crate::{Case, MACHINES, Numa, Settings, Zone, read};

/// Start and end of each memory range of a node, from lines like `  node   0: [mem 0x1000-0x9efff]`.
fn memory(log: &str, node: usize) -> Vec<(u64, u64)> {
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("an address");
    let ranges = log.lines().filter_map(|line| {
        let (of, range) = line.trim().strip_prefix("node")?.split_once(": [mem ")?;
        let (first, last) = range.trim_end_matches(']').split_once('-')?;
        (of.trim() == node.to_string()).then(|| (hex(first), hex(last) + 1))
    });
    ranges.collect()
}

/// Boots the machine.
fn boot(machine: &str) -> Machine {
    let (log, numa) = (read(machine, "dmesg"), Numa::load(machine));
    let mut topology = Topology::pages_only();
    for (node, cpus) in numa.cpus.iter().enumerate() {
        topology = topology.node(&memory(&log, node), *cpus as usize);
    }
    for (from, row) in numa.distance.iter().enumerate() {
        for (to, distance) in row.iter().enumerate() {
            topology = topology.distance_one_way(from, to, *distance);
        }
    }
    topology.boot()
}

fn zone_of<'a>(machine: &'a Machine, zone: &Zone) -> &'a ZoneState {
    &machine.mm().region().zones()[zone.node * MAX_NR_ZONES + zone.kind]
}

#[test]
fn zones_have_the_sizes_of_linux() {
    for name in MACHINES {
        let machine = boot(name);
        for zone in &Case::load(name, "thp_never").zones {
            let state = zone_of(&machine, zone);
            let got = (state.spanned_pages.get(), state.present_pages.get());
            let want = (zone.pages("spanned"), zone.pages("present"));
            assert_eq!(got, want, "{name}: node {} zone {}", zone.node, zone.kind);
            if want.1 != 0 {
                assert_eq!(state.zone_start_pfn.get(), zone.pages("start_pfn"), "{name}: node {}", zone.node);
                assert!((1..=want.1).contains(&state.managed_pages.get()));
            }
        }
    }
}

/// The line that Linux logs for the part of a zonelist from zones of type `kind` down (`mminit_verify_zonelist`).
fn zonelist_line(machine: &Machine, node: NodeId, list: usize, kind: ZoneType) -> String {
    let state = &machine.mm().region().nodes()[node.index()];
    let place = if list == ZONELIST_FALLBACK { "general" } else { "thisnode" };
    let mut line = format!("mminit::zonelist {place} {}:{} = ", node.index(), kind.name());
    let mut first = None;
    for (position, word) in state.node_zonelists[list].iter().enumerate() {
        let entry = ZoneRef(word.get());
        let Some(zone) = entry.zone() else { break };
        if entry.zone_idx() <= kind.index() {
            first.get_or_insert(position);
            let kind = ZoneType::new(zone.index() % MAX_NR_ZONES).expect("a zone's type");
            assert_eq!(kind.index(), entry.zone_idx());
            line += &format!("{}:{} ", zone.index() / MAX_NR_ZONES, kind.name());
        }
    }
    let start = state.first_zone[list][kind.index()].get();
    assert_eq!(first, Some(usize::from(start)), "{line}: where a walk starts");
    line
}

#[test]
fn zonelists_are_those_of_linux() {
    for name in MACHINES {
        let machine = boot(name);
        let log = read(name, "dmesg");
        let want: Vec<_> = log.lines().filter(|line| line.starts_with("mminit::zonelist")).collect();
        let mut got = Vec::new();
        for node in (0..machine.mm().region().nr_nodes()).filter_map(NodeId::new) {
            for list in [ZONELIST_FALLBACK, ZONELIST_NOFALLBACK] {
                for kind in ZoneType::ALL {
                    let zone = &machine.mm().region().zones()[ZoneIndex::of(node, kind).index()];
                    if zone.present_pages.get() != 0 {
                        got.push(zonelist_line(&machine, node, list, kind));
                    }
                }
            }
        }
        assert_eq!(got, want, "{name}");
    }
}

#[test]
fn fallback_orders_are_logged_as_linux_does() {
    for name in MACHINES {
        let (machine, log) = (boot(name), read(name, "dmesg"));
        let fallback = |line: &&str| line.starts_with("Fallback order");
        let got = machine.log_text();
        assert_eq!(got.lines().filter(fallback).collect::<Vec<_>>(), log.lines().filter(fallback).collect::<Vec<_>>());
        let built = |text: &str| {
            let line = text.lines().find(|line| line.starts_with("Built ")).expect("a line about the zonelists");
            line.split("  Total pages").next().unwrap_or_default().to_owned()
        };
        assert_eq!(built(&got), built(&log), "{name}");
    }
}

#[test]
fn cpus_start_from_their_own_node_or_the_nearest_with_memory() {
    for name in MACHINES {
        let machine = boot(name);
        for cpu in machine.mm().region().cpus() {
            assert_eq!(cpu.mem_node.get(), cpu.node.get(), "{name}");
        }
    }
    let memory = |first: u64| [(first << 20, (first + 64) << 20)];
    let topology = Topology::pages_only().node(&memory(16), 1).node(&[], 1).node(&memory(80), 1);
    let machine = topology.distance(0, 1, 30).distance(1, 2, 21).boot();
    let starts: Vec<_> = machine.mm().region().cpus().iter().map(|cpu| cpu.mem_node.get()).collect();
    assert_eq!(starts, [0, 2, 2]);
}

/// Puts the machine into the state that the case was taken in: its managed pages and its settings.
fn apply(machine: &Machine, case: &Case) {
    let mm = machine.mm();
    for zone in &case.zones {
        zone_of(machine, zone).managed_pages.set(zone.pages("managed"));
    }
    mm.refresh_zone_stat_thresholds();
    let Settings { min_free_kbytes, watermark_scale_factor, .. } = case.settings;
    mm.set_min_free_kbytes(min_free_kbytes as u32).expect("a value that Linux took");
    mm.set_watermark_scale_factor(watermark_scale_factor).expect("a value that Linux took");
    mm.set_lowmem_reserve_ratio(case.settings.lowmem_reserve_ratio).expect("values that Linux took");
    let fraction = case.settings.percpu_pagelist_high_fraction;
    mm.set_percpu_pagelist_high_fraction(fraction).expect("a value that Linux took");
}

#[test]
fn settings_take_effect_as_on_linux() {
    for name in MACHINES {
        let machine = boot(name);
        for case in Case::all().iter().filter(|case| case.name.starts_with(name)) {
            apply(&machine, case);
            for zone in case.populated() {
                let state = zone_of(&machine, zone);
                let at = format!("{}: node {} zone {}", case.name, zone.node, zone.kind);
                let mark = |mark: Watermark| state.watermark[mark as usize].get();
                let got = [mark(Watermark::Min), mark(Watermark::Low), mark(Watermark::High)];
                assert_eq!(got, ["min", "low", "high"].map(|name| zone.pages(name)), "{at}");
                assert_eq!(mark(Watermark::Promo) - got[2], got[2] - got[1], "{at}");
                let reserve: Vec<_> = state.lowmem_reserve.iter().map(Plain::get).collect();
                assert_eq!(reserve, zone.protection, "{at}");
                for (cpu, pageset) in zone.pagesets.iter().enumerate() {
                    let cpu = CpuId::new(cpu).expect("few CPUs");
                    let pcp = &machine.mm().region().pcps_of(cpu)[zone.node * MAX_NR_ZONES + zone.kind];
                    let got = (pcp.high.get(), pcp.batch.get(), pcp.stat_threshold.get());
                    assert_eq!(got, (pageset.high, pageset.batch, pageset.threshold), "{at}");
                }
            }
        }
    }
}

/// The defaults at boot follow from what boot itself has managed.
#[test]
fn boot_applies_the_formulas_to_its_own_pages() {
    use pagevisor_mm::zone::watermark;

    for name in MACHINES {
        let machine = boot(name);
        let zones = machine.mm().region().zones();
        let managed: u64 = zones.iter().map(|zone| zone.managed_pages.get()).sum();
        let kbytes = machine.mm().region().sysctl().min_free_kbytes.get();
        assert_eq!(kbytes, watermark::calculate_min_free_kbytes(managed), "{name}: no watermarks to take off yet");
        for zone in zones.iter().filter(|zone| zone.present_pages.get() != 0) {
            let pages = zone.managed_pages.get();
            let want = watermark::setup_per_zone_wmarks(kbytes, pages, managed, watermark::WATERMARK_SCALE_FACTOR);
            let got = [Watermark::Min, Watermark::Low, Watermark::High].map(|mark| zone.watermark[mark as usize].get());
            assert_eq!(got, [want.min, want.low, want.high], "{name}");
        }
    }
}

#[test]
fn settings_are_refused_as_on_linux() {
    let machine = boot("T2");
    let (mm, sysctl) = (machine.mm(), machine.mm().region().sysctl());
    let over = i32::MAX as u32 + 1;
    let before = (sysctl.min_free_kbytes.get(), sysctl.watermark_scale_factor.get());
    let bad = [0, 3001, over].map(|factor| mm.set_watermark_scale_factor(factor));
    assert!(bad.iter().all(Result::is_err));
    assert_eq!(bad[1].unwrap_err().to_string(), "watermark_scale_factor cannot be 3001");
    assert!(mm.set_min_free_kbytes(over).is_err() && mm.set_watermark_boost_factor(over).is_err());
    assert_eq!((sysctl.min_free_kbytes.get(), sysctl.watermark_scale_factor.get()), before);
    assert!([1, 7, over].iter().all(|&fraction| mm.set_percpu_pagelist_high_fraction(fraction).is_err()));
    assert_eq!(sysctl.percpu_pagelist_high_fraction.get(), 0);
    assert!(mm.set_lowmem_reserve_ratio([1, 1, 1, 1, over]).is_err());
    assert_eq!(sysctl.lowmem_reserve_ratio[0].get(), 256, "none of them when one is bad");
    assert_eq!((mm.set_watermark_scale_factor(1), mm.set_watermark_scale_factor(3000)), (Ok(()), Ok(())));
    assert_eq!((mm.set_min_free_kbytes(0), mm.set_percpu_pagelist_high_fraction(8)), (Ok(()), Ok(())));
    assert_eq!(mm.set_watermark_boost_factor(0), Ok(()));
    assert_eq!(sysctl.watermark_boost_factor.get(), 0);
}

#[test]
fn what_the_user_asked_for_survives_a_recomputation() {
    let machine = boot("T2");
    let (mm, sysctl) = (machine.mm(), machine.mm().region().sysctl());
    let low = |zone: &ZoneState| zone.watermark[Watermark::Low as usize].get();
    let zones = || machine.mm().region().zones().iter().map(low).collect::<Vec<_>>();
    let (computed, marks) = (sysctl.min_free_kbytes.get(), zones());
    mm.set_min_free_kbytes(2 * computed as u32).expect("a good value");
    let raised = zones();
    assert_ne!(raised, marks);
    machine.platform().clear_log();
    mm.recompute_reserves();
    assert_eq!((sysctl.min_free_kbytes.get(), zones()), (2 * computed, raised));
    let line = machine.log_text();
    let want = format!("because user defined value {} is preferred\n", 2 * computed);
    assert!(line.starts_with("min_free_kbytes is not updated to ") && line.ends_with(&want), "{line}");
    // Less than what the zones' sizes call for is raised again.
    mm.set_min_free_kbytes(100).expect("a good value");
    assert_eq!(sysctl.min_free_kbytes.get(), 100);
    mm.recompute_reserves();
    assert!(sysctl.min_free_kbytes.get() > 100 && sysctl.min_free_kbytes.get() <= computed);
}
