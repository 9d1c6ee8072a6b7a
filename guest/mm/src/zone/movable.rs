//! How much of each node is ZONE_MOVABLE, memory for pages that can be moved away and nothing else
//! (`kernelcore=`, `movablecore=`, `find_zone_movable_pfns_for_nodes`).

use pagevisor_shared::MAX_NUMNODES;
use pagevisor_shared::units::{MAX_ORDER_NR_PAGES, NodeId, NodeMask};
use pagevisor_shared::zone::{MAX_DMA_PFN, MAX_DMA32_PFN};

use crate::memblock::{Memblock, PfnRange};

/// An amount of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Core {
    /// In pages.
    Pages(u64),
    /// In percent of all memory.
    Percent(u64),
}

impl Core {
    /// The amount on a machine of `total` pages.
    const fn of(self, total: u64) -> u64 {
        match self {
            Self::Pages(pages) => pages,
            Self::Percent(percent) => total * 100 * percent / 10_000,
        }
    }
}

/// How much of the machine is to be ZONE_MOVABLE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct MovableRequest {
    /// Memory for any kind of allocation; the rest is ZONE_MOVABLE. 0 for no wish.
    pub(crate) kernelcore: Core,
    /// ZONE_MOVABLE; the rest is for any kind of allocation. 0 for no wish.
    pub(crate) movablecore: Core,
}

impl Default for MovableRequest {
    fn default() -> Self {
        Self { kernelcore: Core::Pages(0), movablecore: Core::Pages(0) }
    }
}

/// Where ZONE_MOVABLE starts on each node (`zone_movable_pfn`); it reaches to the node's end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MovableStart {
    /// First frame; 0 on a node without it.
    starts: [u64; MAX_NUMNODES],
    /// Whether any node has it.
    any: bool,
}

impl MovableStart {
    /// Nowhere.
    pub(crate) const fn none() -> Self {
        Self { starts: [0; MAX_NUMNODES], any: false }
    }

    /// Works the starts out for `memblock`'s memory.
    pub(crate) fn find(memblock: &Memblock, request: MovableRequest) -> Self {
        if request == MovableRequest::default() {
            return Self::none();
        }
        find_zone_movable_pfns(|| memblock.mem_pfn_ranges(None), request)
    }

    /// The first frame of `node`'s ZONE_MOVABLE.
    #[inline]
    pub(crate) fn on(&self, node: NodeId) -> Option<u64> {
        if self.any { Some(self.starts[node.index()]).filter(|start| *start != 0) } else { None }
    }

    /// Nodes that have it, in order.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeId, u64)> {
        (0..MAX_NUMNODES).filter_map(NodeId::new).filter_map(|node| Some((node, self.on(node)?)))
    }
}

/// `find_zone_movable_pfns_for_nodes`: `all` gives memory's frames, lowest first.
fn find_zone_movable_pfns<I: Iterator<Item = PfnRange>>(all: impl Fn() -> I, request: MovableRequest) -> MovableStart {
    let (mut total, mut memory, mut top) = (0, NodeMask::default(), 0);
    // Memory without a node counts as node 0's, as everywhere.
    let of = |node| all().filter(move |range| range.nid.unwrap_or_default() == node);
    for range in all() {
        total += range.end.raw() - range.start.raw();
        memory = memory.with(range.nid.unwrap_or_default());
        top = top.max(range.end.raw());
    }
    let mut required = request.kernelcore.of(total);
    let movable = request.movablecore.of(total);
    if movable != 0 {
        // At least as much as was asked for.
        required = required.max(total - movable.next_multiple_of(MAX_ORDER_NR_PAGES).min(total));
    }
    let mut found = MovableStart::none();
    if required == 0 || required >= total {
        return found;
    }
    // ZONE_MOVABLE is cut off the highest zone that has memory (`find_usable_zone_for_movable`).
    let usable_start = if top > MAX_DMA32_PFN {
        MAX_DMA32_PFN
    } else if top > MAX_DMA_PFN {
        MAX_DMA_PFN
    } else {
        0
    };
    let mut spread = Spread { starts: &mut found.starts, required, usable_start };
    let mut usable_nodes = memory.weight() as u64;
    while usable_nodes != 0 {
        spread.pass(memory, usable_nodes, of);
        // What small nodes could not give, the others give.
        usable_nodes -= 1;
        if spread.required <= usable_nodes {
            break;
        }
    }
    for node in memory.iter() {
        let end = of(node).last().map_or(0, |range| range.end.raw());
        let start = &mut found.starts[node.index()];
        *start = start.next_multiple_of(MAX_ORDER_NR_PAGES);
        if *start >= end {
            *start = 0;
        }
        found.any |= *start != 0;
    }
    found
}

/// Spreading memory for any kind of allocation evenly over the nodes.
struct Spread<'a> {
    starts: &'a mut [u64; MAX_NUMNODES],
    /// Pages still to be found.
    required: u64,
    /// The lowest frame at which ZONE_MOVABLE can be.
    usable_start: u64,
}

impl Spread<'_> {
    /// Takes an equal share from each node that has that much.
    fn pass<I: Iterator<Item = PfnRange>>(&mut self, memory: NodeMask, nodes: u64, ranges: impl Fn(NodeId) -> I) {
        let mut share = self.required / nodes;
        for node in memory.iter() {
            if self.required < share {
                share = self.required / nodes;
            }
            self.take(node, share, ranges(node));
        }
    }

    /// Takes `remaining` pages from the node, from where the last pass ended.
    fn take(&mut self, node: NodeId, mut remaining: u64, ranges: impl Iterator<Item = PfnRange>) {
        let reached = &mut self.starts[node.index()];
        for range in ranges {
            let (mut start, end) = (range.start.raw().max(*reached), range.end.raw());
            if start >= end {
                continue;
            }
            if start < self.usable_start {
                // Cannot be ZONE_MOVABLE whatever is asked for.
                let pages = end.min(self.usable_start) - start;
                remaining -= pages.min(remaining);
                self.required -= pages.min(self.required);
                if end <= self.usable_start {
                    // Not to be counted again by the next pass.
                    *reached = end;
                    continue;
                }
                start = self.usable_start;
            }
            let pages = (end - start).min(remaining);
            *reached = start + pages;
            self.required -= pages.min(self.required);
            remaining -= pages;
            if remaining == 0 {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use pagevisor_shared::units::Pfn;
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 8;
    const GIB: u64 = 1 << 18;

    /// Memory as `(node, first frame, frame behind the last)`.
    type Memory = [(usize, u64, u64)];

    fn find(memory: &Memory, kernelcore: Core, movablecore: Core) -> Vec<u64> {
        let range = |&(node, start, end): &(usize, u64, u64)| PfnRange {
            start: Pfn::new(start),
            end: Pfn::new(end),
            nid: NodeId::new(node),
        };
        let found = find_zone_movable_pfns(|| memory.iter().map(range), MovableRequest { kernelcore, movablecore });
        let nodes = memory.iter().map(|(node, ..)| node + 1).max().unwrap_or(0);
        (0..nodes).map(|node| found.on(NodeId::new(node).expect("few")).unwrap_or(0)).collect()
    }

    const NONE: Core = Core::Pages(0);

    /// Two nodes of 2560 MiB, RAM below 4 GiB ending at 2 GiB, as machine T2 of the reference.
    const T2: &Memory =
        &[(0, 1, 159), (0, 256, 2 * GIB), (0, 4 * GIB, 4 * GIB + 512 * MIB), (1, 4 * GIB + 512 * MIB, 7 * GIB)];
    /// Four nodes of 2 GiB, as T3.
    const T3: &Memory =
        &[(0, 1, 159), (0, 256, 2 * GIB), (1, 4 * GIB, 6 * GIB), (2, 6 * GIB, 8 * GIB), (3, 8 * GIB, 10 * GIB)];

    #[test]
    fn nothing_asked_for_or_too_much() {
        assert_eq!(find(T2, NONE, NONE), [0, 0]);
        assert_eq!(find(T2, Core::Pages(6 * GIB), NONE), [0, 0], "more than there is");
        assert_eq!(find(T2, Core::Percent(100), NONE), [0, 0]);
        assert_eq!(find(T2, Core::Percent(0), NONE), [0, 0]);
    }

    #[test]
    fn kernelcore_is_spread_evenly() {
        let even: Vec<_> = (0..4).map(|node| (node as usize, (4 + 2 * node) * GIB, (6 + 2 * node) * GIB)).collect();
        assert_eq!(find(&even, Core::Pages(4 * GIB), NONE), [5 * GIB, 7 * GIB, 9 * GIB, 11 * GIB]);
        assert_eq!(find(&even, Core::Percent(25), NONE), [0, 1, 2, 3].map(|node| (4 + 2 * node) * GIB + 512 * MIB));
        // Node 0 has more than its share below 4 GiB, where no ZONE_MOVABLE can be.
        let low = 2 * GIB - 98;
        let node1 = 4 * GIB + 512 * MIB;
        assert_eq!(find(T2, Core::Pages(low), NONE), [4 * GIB, node1]);
        // What is left to find is halved for node 1, and the second pass begins at node 0 again.
        assert_eq!(find(T2, Core::Pages(low + GIB), NONE), [0, node1 + 512 * MIB]);
        assert_eq!(find(T2, Core::Pages(low + 512 * MIB), NONE), [4 * GIB + 256 * MIB, node1 + 256 * MIB]);
        // Shares of 2304 MiB; starts are rounded up to 4 MiB.
        assert_eq!(find(T2, Core::Pages(4 * GIB + 512 * MIB), NONE), [4 * GIB + 256 * MIB + 1024, node1 + 2304 * MIB]);
    }

    #[test]
    fn movablecore_is_rounded_up() {
        let total: u64 = T3.iter().map(|(_, start, end)| end - start).sum();
        // 4 GiB and a page: 1025 blocks of 4 MiB on three nodes.
        let found = find(T3, NONE, Core::Pages(4 * GIB + 1));
        assert_eq!(found[0], 0);
        let movable: u64 = [6 * GIB, 8 * GIB, 10 * GIB].iter().zip(&found[1..]).map(|(end, start)| end - start).sum();
        assert!(found.iter().all(|start| start.is_multiple_of(MAX_ORDER_NR_PAGES)));
        assert!(movable.abs_diff(4 * GIB + 1024) <= 3 * MAX_ORDER_NR_PAGES, "{movable}");
        // The larger of the two wins.
        let both = find(T3, Core::Pages(total - 2 * GIB), Core::Pages(4 * GIB));
        assert_eq!(both, find(T3, Core::Pages(total - 2 * GIB), NONE));
        let both = find(T3, Core::Pages(GIB), Core::Pages(4 * GIB));
        assert_eq!(both, find(T3, NONE, Core::Pages(4 * GIB)));
    }

    #[test]
    fn low_memory_serves_where_there_is_no_other() {
        let low: &Memory = &[(0, 1, 159), (0, 256, 256 * MIB)];
        assert_eq!(find(low, Core::Pages(96 * MIB), NONE), [96 * MIB + 1024], "page 0 and the hole below 1 MiB");
        assert_eq!(find(low, Core::Percent(1), NONE), [16 * MIB], "never in ZONE_DMA");
    }

    proptest! {
        /// Whatever the nodes: aligned, inside the node, above what cannot move, and the kernel gets what it asked for,
        /// but for what lies beyond rounding.
        #[test]
        fn the_kernel_gets_its_share(
            sizes in proptest::collection::vec(1u64..4 * GIB, 1..9),
            percent in 1u64..100,
        ) {
            let mut memory = Vec::new();
            let mut at = 4 * GIB;
            for (node, size) in sizes.iter().enumerate() {
                memory.push((node, at, at + size));
                at += size;
            }
            let total: u64 = sizes.iter().sum();
            let wanted = total * percent / 100;
            let found = find(&memory, Core::Pages(wanted), NONE);
            let mut kernel = 0;
            for (&(_, start, end), &movable) in memory.iter().zip(&found) {
                prop_assert!(movable == 0 || (start <= movable && movable < end));
                prop_assert!(movable.is_multiple_of(MAX_ORDER_NR_PAGES));
                kernel += if movable == 0 { end - start } else { movable - start };
            }
            let nodes = sizes.len() as u64;
            prop_assert!(kernel + nodes >= wanted, "{kernel} of {wanted}");
            prop_assert!(wanted == 0 || kernel <= wanted + nodes * 2 * MAX_ORDER_NR_PAGES, "{kernel} of {wanted}");
        }
    }
}
