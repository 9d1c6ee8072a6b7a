//! What zones keep in reserve and how much CPUs may hold back: Linux's formulas as pure functions, each named after
//! its source.

use pagevisor_shared::units::PAGEBLOCK_NR_PAGES;
use pagevisor_shared::zone::MAX_NR_ZONES;

/// `sysctl_lowmem_reserve_ratio` at boot, by zone type.
pub const LOWMEM_RESERVE_RATIO: [u32; MAX_NR_ZONES] = [256, 256, 32, 0, 0];
/// `watermark_scale_factor` at boot: distance between watermarks in 1/10000 of a zone.
pub const WATERMARK_SCALE_FACTOR: u32 = 10;
/// `watermark_boost_factor` at boot.
pub const WATERMARK_BOOST_FACTOR: u32 = 15000;

/// Watermarks of a zone, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watermarks {
    /// `WMARK_MIN`
    pub min: u64,
    /// `WMARK_LOW`
    pub low: u64,
    /// `WMARK_HIGH`
    pub high: u64,
    /// `WMARK_PROMO`
    pub promo: u64,
}

/// `int_sqrt`: the largest integer whose square is not above `x`.
pub const fn int_sqrt(mut x: u64) -> u64 {
    if x <= 1 {
        return x;
    }
    let mut root = 0;
    let mut bit = 1u64 << ((63 - x.leading_zeros()) & !1);
    while bit != 0 {
        let trial = root + bit;
        root >>= 1;
        if x >= trial {
            x -= trial;
            root += bit;
        }
        bit >>= 2;
    }
    root
}

/// `mult_frac`: `x * numerator / denominator` without overflow in the first step.
pub const fn mult_frac(x: u64, numerator: u64, denominator: u64) -> u64 {
    x / denominator * numerator + x % denominator * numerator / denominator
}

/// `calculate_min_free_kbytes`: KiB to keep free on a machine with `free_buffer_pages` (`nr_free_buffer_pages`).
pub const fn calculate_min_free_kbytes(free_buffer_pages: u64) -> u64 {
    let kbytes = int_sqrt(free_buffer_pages * 4 * 16);
    if kbytes < 128 {
        128
    } else if kbytes > 262_144 {
        262_144
    } else {
        kbytes
    }
}

/// `__setup_per_zone_wmarks`, for one zone of `managed` pages on a machine of `lowmem_pages`.
pub const fn setup_per_zone_wmarks(
    min_free_kbytes: u64,
    managed: u64,
    lowmem_pages: u64,
    scale_factor: u32,
) -> Watermarks {
    let pages_min = min_free_kbytes >> 2;
    let min = match (pages_min * managed).checked_div(lowmem_pages) {
        Some(share) => share,
        None => 0,
    };
    let scaled = mult_frac(managed, scale_factor as u64, 10_000);
    let step = if min >> 2 > scaled { min >> 2 } else { scaled };
    Watermarks { min, low: min + step, high: min + 2 * step, promo: min + 3 * step }
}

/// `setup_per_zone_lowmem_reserve`, for the zone of type `zone` in a node whose zones have `managed` pages: what it
/// keeps from allocations that could have used a higher zone, by that zone's type.
pub const fn setup_per_zone_lowmem_reserve(
    managed: &[u64; MAX_NR_ZONES],
    zone: usize,
    ratio: u32,
) -> [u64; MAX_NR_ZONES] {
    let mut reserve = [0; MAX_NR_ZONES];
    let clear = ratio == 0 || managed[zone] == 0;
    let mut above = 0;
    let mut upper = zone + 1;
    while upper < MAX_NR_ZONES {
        above += managed[upper];
        reserve[upper] = if clear { 0 } else { above / ratio as u64 };
        upper += 1;
    }
    reserve
}

/// `zone_batchsize`: pages moved at a time between a pageset and a zone of `managed` pages.
pub const fn zone_batchsize(managed: u64) -> u32 {
    // About 0.1 % of the zone, at most 1 MiB; a quarter of it; then 2^n - 1.
    let share = managed >> 10;
    let mut batch = if share < 256 { share } else { 256 } / 4;
    if batch < 1 {
        batch = 1;
    }
    let sum = batch + batch / 2;
    let batch = (1u64 << (63 - sum.leading_zeros())) - 1;
    if batch < 1 { 1 } else { batch as u32 }
}

/// `zone_highsize`: how many pages a pageset may hold, of a zone with low watermark `low`, shared by `node_cpus` CPUs
/// of its node, or by all `online_cpus` when the node has none.
pub const fn zone_highsize(
    low: u64,
    managed: u64,
    batch: u32,
    high_fraction: u32,
    node_cpus: u32,
    online_cpus: u32,
) -> u32 {
    let total = if high_fraction == 0 { low } else { managed / high_fraction as u64 };
    let share = if node_cpus != 0 { node_cpus } else { online_cpus };
    let high = if share == 0 { total } else { total / share as u64 };
    let floor = (batch as u64) << 2;
    let high = if high > floor { high } else { floor };
    if high > i32::MAX as u64 { i32::MAX as u32 } else { high as u32 }
}

/// `fls`: position of the highest set bit, counted from 1; 0 for 0.
const fn fls(x: u64) -> u32 {
    64 - x.leading_zeros()
}

/// `calculate_normal_threshold`: how much of a counter of a zone with `managed` pages one of `online_cpus` CPUs may
/// hold back.
pub const fn calculate_normal_threshold(managed: u64, online_cpus: u32) -> u32 {
    // Memory in units of 128 MiB.
    let mem = managed >> (27 - 12);
    let threshold = 2 * fls(online_cpus as u64) * (1 + fls(mem));
    if threshold < 125 { threshold } else { 125 }
}

/// `calculate_pressure_threshold`: the same while the zone is so low that an error of it would matter.
pub const fn calculate_pressure_threshold(low: u64, min: u64, online_cpus: u32) -> u32 {
    let distance = low.saturating_sub(min);
    let share = distance / if online_cpus == 0 { 1 } else { online_cpus as u64 };
    let threshold = if share < 1 { 1 } else { share };
    if threshold < 125 { threshold as u32 } else { 125 }
}

/// `refresh_zone_stat_thresholds`: below this many free pages the CPUs' pending deltas must be counted in, since
/// otherwise they could hide that the min watermark is passed; 0 when they cannot.
pub const fn percpu_drift_mark(high: u64, low: u64, min: u64, threshold: u32, online_cpus: u32) -> u64 {
    let tolerate_drift = low - min;
    let max_drift = online_cpus as u64 * threshold as u64;
    if max_drift > tolerate_drift { high + max_drift } else { 0 }
}

/// `boost_watermark`: the new boost of a zone after a fallback that mixes migrate types; `None` to leave it.
pub const fn boost_watermark(boost: u64, high: u64, managed: u64, boost_factor: u32) -> Option<u64> {
    // Zones too small to gain from it only run dry sooner.
    if boost_factor == 0 || PAGEBLOCK_NR_PAGES * 4 > managed {
        return None;
    }
    let max_boost = mult_frac(high, boost_factor as u64, 10_000);
    if max_boost == 0 {
        return None;
    }
    let max_boost = if max_boost > PAGEBLOCK_NR_PAGES { max_boost } else { PAGEBLOCK_NR_PAGES };
    let boosted = boost + PAGEBLOCK_NR_PAGES;
    Some(if boosted < max_boost { boosted } else { max_boost })
}
