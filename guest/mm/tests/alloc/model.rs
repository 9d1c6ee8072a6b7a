//! The allocator against [`crate::reference`], list by list after every step, and against a set of pages on machines of
//! several nodes.

use std::collections::{BTreeMap, VecDeque};

use pagevisor_mm::check::{free_list, pageset_list};
use pagevisor_mm::hosted::{Machine, Topology};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::units::{CpuId, NodeId, NodeMask, Order, Pfn};
use pagevisor_shared::zone::{ZoneIndex, ZoneType};
use proptest::prelude::*;

use crate::reference::Zone;
use crate::{GIB, MIB, assert_sound, order, zone};

/// A step of the comparison with the reference.
#[derive(Clone, Debug)]
enum Step {
    Alloc { order: u32, kind: usize },
    Free { which: usize },
    FreeSome { from: usize, count: usize },
    Drain,
}

fn steps(count: usize) -> impl Strategy<Value = Vec<Step>> {
    let orders = prop_oneof![6 => 0u32..=3, 2 => 4u32..=8, 2 => Just(9u32), 1 => Just(10u32)];
    let step = prop_oneof![
        12 => (orders, 0usize..3).prop_map(|(order, kind)| Step::Alloc { order, kind }),
        8 => any::<usize>().prop_map(|which| Step::Free { which }),
        2 => (any::<usize>(), 1usize..60).prop_map(|(from, count)| Step::FreeSome { from, count }),
        1 => Just(Step::Drain),
    ];
    proptest::collection::vec(step, 1..count)
}

const GFPS: [Gfp; 3] = [Gfp::KERNEL, Gfp::HIGHUSER_MOVABLE, Gfp::KERNEL.with(Gfp::RECLAIMABLE)];

/// A machine of one zone, and the reference of it.
struct Pair {
    machine: Machine,
    zone: ZoneIndex,
    reference: Zone,
    held: Vec<(u64, u32)>,
}

impl Pair {
    fn new(start: u64, bytes: u64, kind: ZoneType) -> Self {
        let (hole, hole_end) = (start + 5 * MIB + 0x7000, start + 9 * MIB + 0x3000);
        let machine = Topology::pages_only().node(&[(start, start + bytes)], 1).reserve(hole, hole_end).boot();
        let zone = zone(0, kind);
        let state = machine.mm().zone(zone).expect("the zone");
        let load = |word: &core::sync::atomic::AtomicU32| word.load(std::sync::atomic::Ordering::Relaxed) as i64;
        let (high, batch) = (load(&state.pageset_high), load(&state.pageset_batch));
        let mut reference = Zone::new(start >> 12, (start + bytes) >> 12, high, batch, kind == ZoneType::Normal);
        let mut at = start >> 12;
        for range in machine.mm().region().reserved() {
            let base = range.base.load(std::sync::atomic::Ordering::Relaxed);
            let size = range.size.load(std::sync::atomic::Ordering::Relaxed);
            reference.free_boot_range(at, base >> 12);
            at = (base + size).div_ceil(1 << 12);
        }
        reference.free_boot_range(at, (start + bytes) >> 12);
        Self { machine, zone, reference, held: Vec::new() }
    }

    fn step(&mut self, step: &Step) {
        let mm = self.machine.mm();
        match *step {
            Step::Alloc { order: raw, kind } => {
                // Watermarks are another test's business.
                let enough = self.reference.free_pages() > (4096 << raw.saturating_sub(8)).max(4096);
                if !enough {
                    return;
                }
                let got = mm.alloc_pages(GFPS[kind] | Gfp::NOWARN | Gfp::NORETRY, order(raw));
                let expected = self.reference.alloc(raw as usize, kind);
                assert_eq!(got.map(Pfn::raw), expected, "order {raw}, type {kind}");
                self.held.extend(got.map(|pfn| (pfn.raw(), raw)));
            }
            Step::Free { which } => self.free(which),
            Step::FreeSome { from, count } => (0..count).for_each(|_| self.free(from)),
            Step::Drain => {
                mm.drain_local_pages();
                self.reference.drain();
            }
        }
    }

    fn free(&mut self, which: usize) {
        if self.held.is_empty() {
            return;
        }
        let (pfn, raw) = self.held.remove(which % self.held.len());
        self.machine.mm().free_pages(Pfn::new(pfn), order(raw));
        self.reference.free(pfn, raw as usize);
    }

    fn compare(&self) {
        let mm = self.machine.mm();
        for raw in 0..11 {
            for kind in MigrateType::ALL {
                let list = free_list(mm, self.zone, order(raw), kind);
                let real: VecDeque<u64> = list.into_iter().map(Pfn::raw).collect();
                let expected = &self.reference.free[raw as usize][kind.index()];
                assert_eq!(&real, expected, "free list of order {raw}, {}", kind.name());
            }
        }
        for (pindex, expected) in self.reference.pcp.iter().enumerate() {
            let real = pageset_list(mm, CpuId::default(), self.zone, pindex);
            let real: VecDeque<u64> = real.into_iter().map(Pfn::raw).collect();
            let expected: VecDeque<u64> = expected.iter().map(|&(pfn, _)| pfn).collect();
            assert_eq!(real, expected, "pageset list {pindex}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_list_is_as_linux_has_it(steps in steps(600), normal in any::<bool>()) {
        let (start, kind) = if normal { (4 * GIB, ZoneType::Normal) } else { (16 * MIB, ZoneType::Dma32) };
        let mut pair = Pair::new(start, 64 * MIB, kind);
        pair.compare();
        for step in &steps {
            pair.step(step);
            pair.compare();
        }
        assert_sound(pair.machine.mm());
        while !pair.held.is_empty() {
            pair.free(0);
        }
        pair.step(&Step::Drain);
        pair.compare();
        assert_sound(pair.machine.mm());
    }
}

/// A step on a machine of several nodes.
#[derive(Clone, Debug)]
enum Any {
    Alloc { order: u32, gfp: Gfp, cpu: usize, node: Option<usize>, mask: Option<u64> },
    Free { which: usize, cpu: usize },
    Split { which: usize },
    Exact { bytes: u64 },
    Drain,
    Fold,
}

fn any_steps() -> impl Strategy<Value = Vec<Any>> {
    let bits = prop_oneof![
        Just(Gfp::KERNEL),
        Just(Gfp::ATOMIC_ALLOC),
        Just(Gfp::HIGHUSER_MOVABLE),
        Just(Gfp::KERNEL | Gfp::DMA),
        Just(Gfp::KERNEL | Gfp::DMA32),
        Just(Gfp::NOWAIT),
        Just(Gfp::KERNEL | Gfp::RECLAIMABLE),
        Just(Gfp::KERNEL | Gfp::MEMALLOC),
        Just(Gfp::NOFS | Gfp::HIGH),
    ];
    let extra = prop_oneof![
        4 => Just(Gfp::NONE), 1 => Just(Gfp::THISNODE), 1 => Just(Gfp::COMP), 1 => Just(Gfp::ZERO), 1 => Just(Gfp::WRITE),
    ];
    let gfp = (bits, extra).prop_map(|(a, b)| a | b | Gfp::NOWARN | Gfp::NORETRY);
    let order = prop_oneof![4 => 0u32..=3, 2 => 4u32..=8, 1 => 9u32..=10];
    let step = prop_oneof![
        10 => (order, gfp, 0usize..4, proptest::option::of(0usize..4), proptest::option::of(0u64..16))
            .prop_map(|(order, gfp, cpu, node, mask)| Any::Alloc { order, gfp, cpu, node, mask }),
        8 => (any::<usize>(), 0usize..4).prop_map(|(which, cpu)| Any::Free { which, cpu }),
        1 => any::<usize>().prop_map(|which| Any::Split { which }),
        1 => (1u64..200_000).prop_map(|bytes| Any::Exact { bytes }),
        1 => Just(Any::Drain),
        1 => Just(Any::Fold),
    ];
    proptest::collection::vec(step, 1..150)
}

/// Pages in use, by first frame: order and whether compound. No two may overlap.
struct Held {
    machine: Machine,
    blocks: BTreeMap<u64, (Order, bool)>,
}

impl Held {
    fn enter(&mut self, pfn: u64, order: Order, compound: bool) {
        let end = pfn + order.pages();
        let before = self.blocks.range(..end).next_back();
        assert!(before.is_none_or(|(&other, &(o, _))| other + o.pages() <= pfn), "{pfn:#x} is handed out twice");
        assert!(Pfn::new(pfn).is_aligned(order));
        self.blocks.insert(pfn, (order, compound));
    }

    fn take(&mut self, which: usize) -> Option<(u64, Order, bool)> {
        let key = *self.blocks.keys().nth(which % self.blocks.len().max(1))?;
        let (order, compound) = self.blocks.remove(&key)?;
        Some((key, order, compound))
    }

    fn step(&mut self, step: &Any) {
        match *step {
            Any::Alloc { order: raw, gfp, cpu, node, mask } => self.alloc(order(raw), gfp, cpu, node, mask),
            Any::Free { which, cpu } => {
                if let Some((pfn, order, _)) = self.take(which) {
                    self.machine.on_cpu(cpu, |mm| mm.free_pages(Pfn::new(pfn), order));
                }
            }
            Any::Split { which } => {
                if let Some((pfn, order, compound)) = self.take(which) {
                    if compound {
                        return self.enter(pfn, order, compound);
                    }
                    self.machine.mm().split_page(Pfn::new(pfn), order);
                    (0..order.pages()).for_each(|page| self.enter(pfn + page, Order::ZERO, false));
                }
            }
            Any::Exact { bytes } => {
                if let Some(pfn) = self.machine.mm().alloc_pages_exact(bytes, Gfp::KERNEL | Gfp::NOWARN) {
                    (0..bytes.div_ceil(4096)).for_each(|page| self.enter(pfn.raw() + page, Order::ZERO, false));
                }
            }
            Any::Drain => self.machine.mm().drain_all_pages(None),
            Any::Fold => {
                for cpu in 0..4 {
                    self.machine.on_cpu(cpu, |mm| mm.quiet_vmstat());
                }
                self.machine.mm().fold_vm_numa_events();
            }
        }
    }

    fn alloc(&mut self, order: Order, gfp: Gfp, cpu: usize, node: Option<usize>, mask: Option<u64>) {
        let mask = mask.map(NodeMask);
        let got = self.machine.on_cpu(cpu, |mm| match (node.and_then(NodeId::new), mask) {
            (None, None) => mm.alloc_pages(gfp, order),
            (node, mask) => mm.alloc_pages_nodemask(gfp, order, node.unwrap_or_default(), mask),
        });
        let Some(pfn) = got else { return };
        let mm = self.machine.mm();
        let from = mm.page_to_nid(pfn).expect("memory");
        let kind = mm.page_zone(pfn).expect("memory").index() % 5;
        assert!(kind <= gfp.zone().index(), "a page above the zone that was asked for");
        // Masks do not bind the allocations that may ignore policies.
        let atomic = gfp.contains(Gfp::HIGH) && !gfp.contains(Gfp::DIRECT_RECLAIM);
        let bound = !gfp.contains(Gfp::MEMALLOC) && !atomic;
        assert!(!bound || mask.is_none_or(|mask| mask.contains(from)), "a page of a node outside the mask");
        if gfp.contains(Gfp::THISNODE) {
            let wanted = node.unwrap_or(if mask.is_some() { 0 } else { cpu });
            assert_eq!(from.index(), wanted, "a page of another node than this");
        }
        let compound = gfp.contains(Gfp::COMP) && order != Order::ZERO;
        if compound {
            for page in [0, 1, order.pages() - 1] {
                assert_eq!(mm.compound_head(pfn.add(page)), Some(pfn));
            }
        }
        self.enter(pfn.raw(), order, compound);
    }
}

/// Four nodes: all zones on the first, one interleaved with another, one that starts inside a chunk.
fn four_nodes() -> Machine {
    let base = 4 * GIB;
    Topology::pages_only()
        .node(&[(0, 640 << 10), (MIB, 24 * MIB), (base, base + 8 * MIB)], 1)
        .node(&[(base + 8 * MIB, base + 15 * MIB + 0x5000), (base + 20 * MIB, base + 26 * MIB)], 1)
        .node(&[(base + 15 * MIB + 0x5000, base + 20 * MIB)], 1)
        .node(&[(base + 200 * MIB, base + 209 * MIB + 0x3000)], 1)
        .boot()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn pages_are_never_lost_nor_given_twice(steps in any_steps()) {
        let mut held = Held { machine: four_nodes(), blocks: BTreeMap::new() };
        let free = |machine: &Machine| {
            machine.mm().drain_all_pages(None);
            machine.mm().populated_zones()
                .map(|(zone, _)| machine.mm().zone_page_state_snapshot(zone, pagevisor_shared::vmstat::ZoneStat::NrFreePages))
                .sum::<u64>()
        };
        let before = free(&held.machine);
        for step in &steps {
            held.step(step);
            assert_sound(held.machine.mm());
        }
        while let Some((pfn, order, _)) = held.take(0) {
            held.machine.mm().free_pages(Pfn::new(pfn), order);
        }
        prop_assert_eq!(free(&held.machine), before);
        assert_sound(held.machine.mm());
    }
}
