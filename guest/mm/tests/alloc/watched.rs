//! What watches pages: patterns in free ones, clearing, and who owns each.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::Mm;
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_mm::instrument::PAGE_POISON;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::page_owner::{OwnerRecord, OwnerState, StackRecord};
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn, PhysAddr};
use proptest::prelude::*;

use crate::{MIB, assert_sound, order};

fn boot(line: &str) -> Machine {
    Topology::pages_only()
        .node(&[(0, 640 << 10), (MIB, 96 * MIB)], 1)
        .node(&[(96 * MIB, 160 * MIB)], 1)
        .command_line(line)
        .boot()
}

/// The memory of a block.
#[allow(clippy::mut_from_ref, reason = "the memory is not the stack's own")]
fn memory(mm: &Mm<HostPlatform>, pfn: Pfn, order: Order) -> &mut [u8] {
    let bytes = (PAGE_SIZE as usize) << order.raw();
    // SAFETY: RAM of the machine, mapped for ever; the tests here use it from one thread.
    unsafe { core::slice::from_raw_parts_mut(mm.direct_map().at(pfn.addr()), bytes) }
}

#[test]
fn freed_pages_hold_the_pattern() {
    let machine = boot("page_poison=1");
    let mm = machine.mm();
    assert_eq!(mm.instrumented(), hot::ON | hot::POISON);
    for raw in [0, 3, 5, 9, 10] {
        let page = mm.alloc_pages(Gfp::KERNEL, order(raw)).expect("a block");
        memory(mm, page, order(raw)).fill(7);
        mm.free_pages(page, order(raw));
        assert!(memory(mm, page, order(raw)).iter().all(|byte| *byte == PAGE_POISON), "order {raw}");
    }
    // Blocks of pages that were used and of some that were not are given out without complaint.
    machine.platform().clear_log();
    let all = crate::take_all(mm, Gfp::KERNEL | Gfp::MEMALLOC | Gfp::ZERO, order(4));
    assert!(all.iter().all(|page| memory(mm, *page, order(4)).iter().all(|byte| *byte == 0)));
    assert_eq!(machine.log_text(), "");
    all.iter().for_each(|page| mm.free_pages(*page, order(4)));
    assert_sound(mm);
}

#[test]
fn whoever_writes_to_a_free_page_is_found_out() {
    let machine = boot("page_poison=on");
    let mm = machine.mm();
    let report = |damage: &dyn Fn(&mut [u8])| {
        let page = mm.alloc_page(Gfp::KERNEL).expect("a page");
        mm.free_page(page);
        damage(memory(mm, page, Order::ZERO));
        machine.platform().clear_log();
        assert_eq!(mm.alloc_page(Gfp::KERNEL), Some(page), "the page freed last is the next to be given out");
        mm.free_page(page);
        (machine.log_text(), mm.virt(page.addr()).raw())
    };
    assert_eq!(report(&|_| {}).0, "");
    let (text, at) = report(&|page| page[100] = PAGE_POISON ^ 4);
    let single = format!("pagealloc: single bit error\n{:016x}: ae{:47}.\nCall Trace:\n", at + 100, "");
    assert!(text.starts_with(&single), "{text}");
    assert!(text.ends_with("page dumped because: pagealloc: corrupted page details\n"), "{text}");
    let (text, at) = report(&|page| page[8..26].copy_from_slice(b"stray write \x01 here"));
    let lines = [
        "pagealloc: memory corruption".to_owned(),
        format!("{:016x}: 73 74 72 61 79 20 77 72 69 74 65 20 01 20 68 65  stray write . he", at + 8),
        format!("{:016x}: 72 65{:44}re", at + 24, ""),
    ];
    assert!(text.starts_with(&lines.join("\n")), "{text}");
    // One bit each in two bytes is no single bit error.
    let (text, _) = report(&|page| (page[0], page[4095]) = (PAGE_POISON ^ 1, PAGE_POISON ^ 1));
    assert!(text.starts_with("pagealloc: memory corruption\n"));
    assert_eq!(text.lines().filter(|line| line.contains(": a")).count(), 256, "from the first to the last");
    // Ten reports in five seconds.
    let reports = (0..20).filter(|_| !report(&|page| page[1] = 0).0.is_empty()).count();
    assert_eq!(reports, 10 - 3);
    machine.platform().advance(6_000_000_000);
    assert_ne!(report(&|page| page[1] = 0).0, "");
    assert_sound(mm);
}

#[test]
fn pages_are_cleared_where_that_is_wanted() {
    let machine = boot("init_on_alloc=1");
    let mm = machine.mm();
    let page = mm.alloc_page(Gfp::KERNEL).expect("a page");
    memory(mm, page, Order::ZERO).fill(1);
    mm.free_page(page);
    assert_eq!(memory(mm, page, Order::ZERO)[9], 1);
    assert_eq!(mm.alloc_page(Gfp::KERNEL), Some(page));
    assert!(memory(mm, page, Order::ZERO).iter().all(|byte| *byte == 0));
    let machine = boot("init_on_free=1");
    let mm = machine.mm();
    let page = mm.alloc_page(Gfp::KERNEL).expect("a page");
    memory(mm, page, Order::ZERO).fill(1);
    mm.free_page(page);
    assert!(memory(mm, page, Order::ZERO).iter().all(|byte| *byte == 0));
    let both = boot("init_on_free=1 page_poison=1 init_on_alloc=1");
    assert_eq!(both.mm().instrumented(), hot::ON | hot::POISON);
    assert!(both.log_text().contains("will take precedence over init_on_alloc and init_on_free\n"));
}

/// The tables, as the host finds them.
fn tables(mm: &Mm<HostPlatform>) -> (&[OwnerRecord], &[StackRecord]) {
    let roots = &mm.region().header().roots;
    let [owners, frames, stacks, count] =
        [&roots.page_owner, &roots.max_pfn, &roots.stacks, &roots.nr_stacks].map(|root| root.load(Relaxed));
    let at = |addr| mm.direct_map().at(PhysAddr::new(addr));
    // SAFETY: the tables that the stack published, of atomics, in RAM that stays mapped.
    unsafe {
        let owners = core::slice::from_raw_parts(at(owners).cast(), frames as usize);
        (owners, core::slice::from_raw_parts(at(stacks).cast(), count as usize))
    }
}

fn owner(mm: &Mm<HostPlatform>, pfn: Pfn) -> OwnerState {
    OwnerState::unpack(tables(mm).0[pfn.raw() as usize].state.load(Relaxed))
}

/// The trace behind a handle.
fn trace(mm: &Mm<HostPlatform>, handle: u32) -> Vec<u64> {
    let stack = &tables(mm).1[handle as usize - 1];
    stack.entries.iter().take(stack.len.load(Relaxed) as usize).map(|entry| entry.load(Relaxed)).collect()
}

#[test]
fn a_page_has_an_owner_and_a_last_one() {
    let machine = boot("page_owner=on");
    let mm = machine.mm();
    let platform = machine.platform();
    platform.advance(1000);
    platform.set_backtrace(&[0x11, 0x22, 0x33]);
    let block = mm.alloc_pages(Gfp::KERNEL | Gfp::COMP, order(2)).expect("a block");
    let record = &tables(mm).0[block.raw() as usize];
    let state = OwnerState { allocated: true, order: 2, cpu: 0, free_cpu: 0 };
    assert_eq!(owner(mm, block), state);
    assert_eq!(record.gfp.load(Relaxed), (Gfp::KERNEL | Gfp::COMP).bits());
    assert_eq!(record.ts_nsec.load(Relaxed), 1000);
    assert_eq!(trace(mm, record.stack.load(Relaxed)), [0x11, 0x22, 0x33]);
    assert_eq!(record.free_stack.load(Relaxed), 0);
    machine.on_cpu(1, |mm| {
        platform.advance(500);
        platform.set_backtrace(&[0x44]);
        mm.free_pages(block, order(2));
    });
    assert_eq!(owner(mm, block), OwnerState { allocated: false, free_cpu: 1, ..state });
    assert_eq!(record.free_ts_nsec.load(Relaxed), 1500);
    assert_eq!(trace(mm, record.free_stack.load(Relaxed)), [0x44]);
    assert_eq!(trace(mm, record.stack.load(Relaxed)), [0x11, 0x22, 0x33], "still known");
    // The same calls are the same entry; long traces are cut.
    platform.set_backtrace(&[0x11, 0x22, 0x33]);
    let page = mm.alloc_page(Gfp::KERNEL).expect("a page");
    assert_eq!(tables(mm).0[page.raw() as usize].stack.load(Relaxed), record.stack.load(Relaxed));
    platform.set_backtrace(&(1..40).collect::<Vec<u64>>());
    let deep = mm.alloc_page(Gfp::KERNEL).expect("a page");
    assert_eq!(trace(mm, tables(mm).0[deep.raw() as usize].stack.load(Relaxed)), (1..17).collect::<Vec<u64>>());
    platform.set_backtrace(&[]);
    let unknown = mm.alloc_page(Gfp::KERNEL).expect("a page");
    assert_eq!(tables(mm).0[unknown.raw() as usize].stack.load(Relaxed), 0);
}

#[test]
fn parts_of_a_block_have_its_owner() {
    let machine = boot("page_owner=on");
    let mm = machine.mm();
    machine.platform().set_backtrace(&[1]);
    let block = mm.alloc_pages(Gfp::KERNEL, order(2)).expect("a block");
    mm.split_page(block, order(2));
    let alive = OwnerState { allocated: true, order: 0, cpu: 0, free_cpu: 0 };
    assert!((0..4).all(|page| owner(mm, block.add(page)) == alive));
    mm.free_page(block.add(1));
    assert!(!owner(mm, block.add(1)).allocated && owner(mm, block.add(2)).allocated);
    let exact = mm.alloc_pages_exact(5 * PAGE_SIZE, Gfp::KERNEL).expect("pages");
    let there: Vec<bool> = (0..8).map(|page| owner(mm, exact.add(page)).allocated).collect();
    assert_eq!(there, [true, true, true, true, true, false, false, false]);
    // A block whose first page somebody else holds too.
    let held = mm.alloc_pages(Gfp::KERNEL, order(1)).expect("a block");
    assert!(mm.get_page(held));
    mm.free_pages(held, order(1));
    assert_eq!(owner(mm, held), OwnerState { free_cpu: owner(mm, held).free_cpu, ..alive });
    mm.put_page(held);
    assert!(!owner(mm, held).allocated);
    let start = Pfn::new((104 * MIB) >> 12);
    mm.alloc_contig_range(&(start..start.add(3)), MigrateType::Movable).expect("free");
    assert!((0..3).all(|page| owner(mm, start.add(page)).allocated));
    assert!(!owner(mm, start.add(3)).allocated);
}

#[test]
fn a_full_table_of_traces_knows_no_more() {
    let machine = boot("page_owner=on");
    let mm = machine.mm();
    let handles: Vec<u32> = (1..6000u64)
        .map(|call| {
            machine.platform().set_backtrace(&[call, call << 20]);
            let page = mm.alloc_page(Gfp::KERNEL).expect("a page");
            mm.free_page(page);
            tables(mm).0[page.raw() as usize].stack.load(Relaxed)
        })
        .collect();
    let known = handles.iter().filter(|handle| **handle != 0).count();
    assert!((3500..=4096).contains(&known), "{known}");
    let ends = [0, 100].map(|at| trace(mm, handles[at]));
    assert_eq!(ends, [[1, 1 << 20], [101, 101 << 20]]);
}

#[test]
fn nobody_keeps_what_nobody_asked_for() {
    let machine = boot("page_owner=off");
    let roots = &machine.mm().region().header().roots;
    assert_eq!((roots.page_owner.load(Relaxed), roots.stacks.load(Relaxed), machine.mm().instrumented()), (0, 0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is allocated and freed: the records say what is allocated, and the patterns stay whole.
    #[test]
    fn owners_are_who_holds_the_pages(steps in proptest::collection::vec((0u32..11, any::<bool>(), any::<u16>()), 1..300)) {
        let machine = boot("page_owner=on page_poison=on");
        let mm = machine.mm();
        machine.platform().set_backtrace(&[1]);
        machine.platform().clear_log();
        let mut held: Vec<(Pfn, Order)> = Vec::new();
        for (raw, free, pick) in steps {
            if free && !held.is_empty() {
                let (page, order) = held.swap_remove(pick as usize % held.len());
                mm.free_pages(page, order);
            } else if let Some(page) = mm.alloc_pages(Gfp::KERNEL | Gfp::NOWARN | Gfp::NORETRY, order(raw)) {
                memory(mm, page, order(raw)).fill(raw as u8);
                held.push((page, order(raw)));
            }
        }
        let mut want: Vec<_> = held.iter().map(|(page, order)| (page.raw(), order.raw())).collect();
        want.sort_unstable();
        let records = tables(mm).0.iter().enumerate();
        let found: Vec<_> = records
            .map(|(pfn, record)| (pfn as u64, OwnerState::unpack(record.state.load(Relaxed))))
            .filter(|(_, state)| state.allocated)
            .map(|(pfn, state)| (pfn, u32::from(state.order)))
            .collect();
        prop_assert_eq!(found, want);
        prop_assert_eq!(machine.log_text(), "");
        assert_sound(mm);
    }
}
