//! Eight CPUs on four nodes at once.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use pagevisor_mm::Mm;
use pagevisor_mm::hosted::{HostPlatform, Topology};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::seq;
use pagevisor_shared::units::{NodeId, Order, Pfn};
use pagevisor_shared::vmstat::ZoneStat;

use crate::{GIB, MIB, assert_sound, order};

/// A small generator of its own, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Writes the owner's mark to a block; gives whether the block is still all its own.
fn mark(mm: &Mm<HostPlatform>, pfn: Pfn, owner: u64) {
    // SAFETY: this CPU owns the page.
    unsafe { mm.direct_map().at(pfn.addr()).cast::<u64>().write_volatile(owner) };
}

fn is_marked(mm: &Mm<HostPlatform>, pfn: Pfn, owner: u64) -> bool {
    // SAFETY: this CPU owns the page.
    unsafe { mm.direct_map().at(pfn.addr()).cast::<u64>().read_volatile() == owner }
}

/// Allocates and frees at random, and checks that nobody else had its pages meanwhile.
fn work(mm: &Mm<HostPlatform>, cpu: u64, rounds: usize) {
    let mut random = Random(0x9e37_79b9 + cpu * 77);
    let mut held: Vec<(Pfn, Order, u64)> = Vec::new();
    let gfps = [
        Gfp::KERNEL,
        Gfp::HIGHUSER_MOVABLE,
        Gfp::ATOMIC_ALLOC,
        Gfp::KERNEL | Gfp::RECLAIMABLE,
        Gfp::KERNEL | Gfp::COMP,
    ];
    for round in 0..rounds {
        let dice = random.next();
        if dice % 100 < 52 || held.is_empty() {
            let order = order(if dice.is_multiple_of(7) { (dice >> 8) % 11 } else { (dice >> 8) % 4 } as u32);
            let gfp = gfps[(dice >> 20) as usize % gfps.len()] | Gfp::NOWARN | Gfp::NORETRY;
            let node = NodeId::new((dice >> 30) as usize % 8).filter(|node| node.index() < 4);
            if let Some(pfn) = mm.alloc_pages_node(node, gfp, order) {
                let owner = cpu << 32 | round as u64;
                mark(mm, pfn, owner);
                mark(mm, pfn.add(order.pages() - 1), owner);
                held.push((pfn, order, owner));
            }
        } else {
            let (pfn, order, owner) = held.swap_remove((dice >> 8) as usize % held.len());
            assert!(is_marked(mm, pfn, owner) && is_marked(mm, pfn.add(order.pages() - 1), owner));
            mm.free_pages(pfn, order);
        }
        match dice % 500 {
            0 => mm.drain_all_pages(None),
            1 => mm.drain_local_pages(),
            2 => mm.quiet_vmstat(),
            3 => mm.fold_vm_numa_events(),
            _ => {}
        }
    }
    held.into_iter().for_each(|(pfn, order, _)| mm.free_pages(pfn, order));
}

/// Reads all zones as the host does, until told to stop; gives how many consistent states it saw.
fn watch(mm: &Mm<HostPlatform>, stop: &AtomicBool) -> u64 {
    let mut seen = 0;
    while !stop.load(Ordering::Acquire) {
        for (_, zone) in mm.populated_zones() {
            let counts = seq::read(&zone.seq, 1000, || {
                let count = |list: &_, nr: &std::sync::atomic::AtomicU64| {
                    let head: &pagevisor_shared::region::zone::ListHead = list;
                    (head.first.load(Ordering::Relaxed) == 0, nr.load(Ordering::Relaxed) == 0)
                };
                zone.free_area.iter().all(|area| {
                    area.free_list.iter().zip(&area.nr_free).all(|(list, nr)| {
                        let (no_head, no_count) = count(list, nr);
                        no_head == no_count
                    })
                })
            });
            if let Some(consistent) = counts {
                assert!(consistent, "a list and its counter disagree");
                seen += 1;
            }
        }
        std::thread::yield_now();
    }
    seen
}

#[test]
fn eight_cpus_on_four_nodes() {
    let node = |n: u64| [(4 * GIB + n * 64 * MIB, 4 * GIB + (n + 1) * 64 * MIB)];
    let mut topology = Topology::pages_only().node(&[(MIB, 48 * MIB), node(0)[0]], 2);
    for n in 1..4 {
        topology = topology.node(&node(n), 2);
    }
    let machine = topology.boot();
    let free = |mm: &Mm<HostPlatform>| -> u64 {
        mm.populated_zones().map(|(zone, _)| mm.zone_page_state_snapshot(zone, ZoneStat::NrFreePages)).sum()
    };
    let before = free(machine.mm());
    let (barrier, stop) = (Barrier::new(8), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(machine.mm(), &stop));
        let (machine, barrier) = (&machine, &barrier);
        let workers: Vec<_> = (0..8)
            .map(|cpu| {
                scope.spawn(move || {
                    machine.on_cpu(cpu, |mm| {
                        barrier.wait();
                        work(mm, cpu as u64, 6000);
                    });
                })
            })
            .collect();
        let failed = workers.into_iter().map(|worker| worker.join()).filter(Result::is_err).count();
        stop.store(true, Ordering::Release);
        assert_eq!(failed, 0, "workers that failed");
        assert!(watcher.join().expect("the watcher") > 0);
    });
    let mm = machine.mm();
    assert_sound(mm);
    mm.drain_all_pages(None);
    assert_sound(mm);
    assert_eq!(free(mm), before);
    assert_eq!(machine.platform().stacks_dumped(), 0);
}
