//! Every allocation on the way fails once: nothing is left behind.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::instrument::FailNth;
use pagevisor_mm::memory::{FaultFlags, FaultResult};
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use crate::{LIMITS, Stack, assert_sound, in_use, machine, private, store};

const TOP: u64 = 0x7000_0000_0000;

/// Calls `work` with the first, second, ... page allocation failing, until none is left to fail; gives how many did.
fn each_fails(mm: &Stack, mut work: impl FnMut(bool)) -> u32 {
    for nth in 1..10_000 {
        mm.set_fail_nth(FailNth::of_machine(nth)).expect("possible");
        work(false);
        let fired = mm.region().sysctl().fail_page_alloc.nth.load(Relaxed) == 0;
        mm.set_fail_nth(FailNth::of_machine(0)).expect("possible");
        work(true);
        if !fired {
            return nth as u32 - 1;
        }
    }
    panic!("it never comes to an end");
}

#[test]
fn a_fault_without_memory_leaves_nothing() {
    let machine = machine();
    let mm = machine.mm();
    for write in [true, false] {
        let mut results = Vec::new();
        for nth in 1..20 {
            let space = mm.mm_alloc().expect("a space");
            let base = private(mm, space, TOP, 4);
            mm.set_fail_nth(FailNth::of_machine(nth)).expect("possible");
            let flags = if write { FaultFlags::WRITE } else { FaultFlags::NONE };
            let result = mm.handle_mm_fault(space, VirtAddr::new(base), flags, &LIMITS);
            let fired = mm.region().sysctl().fail_page_alloc.nth.load(Relaxed) == 0;
            mm.set_fail_nth(FailNth::of_machine(0)).expect("possible");
            assert_eq!(matches!(result, FaultResult::Oom), fired, "{result:?}");
            assert_sound(mm);
            // It works once there is memory.
            store(mm, space, base, 1);
            mm.mmput(space);
            assert_sound(mm);
            results.push(fired);
            if !fired {
                break;
            }
        }
        // Three tables, and what is mapped.
        assert!(results.iter().filter(|fired| **fired).count() >= 3, "{results:?}");
        assert_eq!(results.last(), Some(&false));
    }
}

#[test]
fn a_fork_without_memory_leaves_nothing() {
    let machine = machine();
    let mm = machine.mm();
    let parent = mm.mm_alloc().expect("a space");
    let bases = [0x40_0000, 0x1_0000_0000, TOP].map(|top| private(mm, parent, top, 16));
    for base in bases {
        (0..16).for_each(|page| _ = store(mm, parent, base + page * PAGE_SIZE, page as u8));
    }
    mm.mmput(mm.dup_mmap(parent).expect("a child"));
    let before = in_use(mm);
    let mut child = None;
    let failed = each_fails(mm, |check| {
        if !check {
            child = mm.dup_mmap(parent).ok();
            return;
        }
        if let Some(child) = child.take() {
            mm.mmput(child);
        }
        assert_eq!(in_use(mm), before);
        assert_sound(mm);
        for base in bases {
            (0..16).for_each(|page| _ = store(mm, parent, base + page * PAGE_SIZE, page as u8));
        }
    });
    // The top table, and tables of three ranges.
    assert!(failed >= 1 + 3 + 2 + 2, "{failed}");
    mm.mmput(parent);
    assert_sound(mm);
}

#[test]
fn a_copy_without_memory_leaves_the_page_as_it_is() {
    let machine = machine();
    let mm = machine.mm();
    let parent = mm.mm_alloc().expect("a space");
    let base = private(mm, parent, TOP, 1);
    store(mm, parent, base, 5);
    let child = mm.dup_mmap(parent).expect("a child");
    let before = in_use(mm);
    mm.set_fail_nth(FailNth::of_machine(1)).expect("possible");
    let result = mm.handle_mm_fault(child, VirtAddr::new(base), FaultFlags::WRITE, &LIMITS);
    assert_eq!(result, FaultResult::Oom);
    assert_eq!(in_use(mm), before);
    assert_sound(mm);
    store(mm, child, base, 6);
    assert_eq!(crate::load(mm, parent, base).0, 5);
    [parent, child].into_iter().for_each(|space| mm.mmput(space));
    assert_sound(mm);
}
