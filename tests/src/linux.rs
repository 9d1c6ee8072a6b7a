//! Linux 6.1's arithmetic for zones, recomputed from the kernel's formulas alone.
//!
//! Written apart from the guest's memory stack on purpose: what the two agree on, neither took from the other.

use crate::views::ZoneInfo;

/// Zones that `protection` lists: DMA, DMA32, Normal, Movable, Device.
const ZONES: usize = 5;
/// `sysctl_lowmem_reserve_ratio`.
const RESERVE_RATIO: [u64; ZONES] = [256, 256, 32, 0, 0];
/// `watermark_scale_factor`.
const SCALE_FACTOR: u64 = 10;

/// Position of a zone in `protection`.
///
/// # Panics
/// If there is no such zone.
pub fn zone_number(name: &str) -> usize {
    ["DMA", "DMA32", "Normal", "Movable", "Device"].iter().position(|n| *n == name).expect("a zone's name")
}

/// `min_free_kbytes` of `init_per_zone_wmark_min`, from all managed pages.
pub fn min_free_kbytes(managed: u64) -> u64 {
    (managed * 4 * 16).isqrt().clamp(128, 262_144)
}

/// `__setup_per_zone_wmarks`: min, low and high of a zone.
pub fn watermarks(min_free_kbytes: u64, zone_managed: u64, all_managed: u64) -> [u64; 3] {
    let pages_min = min_free_kbytes >> 2;
    let min = pages_min * zone_managed / all_managed.max(1);
    let gap = (min >> 2).max(zone_managed * SCALE_FACTOR / 10_000);
    [min, min + gap, min + 2 * gap]
}

/// `setup_per_zone_lowmem_reserve`: `protection` of the zone with this number, from the managed pages of the node's
/// zones.
pub fn protection(zone: usize, managed: [u64; ZONES]) -> Vec<u64> {
    (0..ZONES)
        .map(|above| {
            let pages: u64 = managed.iter().skip(zone + 1).take(above.saturating_sub(zone)).sum();
            if RESERVE_RATIO[zone] == 0 || managed[zone] == 0 { 0 } else { pages / RESERVE_RATIO[zone] }
        })
        .collect()
}

/// `zone_batchsize` as zoneinfo shows it.
pub fn batch(managed: u64) -> u64 {
    let quarter = ((managed / 1024).min(256) / 4).max(1);
    let wanted = quarter + quarter / 2;
    ((1 << wanted.ilog2()) - 1).max(1)
}

/// `zone_highsize`.
pub fn high(zone: &ZoneInfo, node_cpus: u64, online_cpus: u64) -> u64 {
    let share = if node_cpus == 0 { online_cpus } else { node_cpus };
    (zone.page("low") / share).max(batch(zone.page("managed")) << 2)
}

/// `calculate_normal_threshold`.
pub fn stat_threshold(managed: u64, online_cpus: u64) -> u64 {
    let fls = |x: u64| u64::from(u64::BITS - x.leading_zeros());
    (2 * fls(online_cpus) * (1 + fls(managed >> 15))).min(125)
}

/// What the zonelists are built from.
#[derive(Clone, Debug)]
pub struct Numa {
    /// `distance[from][to]`.
    pub distance: Vec<Vec<u64>>,
    /// Whether the node has memory.
    pub memory: Vec<bool>,
    /// Whether the node has CPUs.
    pub cpus: Vec<bool>,
}

/// `build_zonelists` of every node in turn: the fallback orders.
pub fn fallback_orders(numa: &Numa) -> Vec<Vec<usize>> {
    let count = numa.distance.len();
    let mut load = vec![0_u64; count];
    (0..count)
        .map(|local| {
            let mut order: Vec<usize> = Vec::new();
            while let Some(node) = next_best(numa, local, &order, &load) {
                let previous = order.last().copied().unwrap_or(local);
                if numa.distance[local][node] != numa.distance[local][previous] {
                    load[node] += 1;
                }
                order.push(node);
            }
            order
        })
        .collect()
}

/// `find_next_best_node`: the local node first, then the nearest, with its penalties.
fn next_best(numa: &Numa, local: usize, used: &[usize], load: &[u64]) -> Option<usize> {
    const MAX_NUMNODES: u64 = 64;
    if !used.contains(&local) {
        return Some(local);
    }
    (0..numa.distance.len()).filter(|n| numa.memory[*n] && !used.contains(n)).min_by_key(|&n| {
        let value = numa.distance[local][n] + u64::from(n < local) + u64::from(numa.cpus[n]);
        (value * MAX_NUMNODES + load[n], n)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Figures of Debian's Linux 6.1.192: 2 nodes of one CPU and 2560 MiB each (zoneinfo with THP off), 4 nodes in a
    // ring.
    #[test]
    fn two_nodes_of_linux() {
        let managed = [3840, 492_458, 120_723, 0, 0];
        let all = managed.iter().sum::<u64>() + 644_807;
        assert_eq!(watermarks(8864, managed[0], all), [6, 9, 12]);
        assert_eq!(watermarks(8864, managed[1], all), [864, 1356, 1848]);
        assert_eq!(watermarks(8864, managed[2], all), [212, 332, 452]);
        assert_eq!(watermarks(8864, 644_807, all), [1132, 1776, 2420]);
        assert_eq!(protection(0, managed), [0, 1923, 2395, 2395, 2395]);
        assert_eq!(protection(1, managed), [0, 0, 471, 471, 471]);
        assert_eq!([batch(3840), batch(492_458), batch(120_723)], [1, 63, 31]);
        let thresholds = [3840, 492_458, 120_723, 644_807].map(|m| stat_threshold(m, 2));
        assert_eq!(thresholds, [4, 20, 12, 24]);
    }

    #[test]
    fn the_ring_of_linux() {
        let distance = vec![vec![10, 16, 22, 16], vec![16, 10, 16, 22], vec![22, 16, 10, 16], vec![16, 22, 16, 10]];
        let numa = Numa { distance, memory: vec![true; 4], cpus: vec![true; 4] };
        let orders = fallback_orders(&numa);
        assert_eq!(orders, [[0, 1, 3, 2], [1, 2, 0, 3], [2, 3, 1, 0], [3, 0, 2, 1]]);
    }
}
