//! Errors and limits: what is refused, and that nothing has changed then.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::check::space_violations;
use pagevisor_mm::mmap::{Limits, MmapRequest, MremapRequest, Space};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::mm_types::uapi::*;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use crate::{Stack, machine};

const LIMITS: Limits = Limits::DEFAULT;
const RW: u32 = PROT_READ | PROT_WRITE;
const ANON: u32 = MAP_PRIVATE | MAP_ANONYMOUS;

fn request(addr: u64, pages: u64, prot: u32, flags: u32) -> MmapRequest {
    MmapRequest { addr: VirtAddr::new(addr), len: pages * PAGE_SIZE, prot, flags, file: None, pgoff: 0 }
}

fn map(mm: &Stack, space: Space, request: &MmapRequest) -> Result<u64, Errno> {
    mm.do_mmap(space, request, &LIMITS).map(VirtAddr::raw)
}

#[test]
fn mmap_refuses_what_linux_refuses() {
    let machine = machine(1);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = 0x1000_0000;
    assert_eq!(map(mm, space, &request(0, 0, RW, ANON)), Err(Errno::EINVAL));
    assert_eq!(map(mm, space, &MmapRequest { len: u64::MAX, ..request(0, 0, RW, ANON) }), Err(Errno::ENOMEM));
    assert_eq!(map(mm, space, &request(0, 1 << 36, RW, ANON)), Err(Errno::ENOMEM), "more than there are addresses");
    assert_eq!(map(mm, space, &request(base, 1, RW, MAP_ANONYMOUS)), Err(Errno::EINVAL), "neither shared nor private");
    assert_eq!(map(mm, space, &request(base + 1, 1, RW, ANON | MAP_FIXED)), Err(Errno::EINVAL));
    assert_eq!(map(mm, space, &request(0, 1, RW, ANON | MAP_FIXED)), Err(Errno::EPERM), "the first pages are nobody's");
    assert_eq!(map(mm, space, &request(0x7fff_ffff_f000, 1, RW, ANON | MAP_FIXED)), Err(Errno::ENOMEM));
    assert_eq!(map(mm, space, &request(base, 4, RW, ANON | MAP_FIXED_NOREPLACE)), Ok(base));
    let over = request(base + 0x3000, 2, RW, ANON | MAP_FIXED_NOREPLACE);
    assert_eq!(map(mm, space, &over), Err(Errno::EEXIST));
    assert_eq!(map(mm, space, &request(base, 1, RW, ANON)).map(|addr| addr != base), Ok(true), "only a hint");
    let huge = |size: u32| map(mm, space, &request(0, 1, RW, ANON | MAP_HUGETLB | size << MAP_HUGE_SHIFT));
    assert_eq!([0, 21].map(huge), [Err(Errno::ENOMEM); 2], "there is no pool of those");
    assert_eq!([16, 30].map(huge), [Err(Errno::EINVAL); 2], "there are none of that size");
    let low = map(mm, space, &request(0, 1, RW, ANON | MAP_32BIT)).expect("there is room");
    assert!((0x4000_0000..0x8000_0000).contains(&low));
    assert_eq!(space_violations(mm), []);
    mm.mmput(space);
}

#[test]
fn limits_of_the_program_hold() {
    let machine = machine(1);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let four = Limits { as_: 4 * PAGE_SIZE, ..LIMITS };
    let base = 0x1000_0000;
    assert!(mm.do_mmap(space, &request(base, 3, RW, ANON | MAP_FIXED), &four).is_ok());
    assert_eq!(mm.do_mmap(space, &request(0, 2, RW, ANON), &four), Err(Errno::ENOMEM));
    assert!(mm.do_mmap(space, &request(base, 4, RW, ANON | MAP_FIXED), &four).is_ok(), "what goes makes room");
    let data = Limits { data: 4 * PAGE_SIZE, ..LIMITS };
    assert_eq!(mm.do_mmap(space, &request(0, 1, RW, ANON), &data), Err(Errno::ENOMEM));
    let other = mm.do_mmap(space, &request(0, 1, PROT_READ, ANON), &data).expect("that is no data");
    assert_eq!(mm.do_mprotect(space, other, PAGE_SIZE, RW, &data), Err(Errno::ENOMEM), "it would become data");
    let raised = Limits { data: 0, data_max: 5 * PAGE_SIZE, ..LIMITS };
    let fifth = mm.do_mmap(space, &request(0, 1, RW, ANON), &raised).expect("0 stands for what it can be raised to");
    assert_eq!(mm.do_mmap(space, &request(0, 1, RW, ANON), &raised), Err(Errno::ENOMEM));
    mm.do_munmap(space, fifth, PAGE_SIZE).expect("a range");
    let nothing = Limits { memlock: 0, ..LIMITS };
    assert_eq!(mm.do_mmap(space, &request(0, 1, RW, ANON | MAP_LOCKED), &nothing), Err(Errno::EPERM));
    let locked = Limits { memlock: 2 * PAGE_SIZE, ..LIMITS };
    assert_eq!(mm.do_mmap(space, &request(0, 3, RW, ANON | MAP_LOCKED), &locked), Err(Errno::EAGAIN));
    assert_eq!(mm.do_mlock(space, VirtAddr::new(base), 3 * PAGE_SIZE, 0, &locked), Err(Errno::ENOMEM));
    assert_eq!(mm.do_mlock(space, VirtAddr::new(base), 2 * PAGE_SIZE, 0, &locked), Ok(()));
    assert_eq!(mm.do_mlock(space, VirtAddr::new(base), 2 * PAGE_SIZE, 0, &locked), Ok(()), "not counted twice");
    assert_eq!(space.locked_vm.load(Relaxed), 2);
    mm.do_munlockall(space);
    assert_eq!(space.locked_vm.load(Relaxed), 0);
    mm.region().sysctl().max_map_count.store(3, Relaxed);
    let inside = VirtAddr::new(base + PAGE_SIZE);
    assert_eq!(mm.do_mprotect(space, inside, PAGE_SIZE, PROT_NONE, &LIMITS), Err(Errno::ENOMEM), "too many areas");
    assert_eq!(space_violations(mm), []);
    mm.mmput(space);
}

#[test]
fn promises_are_kept_within_the_mode() {
    let machine = machine(1);
    let mm = machine.mm();
    let (sysctl, space) = (mm.region().sysctl(), mm.mm_alloc().expect("a space"));
    let total: u64 = mm.region().zones().iter().map(|zone| zone.managed_pages.load(Relaxed)).sum();
    let promised = || mm.region().header().roots.committed_as.load(Relaxed) as u64;
    // As much as is plausible, however often.
    assert_eq!(map(mm, space, &request(0, total + 1, RW, ANON)), Err(Errno::ENOMEM));
    for _ in 0..3 {
        assert!(map(mm, space, &request(0, total, RW, ANON)).is_ok());
    }
    assert_eq!(promised(), 3 * total);
    assert!(map(mm, space, &request(0, 4 * total, RW, ANON | MAP_NORESERVE)).is_ok());
    assert!(map(mm, space, &request(0, 4 * total, PROT_READ, ANON)).is_ok(), "nothing is written there");
    assert_eq!(promised(), 3 * total);
    mm.mmput(space);
    assert_eq!(promised(), 0);
    // Any amount.
    let space = mm.mm_alloc().expect("a space");
    sysctl.overcommit_memory.store(1, Relaxed);
    assert!(map(mm, space, &request(0, 10 * total, RW, ANON)).is_ok());
    mm.mmput(space);
    // No more than the limit, reserved or not.
    let space = mm.mm_alloc().expect("a space");
    sysctl.overcommit_memory.store(2, Relaxed);
    let limit = sysctl.commit_limit(total);
    assert_eq!(limit, total / 2);
    assert_eq!(map(mm, space, &request(0, limit, RW, ANON | MAP_NORESERVE)), Err(Errno::ENOMEM));
    assert!(map(mm, space, &request(0, limit / 2, RW, ANON)).is_ok());
    assert_eq!(map(mm, space, &request(0, limit / 2 + 1, RW, ANON)), Err(Errno::ENOMEM));
    let quiet = map(mm, space, &request(0, limit, PROT_READ, ANON)).expect("nothing is written there");
    let written = mm.do_mprotect(space, VirtAddr::new(quiet), limit * PAGE_SIZE, RW, &LIMITS);
    assert_eq!(written, Err(Errno::ENOMEM), "more would be promised");
    assert_eq!(promised(), limit / 2);
    assert_eq!(space_violations(mm), []);
    mm.mmput(space);
}

#[test]
fn mremap_and_mprotect_refuse_what_linux_refuses() {
    let machine = machine(1);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = map(mm, space, &request(0x1000_0000, 4, RW, ANON)).expect("there is room");
    let to = VirtAddr::new(0x2000_0000);
    let plain = MremapRequest {
        addr: VirtAddr::new(base),
        old_len: 4 * PAGE_SIZE,
        new_len: 4 * PAGE_SIZE,
        flags: 0,
        new_addr: to,
    };
    let remap = |request: &MremapRequest| mm.do_mremap(space, request, &LIMITS);
    assert_eq!(remap(&MremapRequest { flags: 8, ..plain }), Err(Errno::EINVAL));
    assert_eq!(remap(&MremapRequest { flags: MREMAP_FIXED, ..plain }), Err(Errno::EINVAL));
    assert_eq!(remap(&MremapRequest { new_len: 0, ..plain }), Err(Errno::EINVAL));
    assert_eq!(remap(&MremapRequest { addr: VirtAddr::new(base + 1), ..plain }), Err(Errno::EINVAL));
    assert_eq!(remap(&MremapRequest { addr: to, ..plain }), Err(Errno::EFAULT));
    let longer = MremapRequest { old_len: 5 * PAGE_SIZE, new_len: 6 * PAGE_SIZE, ..plain };
    assert_eq!(remap(&longer), Err(Errno::EFAULT), "beyond the area");
    let over =
        MremapRequest { flags: MREMAP_MAYMOVE | MREMAP_FIXED, new_addr: VirtAddr::new(base + PAGE_SIZE), ..plain };
    assert_eq!(remap(&over), Err(Errno::EINVAL), "onto itself");
    let protect =
        |addr: u64, pages: u64, prot: u32| mm.do_mprotect(space, VirtAddr::new(addr), pages * PAGE_SIZE, prot, &LIMITS);
    assert_eq!(protect(base + 1, 1, RW), Err(Errno::EINVAL));
    assert_eq!(protect(base, 0, RW), Ok(()));
    assert_eq!(protect(base, 1, 0x40), Err(Errno::EINVAL));
    assert_eq!(protect(base, 5, PROT_READ), Err(Errno::ENOMEM));
    assert_eq!(protect(base, 1, RW | PROT_GROWSDOWN), Err(Errno::EINVAL), "no stack");
    assert_eq!(protect(base, 1, PROT_GROWSDOWN | PROT_GROWSUP), Err(Errno::EINVAL));
    let mut out = [9; 4];
    let refused = mm.user_store(space, VirtAddr::new(base), 1, &LIMITS);
    assert!(refused.is_err(), "what came before the hole is read-only");
    assert_eq!(protect(base, 4, RW), Ok(()));
    mm.user_store(space, VirtAddr::new(base + PAGE_SIZE), 1, &LIMITS).expect("it may be written");
    assert_eq!(mm.do_mincore(space, VirtAddr::new(base), &mut out), Ok(()));
    assert_eq!(out, [0, 1, 0, 0]);
    assert_eq!(mm.do_mincore(space, VirtAddr::new(base + 3 * PAGE_SIZE), &mut out[..2]), Err(Errno::ENOMEM));
    assert_eq!(mm.do_msync(space, VirtAddr::new(base), 4 * PAGE_SIZE, MS_SYNC), Ok(()));
    assert_eq!(mm.do_msync(space, VirtAddr::new(base), 4 * PAGE_SIZE, MS_SYNC | MS_ASYNC), Err(Errno::EINVAL));
    assert_eq!(mm.do_msync(space, VirtAddr::new(base), 5 * PAGE_SIZE, MS_SYNC), Err(Errno::ENOMEM));
    assert_eq!(mm.do_msync(space, VirtAddr::new(base), u64::MAX, MS_SYNC), Ok(()), "in whole pages, that is none");
    assert_eq!(mm.do_msync(space, VirtAddr::new(base), 0u64.wrapping_sub(base), MS_SYNC), Err(Errno::ENOMEM));
    let populate = |advice: u32| mm.do_madvise(space, VirtAddr::new(base), PAGE_SIZE, advice);
    assert_eq!(protect(base, 1, PROT_READ), Ok(()));
    assert_eq!((populate(MADV_POPULATE_READ), populate(MADV_POPULATE_WRITE)), (Ok(()), Err(Errno::EINVAL)));
    assert_eq!(protect(base, 1, PROT_NONE), Ok(()));
    assert_eq!([MADV_POPULATE_READ, MADV_POPULATE_WRITE].map(populate), [Err(Errno::EINVAL); 2]);
    mm.mmput(space);
}

#[test]
fn stacks_keep_their_distance() {
    let machine = machine(1);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = 0x3000_0000;
    let stack = request(base, 2, RW, ANON | MAP_FIXED | MAP_GROWSDOWN);
    assert_eq!(map(mm, space, &stack), Ok(base));
    assert_eq!(space.stack_vm.load(Relaxed), 2);
    // What is put right below it by its own wish comes to lie elsewhere: the gap is not free.
    let below = base - 10 * PAGE_SIZE;
    assert_ne!(map(mm, space, &request(below, 1, RW, ANON)), Ok(below));
    assert_eq!(map(mm, space, &request(below, 1, RW, ANON | MAP_FIXED)), Ok(below));
    assert!(mm.user_store(space, VirtAddr::new(base - PAGE_SIZE), 1, &LIMITS).is_err(), "something is too close");
    mm.do_munmap(space, VirtAddr::new(below), PAGE_SIZE).expect("a range");
    mm.user_store(space, VirtAddr::new(base - PAGE_SIZE), 1, &LIMITS).expect("it grows");
    let area = mm.find_vma(space, VirtAddr::new(base)).expect("the stack");
    assert_eq!(area.start.raw(), base - PAGE_SIZE);
    assert!(area.flags.contains(VmaFlags::GROWSDOWN));
    assert_eq!(space_violations(mm), []);
    mm.mmput(space);
}
