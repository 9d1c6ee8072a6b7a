//! What follows from the sizes of zones and the settings: watermarks, reserves, pageset sizes, thresholds. The formulas
//! are Linux's, named after their functions in `mm/page_alloc.c` and `mm/vmstat.c`, and worked out here anew.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::region::zone::ZoneState;
use pagevisor_shared::report::counters;
use pagevisor_shared::units::PAGEBLOCK_NR_PAGES;
use pagevisor_shared::zone::{MAX_NR_ZONES, Watermark, ZoneIndex, ZoneType};

use super::Verifier;
use super::report::Place;
use super::rule::Rule;

/// Settings are Linux's `int`.
const INT_MAX: u64 = i32::MAX as u64;
/// The most a CPU ever holds back of a counter.
const MAX_THRESHOLD: u32 = 125;

/// `mult_frac`
const fn mult_frac(x: u128, numerator: u128, denominator: u128) -> u128 {
    x * numerator / denominator
}

/// Number of bits of `x` (`fls`).
const fn fls(x: u64) -> u64 {
    (u64::BITS - x.leading_zeros()) as u64
}

/// What the formulas start from.
pub(super) struct Machine {
    pub min_free_kbytes: u64,
    pub scale_factor: u64,
    /// `lowmem_pages`: managed pages of all zones.
    pub managed: u64,
    pub cpus: u64,
}

/// `__setup_per_zone_wmarks`: min, low, high and promo.
pub(super) fn watermarks(machine: &Machine, managed: u64) -> [u64; 4] {
    let pages_min = u128::from(machine.min_free_kbytes >> 2);
    let min = (pages_min * u128::from(managed)).checked_div(machine.managed.into()).unwrap_or(0);
    let step = (min >> 2).max(mult_frac(managed.into(), machine.scale_factor.into(), 10_000));
    [0, 1, 2, 3].map(|steps| u64::try_from(min + steps * step).unwrap_or(u64::MAX))
}

/// `zone_batchsize`
pub(super) fn batchsize(managed: u64) -> u64 {
    let batch = ((managed >> 10).min(256) / 4).max(1);
    let sum = batch + batch / 2;
    // rounddown_pow_of_two, less one.
    ((1 << sum.ilog2()) - 1u64).max(1)
}

/// `zone_highsize`
pub(super) fn highsize(low: u64, managed: u64, batch: u64, fraction: u64, cpus: u64) -> u64 {
    let total = managed.checked_div(fraction).unwrap_or(low);
    total.checked_div(cpus).unwrap_or(total).max(batch << 2).min(INT_MAX)
}

/// `calculate_normal_threshold`
pub(super) fn normal_threshold(managed: u64, cpus: u64) -> u64 {
    (2 * fls(cpus) * (1 + fls(managed >> 15))).min(MAX_THRESHOLD.into())
}

/// `calculate_min_free_kbytes`
pub(super) fn calculate_min_free_kbytes(pages: u64) -> u64 {
    (u128::from(pages) * 64).isqrt().clamp(128, 262_144) as u64
}

impl Verifier<'_> {
    /// Checks what follows from sizes and settings.
    pub(super) fn check_settings(&mut self) {
        self.check_sysctl();
        let sysctl = self.region.sysctl();
        let machine = Machine {
            min_free_kbytes: sysctl.min_free_kbytes.load(Relaxed),
            scale_factor: sysctl.watermark_scale_factor.load(Relaxed).into(),
            managed: self.region.zones().iter().map(managed_of).fold(0, u64::saturating_add),
            cpus: self.region.nr_cpus() as u64,
        };
        for (index, zone) in self.region.zones().iter().enumerate() {
            self.check_lowmem_reserve(index, zone);
            self.check_alloc_mark(index, zone);
            if counters::is_populated(zone) {
                self.check_watermarks(index, zone, &machine);
                self.check_pageset_sizes(index, zone, &machine);
                self.check_thresholds(index, zone, &machine);
            }
        }
        self.check_node_thresholds(&machine);
    }

    fn check_sysctl(&mut self) {
        let sysctl = self.region.sysctl();
        let fraction = sysctl.percpu_pagelist_high_fraction.load(Relaxed).into();
        let scale = sysctl.watermark_scale_factor.load(Relaxed).into();
        let values = [
            ("min_free_kbytes", sysctl.min_free_kbytes.load(Relaxed), 0, INT_MAX),
            ("watermark_scale_factor", scale, 1, 3000),
            ("watermark_boost_factor", sysctl.watermark_boost_factor.load(Relaxed).into(), 0, INT_MAX),
            ("percpu_pagelist_high_fraction", fraction, if fraction == 0 { 0 } else { 8 }, INT_MAX),
        ];
        let ratios = sysctl.lowmem_reserve_ratio.iter();
        let ratios = ratios.map(|ratio| ("lowmem_reserve_ratio", u64::from(ratio.load(Relaxed)), 0, INT_MAX));
        for (name, value, low, high) in values.into_iter().chain(ratios) {
            if value < low || value > high {
                let evidence = format_args!("{name} is {value}, not {low} to {high}");
                self.findings.add(Rule::SysctlRange, Place::Machine, evidence);
            }
        }
    }

    fn check_watermarks(&mut self, index: usize, zone: &ZoneState, machine: &Machine) {
        let (found, place) = (&mut self.findings, Place::Zone(index));
        let expected = watermarks(machine, managed_of(zone));
        for ((name, word), expected) in ["min", "low", "high", "promo"].into_iter().zip(&zone.watermark).zip(expected) {
            found.equal(Rule::ZoneWatermark, place, name, word.load(Relaxed), expected);
        }
        // A boost stays when its factor is lowered: then there is no telling how large it may be.
        let factor = u64::from(self.region.sysctl().watermark_boost_factor.load(Relaxed)).max(15_000);
        let [_, _, high, _] = expected;
        let limit = mult_frac(high.into(), factor.into(), 10_000).max(PAGEBLOCK_NR_PAGES.into());
        let boost = zone.watermark_boost.load(Relaxed);
        if u128::from(boost) > limit {
            found.add(Rule::ZoneWatermarkBoost, place, format_args!("watermark_boost is {boost}, at most {limit}"));
        }
    }

    fn check_alloc_mark(&mut self, index: usize, zone: &ZoneState) {
        let words = [&zone.watermark_boost, &zone.nr_reserved_highatomic, &zone.cma_pages];
        let low = zone.watermark.get(Watermark::Low as usize).map_or(0, |word| word.load(Relaxed));
        let sum = words.iter().fold(low, |sum, word| sum.wrapping_add(word.load(Relaxed)));
        let mark = zone.alloc_mark.load(Relaxed);
        self.findings.equal(Rule::ZoneAllocMark, Place::Zone(index), "alloc_mark", mark, sum as i64);
    }

    /// `setup_per_zone_lowmem_reserve`
    fn check_lowmem_reserve(&mut self, index: usize, zone: &ZoneState) {
        let kind = index % MAX_NR_ZONES;
        let ratios = &self.region.sysctl().lowmem_reserve_ratio;
        let ratio = ratios.get(kind).map_or(0, |ratio| u64::from(ratio.load(Relaxed)));
        let none = ratio == 0 || managed_of(zone) == 0 || kind == ZoneType::Device.index();
        let mut above = 0u64;
        for (upper, word) in zone.lowmem_reserve.iter().enumerate() {
            if upper > kind {
                let zone = self.region.zones().get(index - kind + upper);
                above = above.saturating_add(zone.map_or(0, managed_of));
            }
            let expected = if none { 0 } else { above.checked_div(ratio).unwrap_or(0) };
            let what = format!("lowmem_reserve[{upper}]");
            self.findings.equal(Rule::ZoneLowmemReserve, Place::Zone(index), &what, word.load(Relaxed), expected);
        }
    }

    fn check_pageset_sizes(&mut self, index: usize, zone: &ZoneState, machine: &Machine) {
        let managed = managed_of(zone);
        let batch = batchsize(managed);
        let node = self.region.nodes().get(index / MAX_NR_ZONES);
        let of_node = u64::from(node.map_or(0, |node| node.cpus.load(Relaxed).count_ones()));
        let cpus = if of_node == 0 { machine.cpus } else { of_node };
        let [_, low, ..] = watermarks(machine, managed);
        let fraction = self.region.sysctl().percpu_pagelist_high_fraction.load(Relaxed);
        let high = highsize(low, managed, batch, fraction.into(), cpus);
        let (found, place) = (&mut self.findings, Place::Zone(index));
        found.equal(Rule::ZonePageset, place, "pageset_high", zone.pageset_high.load(Relaxed).into(), high);
        found.equal(Rule::ZonePageset, place, "pageset_batch", zone.pageset_batch.load(Relaxed).into(), batch);
        for (cpu, pcp) in counters::pcps_of_zone(&self.region, ZoneIndex(index as u16)).enumerate() {
            let (found_high, found_batch) = (u64::from(pcp.high.load(Relaxed)), u64::from(pcp.batch.load(Relaxed)));
            if found_high != high {
                let evidence = format_args!("CPU {cpu}: high is {found_high}, not {high}");
                found.add(Rule::PagesetHigh, place, evidence);
            }
            if found_batch != batch {
                let evidence = format_args!("CPU {cpu}: batch is {found_batch}, not {batch}");
                found.add(Rule::PagesetBatch, place, evidence);
            }
        }
    }

    fn check_thresholds(&mut self, index: usize, zone: &ZoneState, machine: &Machine) {
        let threshold = normal_threshold(managed_of(zone), machine.cpus);
        let (found, place) = (&mut self.findings, Place::Zone(index));
        for (cpu, pcp) in counters::pcps_of_zone(&self.region, ZoneIndex(index as u16)).enumerate() {
            let told = u64::from(pcp.stat_threshold.load(Relaxed));
            if told != threshold {
                let evidence = format_args!("CPU {cpu}: stat_threshold is {told}, not {threshold}");
                found.add(Rule::StatThreshold, place, evidence);
            }
            // What was held back before a threshold sank stays.
            let held = pcp.vm_stat_diff.iter().map(|diff| diff.load(Relaxed).unsigned_abs()).max().unwrap_or(0);
            if held > MAX_THRESHOLD {
                found.add(Rule::StatThreshold, place, format_args!("CPU {cpu}: holds back {held} of a counter"));
            }
        }
        let drift = zone.percpu_drift_mark.load(Relaxed);
        let [min, low, high, _] = watermarks(machine, managed_of(zone));
        let most = machine.cpus * threshold;
        let expected = if most > low - min { high + most } else { 0 };
        // Linux leaves the mark alone when the settings change: then it is still that of the old ones.
        let wrong = if self.has_boot_settings(machine) { drift != expected } else { drift != 0 && drift < most };
        if wrong {
            let evidence = format_args!("percpu_drift_mark is {drift}, not {expected}");
            self.findings.add(Rule::PercpuDriftMark, place, evidence);
        }
    }

    /// Whether the watermarks are those of boot.
    fn has_boot_settings(&self, machine: &Machine) -> bool {
        let usable = self.region.zones().iter().enumerate();
        let usable = usable.filter(|(index, _)| index % MAX_NR_ZONES <= ZoneType::Normal.index());
        let pages = usable.map(|(_, zone)| managed_of(zone)).fold(0, u64::saturating_add);
        machine.scale_factor == 10 && machine.min_free_kbytes == calculate_min_free_kbytes(pages)
    }

    /// A node's threshold is the largest of its zones'.
    fn check_node_thresholds(&mut self, machine: &Machine) {
        let nodes = self.region.nr_nodes().max(1);
        for (index, pending) in self.region.node_cpus().iter().enumerate() {
            let (cpu, node) = (index / nodes, index % nodes);
            let zones = self.region.zones().iter().skip(node * MAX_NR_ZONES).take(MAX_NR_ZONES);
            let zones = zones.filter(|zone| counters::is_populated(zone));
            let expected = zones.map(|zone| normal_threshold(managed_of(zone), machine.cpus)).max().unwrap_or(0);
            let told = pending.stat_threshold.load(Relaxed);
            if i64::from(told) != expected as i64 {
                let evidence = format_args!("CPU {cpu}: the node's stat_threshold is {told}, not {expected}");
                self.findings.add(Rule::StatThreshold, Place::Node(node), evidence);
            }
        }
    }
}

fn managed_of(zone: &ZoneState) -> u64 {
    zone.managed_pages.load(Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_give_linux_numbers() {
        // Node 1's Normal zone of the reference machine T2 in shared/tests/linux-6.1.
        let machine = Machine { min_free_kbytes: 67_584, scale_factor: 10, managed: 1_000_000, cpus: 4 };
        assert_eq!(watermarks(&machine, 500_000), [8448, 10_560, 12_672, 14_784]);
        assert_eq!([1, 3840, 126_976, 1 << 24].map(batchsize), [1, 1, 31, 63]);
        assert_eq!(highsize(10_560, 500_000, 63, 0, 2), 5280);
        assert_eq!(highsize(10_560, 500_000, 63, 8, 2), 31_250);
        assert_eq!(highsize(10, 500, 31, 0, 4), 124);
        assert_eq!((normal_threshold(500_000, 4), normal_threshold(3840, 1)), (30, 2));
        assert_eq!([0, 100_000, u64::MAX].map(calculate_min_free_kbytes), [128, 2529, 262_144]);
    }
}
