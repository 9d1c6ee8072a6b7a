//! What operations do.

use std::sync::atomic::AtomicU64;

use pagevisor_shared::command::{Fault, Faulty, Isolate, Op, OpError, Placement, Setting};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::event::EventKind;
use pagevisor_shared::units::{CpuId, NodeId, NodeMask, Order, Pfn};
use pagevisor_shared::vmstat::VmEvent;

use crate::{Guest, small, two_nodes};

fn order(raw: u32) -> Order {
    Order::new(raw).expect("an order")
}

pub fn alloc(handle: u32, raw: u32, count: u32) -> Op {
    Op::AllocPages { gfp: Gfp::KERNEL | Gfp::NOWARN, order: order(raw), placement: Placement::Local, handle, count }
}

fn alloc_at(placement: Placement) -> Op {
    Op::AllocPages { gfp: Gfp::KERNEL, order: Order::ZERO, placement, handle: 0, count: 1 }
}

fn node(raw: usize) -> NodeId {
    NodeId::new(raw).expect("a node")
}

fn node_of(guest: &Guest, pfn: u64) -> usize {
    guest.machine.mm().page_to_nid(Pfn::new(pfn)).expect("memory").index()
}

#[test]
fn blocks_come_and_go() {
    let guest = small();
    let before = guest.machine.mm().nr_free_pages(Gfp::KERNEL);
    let first = guest.ok(alloc(5, 3, 1));
    assert!(Pfn::new(first).is_aligned(order(3)));
    let answer = guest.send(&[alloc(1000, 0, 5), Op::FreePages { handle: 1000, count: 5 }], &[], 0);
    assert_eq!(answer.results[0].value, 5);
    let frames: Vec<u32> = answer.payload[..20].as_chunks().0.iter().map(|f| u32::from_le_bytes(*f)).collect();
    assert_eq!((frames.len(), answer.payload.len()), (5, 24));
    frames.iter().for_each(|pfn| assert!(guest.machine.mm().page(Pfn::new(u64::from(*pfn))).is_some()));
    assert_eq!(guest.ok(Op::FreePages { handle: 5, count: 1 }), 1);
    guest.ok(Op::DrainPages { all: true });
    // Pages of the table of handles stay: one leaf for 5 and one for 1000, and the level above.
    assert_eq!(before - guest.machine.mm().nr_free_pages(Gfp::KERNEL), 3);
    guest.assert_sound();
}

#[test]
fn what_is_written_is_read() {
    let guest = small();
    guest.ok(alloc(1, 1, 1));
    let ops = [
        Op::WritePage { handle: 1, offset: 4091, len: 10, payload: 3 },
        Op::ReadPage { handle: 1, offset: 4091, len: 10 },
        Op::ReadPage { handle: 1, offset: 4093, len: 3 },
    ];
    let answer = guest.send(&ops, b"...0123456789", 0);
    assert_eq!(answer.results.iter().map(|result| result.error).collect::<Vec<_>>(), [None; 3]);
    let read = |at: usize| {
        let result = answer.results[at];
        &answer.payload[result.aux as usize..result.aux as usize + result.value as usize]
    };
    assert_eq!((read(1), read(2)), (&b"0123456789"[..], &b"234"[..]));
}

#[test]
fn patterns_are_found_again() {
    let guest = small();
    guest.ok(alloc(0, 1, 4));
    guest.ok(Op::FillPattern { handle: 0, count: 4, seed: 9 });
    assert_eq!(guest.ok(Op::CheckPattern { handle: 0, count: 4, seed: 9 }), 4);
    let damage = Op::WritePage { handle: 2, offset: 4104, len: 1, payload: 0 };
    guest.send(&[damage], b"?", 0);
    let result = guest.one(Op::CheckPattern { handle: 0, count: 4, seed: 9 });
    assert_eq!((result.error, result.aux, result.value), (Some(OpError::Mismatch), 2, 4104));
}

#[test]
fn a_block_becomes_pages() {
    let guest = small();
    guest.ok(alloc(7, 2, 1));
    assert_eq!(guest.ok(Op::SplitPage { handle: 7, into: 7 }), 4);
    assert_eq!(guest.ok(Op::FreePages { handle: 8, count: 3 }), 3);
    assert_eq!(guest.ok(Op::FreePages { handle: 7, count: 1 }), 1);
    guest.ok(alloc(9, 2, 1));
    guest.ok(alloc(23, 0, 1));
    // One of the handles is in use: nothing happens, and none of the others stays locked.
    guest.fails(Op::SplitPage { handle: 9, into: 20 }, OpError::HandleInUse);
    guest.ok(alloc(21, 0, 1));
    assert_eq!(guest.ok(Op::FreePages { handle: 9, count: 1 }), 1);
    guest.assert_sound();
}

#[test]
fn policies_say_where_pages_come_from() {
    let guest = two_nodes();
    let take = |placement| {
        let pfn = guest.ok(alloc_at(placement));
        guest.ok(Op::FreePages { handle: 0, count: 1 });
        node_of(&guest, pfn)
    };
    let both = NodeMask(3);
    assert_eq!(take(Placement::Local), 0);
    assert_eq!(take(Placement::Preferred(node(1))), 1);
    assert_eq!(take(Placement::Bind(NodeMask(2))), 1);
    let turns: Vec<_> = (0..4).map(|_| take(Placement::Interleave(both))).collect();
    assert_eq!(turns, [0, 1, 0, 1]);
    guest.fails(alloc_at(Placement::Preferred(node(5))), OpError::Invalid);
}

#[test]
fn an_exhausted_machine_says_how_far_it_came() {
    let guest = small();
    let result = guest.one(alloc(0, 10, 100));
    assert_eq!(result.error, Some(OpError::NoMemory));
    assert!((8..16).contains(&result.value), "{result:?}");
    assert_eq!(guest.ok(Op::FreePages { handle: 0, count: result.value as u32 }), result.value);
    guest.assert_sound();
}

#[test]
fn settings_are_made() {
    let guest = small();
    guest.ok(Op::Set { setting: Setting::MinFreeKbytes, index: 0, value: 2048 });
    guest.ok(Op::Set { setting: Setting::LowmemReserveRatio, index: 1, value: 17 });
    let sysctl = guest.machine.mm().region().sysctl();
    assert_eq!(sysctl.min_free_kbytes.load(std::sync::atomic::Ordering::Relaxed), 2048);
    assert_eq!(sysctl.lowmem_reserve_ratio[1].load(std::sync::atomic::Ordering::Relaxed), 17);
    guest.ok(Op::Set { setting: Setting::DropCaches, index: 0, value: 2 });
    assert_eq!(guest.machine.mm().vm_event(VmEvent::DropSlab), 1);
    guest.fails(Op::Set { setting: Setting::DropCaches, index: 0, value: 5 }, OpError::Invalid);
    guest.fails(Op::Set { setting: Setting::WatermarkScaleFactor, index: 0, value: 4000 }, OpError::Invalid);
    guest.fails(Op::Set { setting: Setting::MinFreeKbytes, index: 0, value: 1 << 40 }, OpError::Invalid);
    let set = |setting, value| guest.ok(Op::Set { setting, index: 0, value });
    let now = |word: &AtomicU64| word.load(std::sync::atomic::Ordering::Relaxed);
    set(Setting::OvercommitMemory, 2);
    set(Setting::OvercommitKbytes, 1 << 40);
    assert_eq!((now(&sysctl.overcommit_kbytes), sysctl.commit_limit(1000)), (1 << 40, 1 << 38));
    set(Setting::OvercommitRatio, 80);
    assert_eq!((now(&sysctl.overcommit_kbytes), sysctl.commit_limit(1000)), (0, 800), "what is set last holds");
    set(Setting::MaxMapCount, 7);
    set(Setting::MmapMinAddr, 1 << 33);
    assert_eq!(now(&sysctl.mmap_min_addr), 1 << 33);
    for (setting, value) in
        [(Setting::OvercommitMemory, 3), (Setting::OvercommitRatio, 1 << 31), (Setting::MaxMapCount, 1 << 31)]
    {
        guest.fails(Op::Set { setting, index: 0, value }, OpError::Invalid);
    }
}

#[test]
fn the_nth_allocation_fails() {
    let guest = small();
    guest.ok(Op::FailNth { of: Faulty::Pages, nth: 3, this_cpu: false });
    let result = guest.one(alloc(0, 0, 5));
    assert_eq!((result.error, result.value), (Some(OpError::NoMemory), 2));
    let always = Fault { probability: 100, interval: 1, times: 1, ..Fault::default() };
    guest.ok(Op::FailPageAlloc(always));
    guest.fails(alloc(10, 0, 1), OpError::NoMemory);
    guest.ok(alloc(10, 0, 1));
}

#[test]
fn ranges_and_areas() {
    let guest = small();
    let mm = guest.machine.mm();
    let (start, end) = (Pfn::new(0x4000), Pfn::new(0x4400));
    let range = Op::AllocContigRange { start, end, migratetype: MigrateType::Movable, gfp: Gfp::KERNEL, handle: 3 };
    assert_eq!(guest.ok(range), start.raw());
    guest.ok(Op::FillPattern { handle: 3, count: 1, seed: 1 });
    guest.ok(Op::FreePages { handle: 3, count: 1 });
    guest.ok(Op::Isolate { action: Isolate::Start, start, end, migratetype: MigrateType::Movable });
    guest.fails(range, OpError::Busy);
    guest.ok(Op::Isolate { action: Isolate::Undo, start, end, migratetype: MigrateType::Movable });
    let area = guest.ok(Op::ReserveCma { pages: 1000, node: None }) as u8;
    let cma = |handle| Op::CmaAlloc { area, pages: 300, align: order(4), handle };
    let first = guest.ok(cma(4));
    assert!(Pfn::new(first).is_aligned(order(4)));
    guest.ok(cma(5));
    guest.ok(cma(6));
    guest.fails(cma(7), OpError::NoMemory);
    guest.ok(Op::FreePages { handle: 4, count: 3 });
    guest.fails(Op::CmaAlloc { area: 9, pages: 1, align: Order::ZERO, handle: 8 }, OpError::Unavailable);
    mm.drain_all_pages(None);
    guest.assert_sound();
}

#[test]
fn events_are_switched_on() {
    let guest = small();
    let bit = EventKind::MmPageAlloc.bit();
    guest.ok(Op::SetEvents { mask: bit });
    guest.ok(alloc(0, 0, 3));
    guest.ok(Op::SetEvents { mask: 0 });
    guest.ok(alloc(3, 0, 3));
    let ring = guest.machine.mm().region().events(CpuId::default()).expect("CPU 0's ring");
    // Three blocks, and two pages of the table of handles.
    assert_eq!(ring.head(), 5);
}
