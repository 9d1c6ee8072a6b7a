//! Any sequence of reading, writing, cutting, mapping and forking against vectors of bytes.

use std::collections::BTreeMap;

use pagevisor_mm::memory::FaultResult;
use pagevisor_mm::mmap::Space;
use pagevisor_shared::mm_types::uapi::*;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};
use proptest::prelude::*;

use crate::{LIMITS, Stack, assert_sound, close, file, machine, map, try_load};

/// Pages of files and of windows on them.
const PAGES: u64 = 24;
const BYTES: u64 = PAGES * PAGE_SIZE;
const SIGBUS: FaultResult = FaultResult::Sigbus { code: 2 };

#[derive(Clone, Debug)]
enum Step {
    Read { at: u64, len: u64 },
    Write { at: u64, len: u64, byte: u8 },
    Truncate { size: u64 },
    Punch { at: u64, len: u64 },
    Load { who: usize, shared: bool, at: u64 },
    Store { who: usize, shared: bool, at: u64, byte: u8 },
    Forget { who: usize, shared: bool, page: u64 },
    Fork { who: usize },
    Exit { who: usize },
}

fn step() -> impl Strategy<Value = Step> {
    // Close to where pages meet, more often than not.
    let at = (0..PAGES, prop_oneof![0..PAGE_SIZE, 0..8u64, PAGE_SIZE - 8..PAGE_SIZE])
        .prop_map(|(page, byte)| page * PAGE_SIZE + byte);
    let (who, shared) = (0..4usize, any::<bool>());
    prop_oneof![
        3 => (at.clone(), 1..9000u64).prop_map(|(at, len)| Step::Read { at, len }),
        3 => (at.clone(), 1..9000u64, 1..=255u8).prop_map(|(at, len, byte)| Step::Write { at, len, byte }),
        2 => at.clone().prop_map(|size| Step::Truncate { size }),
        1 => (at.clone(), 1..20000u64).prop_map(|(at, len)| Step::Punch { at, len }),
        6 => (who.clone(), shared, at.clone()).prop_map(|(who, shared, at)| Step::Load { who, shared, at }),
        8 => (who.clone(), shared, at, 1..=255u8)
            .prop_map(|(who, shared, at, byte)| Step::Store { who, shared, at, byte }),
        1 => (who.clone(), shared, 0..PAGES).prop_map(|(who, shared, page)| Step::Forget { who, shared, page }),
        1 => who.clone().prop_map(|who| Step::Fork { who }),
        1 => who.prop_map(|who| Step::Exit { who }),
    ]
}

/// A program: its space, and the private pages that it has instead of the file's.
struct Program {
    space: Space,
    own: BTreeMap<u64, Vec<u8>>,
}

struct World<'a> {
    mm: &'a Stack,
    content: Vec<u8>,
    programs: Vec<Program>,
    shared: u64,
    private: u64,
}

impl World<'_> {
    /// What a program finds at a place; nothing behind the end.
    fn expected(&self, who: usize, shared: bool, at: u64) -> Option<u8> {
        let (page, offset) = (at / PAGE_SIZE, (at % PAGE_SIZE) as usize);
        if page >= (self.content.len() as u64).div_ceil(PAGE_SIZE) {
            return None;
        }
        let own = self.programs[who].own.get(&page).filter(|_| !shared);
        Some(own.map_or_else(|| self.content.get(at as usize).copied().unwrap_or(0), |page| page[offset]))
    }

    fn addr(&self, shared: bool, at: u64) -> u64 {
        at + if shared { self.shared } else { self.private }
    }

    fn store(&mut self, who: usize, shared: bool, at: u64, byte: u8) {
        // What is written behind the end in the last page stays there until the file is cut: not modelled.
        if shared && at >= self.content.len() as u64 && self.expected(who, shared, at).is_some() {
            return;
        }
        let result = self.mm.user_store(self.programs[who].space, VirtAddr::new(self.addr(shared, at)), byte, &LIMITS);
        if self.expected(who, shared, at).is_none() {
            assert_eq!(result, Err(SIGBUS));
            return;
        }
        assert!(result.is_ok(), "{result:?}");
        if shared {
            self.content[at as usize] = byte;
            return;
        }
        let start = (at - at % PAGE_SIZE) as usize;
        let content = &self.content;
        let copy = || (start..start + PAGE_SIZE as usize).map(|at| content.get(at).copied().unwrap_or(0)).collect();
        let page = self.programs[who].own.entry(at / PAGE_SIZE).or_insert_with(copy);
        page[(at % PAGE_SIZE) as usize] = byte;
    }

    fn forget(&mut self, who: usize, shared: bool, page: u64) {
        let addr = VirtAddr::new(self.addr(shared, page * PAGE_SIZE));
        self.mm.do_madvise(self.programs[who].space, addr, PAGE_SIZE, MADV_DONTNEED).expect("it is mapped");
        if !shared {
            self.programs[who].own.remove(&page);
        }
    }

    fn fork(&mut self, who: usize) {
        if self.programs.len() < 4 {
            let space = self.mm.dup_mmap(self.programs[who].space).expect("a child");
            let own = self.programs[who].own.clone();
            self.programs.push(Program { space, own });
        }
    }

    fn exit(&mut self, who: usize) {
        if self.programs.len() > 1 {
            self.mm.mmput(self.programs.remove(who).space);
        }
    }
}

fn check(steps: &[Step]) {
    let machine = machine(1);
    let mm = machine.mm();
    let open = file(mm);
    let mapping = open.0;
    let space = mm.mm_alloc().expect("a space");
    let shared = map(mm, space, open.1, 0, PAGES, PROT_READ | PROT_WRITE, MAP_SHARED);
    let private = map(mm, space, open.1, 0, PAGES, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    let programs = vec![Program { space, own: BTreeMap::new() }];
    let mut world = World { mm, content: Vec::new(), programs, shared, private };
    for step in steps {
        let count = world.programs.len();
        match *step {
            Step::Read { at, len } => {
                let mut bytes = vec![0xee; len as usize];
                let read = mm.file_read(mapping, at, &mut bytes);
                let start = (at as usize).min(world.content.len());
                let end = (at + len).min(world.content.len() as u64).max(start as u64) as usize;
                assert!(bytes[..read] == world.content[start..end], "{step:?} of {}", world.content.len());
            }
            Step::Write { at, len, byte } => {
                let len = len.min(BYTES - at);
                assert_eq!(mm.file_write(mapping, at, &vec![byte; len as usize]), Ok(len as usize));
                let end = (at + len) as usize;
                if world.content.len() < end {
                    world.content.resize(end, 0);
                }
                world.content[at as usize..end].fill(byte);
            }
            Step::Truncate { size } => {
                assert_eq!(mm.truncate(mapping, size), Ok(()));
                world.content.resize(size as usize, 0);
                let pages = size.div_ceil(PAGE_SIZE);
                world.programs.iter_mut().for_each(|program| program.own.retain(|page, _| *page < pages));
            }
            Step::Punch { at, len } => {
                assert_eq!(mm.punch_hole(mapping, at, len), Ok(()));
                let start = (at as usize).min(world.content.len());
                let end = ((at + len) as usize).min(world.content.len());
                world.content[start..end].fill(0);
            }
            Step::Load { who, shared, at } => {
                let found = try_load(mm, world.programs[who % count].space, world.addr(shared, at));
                assert_eq!(found, world.expected(who % count, shared, at).ok_or(SIGBUS), "{step:?}");
            }
            Step::Store { who, shared, at, byte } => world.store(who % count, shared, at, byte),
            Step::Forget { who, shared, page } => world.forget(who % count, shared, page),
            Step::Fork { who } => world.fork(who % count),
            Step::Exit { who } => world.exit(who % count),
        }
    }
    assert_eq!(mapping.i_size.load(std::sync::atomic::Ordering::Relaxed), world.content.len() as u64);
    assert_sound(mm, &[mapping]);
    world.programs.iter().for_each(|program| mm.mmput(program.space));
    assert_sound(mm, &[mapping]);
    close(mm, open);
    assert_sound(mm, &[]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn files_and_memory_are_as_the_model_says(steps in prop::collection::vec(step(), 1..120)) {
        check(&steps);
    }
}
