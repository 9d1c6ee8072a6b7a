//! Areas change while their pages are used: against a model of every page, and by many threads at once.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::hosted::Topology;
use pagevisor_mm::memory::{FaultResult, SegvCode};
use pagevisor_mm::mmap::{MmapRequest, MremapRequest, Space};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::{
    MADV_DONTNEED, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_EXEC, PROT_NONE,
    PROT_READ, PROT_WRITE,
};
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};
use proptest::prelude::*;

use crate::{LIMITS, MIB, Stack, assert_sound, bad_load, bad_store, boot, in_use, load, machine, store};

/// The model's pages lie on both sides of where a page table ends.
const BASE: u64 = 0x7000_001e_0000;
const PAGES: u64 = 64;
const PROTECTIONS: [u32; 5] = [PROT_READ | PROT_WRITE, PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC, PROT_WRITE];

fn at(page: u64) -> VirtAddr {
    VirtAddr::new(BASE + page * PAGE_SIZE)
}

#[track_caller]
fn map(mm: &Stack, space: Space, addr: VirtAddr, pages: u64, prot: u32) {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    let request = MmapRequest { addr, len: pages * PAGE_SIZE, prot, flags, file: None, pgoff: 0 };
    assert_eq!(mm.do_mmap(space, &request, &LIMITS), Ok(addr));
}

#[derive(Clone, Debug)]
enum Step {
    Map { page: u64, len: u64, prot: usize },
    Unmap { page: u64, len: u64 },
    Protect { page: u64, len: u64, prot: usize },
    Move { from: u64, to: u64, len: u64 },
    DontNeed { page: u64, len: u64 },
    Write { page: u64, byte: u8 },
    Read { page: u64 },
    Fork { page: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let (page, len, prot) = (0..PAGES, 1..24u64, 0..PROTECTIONS.len());
    prop_oneof![
        3 => (page.clone(), len.clone(), prot.clone()).prop_map(|(page, len, prot)| Step::Map { page, len, prot }),
        2 => (page.clone(), len.clone()).prop_map(|(page, len)| Step::Unmap { page, len }),
        3 => (page.clone(), len.clone(), prot).prop_map(|(page, len, prot)| Step::Protect { page, len, prot }),
        2 => (page.clone(), page.clone(), len.clone()).prop_map(|(from, to, len)| Step::Move { from, to, len }),
        1 => (page.clone(), len).prop_map(|(page, len)| Step::DontNeed { page, len }),
        16 => (page.clone(), any::<u8>()).prop_map(|(page, byte)| Step::Write { page, byte }),
        8 => page.clone().prop_map(|page| Step::Read { page }),
        1 => page.prop_map(|page| Step::Fork { page }),
    ]
}

/// Each page's protection and byte; none where nothing is mapped.
struct Model([Option<(u32, u8)>; PAGES as usize]);

impl Model {
    fn range(&mut self, page: u64, len: u64) -> &mut [Option<(u32, u8)>] {
        &mut self.0[page as usize..(page + len).min(PAGES) as usize]
    }

    /// Compares what programs see of a page.
    fn check(&self, mm: &Stack, space: Space, page: u64) {
        let addr = at(page).raw() + 8;
        match self.0[page as usize] {
            None => assert_eq!(bad_load(mm, space, addr), FaultResult::Sigsegv { code: SegvCode::MapErr }),
            Some((PROT_NONE, _)) => {
                assert_eq!(bad_load(mm, space, addr), FaultResult::Sigsegv { code: SegvCode::AccErr });
            }
            Some((_, byte)) => assert_eq!(load(mm, space, addr).0, byte, "page {page}"),
        }
    }

    fn write(&mut self, mm: &Stack, space: Space, page: u64, byte: u8) {
        let addr = at(page).raw() + 8;
        match &mut self.0[page as usize] {
            None => assert_eq!(bad_store(mm, space, addr), FaultResult::Sigsegv { code: SegvCode::MapErr }),
            Some((prot, held)) if *prot & PROT_WRITE != 0 => {
                store(mm, space, addr, byte);
                *held = byte;
            }
            Some(_) => assert_eq!(bad_store(mm, space, addr), FaultResult::Sigsegv { code: SegvCode::AccErr }),
        }
    }

    fn apply(&mut self, mm: &Stack, space: Space, step: Step) {
        match step {
            Step::Map { page, len, prot } => {
                let range = self.range(page, len);
                map(mm, space, at(page), range.len() as u64, PROTECTIONS[prot]);
                range.fill(Some((PROTECTIONS[prot], 0)));
            }
            Step::Unmap { page, len } => {
                let range = self.range(page, len);
                assert_eq!(mm.do_munmap(space, at(page), range.len() as u64 * PAGE_SIZE), Ok(()));
                range.fill(None);
            }
            Step::Protect { page, len, prot } => {
                let range = self.range(page, len);
                let whole = range.iter().all(Option::is_some);
                let result =
                    mm.do_mprotect(space, at(page), range.len() as u64 * PAGE_SIZE, PROTECTIONS[prot], &LIMITS);
                assert_eq!(result, if whole { Ok(()) } else { Err(Errno::ENOMEM) });
                // What is before the first hole was changed.
                let mapped = range.iter_mut().map_while(Option::as_mut);
                mapped.for_each(|(held, _)| *held = PROTECTIONS[prot]);
            }
            Step::Move { from, to, len } => self.relocate(mm, space, from, to, len),
            Step::DontNeed { page, len } => {
                let range = self.range(page, len);
                let whole = range.iter().all(Option::is_some);
                let result = mm.do_madvise(space, at(page), range.len() as u64 * PAGE_SIZE, MADV_DONTNEED);
                assert_eq!(result, if whole { Ok(()) } else { Err(Errno::ENOMEM) });
                range.iter_mut().flatten().for_each(|(_, byte)| *byte = 0);
            }
            Step::Write { page, byte } => self.write(mm, space, page, byte),
            Step::Read { page } => self.check(mm, space, page),
            Step::Fork { page } => {
                let child = mm.dup_mmap(space).expect("a child");
                (0..PAGES).for_each(|page| self.check(mm, child, page));
                self.write(mm, space, page, 0x77);
                Model(self.0).write(mm, child, page, 0x99);
                self.check(mm, space, page);
                mm.mmput(child);
            }
        }
    }

    fn relocate(&mut self, mm: &Stack, space: Space, from: u64, to: u64, len: u64) {
        let len = len.min(PAGES - from).min(PAGES - to);
        let request = MremapRequest {
            addr: at(from),
            old_len: len * PAGE_SIZE,
            new_len: len * PAGE_SIZE,
            flags: MREMAP_MAYMOVE | MREMAP_FIXED,
            new_addr: at(to),
        };
        match mm.do_mremap(space, &request, &LIMITS) {
            Ok(addr) => {
                assert_eq!(addr, at(to));
                let moved = self.range(from, len).to_vec();
                self.range(from, len).fill(None);
                self.range(to, len).copy_from_slice(&moved);
            }
            // They overlap.
            Err(Errno::EINVAL) => assert!(from.abs_diff(to) < len),
            // Nothing is there.
            Err(Errno::EFAULT) if self.0[from as usize].is_none() => {}
            // Not all of it is one area; that is noticed when there is room for it.
            Err(Errno::EFAULT) => self.range(to, len).fill(None),
            Err(other) => panic!("mremap from {from} to {to}, {len} pages: {other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn pages_are_what_was_done_to_them(steps in prop::collection::vec(step(), 1..150)) {
        let machine = machine();
        let mm = machine.mm();
        let before = in_use(mm);
        let space = mm.mm_alloc().expect("a space");
        let mut model = Model([None; PAGES as usize]);
        for step in steps {
            model.apply(mm, space, step);
        }
        assert_sound(mm);
        (0..PAGES).for_each(|page| model.check(mm, space, page));
        mm.mmput(space);
        assert_sound(mm);
        // The zero page and the table of numbers stay.
        prop_assert!(in_use(mm) <= before + 4);
    }
}

/// One thread's part of a storm: its own range, again and again, and one that all of them touch.
fn storm(mm: &Stack, space: Space, cpu: u64, rounds: u64) {
    let own = BASE + (cpu + 1) * 0x40_0000;
    let first = |round: u64| 1 + (round * 7 + cpu * 3) % 90;
    for round in 0..rounds {
        let pages = first(round);
        map(mm, space, VirtAddr::new(own), pages, PROT_READ | PROT_WRITE);
        for page in 0..pages {
            store(mm, space, own + page * PAGE_SIZE, round as u8 | 1);
        }
        let middle = own + pages / 2 * PAGE_SIZE;
        assert_eq!(mm.do_mprotect(space, VirtAddr::new(middle), PAGE_SIZE, PROT_READ, &LIMITS), Ok(()));
        assert_eq!(bad_store(mm, space, middle), FaultResult::Sigsegv { code: SegvCode::AccErr });
        assert_eq!(load(mm, space, middle).0, round as u8 | 1);
        let shared = BASE + (round * 13 + cpu * 5) % PAGES * PAGE_SIZE + 64 * cpu;
        store(mm, space, shared, round as u8);
        assert_eq!(load(mm, space, shared).0, round as u8);
        if round % 16 == cpu {
            let child = mm.dup_mmap(space).expect("a child");
            assert_eq!(load(mm, child, middle).0, round as u8 | 1);
            store(mm, child, shared, 0);
            mm.mmput(child);
        }
        assert_eq!(mm.do_munmap(space, VirtAddr::new(own), pages * PAGE_SIZE), Ok(()));
        assert_eq!(bad_load(mm, space, own), FaultResult::Sigsegv { code: SegvCode::MapErr });
    }
}

#[test]
fn threads_map_touch_protect_and_unmap_at_once() {
    const CPUS: usize = 8;
    let machine = boot(Topology::new().node(&[(16 * MIB, 144 * MIB)], CPUS));
    let mm = machine.mm();
    let before = in_use(mm);
    let space = mm.mm_alloc().expect("a space");
    map(mm, space, VirtAddr::new(BASE), PAGES, PROT_READ | PROT_WRITE);
    std::thread::scope(|scope| {
        for cpu in 0..CPUS {
            let machine = &machine;
            scope.spawn(move || machine.on_cpu(cpu, |mm| storm(mm, space, cpu as u64, 60)));
        }
    });
    assert_sound(mm);
    assert_eq!(space.map_count.load(Relaxed), 1);
    mm.mmput(space);
    assert_sound(mm);
    assert!(in_use(mm) <= before + 4, "{} pages are lost", in_use(mm) - before);
}
