//! Reclaiming a node before going to the next one (`zone_reclaim_mode`).

use std::cell::RefCell;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_mm::zone::settings::{BadZonelistOrder, NUMA_ZONELIST_ORDER};
use pagevisor_mm::{Hooks, Mm, NodeReclaim};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{NodeId, Order, Pfn};
use pagevisor_shared::vmstat::VmEvent;
use pagevisor_shared::zone::{Watermark, ZoneType};

use crate::{MIB, assert_sound, zone};

thread_local! {
    /// What reclaim gives: its result and the pages that it frees; and the nodes it was asked for.
    static RECLAIM: RefCell<(Option<NodeReclaim>, Vec<Pfn>, Vec<usize>)> = const { RefCell::new((None, Vec::new(), Vec::new())) };
}

fn reclaim(mm: &Mm<HostPlatform>, node: NodeId, _gfp: Gfp, _order: Order) -> NodeReclaim {
    let (result, pages) = RECLAIM.with_borrow_mut(|(result, pages, asked)| {
        asked.push(node.index());
        (*result, core::mem::take(pages))
    });
    pages.iter().for_each(|page| mm.free_page(*page));
    mm.drain_all_pages(None);
    result.expect("a result")
}

/// Two nodes of 64 MiB, each with a CPU, and a third without.
fn boot(distance: u8) -> Machine {
    let memory = |first: u64| [(first * MIB, (first + 64) * MIB)];
    let topology = Topology::pages_only().node(&memory(16), 1).node(&memory(80), 1).node(&memory(144), 0);
    let topology = topology.distance(0, 1, distance).distance(0, 2, distance).distance(1, 2, distance);
    topology.try_boot(Hooks { node_reclaim: Some(reclaim), ..Hooks::none() }).expect("it boots")
}

/// Takes pages of node 0 until it is just above its low watermark, and some more to give back.
fn fill(mm: &Mm<HostPlatform>, node: usize) -> Vec<Pfn> {
    let index = zone(node, ZoneType::Dma32);
    let state = mm.zone(index).expect("a zone");
    let low = state.watermark[Watermark::Low as usize].load(Relaxed) as i64;
    let id = NodeId::new(node);
    let mut taken = Vec::new();
    while state.vm_stat[0].load(Relaxed) > low {
        taken.push(mm.alloc_pages_node(id, Gfp::KERNEL | Gfp::THISNODE, Order::ZERO).expect("above its low watermark"));
    }
    mm.drain_all_pages(None);
    while state.vm_stat[0].load(Relaxed) > low {
        taken.push(mm.alloc_pages_node(id, Gfp::KERNEL | Gfp::THISNODE, Order::ZERO).expect("above its low watermark"));
    }
    taken
}

/// Runs an allocation from node 0, which is full, with reclaim of this result and so many pages; gives the node it came
/// from and the nodes that were reclaimed.
fn attempt(mm: &Mm<HostPlatform>, gfp: Gfp, result: NodeReclaim, give: Vec<Pfn>) -> (usize, Vec<usize>) {
    RECLAIM.with_borrow_mut(|state| *state = (Some(result), give, Vec::new()));
    let page = mm.alloc_pages(gfp, Order::ZERO).expect("the others have plenty");
    let node = mm.page_to_nid(page).expect("memory").index();
    mm.free_page(page);
    mm.drain_all_pages(None);
    (node, RECLAIM.with_borrow_mut(|(_, _, asked)| core::mem::take(asked)))
}

#[test]
fn a_full_node_is_reclaimed_first_if_that_is_wanted() {
    let machine = boot(20);
    let mm = machine.mm();
    // The next is the node without CPUs.
    let mut held = fill(mm, 0);
    assert_eq!(attempt(mm, Gfp::KERNEL, NodeReclaim::Success, vec![]), (2, vec![]), "off at first");
    // Bits that mean nothing are kept and do nothing.
    mm.set_zone_reclaim_mode(8).expect("an int");
    assert_eq!(attempt(mm, Gfp::KERNEL, NodeReclaim::Success, vec![]), (2, vec![]));
    mm.set_zone_reclaim_mode(1).expect("an int");
    for result in [NodeReclaim::NoScan, NodeReclaim::Full, NodeReclaim::Some] {
        assert_eq!(attempt(mm, Gfp::KERNEL, result, vec![]), (2, vec![0]), "{result:?}");
    }
    assert_eq!(mm.vm_event(VmEvent::ZoneReclaimFailed), 1, "where it looked and found too little");
    assert_eq!(attempt(mm, Gfp::ATOMIC_ALLOC, NodeReclaim::Success, vec![]), (2, vec![]), "cannot wait");
    let give = held.split_off(held.len() - 200);
    assert_eq!(attempt(mm, Gfp::KERNEL, NodeReclaim::Success, give), (0, vec![0]));
    held.iter().for_each(|page| mm.free_page(*page));
    assert_sound(mm);
}

#[test]
fn only_near_nodes_that_nobody_else_would_reclaim() {
    for (distance, want) in [(30, vec![0, 2]), (31, vec![0])] {
        let machine = boot(distance);
        let mm = machine.mm();
        mm.set_zone_reclaim_mode(7).expect("an int");
        let held: Vec<_> = [0, 1, 2].into_iter().flat_map(|node| fill(mm, node)).collect();
        // Node 1 has a CPU of its own to do it. Without success anywhere, reserves serve.
        RECLAIM.with_borrow_mut(|state| *state = (Some(NodeReclaim::Full), vec![], vec![]));
        let page = mm.alloc_pages(Gfp::KERNEL, Order::ZERO).expect("below the low watermark");
        let mut asked = RECLAIM.with_borrow_mut(|(_, _, asked)| core::mem::take(asked));
        asked.dedup();
        assert_eq!(asked[..want.len()], want, "{asked:?} at {distance}");
        held.iter().chain([&page]).for_each(|page| mm.free_page(*page));
        assert_sound(mm);
    }
}

#[test]
fn zonelists_are_in_node_order_only() {
    let machine = boot(20);
    let mm = machine.mm();
    for accepted in ["Node", "default", "n", "Dxyz", NUMA_ZONELIST_ORDER] {
        assert_eq!(mm.set_numa_zonelist_order(accepted), Ok(()), "{accepted}");
    }
    machine.platform().clear_log();
    for refused in ["zone", "Zone", "", " n"] {
        assert_eq!(mm.set_numa_zonelist_order(refused), Err(BadZonelistOrder), "{refused}");
    }
    assert!(machine.log_text().starts_with("Ignoring unsupported numa_zonelist_order value:  zone\n"));
    assert!(mm.set_zone_reclaim_mode(i32::MAX as u32 + 1).is_err());
}

#[test]
fn a_boost_is_lowered_by_who_made_up_for_it() {
    let machine = boot(20);
    let mm = machine.mm();
    let index = zone(0, ZoneType::Dma32);
    let state = mm.zone(index).expect("a zone");
    state.watermark_boost.store(700, Relaxed);
    mm.lower_watermark_boost(index, 512);
    let low = state.watermark[Watermark::Low as usize].load(Relaxed) as i64;
    assert_eq!((state.watermark_boost.load(Relaxed), state.alloc_mark.load(Relaxed)), (188, low + 188));
    mm.lower_watermark_boost(index, 512);
    assert_eq!((state.watermark_boost.load(Relaxed), state.alloc_mark.load(Relaxed)), (0, low));
}
