//! Any sequence of calls and accesses against a map of bytes: what is mapped keeps its content wherever it goes.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::check::{space_violations, user_violations, violations};
use pagevisor_mm::mmap::{Limits, MmapRequest, MremapRequest, Space};
use pagevisor_shared::mm_types::uapi::*;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};
use proptest::prelude::*;

use crate::{Stack, machine};

/// First page of the window, close to where two page tables meet.
const BASE: u64 = (0x4000_0000 >> 12) + 512 - 16;
const WINDOW: u64 = 32;
const LIMITS: Limits = Limits::DEFAULT;

#[derive(Clone, Debug)]
enum Step {
    Map { at: u64, pages: u64, prot: u32, populate: bool },
    Unmap { at: u64, pages: u64 },
    Protect { at: u64, pages: u64, prot: u32 },
    Move { at: u64, pages: u64, to: u64, stays: bool },
    DontNeed { at: u64, pages: u64 },
    Lock { at: u64, pages: u64, lock: bool },
    Store { at: u64, byte: u8 },
    Load { at: u64 },
    Fork { wipe: Option<(u64, u64)> },
}

fn step() -> impl Strategy<Value = Step> {
    let (at, pages, prot) = (0..WINDOW, 1..10u64, 0..4u32);
    prop_oneof![
        3 => (at.clone(), pages.clone(), prot.clone(), prop::bool::weighted(0.2))
            .prop_map(|(at, pages, prot, populate)| Step::Map { at, pages, prot, populate }),
        1 => (at.clone(), pages.clone()).prop_map(|(at, pages)| Step::Unmap { at, pages }),
        2 => (at.clone(), pages.clone(), prot).prop_map(|(at, pages, prot)| Step::Protect { at, pages, prot }),
        3 => (at.clone(), pages.clone(), at.clone(), prop::bool::weighted(0.3))
            .prop_map(|(at, pages, to, stays)| Step::Move { at, pages, to, stays }),
        1 => (at.clone(), pages.clone()).prop_map(|(at, pages)| Step::DontNeed { at, pages }),
        1 => (at.clone(), pages.clone(), any::<bool>()).prop_map(|(at, pages, lock)| Step::Lock { at, pages, lock }),
        8 => (at.clone(), 1..=255u8).prop_map(|(at, byte)| Step::Store { at, byte }),
        3 => at.clone().prop_map(|at| Step::Load { at }),
        1 => prop::option::of((at, pages)).prop_map(|wipe| Step::Fork { wipe }),
    ]
}

#[derive(Clone, Copy, PartialEq, Debug)]
struct PageIs {
    prot: u32,
    byte: u8,
    locked: bool,
}

type Model = BTreeMap<u64, PageIs>;

fn addr(page: u64) -> VirtAddr {
    VirtAddr::new(page * PAGE_SIZE)
}

fn move_pages(mm: &Stack, space: Space, model: &mut Model, at: u64, pages: u64, to: u64, stays: bool) {
    let one_area =
        mm.find_vma(space, addr(at)).is_some_and(|area| area.start <= addr(at) && addr(at + pages) <= area.end);
    if !one_area || at < to + pages && to < at + pages {
        return;
    }
    let len = pages * PAGE_SIZE;
    let flags = MREMAP_MAYMOVE | MREMAP_FIXED | if stays { MREMAP_DONTUNMAP } else { 0 };
    let area = mm.find_vma(space, addr(at)).expect("it is there");
    let request = MremapRequest { addr: addr(at), old_len: len, new_len: len, flags, new_addr: addr(to) };
    assert_eq!(mm.do_mremap(space, &request, &LIMITS), Ok(addr(to)));
    let old: Vec<_> = (at..at + pages).map(|page| model[&page]).collect();
    if stays {
        // The whole old area is not locked any more, whatever part of it has moved.
        let whole = area.start.raw() / PAGE_SIZE..area.end.raw() / PAGE_SIZE;
        model.range_mut(whole).for_each(|(_, page)| page.locked = false);
    }
    for (offset, page) in (0..).zip(old) {
        if stays {
            let stub = PageIs { byte: 0, locked: false, ..page };
            model.insert(at + offset, stub);
        } else {
            model.remove(&(at + offset));
        }
        model.insert(to + offset, page);
    }
}

fn check_all(mm: &Stack, space: Space, model: &Model, wiped: &dyn Fn(u64) -> bool) {
    for page in BASE..BASE + 2 * WINDOW {
        let found = mm.user_load(space, addr(page), &LIMITS).ok().map(|(byte, _)| byte);
        let readable = model.get(&page).filter(|is| is.prot != 0);
        assert_eq!(found, readable.map(|is| if wiped(page) { 0 } else { is.byte }), "page {:#x}", page - BASE);
    }
}

fn fork(mm: &Stack, space: Space, model: &mut Model, wipe: Option<(u64, u64)>) {
    let mut wiped = BASE..BASE;
    if let Some((at, pages)) = wipe {
        wiped = BASE + at..BASE + at + pages;
        let _ = mm.do_madvise(space, addr(wiped.start), pages * PAGE_SIZE, MADV_WIPEONFORK);
    }
    let child = mm.dup_mmap(space).expect("a child");
    check_all(mm, child, model, &|page| wiped.contains(&page));
    // Both write; neither sees it of the other.
    for (&page, is) in model.iter_mut().filter(|(_, is)| is.prot & PROT_WRITE != 0) {
        mm.user_store(child, addr(page), !is.byte, &LIMITS).expect("it may be written");
        if page % 2 == 0 {
            is.byte = is.byte.wrapping_add(3);
            mm.user_store(space, addr(page), is.byte, &LIMITS).expect("it may be written");
        }
    }
    assert_eq!(user_violations(mm), []);
    mm.mmput(child);
    if !wiped.is_empty() {
        let len = (wiped.end - wiped.start) * PAGE_SIZE;
        let _ = mm.do_madvise(space, addr(wiped.start), len, MADV_KEEPONFORK);
    }
}

fn run(mm: &Stack, space: Space, model: &mut Model, step: &Step) {
    match *step {
        Step::Map { at, pages, prot, populate } => {
            let at = BASE + at;
            let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | if populate { MAP_POPULATE } else { 0 };
            let len = pages * PAGE_SIZE;
            let request = MmapRequest { addr: addr(at), len, prot, flags, file: None, pgoff: 0 };
            assert_eq!(mm.do_mmap(space, &request, &LIMITS), Ok(addr(at)));
            model.extend((at..at + pages).map(|page| (page, PageIs { prot, byte: 0, locked: false })));
        }
        Step::Unmap { at, pages } => {
            mm.do_munmap(space, addr(BASE + at), pages * PAGE_SIZE).expect("a range");
            model.retain(|page, _| !(BASE + at..BASE + at + pages).contains(page));
        }
        Step::Protect { at, pages, prot } => {
            let done = mm.do_mprotect(space, addr(BASE + at), pages * PAGE_SIZE, prot, &LIMITS);
            let all = (BASE + at..BASE + at + pages).all(|page| {
                let is = model.get_mut(&page);
                is.map(|is| is.prot = prot).is_some()
            });
            assert_eq!(done.is_ok(), all);
        }
        Step::Move { at, pages, to, stays } => move_pages(mm, space, model, BASE + at, pages, BASE + to, stays),
        Step::DontNeed { at, pages } => {
            // Up to the first that is locked, in areas that the model does not know: only where none is.
            let range = BASE + at..BASE + at + pages;
            if model.range(range.clone()).all(|(_, is)| !is.locked) {
                let _ = mm.do_madvise(space, addr(range.start), pages * PAGE_SIZE, MADV_DONTNEED);
                model.range_mut(range).for_each(|(_, is)| is.byte = 0);
            }
        }
        Step::Lock { at, pages, lock } => {
            let (start, len) = (addr(BASE + at), pages * PAGE_SIZE);
            let _ = if lock { mm.do_mlock(space, start, len, 0, &LIMITS) } else { mm.do_munlock(space, start, len) };
            let mapped = (BASE + at..BASE + at + pages).take_while(|page| model.contains_key(page));
            let mapped: Vec<_> = mapped.collect();
            mapped.iter().for_each(|page| model.get_mut(page).expect("it is mapped").locked = lock);
        }
        Step::Store { at, byte } => {
            let done = mm.user_store(space, addr(BASE + at), byte, &LIMITS);
            let is = model.get_mut(&(BASE + at)).filter(|is| is.prot & PROT_WRITE != 0);
            assert_eq!(done.is_ok(), is.map(|is| is.byte = byte).is_some());
        }
        Step::Load { at } => {
            let found = mm.user_load(space, addr(BASE + at), &LIMITS).ok().map(|(byte, _)| byte);
            assert_eq!(found, model.get(&(BASE + at)).filter(|is| is.prot != 0).map(|is| is.byte));
        }
        Step::Fork { wipe } => fork(mm, space, model, wipe),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn content_goes_where_it_is_moved(steps in prop::collection::vec(step(), 1..80)) {
        let machine = machine(1);
        let mm = machine.mm();
        let space = mm.mm_alloc().expect("a space");
        let mut model = Model::new();
        for step in &steps {
            run(mm, space, &mut model, step);
            let wrong = space_violations(mm);
            prop_assert!(wrong.is_empty(), "after {:?}: {:?}", step, wrong);
        }
        check_all(mm, space, &model, &|_| false);
        let wrong = user_violations(mm);
        prop_assert!(wrong.is_empty(), "{:?}", wrong);
        let locked = model.values().filter(|is| is.locked).count() as u64;
        prop_assert_eq!(space.locked_vm.load(Relaxed), locked);
        mm.mmput(space);
        let wrong = user_violations(mm);
        prop_assert!(wrong.is_empty() && space_violations(mm).is_empty() && violations(mm).is_empty(), "{:?}", wrong);
    }
}
