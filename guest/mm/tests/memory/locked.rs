//! Pages of locked areas are counted, each once, for as long as somebody locks them.

use pagevisor_mm::mmap::{MmapRequest, Space};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::mm_types::uapi::{
    MADV_COLD, MADV_DONTFORK, MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_PAGEOUT, MADV_WILLNEED,
    MAP_ANONYMOUS, MAP_LOCKED, MAP_PRIVATE, MAP_SHARED, MCL_FUTURE, MLOCK_ONFAULT, MREMAP_MAYMOVE, PROT_READ,
    PROT_WRITE,
};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::report::counters;
use pagevisor_shared::units::{PAGE_SIZE, Pfn, VirtAddr};
use pagevisor_shared::vmstat::{NodeStat, VmEvent, ZoneStat};

use crate::{LIMITS, Stack, assert_sound, load, machine, store};

/// Locked pages, as all counters have them.
#[track_caller]
fn locked(mm: &Stack) -> u64 {
    let of = |item| counters::global_zone_page_state(mm.region(), item);
    let pages = of(ZoneStat::NrMlock);
    assert_eq!(of(ZoneStat::NrZoneUnevictable), pages);
    assert_eq!(counters::global_node_page_state(mm.region(), NodeStat::NrUnevictable), pages);
    pages
}

#[track_caller]
fn map(mm: &Stack, space: Space, pages: u64, kind: u32) -> u64 {
    let request = MmapRequest {
        addr: VirtAddr::new(0),
        len: pages * PAGE_SIZE,
        prot: PROT_READ | PROT_WRITE,
        flags: kind | MAP_ANONYMOUS,
        file: None,
        pgoff: 0,
    };
    mm.do_mmap(space, &request, &LIMITS).expect("room for an area").raw()
}

fn lock(mm: &Stack, space: Space, at: u64, pages: u64, flags: u32) {
    mm.do_mlock(space, VirtAddr::new(at), pages * PAGE_SIZE, flags, &LIMITS).expect("it can be locked");
}

fn unlock(mm: &Stack, space: Space, at: u64, pages: u64) {
    mm.do_munlock(space, VirtAddr::new(at), pages * PAGE_SIZE).expect("it can be unlocked");
}

fn is_marked(mm: &Stack, space: Space, addr: u64) -> bool {
    let entry = mm.walk_user(space, VirtAddr::new(addr)).expect("it is mapped").entry;
    mm.page(Pfn::containing(entry.address(0))).expect("a page").test_flag(PageFlag::Mlocked)
}

#[test]
fn pages_that_are_there_and_pages_that_come_are_locked() {
    let machine = machine();
    let mm = machine.mm();
    let (space, events) = (mm.mm_alloc().expect("a space"), mm.vm_event(VmEvent::UnevictablePgsMlocked));
    let base = map(mm, space, 16, MAP_PRIVATE);
    for page in 0..4 {
        store(mm, space, base + page * PAGE_SIZE, 1);
    }
    load(mm, space, base + 5 * PAGE_SIZE);
    lock(mm, space, base + PAGE_SIZE, 8, MLOCK_ONFAULT);
    assert_eq!((locked(mm), is_marked(mm, space, base)), (3, false), "what is there, without the zero page");
    assert!(is_marked(mm, space, base + PAGE_SIZE));
    assert_sound(mm);
    load(mm, space, base + 6 * PAGE_SIZE);
    assert_eq!(locked(mm), 3, "nor if it comes later");
    store(mm, space, base + 6 * PAGE_SIZE, 1);
    store(mm, space, base + 7 * PAGE_SIZE, 1);
    store(mm, space, base + 12 * PAGE_SIZE, 1);
    assert_eq!(locked(mm), 5, "a copy of the zero page, a first touch, and one that is not locked");
    lock(mm, space, base, 16, 0);
    assert_eq!(locked(mm), 16, "all are brought in");
    assert_eq!(mm.vm_event(VmEvent::UnevictablePgsMlocked) - events, 16, "each was locked once");
    assert_sound(mm);
    unlock(mm, space, base + 2 * PAGE_SIZE, 3);
    assert_eq!((locked(mm), is_marked(mm, space, base + 2 * PAGE_SIZE)), (13, false));
    mm.do_munmap(space, VirtAddr::new(base), 4 * PAGE_SIZE).expect("unmapped");
    assert_eq!(locked(mm), 11);
    mm.do_madvise(space, VirtAddr::new(base + 8 * PAGE_SIZE), 2 * PAGE_SIZE, MADV_DONTNEED_LOCKED).expect("they go");
    assert_eq!(locked(mm), 9);
    assert_sound(mm);
    mm.mmput(space);
    assert_eq!(locked(mm), 0);
    let events = [VmEvent::UnevictablePgsMlocked, VmEvent::UnevictablePgsMunlocked].map(|event| mm.vm_event(event));
    assert_eq!(events[0], events[1]);
    assert_sound(mm);
}

#[test]
fn locks_go_with_pages_that_move_and_not_to_children() {
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let (private, shared) = (map(mm, space, 4, MAP_PRIVATE | MAP_LOCKED), map(mm, space, 4, MAP_SHARED | MAP_LOCKED));
    assert_eq!(locked(mm), 8);
    let (old, new) = (VirtAddr::new(private), 8 * PAGE_SIZE);
    let request = pagevisor_mm::mmap::MremapRequest {
        addr: old,
        old_len: 4 * PAGE_SIZE,
        new_len: new,
        flags: MREMAP_MAYMOVE,
        new_addr: VirtAddr::new(0),
    };
    let moved = mm.do_mremap(space, &request, &LIMITS).expect("moved").raw();
    assert_eq!(locked(mm), 12, "what was moved, and what is new");
    assert_sound(mm);
    let child = mm.dup_mmap(space).expect("a child");
    assert_eq!(locked(mm), 12);
    store(mm, child, moved, 7);
    assert_eq!((locked(mm), is_marked(mm, child, moved)), (12, false), "the child's copy is not locked");
    store(mm, space, moved + PAGE_SIZE, 7);
    assert_eq!(locked(mm), 12, "the parent's is, and what the child alone has then is not");
    assert_sound(mm);
    // Of the shared pages there is one each; both lock two of them.
    lock(mm, child, shared + 2 * PAGE_SIZE, 2, 0);
    assert_eq!(locked(mm), 12);
    unlock(mm, space, shared, 4);
    assert_eq!((locked(mm), is_marked(mm, space, shared + 3 * PAGE_SIZE)), (10, true));
    assert_sound(mm);
    mm.mmput(space);
    assert_eq!(locked(mm), 2);
    mm.mmput(child);
    assert_eq!(locked(mm), 0);
    assert_sound(mm);
}

#[test]
fn what_comes_is_locked_if_all_that_comes_is_to_be() {
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    mm.do_mlockall(space, MCL_FUTURE, &LIMITS).expect("it may be");
    map(mm, space, 5, MAP_PRIVATE);
    assert_eq!(locked(mm), 5);
    mm.do_munlockall(space);
    assert_eq!(locked(mm), 0);
    assert_sound(mm);
    mm.mmput(space);
}

#[test]
fn two_cpus_lock_and_unlock_the_same_pages() {
    const PAGES: u64 = 8;
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let shared = map(mm, space, PAGES, MAP_SHARED);
    let spaces = [space, mm.dup_mmap(space).expect("a child")];
    std::thread::scope(|scope| {
        for (cpu, space) in spaces.into_iter().enumerate() {
            let machine = &machine;
            scope.spawn(move || {
                machine.on_cpu(cpu, |mm| {
                    for round in 0..200 {
                        let (from, pages) = (round % PAGES, 1 + round * 7 % (PAGES - round % PAGES));
                        lock(mm, space, shared + from * PAGE_SIZE, pages, 0);
                        unlock(mm, space, shared, PAGES);
                    }
                    lock(mm, space, shared, 3 + cpu as u64, 0);
                })
            });
        }
    });
    assert_eq!(locked(mm), 4);
    assert_sound(mm);
    spaces.into_iter().for_each(|space| mm.mmput(space));
    assert_eq!(locked(mm), 0);
    assert_sound(mm);
}

#[test]
fn locked_areas_follow_no_advice_to_give_pages_up() {
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = map(mm, space, 12, MAP_PRIVATE);
    for page in 0..12 {
        store(mm, space, base + page * PAGE_SIZE, 1);
    }
    lock(mm, space, base + 4 * PAGE_SIZE, 4, 0);
    let advise = |advice: u32| mm.do_madvise(space, VirtAddr::new(base), 12 * PAGE_SIZE, advice);
    for advice in [MADV_COLD, MADV_PAGEOUT, MADV_FREE, MADV_DONTNEED] {
        assert_eq!(advise(advice), Err(Errno::EINVAL));
    }
    assert_eq!(advise(MADV_WILLNEED), Ok(()));
    assert_eq!(load(mm, space, base).0, 0, "what was before the locked area went");
    assert_eq!(
        [4, 7, 8].map(|page| load(mm, space, base + page * PAGE_SIZE).0),
        [1; 3],
        "it and what is behind did not"
    );
    // What is not mapped is told of when everything else is done.
    mm.do_munlockall(space);
    mm.do_munmap(space, VirtAddr::new(base + 5 * PAGE_SIZE), 2 * PAGE_SIZE).expect("unmapped");
    for advice in [MADV_WILLNEED, MADV_COLD, MADV_DONTFORK, MADV_DONTNEED] {
        assert_eq!(advise(advice), Err(Errno::ENOMEM));
    }
    assert_eq!([4, 7, 8, 11].map(|page| load(mm, space, base + page * PAGE_SIZE).0), [0; 4]);
    let flags = [4, 7].map(|page| mm.find_vma(space, VirtAddr::new(base + page * PAGE_SIZE)).expect("an area").flags);
    assert!(flags.iter().all(|flags| flags.contains(VmaFlags::DONTCOPY)));
    assert_sound(mm);
    mm.mmput(space);
}

#[test]
fn what_may_be_written_to_again_is_copied_at_once() {
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = map(mm, space, 4, MAP_PRIVATE);
    for (page, byte) in (1..).take(4).enumerate() {
        store(mm, space, base + page as u64 * PAGE_SIZE, byte);
    }
    let protect = |pages: u64, prot: u32| {
        mm.do_mprotect(space, VirtAddr::new(base), pages * PAGE_SIZE, prot, &LIMITS).expect("it can be changed");
    };
    protect(4, PROT_READ);
    let child = mm.dup_mmap(space).expect("a child");
    lock(mm, space, base, 3, 0);
    lock(mm, space, base + 2 * PAGE_SIZE, 1, MLOCK_ONFAULT);
    let shared = |page: u64| {
        let frame =
            |space| mm.walk_user(space, VirtAddr::new(base + page * PAGE_SIZE)).expect("it is there").entry.address(0);
        frame(space) == frame(child)
    };
    assert_eq!([0, 1, 2, 3].map(shared), [true; 4]);
    protect(4, PROT_READ | PROT_WRITE);
    assert_eq!([0, 1, 2, 3].map(shared), [false, false, true, true], "what is locked as it comes need not be there");
    assert_eq!(store(mm, space, base, 9), None, "there was nothing to do any more");
    assert_eq!((load(mm, child, base).0, load(mm, space, base + PAGE_SIZE).0), (1, 2));
    assert_sound(mm);
    mm.mmput(child);
    mm.mmput(space);
    assert_sound(mm);
}
