//! When neighbours become one area: the eight cases, and what keeps them apart.

use pagevisor_mm::check::{space_violations, unmerged_areas, user_violations};
use pagevisor_mm::mmap::{Limits, MmapRequest, MremapRequest, Space};
use pagevisor_shared::mm_types::uapi::*;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use crate::{Stack, machine};

const BASE: u64 = 0x1000_0000;
const LIMITS: Limits = Limits::DEFAULT;
const R: u32 = PROT_READ;
const RW: u32 = PROT_READ | PROT_WRITE;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(BASE + page * PAGE_SIZE)
}

#[track_caller]
fn map(mm: &Stack, space: Space, page: u64, pages: u64, prot: u32) {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
    let request = MmapRequest { addr: at(page), len: pages * PAGE_SIZE, prot, flags, file: None, pgoff: 0 };
    assert_eq!(mm.do_mmap(space, &request, &LIMITS), Ok(at(page)));
}

#[track_caller]
fn protect(mm: &Stack, space: Space, page: u64, pages: u64, prot: u32) {
    mm.do_mprotect(space, at(page), pages * PAGE_SIZE, prot, &LIMITS).expect("it is mapped");
}

/// Moves pages from far away to `page`.
#[track_caller]
fn move_to(mm: &Stack, space: Space, from: u64, page: u64, pages: u64) {
    let len = pages * PAGE_SIZE;
    let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    let request = MremapRequest { addr: at(from), old_len: len, new_len: len, flags, new_addr: at(page) };
    assert_eq!(mm.do_mremap(space, &request, &LIMITS), Ok(at(page)));
}

#[track_caller]
fn touch(mm: &Stack, space: Space, page: u64) {
    mm.user_store(space, at(page), page as u8 | 1, &LIMITS).expect("it may be written");
}

/// Areas as pages from the base: from, up to, protection.
fn areas(mm: &Stack, space: Space) -> Vec<(u64, u64, u32)> {
    let mut areas = Vec::new();
    mm.for_each_vma(space, |area| {
        let page = |addr: VirtAddr| (addr.raw() - BASE) / PAGE_SIZE;
        areas.push((page(area.start), page(area.end), area.flags.0 as u32 & 7));
    });
    areas
}

/// Runs a case in a space of its own: once untouched, then with pages in the first page of each area of `touched`.
#[track_caller]
fn case(touched: &[u64], work: impl Fn(&Stack, Space, &dyn Fn()), wanted: &[(u64, u64, u32)]) {
    for touch_them in [false, true] {
        let machine = machine(1);
        let mm = machine.mm();
        let space = mm.mm_alloc().expect("a space");
        let touches = || {
            if touch_them {
                touched.iter().for_each(|page| touch(mm, space, *page));
            }
        };
        work(mm, space, &touches);
        assert_eq!(areas(mm, space), wanted, "touched: {touch_them}");
        assert_eq!(unmerged_areas(mm, space), [0u64; 0]);
        assert_eq!(space_violations(mm), []);
        assert_eq!(user_violations(mm), []);
        mm.mmput(space);
        assert_eq!(user_violations(mm), []);
    }
}

#[test]
fn case_1_fills_the_gap_between_two() {
    let work = |mm: &Stack, space, touch: &dyn Fn()| {
        map(mm, space, 0, 6, RW);
        map(mm, space, 100, 2, RW);
        touch();
        // One family, since both were one area.
        mm.do_munmap(space, at(2), 2 * PAGE_SIZE).expect("a range");
        move_to(mm, space, 100, 2, 2);
    };
    case(&[0], work, &[(0, 6, RW)]);
}

#[test]
fn case_2_goes_with_the_one_before() {
    let work = |mm: &Stack, space, touch: &dyn Fn()| {
        map(mm, space, 0, 2, RW);
        map(mm, space, 4, 2, R);
        map(mm, space, 100, 2, RW);
        touch();
        move_to(mm, space, 100, 2, 2);
    };
    case(&[0], work, &[(0, 4, RW), (4, 6, R)]);
}

#[test]
fn case_3_goes_with_the_one_behind() {
    let work = |mm: &Stack, space, touch: &dyn Fn()| {
        map(mm, space, 0, 2, R);
        map(mm, space, 4, 2, RW);
        map(mm, space, 100, 2, RW);
        touch();
        move_to(mm, space, 100, 2, 2);
    };
    case(&[4], work, &[(0, 2, R), (2, 6, RW)]);
}

#[test]
fn case_4_moves_the_boundary_down() {
    let work = |mm: &Stack, space, touch: &dyn Fn()| {
        map(mm, space, 0, 8, RW);
        touch();
        protect(mm, space, 6, 2, R);
        protect(mm, space, 4, 2, R);
    };
    case(&[0, 5], work, &[(0, 4, RW), (4, 8, R)]);
}

#[test]
fn case_5_moves_the_boundary_up() {
    let work = |mm: &Stack, space, touch: &dyn Fn()| {
        map(mm, space, 0, 8, RW);
        touch();
        protect(mm, space, 0, 2, R);
        protect(mm, space, 2, 2, R);
    };
    case(&[2, 6], work, &[(0, 4, R), (4, 8, RW)]);
}

#[test]
fn case_6_makes_one_of_three() {
    let work = |mm: &Stack, space, touch: &dyn Fn()| {
        map(mm, space, 0, 6, RW);
        touch();
        protect(mm, space, 2, 2, R);
        protect(mm, space, 2, 2, RW);
    };
    case(&[0, 2, 5], work, &[(0, 6, RW)]);
    // Only the area behind the one that changes has pages.
    let work = |mm: &Stack, space, touch: &dyn Fn()| {
        map(mm, space, 0, 2, RW);
        map(mm, space, 2, 2, R);
        map(mm, space, 4, 2, RW);
        touch();
        protect(mm, space, 2, 2, RW);
    };
    case(&[4], work, &[(0, 6, RW)]);
}

#[test]
fn case_7_goes_with_the_one_before() {
    let work = |mm: &Stack, space, touch: &dyn Fn()| {
        map(mm, space, 0, 6, RW);
        touch();
        protect(mm, space, 0, 2, R);
        protect(mm, space, 4, 2, PROT_NONE);
        protect(mm, space, 2, 2, R);
    };
    case(&[2], work, &[(0, 4, R), (4, 6, PROT_NONE)]);
}

#[test]
fn case_8_goes_with_the_one_behind() {
    let work = |mm: &Stack, space, touch: &dyn Fn()| {
        map(mm, space, 0, 6, RW);
        touch();
        protect(mm, space, 0, 2, PROT_NONE);
        protect(mm, space, 4, 2, R);
        protect(mm, space, 2, 2, R);
    };
    case(&[2], work, &[(0, 2, PROT_NONE), (2, 6, R)]);
}

#[test]
fn two_families_stay_two_areas() {
    let machine = machine(1);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    map(mm, space, 0, 2, RW);
    map(mm, space, 4, 2, RW);
    touch(mm, space, 0);
    touch(mm, space, 4);
    // Both would take it; together they cannot be.
    map(mm, space, 2, 2, RW);
    assert_eq!(areas(mm, space).len(), 2);
    assert_eq!(unmerged_areas(mm, space), [0u64; 0]);
    assert_eq!(space_violations(mm), []);
    assert_eq!(user_violations(mm), []);
    mm.mmput(space);
}

#[test]
fn a_range_with_pages_does_not_go_with_an_area_without() {
    let machine = machine(1);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    map(mm, space, 0, 2, R);
    map(mm, space, 2, 2, RW);
    touch(mm, space, 2);
    // The area before is linked to no family, which is not the same as to one (`list_is_singular`).
    protect(mm, space, 2, 2, R);
    assert_eq!(areas(mm, space), [(0, 2, R), (2, 4, R)]);
    // But the other way round it does.
    map(mm, space, 4, 2, R);
    assert_eq!(areas(mm, space), [(0, 2, R), (2, 6, R)]);
    assert_eq!(space_violations(mm), []);
    mm.mmput(space);
}

#[test]
fn offsets_must_go_on() {
    let machine = machine(1);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    map(mm, space, 0, 2, RW);
    map(mm, space, 100, 2, RW);
    touch(mm, space, 100);
    // Its pages have their places.
    move_to(mm, space, 100, 2, 2);
    assert_eq!(areas(mm, space), [(0, 2, RW), (2, 4, RW)]);
    assert_eq!(mm.user_load(space, at(2), &LIMITS).expect("it may be read").0, 101);
    // Back where it was it is one with what is mapped beside it.
    move_to(mm, space, 2, 100, 2);
    map(mm, space, 102, 2, RW);
    assert_eq!(areas(mm, space), [(0, 2, RW), (100, 104, RW)]);
    assert_eq!(user_violations(mm), []);
    mm.mmput(space);
}

#[test]
fn what_a_child_has_inherited_does_not_grow() {
    let machine = machine(1);
    let mm = machine.mm();
    let parent = mm.mm_alloc().expect("a space");
    map(mm, parent, 0, 2, RW);
    touch(mm, parent, 0);
    let child = mm.dup_mmap(parent).expect("a child");
    map(mm, child, 2, 2, RW);
    assert_eq!(areas(mm, child), [(0, 2, RW), (2, 4, RW)], "it has two families");
    map(mm, parent, 2, 2, RW);
    assert_eq!(areas(mm, parent), [(0, 4, RW)]);
    assert_eq!(space_violations(mm), []);
    assert_eq!(user_violations(mm), []);
    mm.mmput(child);
    mm.mmput(parent);
    assert_eq!(user_violations(mm), []);
}
