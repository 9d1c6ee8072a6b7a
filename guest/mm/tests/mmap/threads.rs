//! Many CPUs in one space: some map and unmap while others fault.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::check::{space_violations, user_violations, violations};
use pagevisor_mm::mmap::{Limits, MmapRequest, Space};
use pagevisor_shared::mm_types::uapi::*;
use pagevisor_shared::random::SplitMix64;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use crate::{Stack, machine};

const BASE: u64 = 0x2000_0000;
const PAGES: u64 = 64;
const LIMITS: Limits = Limits::DEFAULT;

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(BASE + page * PAGE_SIZE)
}

fn map(mm: &Stack, space: Space, page: u64, pages: u64) {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    let prot = PROT_READ | PROT_WRITE;
    let request = MmapRequest { addr: at(page), len: pages * PAGE_SIZE, prot, flags, file: None, pgoff: 0 };
    mm.do_mmap(space, &request, &LIMITS).expect("there is room");
}

/// Changes areas of its own, between which others' lie.
fn change(mm: &Stack, space: Space, lane: u64) {
    let mut random = SplitMix64::new(lane);
    for _ in 0..300 {
        let page = PAGES * (lane + 1) + random.below(PAGES / 2);
        let pages = 1 + random.below(PAGES / 2);
        match random.below(4) {
            0 | 1 => map(mm, space, page, pages),
            2 => mm.do_munmap(space, at(page), pages * PAGE_SIZE).expect("a range"),
            _ => {
                let prot = if random.below(2) == 0 { PROT_READ } else { PROT_READ | PROT_WRITE };
                let _ = mm.do_mprotect(space, at(page), pages * PAGE_SIZE, prot, &LIMITS);
            }
        }
        let _ = mm.user_store(space, at(page), 1, &LIMITS);
    }
}

/// Writes to what stays, and wherever there may be something.
fn fault(mm: &Stack, space: Space, lane: u64, lanes: u64, done: &AtomicBool) {
    let mut random = SplitMix64::new(lane);
    let mut written = [0u8; PAGES as usize];
    while !done.load(Relaxed) {
        let page = random.below(PAGES);
        // A byte of its own in each page.
        let own = VirtAddr::new(at(page).raw() + lane);
        let byte = random.below(256) as u8;
        mm.user_store(space, own, byte, &LIMITS).expect("it stays");
        written[page as usize] = byte;
        let page = random.below(PAGES);
        let own = VirtAddr::new(at(page).raw() + lane);
        let found = mm.user_load(space, own, &LIMITS).expect("it stays").0;
        assert_eq!(found, written[page as usize], "a write was lost");
        let _ = mm.user_store(space, at(PAGES + random.below(PAGES * lanes)), 7, &LIMITS);
    }
}

#[test]
fn faults_and_changes_of_one_space_do_not_disturb_each_other() {
    const LANES: u64 = 4;
    let machine = machine(2 * LANES as usize);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    map(mm, space, 0, PAGES);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changers: Vec<_> = (0..LANES)
            .map(|lane| {
                let machine = &machine;
                scope.spawn(move || machine.on_cpu(lane as usize, |mm| change(mm, space, lane)))
            })
            .collect();
        for lane in LANES..2 * LANES {
            let (machine, done) = (&machine, &done);
            scope.spawn(move || machine.on_cpu(lane as usize, |mm| fault(mm, space, lane, LANES, done)));
        }
        let results: Vec<_> = changers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    assert_eq!(space_violations(mm), []);
    assert_eq!(user_violations(mm), []);
    mm.mmput(space);
    assert_eq!(user_violations(mm), []);
    assert_eq!(violations(mm), []);
}
