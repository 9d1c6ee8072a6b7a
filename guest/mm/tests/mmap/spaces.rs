//! Spaces come and go, and so do their first areas.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::mmap::{Limits, STACK_GUARD_GAP};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::units::VirtAddr;

use crate::{Stack, machine};

const TOP: VirtAddr = VirtAddr::new(0x7fff_ffff_f000);
const LIMITS: Limits = Limits::DEFAULT;

fn promised(mm: &Stack) -> i64 {
    mm.region().header().roots.committed_as.load(Relaxed)
}

#[test]
fn a_space_with_a_stack_comes_and_goes() {
    let machine = machine(1);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    assert_eq!(mm.find_vma(space, VirtAddr::new(0)), None);
    mm.insert_stack(space, TOP, 132 << 10, &LIMITS).expect("a stack");
    let stack = mm.find_vma(space, VirtAddr::new(0)).expect("the stack");
    assert_eq!((stack.start.raw(), stack.end), (TOP.raw() - (132 << 10), TOP));
    assert!(stack.flags.contains(VmaFlags::GROWSDOWN.with(VmaFlags::ACCOUNT)));
    assert!(!stack.flags.contains(VmaFlags::EXEC));
    assert_eq!(stack.pgoff, stack.start.raw() >> 12);
    assert_eq!((space.total_vm.load(Relaxed), space.stack_vm.load(Relaxed), promised(mm)), (33, 33, 33));
    assert_eq!(space.data_vm.load(Relaxed), 0);
    // Below it, no guard gap is anybody's.
    assert_eq!(stack.vma.start_gap(), stack.start.raw() - STACK_GUARD_GAP);
    assert_eq!(mm.insert_stack(space, TOP, 4096, &LIMITS), Err(Errno::ENOMEM), "two stacks at a place");
    assert_eq!(promised(mm), 33);
    mm.mmput(space);
    assert_eq!((promised(mm), mm.region().header().roots.mms.load(Relaxed)), (0, 0));
}

#[test]
fn limits_hold_for_stacks() {
    let machine = machine(1);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let small = Limits { stack: 8192, ..LIMITS };
    assert_eq!(mm.insert_stack(space, TOP, 3 << 12, &small), Err(Errno::ENOMEM));
    let narrow = Limits { as_: 8192, ..LIMITS };
    assert_eq!(mm.insert_stack(space, TOP, 3 << 12, &narrow), Err(Errno::ENOMEM));
    assert_eq!(mm.insert_stack(space, TOP, 2 << 12, &narrow), Ok(()));
    assert_eq!(mm.insert_stack(space, VirtAddr::new(0x1001), 4096, &LIMITS), Err(Errno::EINVAL));
    assert_eq!(mm.insert_stack(space, VirtAddr::new(4096), 8192, &LIMITS), Err(Errno::EINVAL));
    mm.mmput(space);
}

#[test]
fn all_spaces_are_on_a_list_and_references_keep_them_there() {
    let machine = machine(1);
    let mm = machine.mm();
    let spaces: Vec<_> = (0..3).map(|_| mm.mm_alloc().expect("a space")).collect();
    let ids = || {
        let first = mm.region().header().roots.mms.load(Relaxed);
        let first = spaces.iter().copied().find(|space| space.addr().raw() == first);
        std::iter::successors(first, |space| space.next_mm())
            .map(|space| space.ctx_id.load(Relaxed))
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(), [3, 2, 1]);
    mm.mmgrab(spaces[1]);
    mm.mmput(spaces[1]);
    assert_eq!(ids(), [3, 2, 1], "it was referenced");
    mm.mmdrop(spaces[1]);
    assert_eq!(ids(), [3, 1]);
    mm.mmget(spaces[2]);
    mm.mmput(spaces[2]);
    assert_eq!(ids(), [3, 1], "it was used");
    mm.mmput(spaces[2]);
    mm.mmput(spaces[0]);
    assert_eq!(ids(), []);
}

#[test]
fn who_works_on_an_area_keeps_writers_waiting() {
    let machine = machine(2);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    mm.insert_stack(space, TOP, 4096, &LIMITS).expect("a stack");
    let inside = VirtAddr::new(TOP.raw() - 1);
    assert!(mm.lock_vma(space, VirtAddr::new(0)).is_none(), "there is nothing");
    assert!(mm.lock_vma(space, TOP).is_none());
    let held = mm.lock_vma(space, inside).expect("the stack");
    let second = mm.lock_vma(space, inside).expect("not alone");
    assert_eq!(held.vma().vm_lock.load(Relaxed), 2);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            machine.on_cpu(1, |mm| mm.mmput(space));
            done.store(true, Relaxed);
        });
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!done.load(Relaxed), "the area went while it was in use");
        drop(second);
        drop(held);
    });
    assert!(done.load(Relaxed));
}

#[test]
fn records_outlive_what_they_stand_for() {
    let machine = machine(1);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    mm.insert_stack(space, TOP, 4096, &LIMITS).expect("a stack");
    let vma = mm.find_vma(space, VirtAddr::new(0)).expect("the stack").vma;
    mm.mmput(space);
    mm.kmem_cache_shrink_all();
    assert!(mm.virt_to_cache(vma.addr()).is_some(), "a slab of records was given back");
    assert_eq!(vma.end(), TOP.raw(), "a record was changed while it is free");
    let record = mm.kmem_cache_record(mm.virt_to_cache(vma.addr()).expect("its cache"));
    let grown = record.grown.load(Relaxed);
    let again = mm.mm_alloc().expect("a space");
    mm.insert_stack(again, TOP, 8192, &LIMITS).expect("a stack");
    assert_eq!(record.grown.load(Relaxed), grown, "free records were not used again");
    mm.mmput(again);
}
