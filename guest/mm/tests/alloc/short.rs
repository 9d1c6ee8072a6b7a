//! When memory runs short: watermarks, reserves, hooks, reports.

use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_mm::{Hooks, Mm, ReclaimRequest};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, Pfn};
use pagevisor_shared::vmstat::{VmEvent, ZoneStat};
use pagevisor_shared::zone::{Watermark, ZoneType};

use crate::{MIB, assert_sound, order, small, take_all, two_nodes, zone};

fn free(machine: &Machine) -> u64 {
    machine.mm().zone_page_state_snapshot(zone(0, ZoneType::Dma32), ZoneStat::NrFreePages)
}

fn mark(machine: &Machine, which: Watermark) -> u64 {
    machine.mm().zone(zone(0, ZoneType::Dma32)).expect("a zone").watermark[which as usize].load(Relaxed)
}

#[test]
fn rights_decide_how_far_down_an_allocation_goes() {
    let machine = small();
    let mm = machine.mm();
    let min = mark(&machine, Watermark::Min);
    // A refill takes a batch, so the bounds are exact up to that and to what the CPU holds back of the counter.
    let slack = 70;
    let floors = [
        (Gfp::KERNEL, min),
        (Gfp::KERNEL | Gfp::HIGH, min - min / 2),
        (Gfp::ATOMIC_ALLOC, min - min / 2 - (min - min / 2) / 4),
        (Gfp::KERNEL | Gfp::MEMALLOC, 0),
    ];
    for (gfp, floor) in floors {
        // Movable, as all memory is at first: mixing types would raise the watermarks.
        take_all(mm, gfp | Gfp::MOVABLE, Order::ZERO);
        assert!(free(&machine) <= floor + slack, "{gfp}: {} pages are left, {floor} are kept", free(&machine));
        assert!(free(&machine) + slack >= floor, "{gfp}: {} pages are left, {floor} are kept", free(&machine));
    }
    assert_sound(mm);
    // May not use the reserves even if it says it is important.
    assert_eq!(mm.alloc_pages(Gfp::KERNEL | Gfp::MEMALLOC | Gfp::NOMEMALLOC | Gfp::NOWARN, Order::ZERO), None);
}

#[test]
fn low_zones_keep_a_reserve_from_those_who_could_go_higher() {
    let machine = two_nodes();
    let mm = machine.mm();
    take_all(mm, Gfp::HIGHUSER_MOVABLE, Order::ZERO);
    let dma = mm.zone(zone(0, ZoneType::Dma)).expect("a zone");
    let reserve = dma.lowmem_reserve[ZoneType::Normal.index()].load(Relaxed);
    let kept = mm.zone_page_state_snapshot(zone(0, ZoneType::Dma), ZoneStat::NrFreePages);
    assert!(reserve > 0 && kept + 70 > reserve, "{kept} kept, {reserve} reserved");
    let before = kept;
    take_all(mm, Gfp::KERNEL | Gfp::DMA | Gfp::MOVABLE, Order::ZERO);
    assert!(mm.zone_page_state_snapshot(zone(0, ZoneType::Dma), ZoneStat::NrFreePages) < before);
    assert_sound(mm);
}

#[test]
fn a_failure_is_reported_once_in_a_while() {
    let machine = small();
    let mm = machine.mm();
    take_all(mm, Gfp::KERNEL, Order::ZERO);
    machine.platform().clear_log();
    assert_eq!(mm.alloc_pages(Gfp::KERNEL, order(3)), None);
    let text = machine.log_text();
    let head = "swapper/0: page allocation failure: order:3, mode:0xcc0(GFP_KERNEL), \
                nodemask=(null),cpuset=/,mems_allowed=0\nCall Trace:\nMem-Info:\n";
    assert!(text.starts_with(head), "{text}");
    assert!(text.contains("Node 0 DMA32 free:"), "{text}");
    assert!(text.contains("0 pages HighMem/MovableOnly\n"), "{text}");
    assert_eq!(mm.alloc_pages(Gfp::KERNEL, order(3)), None);
    assert_eq!(machine.log_text(), text, "not again at once");
    machine.platform().advance(10_000_000_000);
    assert_eq!(mm.alloc_pages(Gfp::KERNEL | Gfp::THISNODE, order(4)), None);
    assert!(machine.log_text().contains("order:4, mode:0x200cc0(GFP_KERNEL|__GFP_THISNODE)"));
    machine.platform().advance(10_000_000_000);
    machine.platform().clear_log();
    assert_eq!(mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN, order(3)), None);
    assert_eq!(mm.alloc_pages(Gfp::KERNEL | Gfp::DMA, order(3)), None, "there is no DMA zone to warn of");
    assert_eq!(machine.log_text(), "");
}

std::thread_local! {
    static CALLS: Cell<[u32; 4]> = const { Cell::new([0; 4]) };
    static HOARD: Cell<Option<Pfn>> = const { Cell::new(None) };
}

fn count(which: usize) {
    CALLS.with(|calls| {
        let mut counts = calls.get();
        counts[which] += 1;
        calls.set(counts);
    });
}

fn wake(_: &Mm<HostPlatform>, _: &ReclaimRequest) {
    count(0);
}

/// Gives back what the test hoards, once.
fn reclaim(mm: &Mm<HostPlatform>, request: &ReclaimRequest) -> u64 {
    count(1);
    assert!(request.gfp.contains(Gfp::DIRECT_RECLAIM));
    match HOARD.take() {
        Some(pfn) => {
            mm.free_pages(pfn, order(10));
            1024
        }
        None => 0,
    }
}

fn out_of_memory(_: &Mm<HostPlatform>, _: &ReclaimRequest) -> bool {
    count(2);
    false
}

fn with_hooks() -> Machine {
    CALLS.set([0; 4]);
    let hooks = Hooks {
        wake_kswapd: Some(wake),
        direct_reclaim: Some(reclaim),
        direct_compact: None,
        out_of_memory: Some(out_of_memory),
        node_reclaim: None,
    };
    Topology::pages_only().node(&[(4096 * MIB, 4160 * MIB)], 1).try_boot(hooks).expect("it boots")
}

#[test]
fn layers_above_are_asked_in_turn() {
    let machine = with_hooks();
    let mm = machine.mm();
    HOARD.set(mm.alloc_pages(Gfp::KERNEL, order(10)));
    take_all(mm, Gfp::KERNEL.without(Gfp::DIRECT_RECLAIM), Order::ZERO);
    let [woken, reclaimed, killed, _] = CALLS.get();
    assert!(woken > 0 && reclaimed == 0 && killed == 0, "who cannot wait does not reclaim");
    let page = mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN, order(4));
    assert!(page.is_some(), "reclaim made room");
    assert_eq!(CALLS.get()[1], 1);
    assert_eq!(mm.vm_event(VmEvent::AllocstallNormal), 1);
    take_all(mm, Gfp::KERNEL.without(Gfp::DIRECT_RECLAIM), Order::ZERO);
    assert_eq!(mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN, Order::ZERO), None);
    assert_eq!(CALLS.get()[2], 1, "the OOM killer is the last resort");
    assert_eq!(mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN, order(5)), None);
    assert_eq!(CALLS.get()[2], 1, "and does not help costly orders");
    assert_sound(mm);
}

#[test]
fn what_must_not_fail_waits_for_others() {
    let machine = Topology::pages_only().node(&[(16 * MIB, 80 * MIB)], 2).boot();
    let mm = machine.mm();
    let mut pages = take_all(mm, Gfp::KERNEL | Gfp::MEMALLOC, Order::ZERO);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| machine.on_cpu(1, |mm| mm.alloc_pages(Gfp::KERNEL | Gfp::NOFAIL, Order::ZERO)));
        // Given back one by one: it stops waiting when there are enough.
        for pfn in pages.split_off(pages.len() / 2) {
            mm.free_page(pfn);
        }
        mm.drain_local_pages();
        assert!(waiting.join().expect("the other CPU").is_some());
    });
    assert_sound(mm);
    // Who cannot wait fails all the same.
    take_all(mm, Gfp::KERNEL | Gfp::MEMALLOC, Order::ZERO);
    assert_eq!(mm.alloc_pages(Gfp::NOWAIT | Gfp::NOFAIL | Gfp::NOWARN, Order::ZERO), None);
}

#[test]
fn a_failing_allocation_changes_nothing() {
    let machine = small();
    let mm = machine.mm();
    take_all(mm, Gfp::KERNEL, order(10));
    let before = (free(&machine), mm.vm_event(VmEvent::PgallocDma32));
    for _ in 0..3 {
        assert_eq!(mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN, order(10)), None);
    }
    assert_eq!((free(&machine), mm.vm_event(VmEvent::PgallocDma32)), before);
    assert_sound(mm);
}
