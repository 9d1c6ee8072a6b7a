//! Fork and copy on write against a model that copies at once.

use std::collections::BTreeMap;

use pagevisor_mm::memory::FaultKind;
use pagevisor_mm::mmap::Space;
use pagevisor_shared::units::PAGE_SIZE;
use proptest::prelude::*;

use crate::{Stack, assert_sound, in_use, load, machine, private, rss, store};

const TOP: u64 = 0x5555_5564_0000;
/// Two tables' worth, so that the range crosses one.
const PAGES: u64 = 520;

#[test]
fn who_writes_first_copies_and_who_is_left_has_it_alone() {
    let machine = machine();
    let mm = machine.mm();
    let parent = mm.mm_alloc().expect("a space");
    let base = private(mm, parent, TOP, 4);
    store(mm, parent, base, 7);
    let child = mm.dup_mmap(parent).expect("a child");
    assert_sound(mm);
    assert_eq!((load(mm, child, base), rss(child)), ((7, None), 1), "the child has the page without a fault");
    assert_eq!(store(mm, child, base, 8), Some(FaultKind::CowCopy));
    assert_eq!((load(mm, parent, base).0, load(mm, child, base).0), (7, 8));
    assert_eq!(store(mm, parent, base, 9), Some(FaultKind::CowReuse), "nobody else has it any more");
    assert_eq!(store(mm, child, base, 10), None, "it is the child's own");
    assert_sound(mm);
    // What came after the fork is exclusive and needs no fault for a second write.
    assert_eq!(store(mm, child, base + PAGE_SIZE, 1), Some(FaultKind::Anon));
    assert_eq!(load(mm, parent, base + PAGE_SIZE), (0, Some(FaultKind::Zero)));
    mm.mmput(parent);
    assert_sound(mm);
    assert_eq!(load(mm, child, base).0, 10);
    mm.mmput(child);
    assert_sound(mm);
}

#[test]
fn a_page_is_used_again_when_the_child_has_gone() {
    let machine = machine();
    let mm = machine.mm();
    let parent = mm.mm_alloc().expect("a space");
    let base = private(mm, parent, TOP, 2);
    store(mm, parent, base, 7);
    for _ in 0..3 {
        let child = mm.dup_mmap(parent).expect("a child");
        let grandchild = mm.dup_mmap(child).expect("a grandchild");
        assert_sound(mm);
        mm.mmput(child);
        assert_eq!(load(mm, grandchild, base).0, 7);
        mm.mmput(grandchild);
        assert_eq!(store(mm, parent, base, 7), Some(FaultKind::CowReuse));
        assert_sound(mm);
    }
    mm.mmput(parent);
}

#[test]
fn generations_do_not_pile_up_families() {
    let machine = machine();
    let mm = machine.mm();
    let mut space = mm.mm_alloc().expect("a space");
    let base = private(mm, space, TOP, 2);
    store(mm, space, base, 1);
    let before = in_use(mm);
    for generation in 0..200 {
        let child = mm.dup_mmap(space).expect("a child");
        mm.mmput(space);
        space = child;
        store(mm, space, base, generation as u8);
        if generation % 50 == 0 {
            assert_sound(mm);
        }
    }
    let cache = mm.kmem_cache_find("anon_vma_chain").expect("links were made");
    let objects = mm.kmem_cache_record(cache).num.load(std::sync::atomic::Ordering::Relaxed);
    let slabs = crate::slab_pages(mm, cache);
    assert!(slabs <= 2, "{slabs} slabs of {objects} links for a single area");
    assert_eq!(in_use(mm), before);
    mm.mmput(space);
    assert_sound(mm);
}

/// A step of a family of programs.
#[derive(Clone, Debug)]
enum Step {
    Write { who: usize, page: u64, byte: u8 },
    Read { who: usize, page: u64 },
    Fork { who: usize },
    Exit { who: usize },
}

fn step() -> impl Strategy<Value = Step> {
    // Few pages on both sides of a table's end, so that they meet.
    let page = prop_oneof![0u64..6, PAGES - 6..PAGES];
    prop_oneof![
        8 => (0..8usize, page.clone(), any::<u8>()).prop_map(|(who, page, byte)| Step::Write { who, page, byte }),
        4 => (0..8usize, page).prop_map(|(who, page)| Step::Read { who, page }),
        2 => (0..8usize).prop_map(|who| Step::Fork { who }),
        1 => (0..8usize).prop_map(|who| Step::Exit { who }),
    ]
}

/// A program and what its memory must hold.
struct Program {
    space: Space,
    memory: BTreeMap<u64, u8>,
    generation: u32,
}

fn run(mm: &Stack, steps: Vec<Step>) {
    let space = mm.mm_alloc().expect("a space");
    let base = private(mm, space, TOP, PAGES);
    let mut programs = vec![Program { space, memory: BTreeMap::new(), generation: 0 }];
    for step in steps {
        let (Step::Write { who, .. } | Step::Read { who, .. } | Step::Fork { who } | Step::Exit { who }) = step;
        let count = programs.len();
        let program = &mut programs[who % count];
        match step {
            Step::Write { page, byte, .. } => {
                store(mm, program.space, base + page * PAGE_SIZE + page, byte);
                program.memory.insert(page, byte);
            }
            Step::Read { page, .. } => {
                let expected = program.memory.get(&page).copied().unwrap_or(0);
                assert_eq!(load(mm, program.space, base + page * PAGE_SIZE + page).0, expected);
            }
            Step::Fork { .. } if program.generation < 3 && count < 12 => {
                let space = mm.dup_mmap(program.space).expect("a child");
                let child = Program { space, memory: program.memory.clone(), generation: program.generation + 1 };
                programs.push(child);
            }
            Step::Exit { .. } if count > 1 => mm.mmput(programs.swap_remove(who % count).space),
            _ => {}
        }
    }
    assert_sound(mm);
    for program in &programs {
        for page in (0..6).chain(PAGES - 6..PAGES) {
            let expected = program.memory.get(&page).copied().unwrap_or(0);
            assert_eq!(load(mm, program.space, base + page * PAGE_SIZE + page).0, expected);
        }
    }
    assert_sound(mm);
    programs.into_iter().for_each(|program| mm.mmput(program.space));
    assert_sound(mm);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn three_generations_see_what_copies_would_show(steps in prop::collection::vec(step(), 1..160)) {
        let machine = machine();
        let before = in_use(machine.mm());
        run(machine.mm(), steps);
        // The zero page and the three pages of the table of numbers stay.
        prop_assert!(in_use(machine.mm()) <= before + 4, "{} pages are lost", in_use(machine.mm()) - before);
    }
}
