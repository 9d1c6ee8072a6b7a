//! Pages that are known to be zero are not cleared again, and all others are.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::hosted::Topology;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, PAGE_SIZE};
use proptest::prelude::*;

use crate::{MIB, Stack, assert_sound, load, machine, private, store};

const TOP: u64 = 0x7f00_0000_0000;

/// Pages cleared, and those that needed no clearing.
fn clears(mm: &Stack) -> (u64, u64) {
    let sum =
        |count: fn(&pagevisor_shared::region::records::CpuState) -> u64| mm.region().cpus().iter().map(count).sum();
    (sum(|cpu| cpu.pages_cleared.load(Relaxed)), sum(|cpu| cpu.clears_saved.load(Relaxed)))
}

#[test]
fn memory_that_nobody_used_is_not_cleared() {
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = private(mm, space, TOP, 1000);
    let before = clears(mm);
    (0..1000).for_each(|page| _ = store(mm, space, base + page * PAGE_SIZE, 0xaa));
    let first = clears(mm);
    assert!(first.1 - before.1 >= 1000 && first.0 - before.0 <= 4, "{before:?} {first:?}");
    mm.mmput(space);
    // The same memory, or most of it.
    let space = mm.mm_alloc().expect("a space");
    private(mm, space, TOP, 1000);
    (0..1000).for_each(|page| _ = store(mm, space, base + page * PAGE_SIZE, 0xbb));
    let second = clears(mm);
    assert!(second.0 - first.0 >= 900, "{first:?} {second:?}");
    (0..1000).for_each(|page| assert_eq!(load(mm, space, base + page * PAGE_SIZE + 1), (0, None)));
    mm.mmput(space);
    assert_sound(mm);
}

#[test]
fn without_the_promise_of_zeros_all_is_cleared() {
    let machine = Topology::new().node(&[(16 * MIB, 80 * MIB)], 1).unknown_content().boot();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = private(mm, space, TOP, 100);
    let before = clears(mm);
    (0..100).for_each(|page| _ = store(mm, space, base + page * PAGE_SIZE, 1));
    let after = clears(mm);
    assert!(after.0 - before.0 >= 100 && after.1 == 0, "{before:?} {after:?}");
    mm.mmput(space);
}

fn idle_cleared(mm: &Stack) -> u64 {
    mm.region().cpus().iter().map(|cpu| cpu.idle_cleared.load(Relaxed)).sum()
}

#[test]
fn memory_cleared_while_idle_is_not_cleared_again_unless_somebody_used_it() {
    let machine = Topology::new().node(&[(16 * MIB, 24 * MIB)], 1).boot();
    let mm = machine.mm();
    // All that there is, dirty; then in pieces and whole.
    let take_all = |order: u32| {
        let order = Order::new(order).expect("small");
        let blocks: Vec<_> =
            std::iter::from_fn(|| mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN | Gfp::NORETRY, order)).collect();
        blocks.iter().for_each(|pfn| fill(mm, *pfn, order));
        blocks.into_iter().for_each(|pfn| mm.free_pages(pfn, order));
        mm.drain_local_pages();
    };
    take_all(0);
    assert_eq!(idle_cleared(mm), 0);
    let begun: u32 = (0..20).map(|_| mm.clear_idle()).sum();
    assert!((20..=320).contains(&begun), "parts of blocks: {begun}");
    assert_sound(mm);
    // The block that was begun is used meanwhile.
    take_all(3);
    let buddyinfo = |mm: &Stack| mm.region().zones().iter().map(free_blocks).collect::<Vec<_>>();
    let lists = buddyinfo(mm);
    let mut pages = 0;
    while let cleared @ 1.. = mm.clear_idle() {
        pages += u64::from(cleared);
        assert!(pages < 10_000, "there is an end");
    }
    assert!(pages >= 1024 && idle_cleared(mm) == pages + u64::from(begun), "{pages}");
    assert_eq!(buddyinfo(mm), lists, "no list is another");
    assert_sound(mm);
    let before = clears(mm);
    let block = Order::new(8).expect("small");
    let pfn = mm.alloc_pages(Gfp::KERNEL | Gfp::ZERO, block).expect("a block");
    assert!(bytes(mm, pfn, block).iter().all(|byte| *byte == 0));
    assert_eq!(clears(mm), (before.0, before.1 + 256));
    fill(mm, pfn, block);
    mm.free_pages(pfn, block);
    mm.drain_local_pages();
    // What was known of its neighbours is forgotten where they have become one block.
    let space = mm.mm_alloc().expect("a space");
    let base = private(mm, space, TOP, 1000);
    (0..1000).for_each(|page| assert_eq!(load(mm, space, base + page * PAGE_SIZE + 9).0, 0));
    (0..1000).for_each(|page| _ = store(mm, space, base + page * PAGE_SIZE, 1));
    (0..1000).for_each(|page| assert_eq!(load(mm, space, base + page * PAGE_SIZE + 9), (0, None)));
    mm.mmput(space);
    assert_sound(mm);
}

#[test]
fn nothing_is_cleared_for_nothing() {
    let machine = Topology::new().node(&[(16 * MIB, 24 * MIB)], 1).unknown_content().boot();
    assert_eq!(machine.mm().clear_idle(), 0, "it would not be known");
    let machine = Topology::new().node(&[(16 * MIB, 24 * MIB)], 1).boot();
    (0..512).for_each(|_| _ = machine.mm().clear_idle());
    assert_eq!(machine.mm().clear_idle(), 0, "what boot has used, and no more");
}

/// Free blocks of a zone, by order.
fn free_blocks(zone: &pagevisor_shared::region::zone::ZoneState) -> Vec<u64> {
    let of_order = |area: &pagevisor_shared::region::zone::FreeArea| -> u64 {
        area.nr_free.iter().map(|count| count.load(Relaxed)).sum()
    };
    zone.free_area.iter().map(of_order).collect()
}

/// What takes, dirties and frees memory between programs.
#[derive(Clone, Debug)]
enum Step {
    /// A program writes to so many pages and ends.
    Program(u64),
    /// The kernel takes a block of that order, fills it and gives it back.
    Kernel(u32),
    /// It keeps it.
    Keep(u32),
    /// It gives the oldest back that it kept.
    Drop,
    /// The kernel takes a block of that order cleared, fills it and gives it back.
    Zeroed(u32),
    /// Pagesets are emptied, so that blocks merge.
    Drain,
    /// The CPU has nothing to do for so many steps.
    Idle(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..300).prop_map(Step::Program),
        2 => (0u32..9).prop_map(Step::Kernel),
        2 => (0u32..9).prop_map(Step::Keep),
        2 => Just(Step::Drop),
        2 => (0u32..9).prop_map(Step::Zeroed),
        1 => Just(Step::Drain),
        4 => (1u32..100).prop_map(Step::Idle),
    ]
}

fn fill(mm: &Stack, pfn: pagevisor_shared::units::Pfn, order: Order) {
    let bytes = mm.direct_map().at(pfn.addr());
    // SAFETY: a block of that size that the test has allocated.
    unsafe { bytes.write_bytes(0xcc, (PAGE_SIZE as usize) << order.raw()) };
}

fn bytes(mm: &Stack, pfn: pagevisor_shared::units::Pfn, order: Order) -> &[u8] {
    let bytes = mm.direct_map().at(pfn.addr());
    // SAFETY: as for `fill`; nobody writes there meanwhile.
    unsafe { std::slice::from_raw_parts(bytes.cast_const(), (PAGE_SIZE as usize) << order.raw()) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_page_once_written_is_never_handed_out_uncleared(steps in prop::collection::vec(step(), 1..60)) {
        // Little memory, so that it is used again and again.
        let machine = Topology::new().node(&[(16 * MIB, 24 * MIB)], 1).boot();
        let mm = machine.mm();
        let mut kept = Vec::new();
        for step in steps {
            match step {
                Step::Program(pages) => {
                    let space = mm.mm_alloc().expect("a space");
                    let base = private(mm, space, TOP, pages);
                    for page in 0..pages {
                        let addr = base + page * PAGE_SIZE;
                        store(mm, space, addr + PAGE_SIZE / 2, 0xdd);
                        for offset in [0, 1000, PAGE_SIZE / 2 - 1, PAGE_SIZE / 2 + 1, PAGE_SIZE - 1] {
                            prop_assert_eq!(load(mm, space, addr + offset).0, 0);
                        }
                        let dirt = [0xdd; PAGE_SIZE as usize];
                        mm.write_remote_vm(space, pagevisor_shared::units::VirtAddr::new(addr), &dirt);
                    }
                    mm.mmput(space);
                }
                Step::Kernel(order) | Step::Keep(order) => {
                    let order = Order::new(order).expect("small");
                    let Some(pfn) = mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN | Gfp::NORETRY, order) else { continue };
                    fill(mm, pfn, order);
                    match step {
                        Step::Keep(_) if kept.len() < 4 => kept.push((pfn, order)),
                        _ => mm.free_pages(pfn, order),
                    }
                }
                Step::Zeroed(order) => {
                    let order = Order::new(order).expect("small");
                    let gfp = Gfp::KERNEL | Gfp::ZERO | Gfp::NOWARN | Gfp::NORETRY;
                    let Some(pfn) = mm.alloc_pages(gfp, order) else { continue };
                    prop_assert!(bytes(mm, pfn, order).iter().all(|byte| *byte == 0));
                    fill(mm, pfn, order);
                    mm.free_pages(pfn, order);
                }
                Step::Idle(steps) => _ = (0..steps).take_while(|_| mm.clear_idle() != 0).count(),
                Step::Drop if !kept.is_empty() => {
                    let (pfn, order) = kept.remove(0);
                    mm.free_pages(pfn, order);
                }
                Step::Drop => {}
                Step::Drain => mm.drain_local_pages(),
            }
        }
        kept.into_iter().for_each(|(pfn, order)| mm.free_pages(pfn, order));
        assert_sound(mm);
    }
}
