//! The formulas, from the managed pages that Linux shows.

use pagevisor_mm::zone::watermark::{self, Watermarks};
use pagevisor_shared::zone::MAX_NR_ZONES;

use crate::{Case, MACHINES, Settings};

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
