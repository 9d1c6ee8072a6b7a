//! Misuse: each mistake is reported as Linux's `bad_page`, and the page stays off the lists.

use pagevisor_mm::hosted::Machine;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::units::{Order, Pfn, VirtAddr};

use crate::{assert_sound, order, small, take_all};

/// Whether the report names the page and the reason, and the log is empty again.
#[track_caller]
fn assert_reported(machine: &Machine, pfn: Pfn, reason: &str) {
    let text = machine.log_text();
    let head = format!("BUG: Bad page state in process swapper/0  pfn:{:05x}\n", pfn.raw());
    assert!(text.contains(&head), "{text}");
    assert!(text.contains(&format!("page dumped because: {reason}\n")), "{text}");
    assert_eq!(machine.platform().stacks_dumped(), 1, "a stack with each report");
    assert!(text.ends_with("Call Trace:\n"), "{text}");
}

/// A machine with one page allocated, its log empty.
fn with_page(raw: u32) -> (Machine, Pfn) {
    let machine = small();
    let pfn = machine.mm().alloc_pages(Gfp::KERNEL, order(raw)).expect("a page");
    machine.platform().clear_log();
    (machine, pfn)
}

#[test]
fn freeing_twice() {
    for raw in [0, 3, 5, 9, 10] {
        let (machine, pfn) = with_page(raw);
        machine.mm().free_pages(pfn, order(raw));
        assert_eq!(machine.log_text(), "");
        machine.mm().free_pages(pfn, order(raw));
        assert_reported(&machine, pfn, "freeing a page not in use");
        assert_sound(machine.mm());
    }
}

#[test]
fn freeing_with_another_order() {
    for (raw, wrong) in [(0, 3), (3, 0), (2, 1), (9, 10), (5, 4)] {
        let (machine, pfn) = with_page(raw);
        machine.mm().free_pages(pfn, order(wrong));
        let reason = "freed with another order than allocated";
        assert_reported(&machine, pfn, reason);
        assert_sound(machine.mm());
        // Nothing happened to it: freed right, it is free.
        machine.mm().free_pages(pfn, order(raw));
        assert_sound(machine.mm());
    }
}

#[test]
fn freeing_part_of_a_block() {
    let (machine, pfn) = with_page(4);
    machine.mm().free_pages(pfn.add(8), order(3));
    assert_reported(&machine, pfn.add(8), "freeing a page not in use");
    assert_sound(machine.mm());
}

#[test]
fn freeing_reserved_memory() {
    let machine = pagevisor_mm::hosted::Topology::pages_only()
        .node(&[(16 << 20, 80 << 20)], 1)
        .reserve(20 << 20, 21 << 20)
        .boot();
    machine.platform().clear_log();
    let pfn = Pfn::new((20 << 20) >> 12);
    machine.mm().free_pages(pfn, Order::ZERO);
    assert_reported(&machine, pfn, "freeing a reserved page");
    assert!(machine.log_text().contains("flags: 0x1000(reserved|node=0|zone=1)\n"), "{}", machine.log_text());
    assert_sound(machine.mm());
}

#[test]
fn freeing_what_is_no_memory() {
    let machine = small();
    machine.platform().clear_log();
    for pfn in [1, (80 << 20) >> 12, u32::MAX as u64, u64::MAX] {
        machine.mm().free_pages(Pfn::new(pfn), Order::ZERO);
        machine.mm().free_pages(Pfn::new(pfn), order(9));
        machine.mm().put_page(Pfn::new(pfn));
        machine.mm().split_page(Pfn::new(pfn), order(2));
        assert!(!machine.mm().get_page(Pfn::new(pfn)));
        assert!(machine.mm().page(Pfn::new(pfn)).is_none());
    }
    machine.mm().free_pages_virt(VirtAddr::new(0x1000), Order::ZERO);
    assert_eq!(machine.platform().stacks_dumped(), 17);
    assert_sound(machine.mm());
}

/// A page in use that is freed is reported and lost; nobody gets it again.
fn assert_lost(spoil: impl Fn(&Machine, Pfn), reason: &str) {
    for raw in [0, 2, 6] {
        let (machine, pfn) = with_page(raw);
        spoil(&machine, pfn);
        machine.mm().free_pages(pfn, order(raw));
        assert_reported(&machine, pfn, reason);
        let zone = crate::zone(0, pagevisor_shared::zone::ZoneType::Dma32);
        let lost = pagevisor_mm::check::violations(machine.mm());
        assert_eq!(lost.len(), 1, "only the sum over all pages is short: {lost:?}");
        assert_eq!((lost[0].zone, lost[0].expected - lost[0].found), (zone, 1 << raw));
        machine.mm().drain_all_pages(None);
        let all = take_all(machine.mm(), Gfp::KERNEL | Gfp::MEMALLOC, Order::ZERO);
        assert!(all.iter().all(|page| page.raw() < pfn.raw() || page.raw() >= pfn.raw() + (1 << raw)));
    }
}

#[test]
fn freeing_a_mapped_page() {
    assert_lost(|machine, pfn| machine.mm().page(pfn).expect("a page").inc_mapcount(), "nonzero mapcount");
}

#[test]
fn freeing_a_page_with_an_owner() {
    assert_lost(|machine, pfn| machine.mm().page(pfn).expect("a page").set_mapping(7), "non-NULL mapping");
}

#[test]
fn freeing_a_page_with_a_flag_of_its_use() {
    for flag in [PageFlag::Lru, PageFlag::Locked, PageFlag::Writeback, PageFlag::Slab, PageFlag::Mlocked] {
        assert_lost(
            |machine, pfn| assert!(!machine.mm().page(pfn).expect("a page").set_flag(flag)),
            "PAGE_FLAGS_CHECK_AT_FREE flag(s) set",
        );
    }
}

#[test]
fn what_the_owner_left_behind_is_cleared() {
    let (machine, pfn) = with_page(0);
    let page = machine.mm().page(pfn).expect("a page");
    page.set_private(99);
    page.set_index(12);
    page.set_flag(PageFlag::Uptodate);
    page.set_flag(PageFlag::Dirty);
    page.inc_mapcount();
    assert!(page.dec_mapcount());
    page.set_mapping(3);
    page.set_mapping(0);
    machine.mm().free_page(pfn);
    assert_eq!(machine.log_text(), "");
    assert_sound(machine.mm());
    assert_eq!(machine.mm().alloc_page(Gfp::KERNEL), Some(pfn));
    let page = machine.mm().page(pfn).expect("a page");
    assert_eq!((page.private(), page.flags(), page.mapcount(), page.mapping()), (0, 0, 0, 0));
    assert_eq!(page.refcount(), 1);
}

#[test]
fn a_dump_shows_the_page() {
    let (machine, pfn) = with_page(3);
    let page = machine.mm().page(pfn).expect("a page");
    page.set_flag(PageFlag::Locked);
    page.set_index(0x11);
    machine.mm().dump_page(pfn, "a test");
    let addr = 0xffff_ea00_0000_0000u64 + pfn.raw() * 32;
    let expected = format!(
        "page:{addr:016x} refcount:1 mapcount:0 mapping:0000000000000000 index:0x11 pfn:{:#x}\n\
         flags: 0x1(locked|node=0|zone=1)\n\
         raw: 0000000186000001 0000000000000000 ",
        pfn.raw()
    );
    let text = machine.log_text();
    assert!(text.starts_with(&expected), "{text}\n{expected}");
    assert!(text.ends_with(" 0000001100000000\npage dumped because: a test\n"), "{text}");
}

#[test]
fn a_flood_of_reports_is_dammed() {
    let (machine, pfn) = with_page(0);
    machine.mm().free_page(pfn);
    for _ in 0..100 {
        machine.mm().free_page(pfn);
    }
    let reports = |machine: &Machine| machine.log_text().matches("Bad page state in process").count();
    assert_eq!(reports(&machine), 60);
    machine.platform().advance(61_000_000_000);
    machine.mm().free_page(pfn);
    assert_eq!(reports(&machine), 61);
    assert!(machine.log_text().contains("BUG: Bad page state: 40 messages suppressed\n"));
}

#[test]
fn references_hold_a_page() {
    let (machine, pfn) = with_page(0);
    assert!(machine.mm().get_page(pfn));
    machine.mm().free_page(pfn);
    assert_eq!(machine.mm().page(pfn).expect("a page").refcount(), 1);
    machine.mm().put_page(pfn);
    assert!(!machine.mm().get_page(pfn), "a free page gives no reference");
    machine.mm().put_page(pfn);
    assert_reported(&machine, pfn, "freeing a page not in use");
    assert_sound(machine.mm());
}

#[test]
fn a_reference_to_the_first_page_holds_that_page() {
    let (machine, pfn) = with_page(4);
    assert!(machine.mm().get_page(pfn));
    machine.mm().free_pages(pfn, order(4));
    assert_eq!(machine.mm().page(pfn).expect("a page").refcount(), 1);
    assert_sound(machine.mm());
    machine.mm().put_page(pfn);
    assert_eq!(machine.log_text(), "");
    assert_sound(machine.mm());
}

#[test]
fn a_compound_page_is_held_by_any_of_its_pages() {
    let machine = small();
    let mm = machine.mm();
    let pfn = mm.alloc_pages(Gfp::KERNEL | Gfp::COMP, order(5)).expect("a block");
    assert_eq!(mm.page(pfn).expect("a page").compound_order(), order(5));
    assert!(mm.get_page(pfn.add(17)));
    mm.free_pages(pfn, order(5));
    assert_eq!(mm.page(pfn).expect("a page").refcount(), 1);
    assert_sound(mm);
    mm.put_page(pfn.add(31));
    assert_eq!(mm.page(pfn).expect("a page").refcount(), 0);
    assert_sound(mm);
    assert_eq!(machine.platform().stacks_dumped(), 0);
}

#[test]
fn only_plain_blocks_are_split() {
    let machine = small();
    let mm = machine.mm();
    let compound = mm.alloc_pages(Gfp::KERNEL | Gfp::COMP, order(3)).expect("a block");
    let plain = mm.alloc_pages(Gfp::KERNEL, order(3)).expect("a block");
    mm.split_page(compound, order(3));
    mm.split_page(plain, order(2));
    assert_eq!(machine.platform().stacks_dumped(), 2);
    mm.split_page(plain, order(3));
    (0..8).for_each(|page| mm.free_page(plain.add(page)));
    mm.free_pages(compound, order(3));
    assert_eq!(machine.platform().stacks_dumped(), 2);
    assert_sound(mm);
}
