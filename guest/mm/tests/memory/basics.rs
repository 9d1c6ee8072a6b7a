//! One fault of each kind, and what it leaves behind.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::memory::{FaultFlags, FaultKind, FaultResult, SegvCode};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::{PAGE_SIZE, Pfn, VirtAddr};
use pagevisor_shared::vmstat::{NodeStat, VmEvent};

use crate::{LIMITS, Stack, assert_sound, bad_load, bad_store, in_use, load, machine, private, rss, store};

const TOP: u64 = 0x7000_0000_0000;

/// The entry for `addr`.
#[track_caller]
fn entry(mm: &Stack, space: pagevisor_mm::mmap::Space, addr: u64) -> Entry {
    mm.walk_user(space, VirtAddr::new(addr)).expect("it is mapped").entry
}

#[test]
fn a_read_maps_the_zero_page_and_a_write_a_page_of_its_own() {
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = private(mm, space, TOP, 16);
    let faults = mm.vm_event(VmEvent::Pgfault);
    assert_eq!(load(mm, space, base + 5), (0, Some(FaultKind::Zero)));
    assert_eq!(load(mm, space, base + 6), (0, None), "it is there now");
    let zero = entry(mm, space, base);
    assert_eq!(Pfn::containing(zero.address(0)).raw(), mm.region().header().roots.zero_pfn.load(Relaxed));
    assert_eq!(zero.0 & (Entry::SPECIAL | Entry::WRITABLE | Entry::NO_EXECUTE), Entry::SPECIAL | Entry::NO_EXECUTE);
    assert_eq!(rss(space), 0, "the zero page counts as nobody's");
    assert_eq!(store(mm, space, base + 7, 42), Some(FaultKind::CowCopy), "the zero page is not written to");
    assert_eq!(load(mm, space, base + 7), (42, None));
    assert_eq!(load(mm, space, base + 8), (0, None));
    assert_eq!(store(mm, space, base + 3 * PAGE_SIZE, 1), Some(FaultKind::Anon));
    assert_eq!(mm.vm_event(VmEvent::Pgfault) - faults, 3, "one fault a page and way");
    let own = entry(mm, space, base + 3 * PAGE_SIZE);
    let wanted = Entry::PRESENT | Entry::USER | Entry::WRITABLE | Entry::ACCESSED | Entry::DIRTY | Entry::NO_EXECUTE;
    assert_eq!(own.0 & !Entry::ADDRESS, wanted);
    let page = mm.page(Pfn::containing(own.address(0))).expect("a page");
    assert_eq!((page.mapcount(), page.refcount()), (1, 1));
    assert!(page.test_flag(PageFlag::ANON_EXCLUSIVE) && page.test_flag(PageFlag::Swapbacked));
    assert_eq!(page.index(), ((base + 3 * PAGE_SIZE) >> 12) as u32);
    assert_eq!((rss(space), space.pgtables_bytes.load(Relaxed)), (2, 3 * PAGE_SIZE));
    assert_sound(mm);
    mm.mmput(space);
    assert_sound(mm);
}

#[test]
fn what_is_not_allowed_is_told_apart() {
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = private(mm, space, TOP, 2);
    let maperr = FaultResult::Sigsegv { code: SegvCode::MapErr };
    assert_eq!(bad_load(mm, space, TOP), maperr);
    assert_eq!(bad_store(mm, space, 0), maperr);
    assert_eq!(bad_load(mm, space, u64::MAX), maperr);
    assert_eq!(bad_load(mm, space, 1 << 47), maperr);
    let fetch = FaultFlags::USER.with(FaultFlags::INSTRUCTION);
    let result = mm.handle_mm_fault(space, VirtAddr::new(base), fetch, &LIMITS);
    assert_eq!(result, FaultResult::Sigsegv { code: SegvCode::AccErr }, "a stack is not executed");
    assert_eq!(mm.vm_event(VmEvent::Pgfault), 0, "none of them was a fault of a page");
    mm.mmput(space);
    assert_sound(mm);
}

#[test]
fn error_codes_say_what_the_access_was() {
    assert_eq!(FaultFlags::of_error_code(0), FaultFlags::NONE);
    assert_eq!(FaultFlags::of_error_code(0b111), FaultFlags::USER.with(FaultFlags::WRITE));
    assert_eq!(FaultFlags::of_error_code(0x14), FaultFlags::USER.with(FaultFlags::INSTRUCTION));
    assert!(FaultFlags::of_error_code(0x17).contains(FaultFlags::WRITE.with(FaultFlags::INSTRUCTION)));
}

#[test]
fn a_fault_that_is_none_sets_what_the_processor_would() {
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = private(mm, space, TOP, 1);
    store(mm, space, base, 1);
    let done = FaultResult::Done { major: false, kind: FaultKind::Spurious };
    let write = FaultFlags::USER.with(FaultFlags::WRITE);
    assert_eq!(mm.handle_mm_fault(space, VirtAddr::new(base), write, &LIMITS), done);
    assert_eq!(mm.handle_mm_fault(space, VirtAddr::new(base + 99), FaultFlags::USER, &LIMITS), done);
    assert_sound(mm);
    mm.mmput(space);
}

#[test]
fn first_touch_is_on_the_node_of_the_cpu() {
    let machine = machine();
    let space = machine.mm().mm_alloc().expect("a space");
    let base = private(machine.mm(), space, TOP, 64);
    for cpu in [0, 1] {
        machine.on_cpu(cpu, |mm| {
            for page in 0..32 {
                let addr = base + (32 * cpu as u64 + page) * PAGE_SIZE;
                store(mm, space, addr, 1);
                let pfn = Pfn::containing(mm.walk_user(space, VirtAddr::new(addr)).expect("mapped").phys);
                assert_eq!(mm.page_to_nid(pfn).map(|node| node.index()), Some(cpu));
            }
        });
    }
    let anon = NodeStat::NrAnonPages;
    machine.on_cpu(0, |mm| mm.refresh_cpu_vm_stats());
    machine.on_cpu(1, |mm| mm.refresh_cpu_vm_stats());
    let counts: Vec<i64> =
        machine.mm().region().nodes().iter().map(|n| n.vm_stat[anon.index()].load(Relaxed)).collect();
    assert_eq!(counts, [32, 32]);
    assert_sound(machine.mm());
    machine.mm().mmput(space);
    assert_sound(machine.mm());
}

#[test]
fn remote_memory_is_read_and_written_across_pages() {
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = private(mm, space, TOP, 8);
    let text: Vec<u8> = (0..3 * PAGE_SIZE).map(|at| (at % 251) as u8).collect();
    let start = VirtAddr::new(base + PAGE_SIZE + 100);
    assert_eq!(mm.write_remote_vm(space, start, &text), text.len());
    let mut back = vec![0xff; text.len()];
    assert_eq!(mm.read_remote_vm(space, start, &mut back), text.len());
    assert_eq!(back, text);
    // Up to where memory ends, and no further.
    let mut tail = [0xff; 64];
    assert_eq!(mm.read_remote_vm(space, VirtAddr::new(TOP - 10), &mut tail), 10);
    assert_eq!((tail[9], tail[10]), (0, 0xff));
    assert_eq!(mm.write_remote_vm(space, VirtAddr::new(TOP), &text), 0);
    assert_sound(mm);
    mm.mmput(space);
    assert_sound(mm);
}

#[test]
fn populated_memory_has_no_faults_left() {
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let before = in_use(mm);
    let base = private(mm, space, TOP, 700);
    mm.mm_populate(space, VirtAddr::new(base), VirtAddr::new(TOP)).expect("memory");
    assert_eq!(rss(space), 700);
    let faults = mm.vm_event(VmEvent::Pgfault);
    (0..700).for_each(|page| assert_eq!(store(mm, space, base + page * PAGE_SIZE, 1), None));
    mm.mm_populate(space, VirtAddr::new(base), VirtAddr::new(TOP)).expect("it is there");
    assert_eq!(mm.vm_event(VmEvent::Pgfault), faults);
    let beyond = mm.mm_populate(space, VirtAddr::new(base), VirtAddr::new(TOP + PAGE_SIZE));
    assert_eq!(beyond, Err(pagevisor_shared::errno::Errno::ENOMEM));
    assert_sound(mm);
    mm.mmput(space);
    assert_eq!(in_use(mm) + 1, before + 3, "its top table has gone, and there is a table of numbers");
    assert_sound(mm);
}

#[test]
fn a_stack_grows_to_where_it_is_touched_and_no_further_than_allowed() {
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = private(mm, space, TOP, 1);
    let far = TOP - (1 << 20);
    assert_eq!(store(mm, space, far + 8, 3), Some(FaultKind::Anon));
    assert_eq!(store(mm, space, base, 4), Some(FaultKind::Anon));
    let stack = mm.find_vma(space, VirtAddr::new(0)).expect("the stack");
    assert_eq!((stack.start.raw(), stack.end.raw(), stack.pgoff), (far, TOP, far >> 12));
    assert_eq!(space.total_vm.load(Relaxed), 256);
    assert_eq!((load(mm, space, far + 8).0, load(mm, space, base).0), (3, 4));
    let maperr = FaultResult::Sigsegv { code: SegvCode::MapErr };
    assert_eq!(bad_store(mm, space, TOP - LIMITS.stack - 1), maperr);
    // An area further down keeps the stack at a distance.
    let below = far - (300 << 12);
    private(mm, space, below, 1);
    assert_eq!(store(mm, space, far - (10 << 12), 1), Some(FaultKind::Anon), "the other one is a stack itself");
    assert_eq!(mm.region().header().roots.committed_as.load(Relaxed), 256 + 10 + 1);
    assert_sound(mm);
    mm.mmput(space);
    assert_eq!(mm.region().header().roots.committed_as.load(Relaxed), 0);
    assert_sound(mm);
}

#[test]
fn pages_that_are_given_up_are_zero_again() {
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    // More than a gathering holds without memory of its own.
    let base = private(mm, space, TOP, 1500);
    let touch = |byte| (0..1500).for_each(|page| _ = store(mm, space, base + page * PAGE_SIZE, byte));
    touch(9);
    let (used, vma) = (in_use(mm), mm.find_vma(space, VirtAddr::new(base)).expect("the area").vma);
    mm.platform().take_user_flushes();
    mm.zap_page_range(vma, base + PAGE_SIZE, TOP - PAGE_SIZE);
    assert_eq!((rss(space), used - in_use(mm)), (2, 1498));
    assert_eq!(space.hiwater_rss.load(Relaxed), 1500, "as many as there ever were");
    let flushes = mm.platform().take_user_flushes();
    assert!(flushes.iter().all(|flush| flush.space == space.ctx_id.load(Relaxed) && !flush.tables), "{flushes:?}");
    let forgotten = |addr| flushes.iter().any(|flush| flush.range.contains(&addr));
    assert!((1..1499).all(|page| forgotten(base + page * PAGE_SIZE)), "{flushes:?}");
    assert_sound(mm);
    assert_eq!((load(mm, space, base).0, load(mm, space, TOP - PAGE_SIZE).0), (9, 9));
    assert_eq!(load(mm, space, base + PAGE_SIZE), (0, Some(FaultKind::Zero)));
    // Nothing is mapped twice, and a second time there is little to do.
    mm.zap_page_range(vma, base, TOP);
    mm.zap_page_range(vma, base, TOP);
    assert_eq!(rss(space), 0);
    touch(7);
    assert_sound(mm);
    mm.mmput(space);
    assert_sound(mm);
}

#[test]
fn pages_freed_lazily_keep_their_content_and_forget_that_they_were_used() {
    let machine = machine();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = private(mm, space, TOP, 4);
    (0..3).for_each(|page| _ = store(mm, space, base + page * PAGE_SIZE, 5));
    let child = mm.dup_mmap(space).expect("a child");
    assert_eq!(store(mm, space, base, 6), Some(FaultKind::CowCopy));
    let vma = mm.find_vma(space, VirtAddr::new(base)).expect("the area").vma;
    mm.madvise_free_range(vma, base, TOP);
    assert_eq!(mm.vm_event(VmEvent::Pglazyfree), 1, "the others are a child's, too");
    let own = entry(mm, space, base);
    assert_eq!(own.0 & (Entry::ACCESSED | Entry::DIRTY), 0);
    let page = mm.page(Pfn::containing(own.address(0))).expect("a page");
    assert!(!page.test_flag(PageFlag::Swapbacked));
    assert_eq!((load(mm, space, base), store(mm, space, base, 8)), ((6, None), None));
    assert_eq!(load(mm, child, base).0, 5);
    assert_sound(mm);
    [space, child].into_iter().for_each(|space| mm.mmput(space));
    assert_sound(mm);
}
