//! Pages that files get before anybody writes, those they lose by `madvise`, and what all of them count as.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::memory::FaultResult;
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::*;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use crate::{LIMITS, MappingKind, READ_WRITE, Stack, assert_sound, close, file, load, machine, map, try_map};

const RW: u32 = PROT_READ | PROT_WRITE;

fn promised(mm: &Stack) -> i64 {
    mm.region().header().roots.committed_as.load(Relaxed)
}

#[test]
fn files_grow_at_their_ends() {
    let machine = machine(1);
    let mm = machine.mm();
    let open = file(mm);
    let (mapping, _) = open;
    assert_eq!(mm.file_append(mapping, b"one"), Ok((3, 3)));
    assert_eq!(mm.file_append(mapping, b""), Ok((3, 0)));
    assert_eq!(mm.file_append(mapping, &[7; 5000]), Ok((5003, 5000)));
    let mut bytes = [0; 4];
    assert_eq!(mm.file_read(mapping, 1, &mut bytes), 4);
    assert_eq!(&bytes, b"ne\x07\x07");
    assert_eq!(mm.add_seals(mapping, F_SEAL_GROW), Ok(()));
    assert_eq!(mm.file_append(mapping, b"more"), Err(Errno::EPERM));
    assert_sound(mm, &[mapping]);
    close(mm, open);
    assert_sound(mm, &[]);
}

#[test]
fn pages_come_before_they_are_written() {
    let machine = machine(1);
    let mm = machine.mm();
    let (open, before) = (file(mm), promised(mm));
    let (mapping, _) = open;
    assert_eq!(mm.fallocate(mapping, 0, 0, false), Err(Errno::EINVAL));
    assert_eq!(mm.fallocate(mapping, PAGE_SIZE, 2 * PAGE_SIZE, false), Ok(()));
    assert_eq!((mapping.i_size.load(Relaxed), mapping.nrpages.load(Relaxed)), (3 * PAGE_SIZE, 2));
    assert_eq!(mm.fallocate(mapping, 0, 9 * PAGE_SIZE, true), Ok(()));
    assert_eq!((mapping.i_size.load(Relaxed), mapping.nrpages.load(Relaxed)), (3 * PAGE_SIZE, 3));
    assert_eq!(promised(mm) - before, 3);
    assert_sound(mm, &[mapping]);
    // More than there is: nothing comes of it, and what was there stays.
    assert_eq!(mm.fallocate(mapping, 0, 1 << 30, false), Err(Errno::ENOSPC));
    assert_eq!((mapping.i_size.load(Relaxed), mapping.nrpages.load(Relaxed)), (3 * PAGE_SIZE, 3));
    assert_eq!(promised(mm) - before, 3);
    assert_sound(mm, &[mapping]);
    close(mm, open);
    assert_eq!(promised(mm), before);
    let ram = mm.mapping_create(MappingKind::Ram, 1, 8).expect("a file");
    assert_eq!(mm.fallocate(ram, 0, PAGE_SIZE, false), Err(Errno::EOPNOTSUPP));
    mm.mapping_put(ram);
    assert_sound(mm, &[]);
}

#[test]
fn what_is_removed_is_gone_from_the_file() {
    let machine = machine(1);
    let mm = machine.mm();
    let open = file(mm);
    let (mapping, of) = open;
    mm.file_write(mapping, 0, &[5; 4 * PAGE_SIZE as usize]).expect("written");
    let space = mm.mm_alloc().expect("a space");
    let shared = map(mm, space, of, 1, 2, RW, MAP_SHARED);
    let private = map(mm, space, of, 0, 4, RW, MAP_PRIVATE);
    assert_eq!(load(mm, space, shared).0, 5);
    let advise = |at: u64| mm.do_madvise(space, VirtAddr::new(at), PAGE_SIZE, MADV_REMOVE);
    assert_eq!(advise(private), Err(Errno::EACCES));
    assert_eq!(advise(shared), Ok(()));
    assert_eq!((load(mm, space, shared).0, load(mm, space, shared + PAGE_SIZE).0), (0, 5));
    assert_eq!(load(mm, space, private + PAGE_SIZE).0, 0);
    mm.do_mlock(space, VirtAddr::new(shared), PAGE_SIZE, 0, &LIMITS).expect("locked");
    assert_eq!(advise(shared), Err(Errno::EINVAL));
    assert_sound(mm, &[mapping]);
    mm.mmput(space);
    close(mm, open);
    assert_sound(mm, &[]);
}

#[test]
fn shared_memory_is_promised_as_a_whole_or_page_by_page() {
    let machine = machine(1);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let before = promised(mm);
    let shared = MAP_SHARED | MAP_ANONYMOUS;
    let whole = try_map(mm, space, None, 0, 16, RW, shared).expect("there is room");
    assert_eq!(promised(mm) - before, 16);
    let some = try_map(mm, space, None, 0, 16, RW, shared | MAP_NORESERVE).expect("there is room");
    assert_eq!(promised(mm) - before, 16);
    for page in 0..3 {
        mm.user_store(space, VirtAddr::new(whole + page * PAGE_SIZE), 1, &LIMITS).expect("written");
        mm.user_store(space, VirtAddr::new(some + page * PAGE_SIZE), 1, &LIMITS).expect("written");
    }
    assert_eq!(promised(mm) - before, 16 + 3);
    // A child maps the same.
    let child = mm.dup_mmap(space).expect("a child");
    assert_eq!(promised(mm) - before, 16 + 3);
    mm.mmput(space);
    assert_eq!(promised(mm) - before, 16 + 3);
    mm.mmput(child);
    assert_eq!(promised(mm), before);
    // More than there is at all is not promised.
    let space = mm.mm_alloc().expect("a space");
    assert_eq!(try_map(mm, space, None, 0, 1 << 20, RW, shared), Err(Errno::ENOMEM));
    assert_eq!(promised(mm), before);
    mm.mmput(space);
    assert_sound(mm, &[]);
}

#[test]
fn a_file_system_holds_no_more_than_it_may() {
    const DEVICE: u32 = 4;
    let machine = machine(1);
    let mm = machine.mm();
    let before = promised(mm);
    mm.set_file_system_limit(DEVICE, 5);
    let made = || mm.mapping_create(MappingKind::Shmem, DEVICE, 9).expect("a file");
    let (one, other) = (made(), made());
    let page = [7; PAGE_SIZE as usize];
    assert_eq!(mm.file_write(one, 0, &[7; 3 * PAGE_SIZE as usize]), Ok(3 * PAGE_SIZE as usize));
    assert_eq!(mm.file_write(other, 8 * PAGE_SIZE, &page), Ok(page.len()));
    assert_eq!(mm.file_system_usage(DEVICE), (5, 4));
    // As much as there is room for.
    assert_eq!(mm.file_write(other, 2 * PAGE_SIZE, &[7; 3 * PAGE_SIZE as usize]), Ok(page.len()));
    assert_eq!(mm.file_write(other, 6 * PAGE_SIZE, &page), Err(Errno::ENOSPC));
    assert_eq!(mm.file_write(one, PAGE_SIZE, &page), Ok(page.len()), "it is there");
    assert_eq!(mm.fallocate(one, 0, 4 * PAGE_SIZE, false), Err(Errno::ENOSPC));
    let file = mm.mapped_file_new(other, b"/tmp/other", READ_WRITE).expect("an open file");
    let space = mm.mm_alloc().expect("a space");
    let shared = map(mm, space, file, 0, 9, RW, MAP_SHARED);
    let bus = Some(FaultResult::Sigbus { code: 2 });
    assert_eq!(mm.user_store(space, VirtAddr::new(shared), 1, &LIMITS).err(), bus);
    assert_eq!(mm.user_load(space, VirtAddr::new(shared), &LIMITS).err(), bus);
    assert_eq!(load(mm, space, shared + 8 * PAGE_SIZE).0, 7);
    // What one gives up the other can have.
    mm.truncate(one, PAGE_SIZE).expect("cut");
    assert_eq!(mm.file_system_usage(DEVICE), (5, 3));
    assert!(mm.user_store(space, VirtAddr::new(shared), 1, &LIMITS).is_ok());
    // Others have limits of their own, or none.
    let open = self::file(mm);
    assert_eq!(mm.file_write(open.0, 0, &[7; 9 * PAGE_SIZE as usize]), Ok(9 * PAGE_SIZE as usize));
    assert_sound(mm, &[one, other, open.0]);
    mm.mmput(space);
    close(mm, open);
    close(mm, (other, file));
    mm.mapping_put(one);
    assert_eq!((mm.file_system_usage(DEVICE), promised(mm)), ((5, 0), before));
    assert_sound(mm, &[]);
}
