//! What is asked for is what is given: zones, nodes, content, counters.

use std::slice;

use pagevisor_mm::Mm;
use pagevisor_mm::hosted::{HostPlatform, Topology};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::units::{NodeId, NodeMask, Order, Pfn};
use pagevisor_shared::vmstat::{NumaStat, VmEvent, ZoneStat};
use pagevisor_shared::zone::ZoneType;

use crate::{GIB, MIB, assert_sound, order, small, take_all, two_nodes, zone};

/// Writes `byte` all over an allocated block.
fn fill(mm: &Mm<HostPlatform>, pfn: Pfn, order: Order, byte: u8) {
    // SAFETY: the test owns the block, which the hosted direct map keeps mapped.
    unsafe { mm.direct_map().at(pfn.addr()).write_bytes(byte, order.bytes() as usize) };
}

/// Whether an allocated block reads as zero.
fn is_zero(mm: &Mm<HostPlatform>, pfn: Pfn, order: Order) -> bool {
    let at = mm.direct_map().at(pfn.addr()).cast_const();
    // SAFETY: the test owns the block, which the hosted direct map keeps mapped, and nobody writes to it meanwhile.
    unsafe { slice::from_raw_parts(at, order.bytes() as usize) }.iter().all(|&byte| byte == 0)
}

#[test]
fn zones_are_those_of_the_flags() {
    let machine = two_nodes();
    let mm = machine.mm();
    let cases = [
        (Gfp::KERNEL, ZoneType::Normal),
        (Gfp::HIGHUSER_MOVABLE, ZoneType::Normal),
        (Gfp::KERNEL | Gfp::DMA32, ZoneType::Dma32),
        (Gfp::KERNEL | Gfp::DMA, ZoneType::Dma),
    ];
    for (gfp, kind) in cases {
        for raw in [0, 2, 6] {
            let pfn = mm.alloc_pages(gfp, order(raw)).expect("a block");
            assert_eq!(mm.page_zone(pfn), Some(zone(0, kind)), "{gfp}");
        }
    }
}

#[test]
fn a_full_node_falls_back_to_the_next() {
    let machine = two_nodes();
    let mm = machine.mm();
    let pages = take_all(mm, Gfp::HIGHUSER_MOVABLE, Order::ZERO);
    // The order of the zonelist, each zone down to what it keeps.
    let mut zones: Vec<_> = pages.iter().map(|&pfn| mm.page_zone(pfn).expect("memory")).collect();
    zones.dedup();
    let expected =
        [zone(0, ZoneType::Normal), zone(0, ZoneType::Dma32), zone(0, ZoneType::Dma), zone(1, ZoneType::Normal)];
    assert_eq!(zones[..4], expected);
    assert_sound(mm);
}

#[test]
fn a_node_alone_serves_thisnode() {
    let machine = two_nodes();
    let mm = machine.mm();
    let gfp = Gfp::KERNEL | Gfp::THISNODE;
    assert!(take_all(mm, gfp, order(2)).iter().all(|&pfn| mm.page_to_nid(pfn) == NodeId::new(0)));
    let far = mm.alloc_pages_node(NodeId::new(1), gfp, Order::ZERO).expect("a page");
    assert_eq!(mm.page_to_nid(far), NodeId::new(1));
    // Node 1 has no DMA32 of its own.
    assert_eq!(mm.alloc_pages_node(NodeId::new(1), gfp | Gfp::DMA32 | Gfp::NOWARN, Order::ZERO), None);
    assert_eq!(mm.alloc_pages_node(NodeId::new(9), Gfp::KERNEL | Gfp::NOWARN, Order::ZERO), None);
}

#[test]
fn a_mask_of_nodes_binds() {
    let machine = two_nodes();
    let mm = machine.mm();
    let first = NodeId::new(0).expect("a node");
    let page = |mask| mm.alloc_pages_nodemask(Gfp::KERNEL | Gfp::NOWARN, Order::ZERO, first, mask);
    let node = |pfn: Option<Pfn>| mm.page_to_nid(pfn.expect("a page")).expect("memory").index();
    assert_eq!(node(page(None)), 0);
    assert_eq!(node(page(Some(NodeMask(0b10)))), 1);
    assert_eq!(node(page(Some(NodeMask(0b11)))), 0);
    assert_eq!(page(Some(NodeMask(0))), None);
}

#[test]
fn a_node_without_memory_is_served_by_the_nearest() {
    let machine = Topology::pages_only()
        .node(&[(MIB, 64 * MIB)], 1)
        .node(&[], 1)
        .node(&[(4 * GIB, 4 * GIB + 64 * MIB)], 0)
        .distance(0, 1, 40)
        .distance(1, 2, 15)
        .boot();
    assert!(machine.log_text().contains("Fallback order for Node 1: 1 2 0 \n"), "{}", machine.log_text());
    machine.on_cpu(1, |mm| {
        let page = mm.alloc_pages(Gfp::KERNEL, Order::ZERO).expect("a page");
        assert_eq!(mm.page_to_nid(page), NodeId::new(2));
        let cpu = &mm.region().cpus()[1];
        assert_eq!(cpu.mem_node.load(std::sync::atomic::Ordering::Relaxed), 2);
    });
}

#[test]
fn pages_are_cleared_unless_known_to_be_zero() {
    for known in [true, false] {
        let topology = Topology::pages_only().node(&[(16 * MIB, 80 * MIB)], 1);
        let machine = if known { topology.boot() } else { topology.unknown_content().boot() };
        let mm = machine.mm();
        for raw in [0, 3, 7, 10] {
            // Fresh memory: somebody else may have written it where nothing is known.
            let pfn = mm.alloc_pages(Gfp::KERNEL, order(raw)).expect("a block");
            fill(mm, pfn, order(raw), 0xa5);
            mm.free_pages(pfn, order(raw));
            mm.drain_all_pages(None);
            for _ in 0..20 {
                let pfn = mm.alloc_pages(Gfp::KERNEL | Gfp::ZERO, order(raw)).expect("a block");
                assert!(is_zero(mm, pfn, order(raw)));
                fill(mm, pfn, order(raw), 0x5a);
                mm.free_pages(pfn, order(raw));
            }
        }
        // And what was split off a written block is not zero either.
        let all = take_all(mm, Gfp::KERNEL | Gfp::ZERO, Order::ZERO);
        assert!(all.iter().all(|&pfn| is_zero(mm, pfn, Order::ZERO)));
        assert_sound(mm);
    }
}

#[test]
fn fresh_memory_is_not_cleared() {
    let machine = small();
    let mm = machine.mm();
    let pfn = mm.alloc_pages(Gfp::KERNEL, order(10)).expect("a block");
    // Written behind the allocator's back: if it shows, the block behind it was not cleared.
    fill(mm, pfn.add(1024), Order::ZERO, 77);
    let next = mm.alloc_pages(Gfp::KERNEL | Gfp::ZERO, order(10)).expect("a block");
    assert_eq!(next, pfn.add(1024));
    assert!(!is_zero(mm, next, Order::ZERO));
}

#[test]
fn memory_by_address() {
    let machine = small();
    let mm = machine.mm();
    let addr = mm.get_zeroed_page(Gfp::KERNEL).expect("a page");
    let phys = mm.phys(addr).expect("in the direct map");
    assert_eq!(mm.virt(phys), addr);
    mm.free_pages_virt(addr, Order::ZERO);
    let addr = mm.get_free_pages(Gfp::KERNEL | Gfp::HIGHMEM, order(4)).expect("a block");
    mm.free_pages_virt(addr, order(4));
    assert_eq!(machine.platform().stacks_dumped(), 0);
    assert_sound(mm);
}

#[test]
fn exact_allocations_give_the_rest_back() {
    let machine = small();
    let mm = machine.mm();
    for bytes in [1, 4096, 4097, 5 * 4096, 100_000, 4 << 20] {
        let before = mm.nr_free_pages(Gfp::KERNEL);
        mm.drain_all_pages(None);
        let pfn = mm.alloc_pages_exact(bytes, Gfp::KERNEL | Gfp::COMP).expect("pages");
        assert_sound(mm);
        let pages = bytes.div_ceil(4096);
        assert!((0..pages).all(|page| mm.page(pfn.add(page)).expect("a page").refcount() == 1));
        mm.free_pages_exact(pfn, bytes);
        mm.drain_all_pages(None);
        assert_sound(mm);
        assert!(mm.nr_free_pages(Gfp::KERNEL) >= before);
    }
    assert_eq!(mm.alloc_pages_exact((4 << 20) + 1, Gfp::KERNEL | Gfp::NOWARN), None);
    assert_eq!(machine.platform().stacks_dumped(), 0);
}

#[test]
fn many_pages_at_once() {
    let machine = two_nodes();
    let mm = machine.mm();
    let mut pages = [None; 300];
    pages[2] = mm.alloc_page(Gfp::KERNEL);
    let got = mm.alloc_pages_bulk(Gfp::KERNEL, None, None, &mut pages);
    assert_eq!(got, 300);
    let mut all: Vec<_> = pages.iter().flatten().copied().collect();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 300);
    assert_eq!(mm.alloc_pages_bulk(Gfp::KERNEL, None, None, &mut pages), 300, "nothing to fill");
    assert_eq!(mm.alloc_pages_bulk(Gfp::KERNEL, None, None, &mut []), 0);
    assert_sound(mm);
    all.iter().for_each(|&pfn| mm.free_page(pfn));
    // One page is all that other nodes give.
    let mut far = [None; 8];
    let got = mm.alloc_pages_bulk(Gfp::KERNEL | Gfp::NOWARN, None, Some(NodeMask(0)), &mut far);
    assert_eq!(got, 0);
    assert_sound(mm);
}

#[test]
fn events_and_numa_counters() {
    let machine = two_nodes();
    let mm = machine.mm();
    let numa = |node: usize, item: NumaStat| {
        mm.fold_vm_numa_events();
        let state = mm.zone(zone(node, ZoneType::Normal)).expect("a zone");
        state.vm_numa_event[item.index()].load(std::sync::atomic::Ordering::Relaxed)
    };
    let first = NodeId::new(0).expect("a node");
    for raw in [0, 0, 0, 2, 5] {
        let pfn = mm.alloc_pages(Gfp::KERNEL, order(raw)).expect("a block");
        mm.free_pages(pfn, order(raw));
    }
    assert_eq!((numa(0, NumaStat::NumaHit), numa(0, NumaStat::NumaLocal)), (5, 5));
    assert_eq!(mm.vm_event(VmEvent::PgallocNormal), 3 + 4 + 32);
    assert_eq!(mm.vm_event(VmEvent::Pgfree), 3 + 4 + 32);
    // Wanted from node 1 and given: a hit there, but not local.
    mm.alloc_pages_node(NodeId::new(1), Gfp::KERNEL, Order::ZERO).expect("a page");
    assert_eq!((numa(1, NumaStat::NumaHit), numa(1, NumaStat::NumaOther)), (1, 1));
    // Wanted from node 0 and not given: a miss at node 1, foreign to node 0.
    let given = take_all(mm, Gfp::KERNEL, Order::ZERO);
    let misses = given.iter().filter(|&&pfn| mm.page_to_nid(pfn) == NodeId::new(1)).count() as u64;
    assert!(misses > 1000);
    assert_eq!((numa(1, NumaStat::NumaMiss), numa(0, NumaStat::NumaForeign)), (misses, misses));
    mm.count_numa_interleave(zone(1, ZoneType::Normal));
    assert_eq!(numa(1, NumaStat::NumaInterleave), 1);
    assert_eq!(
        mm.page_zone(mm.alloc_pages_nodemask(Gfp::KERNEL | Gfp::MEMALLOC, Order::ZERO, first, None).expect("a page"))
            .map(|zone| zone.index() % 5),
        Some(ZoneType::Normal.index())
    );
}

#[test]
fn pending_deltas_are_folded() {
    let machine = two_nodes();
    let mm = machine.mm();
    let normal = zone(0, ZoneType::Normal);
    let stored = || Mm::<HostPlatform>::zone_page_state(mm.zone(normal).expect("a zone"), ZoneStat::NrFreePages);
    let exact = || mm.zone_page_state_snapshot(normal, ZoneStat::NrFreePages);
    mm.quiet_vmstat();
    assert_eq!(stored(), exact());
    let block = mm.alloc_pages(Gfp::KERNEL, Order::new(0).expect("0")).expect("a page");
    mm.alloc_pages(Gfp::KERNEL, order(4)).expect("a block");
    mm.mod_zone_page_state(normal, ZoneStat::NrMlock, 2);
    mm.mod_zone_page_state(normal, ZoneStat::NrMlock, -1);
    assert!(mm.refresh_cpu_vm_stats() >= 1);
    assert_eq!(stored(), exact());
    assert_eq!(mm.refresh_cpu_vm_stats(), 0);
    mm.mod_zone_page_state(normal, ZoneStat::NrMlock, 3);
    mm.mod_zone_page_state(normal, ZoneStat::NrMlock, 1000);
    assert_eq!(mm.zone_page_state_snapshot(normal, ZoneStat::NrMlock), 1004);
    mm.mod_node_page_state(NodeId::new(1).expect("a node"), pagevisor_shared::vmstat::NodeStat::NrAnonPages, 5);
    mm.cpu_vm_stats_fold(pagevisor_shared::units::CpuId::default());
    let anon = pagevisor_shared::vmstat::NodeStat::NrAnonPages.index();
    assert_eq!(mm.region().nodes()[1].vm_stat[anon].load(std::sync::atomic::Ordering::Relaxed), 5);
    mm.free_page(block);
    assert_sound(mm);
}

#[test]
fn reserved_memory_can_be_given_up() {
    let machine = Topology::pages_only().node(&[(16 * MIB, 80 * MIB)], 1).reserve(20 * MIB, 23 * MIB).boot();
    let mm = machine.mm();
    let frame = |addr: u64| Pfn::new(addr >> 12);
    assert_sound(mm);
    assert_eq!(mm.free_reserved_area(frame(21 * MIB), frame(22 * MIB)), 256);
    assert_sound(mm);
    assert_eq!(mm.free_reserved_area(frame(21 * MIB), frame(22 * MIB)), 0, "no longer reserved");
    assert_eq!(mm.free_reserved_area(frame(19 * MIB), frame(24 * MIB)), 512);
    assert_sound(mm);
    assert_eq!(mm.free_reserved_area(frame(100 * MIB), frame(101 * MIB)), 0, "no memory");
    let free: u64 = (0..6)
        .filter_map(MigrateType::new)
        .map(|kind| pagevisor_mm::check::free_list(mm, zone(0, ZoneType::Dma32), order(10), kind).len() as u64)
        .sum();
    assert!(free >= 14, "{free}");
    // Its content is not known.
    let all = take_all(mm, Gfp::KERNEL | Gfp::ZERO, order(9));
    assert!(all.len() > 20);
}

#[test]
fn a_terabyte_is_handed_over_without_touching_it() {
    let start = std::time::Instant::now();
    let machine = Topology::pages_only().node(&[(16 * MIB, 64 * MIB)], 1).node(&[(4 * GIB, 1028 * GIB)], 1).boot();
    let mm = machine.mm();
    let state = mm.zone(zone(1, ZoneType::Normal)).expect("a zone");
    let blocks = state.free_area[10].nr_free[MigrateType::Movable.index()].load(std::sync::atomic::Ordering::Relaxed);
    assert!((260_000..262_144).contains(&blocks), "{blocks}");
    assert!(start.elapsed().as_millis() < 500, "{:?}", start.elapsed());
    machine.on_cpu(1, |mm| {
        let held: Vec<_> = (0..2000).map(|i| mm.alloc_pages(Gfp::KERNEL, order(i % 11)).expect("a block")).collect();
        held.into_iter().zip(0..).for_each(|(pfn, i)| mm.free_pages(pfn, order(i % 11)));
        mm.drain_local_pages();
    });
    let now = state.free_area[10].nr_free.iter().map(|nr| nr.load(std::sync::atomic::Ordering::Relaxed)).sum::<u64>();
    assert_eq!(now, blocks);
}
