//! Which faults map what, and what is counted.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::filemap::MappingKind;
use pagevisor_mm::memory::{FaultKind, FaultResult};
use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::*;
use pagevisor_shared::mm_types::{MappedFile, MmCounter};
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use crate::{assert_sound, close, file, load, machine, map, store, try_load, try_map};

const RW: u32 = PROT_READ | PROT_WRITE;
const SIGBUS: FaultResult = FaultResult::Sigbus { code: 2 };

#[test]
fn a_file_is_read_as_it_was_written_and_holes_are_zero() {
    let machine = machine(1);
    let mm = machine.mm();
    let open = file(mm);
    let mapping = open.0;
    let far = 300 * PAGE_SIZE + 4000;
    assert_eq!(mm.file_write(mapping, far, &[7; 200]), Ok(200));
    let mut bytes = [1; 300];
    assert_eq!(mm.file_read(mapping, far - 50, &mut bytes), 250);
    assert!(bytes[..50].iter().all(|byte| *byte == 0) && bytes[50..250].iter().all(|byte| *byte == 7));
    assert_eq!(mapping.nrpages.load(Relaxed), 2, "holes take no pages");
    assert_eq!(mapping.i_blocks.load(Relaxed), 16);
    assert_eq!(mm.file_read(mapping, far + 200, &mut bytes), 0);
    assert_sound(mm, &[mapping]);
    // Growing shows zeros behind where it was cut.
    assert_eq!(mm.truncate(mapping, far + 10), Ok(()));
    assert_eq!(mm.truncate(mapping, far + 200), Ok(()));
    assert_eq!(mm.file_read(mapping, far, &mut bytes), 200);
    assert!(bytes[..10].iter().all(|byte| *byte == 7) && bytes[10..200].iter().all(|byte| *byte == 0));
    assert_eq!(mm.file_write(mapping, 1 << 44, &[1]), Err(Errno::EFBIG));
    // The last page there can be, and none above it.
    assert_eq!(mm.file_write(mapping, (1 << 44) - 1, &[1, 2]), Ok(1));
    assert_sound(mm, &[mapping]);
    close(mm, open);
    assert_sound(mm, &[]);
}

#[test]
fn shared_memory_is_the_file_and_private_memory_a_copy() {
    let machine = machine(1);
    let mm = machine.mm();
    let open = file(mm);
    let (mapping, of) = open;
    mm.file_write(mapping, 0, &[5; 3 * PAGE_SIZE as usize]).expect("written");
    let space = mm.mm_alloc().expect("a space");
    let shared = map(mm, space, of, 0, 3, RW, MAP_SHARED);
    let private = map(mm, space, of, 0, 3, RW, MAP_PRIVATE);
    assert_eq!(load(mm, space, shared), (5, Some(FaultKind::File)));
    assert_eq!(load(mm, space, shared + 2 * PAGE_SIZE), (5, None), "it came with the first");
    assert_eq!(space.rss_stat[MmCounter::Shmem as usize].load(Relaxed), 3);
    assert_eq!(store(mm, space, private, 6), Some(FaultKind::CowCopy));
    assert_eq!(load(mm, space, private + PAGE_SIZE), (5, Some(FaultKind::File)));
    assert_eq!(store(mm, space, private + PAGE_SIZE, 8), Some(FaultKind::CowCopy));
    store(mm, space, shared, 9);
    let mut bytes = [0];
    mm.file_read(mapping, 0, &mut bytes);
    assert_eq!((bytes, load(mm, space, private).0), ([9], 6));
    assert_sound(mm, &[mapping]);
    let child = mm.dup_mmap(space).expect("a child");
    store(mm, child, shared + 1, 10);
    store(mm, child, private, 11);
    assert_eq!((load(mm, space, shared + 1).0, load(mm, space, private).0), (10, 6));
    assert_sound(mm, &[mapping]);
    // The areas keep the file.
    close(mm, open);
    mm.mmput(space);
    assert_eq!((load(mm, child, shared).0, load(mm, child, private).0), (9, 11));
    assert_sound(mm, &[mapping]);
    mm.mmput(child);
    assert_sound(mm, &[]);
}

#[test]
fn behind_the_end_is_sigbus_and_cutting_takes_copies_too() {
    let machine = machine(1);
    let mm = machine.mm();
    let open = file(mm);
    let (mapping, of) = open;
    mm.truncate(mapping, 2 * PAGE_SIZE + 1).expect("it grows");
    let space = mm.mm_alloc().expect("a space");
    let shared = map(mm, space, of, 0, 5, RW, MAP_SHARED);
    let private = map(mm, space, of, 1, 5, RW, MAP_PRIVATE);
    store(mm, space, shared + 2 * PAGE_SIZE + 100, 1);
    assert_eq!(try_load(mm, space, shared + 3 * PAGE_SIZE), Err(SIGBUS));
    assert_eq!(try_load(mm, space, private + 2 * PAGE_SIZE), Err(SIGBUS));
    store(mm, space, private, 2);
    store(mm, space, private + PAGE_SIZE, 3);
    let mut there = [9; 3];
    mm.do_mincore(space, VirtAddr::new(shared), &mut there).expect("it is mapped");
    assert_eq!(there, [0, 1, 1], "what is in the file's memory counts, mapped here or not");
    mm.truncate(mapping, PAGE_SIZE + 1).expect("it shrinks");
    assert_eq!(try_load(mm, space, shared + 2 * PAGE_SIZE), Err(SIGBUS));
    assert_eq!(try_load(mm, space, private + PAGE_SIZE), Err(SIGBUS), "copies go as well");
    assert_eq!(load(mm, space, private).0, 2);
    assert_sound(mm, &[mapping]);
    mm.mmput(space);
    close(mm, open);
    assert_sound(mm, &[]);
}

#[test]
fn holes_give_pages_back_and_leave_copies() {
    let machine = machine(1);
    let mm = machine.mm();
    let open = file(mm);
    let (mapping, of) = open;
    mm.file_write(mapping, 0, &[5; 4 * PAGE_SIZE as usize]).expect("written");
    let space = mm.mm_alloc().expect("a space");
    let shared = map(mm, space, of, 0, 4, RW, MAP_SHARED);
    let private = map(mm, space, of, 0, 4, RW, MAP_PRIVATE);
    load(mm, space, shared);
    store(mm, space, private + PAGE_SIZE, 6);
    assert_eq!(mm.punch_hole(mapping, PAGE_SIZE - 1, 2 * PAGE_SIZE + 2), Ok(()));
    assert_eq!(mapping.nrpages.load(Relaxed), 2, "those that were all in the hole have gone");
    let found = [PAGE_SIZE - 2, PAGE_SIZE - 1, PAGE_SIZE, 3 * PAGE_SIZE, 3 * PAGE_SIZE + 1];
    assert_eq!(found.map(|at| load(mm, space, shared + at).0), [5, 0, 0, 0, 5]);
    assert_eq!((load(mm, space, private + PAGE_SIZE).0, mapping.i_size.load(Relaxed)), (6, 4 * PAGE_SIZE));
    assert_eq!(mm.punch_hole(mapping, 10, 5), Ok(()));
    assert_eq!([9, 10, 14, 15].map(|at| load(mm, space, shared + at).0), [5, 0, 0, 5]);
    assert_eq!(mm.punch_hole(mapping, 10, 0), Err(Errno::EINVAL));
    assert_sound(mm, &[mapping]);
    mm.mmput(space);
    close(mm, open);
    assert_sound(mm, &[]);
}

#[test]
fn shared_memory_without_a_file_is_shared_with_children() {
    let machine = machine(1);
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let addr = try_map(mm, space, None, 0, 4, RW, MAP_SHARED | MAP_ANONYMOUS).expect("shared memory");
    assert_eq!(store(mm, space, addr, 1), Some(FaultKind::File));
    let area = mm.find_vma(space, VirtAddr::new(addr)).expect("an area");
    let file = area.vma.file().expect("it has a file");
    let mapping = file.mapping().expect("which has pages");
    let mut path = [0; 32];
    let len = mm.mapped_file_path(file, &mut path);
    assert_eq!(&path[..len], b"/dev/zero (deleted)");
    let child = mm.dup_mmap(space).expect("a child");
    assert_eq!(load(mm, child, addr), (1, Some(FaultKind::File)));
    store(mm, child, addr + 3 * PAGE_SIZE, 2);
    assert_eq!(load(mm, space, addr + 3 * PAGE_SIZE).0, 2);
    assert_sound(mm, &[mapping]);
    mm.mmput(space);
    assert_eq!(mapping.nrpages.load(Relaxed), 2);
    mm.mmput(child);
    assert_sound(mm, &[]);
}

#[test]
fn a_file_without_pages_gives_areas_of_programs_own_memory_its_name() {
    let machine = machine(1);
    let mm = machine.mm();
    let mapping = mm.mapping_create(MappingKind::Ram, 2, 9).expect("a file");
    let of = mm.mapped_file_new(mapping, b"/dev/zero", MappedFile::READ | MappedFile::ANON).expect("an open file");
    let space = mm.mm_alloc().expect("a space");
    let addr = map(mm, space, of, 3, 4, RW, MAP_PRIVATE);
    assert_eq!(load(mm, space, addr), (0, Some(FaultKind::Zero)));
    assert_eq!(store(mm, space, addr + PAGE_SIZE, 1), Some(FaultKind::Anon));
    let counter = |kind: MmCounter| space.rss_stat[kind as usize].load(Relaxed);
    assert_eq!((counter(MmCounter::Anon), counter(MmCounter::File)), (1, 0));
    let area = mm.find_vma(space, VirtAddr::new(addr)).expect("an area");
    let mut path = [0; 16];
    let named = mm.area_file(&area, &mut path).expect("it has a file");
    assert_eq!((named.dev, named.ino, &path[..named.path_len], area.pgoff), (2, 9, &b"/dev/zero"[..], 3));
    let at = VirtAddr::new(addr);
    assert_eq!(mm.do_madvise(space, at, PAGE_SIZE, MADV_FREE), Ok(()));
    assert_eq!(mm.do_madvise(space, at, PAGE_SIZE, MADV_WIPEONFORK), Err(Errno::EINVAL));
    let child = mm.dup_mmap(space).expect("a child");
    assert_eq!(load(mm, child, addr + PAGE_SIZE).0, 1);
    assert_eq!(store(mm, child, addr + PAGE_SIZE, 2), Some(FaultKind::CowCopy));
    assert_eq!(load(mm, space, addr + PAGE_SIZE).0, 1);
    assert_sound(mm, &[mapping]);
    mm.mmput(child);
    mm.mmput(space);
    close(mm, (mapping, of));
    assert_sound(mm, &[]);
}

#[test]
fn pages_of_ramfs_count_as_files_and_modes_are_kept() {
    let machine = machine(1);
    let mm = machine.mm();
    let mapping = mm.mapping_create(MappingKind::Ram, 1, 2).expect("a file");
    let of = mm.mapped_file_new(mapping, b"/init", MappedFile::READ).expect("an open file");
    mm.file_write(mapping, 0, b"text").expect("written");
    let space = mm.mm_alloc().expect("a space");
    let text = map(mm, space, of, 0, 1, PROT_READ | PROT_EXEC, MAP_PRIVATE);
    assert_eq!(load(mm, space, text).0, b't');
    assert_eq!(space.rss_stat[MmCounter::File as usize].load(Relaxed), 1);
    assert_eq!(try_map(mm, space, Some(of), 0, 1, RW, MAP_SHARED), Err(Errno::EACCES));
    let read = map(mm, space, of, 0, 1, PROT_READ, MAP_SHARED);
    let refused = mm.do_mprotect(space, VirtAddr::new(read), PAGE_SIZE, RW, &crate::LIMITS);
    assert_eq!(refused, Err(Errno::EACCES));
    assert_sound(mm, &[mapping]);
    mm.mmput(space);
    close(mm, (mapping, of));
    assert_sound(mm, &[]);
}
