//! Seals of memfds.

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::*;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use crate::{LIMITS, assert_sound, close, file, load, machine, map, try_map};

const RW: u32 = PROT_READ | PROT_WRITE;

#[test]
fn what_is_sealed_stays_as_it_is() {
    let machine = machine(1);
    let mm = machine.mm();
    let open = file(mm);
    let (mapping, of) = open;
    mm.file_write(mapping, 0, &[3; 100]).expect("written");
    assert_eq!(mm.add_seals(mapping, 1 << 9), Err(Errno::EINVAL));
    assert_eq!(mm.add_seals(mapping, F_SEAL_GROW), Ok(()));
    assert_eq!(mm.file_write(mapping, 90, &[1; 20]), Err(Errno::EPERM));
    assert_eq!(mm.file_write(mapping, 80, &[1; 20]), Ok(20));
    assert_eq!(mm.truncate(mapping, 101), Err(Errno::EPERM));
    assert_eq!(mm.add_seals(mapping, F_SEAL_SHRINK), Ok(()));
    assert_eq!(mm.truncate(mapping, 99), Err(Errno::EPERM));
    assert_eq!(mm.truncate(mapping, 100), Ok(()));
    let space = mm.mm_alloc().expect("a space");
    let shared = map(mm, space, of, 0, 1, RW, MAP_SHARED);
    assert_eq!(mm.add_seals(mapping, F_SEAL_WRITE), Err(Errno::EBUSY));
    mm.do_munmap(space, VirtAddr::new(shared), PAGE_SIZE).expect("it was mapped");
    assert_eq!(mm.add_seals(mapping, F_SEAL_WRITE | F_SEAL_SEAL), Ok(()));
    assert_eq!(mm.file_write(mapping, 0, &[1]), Err(Errno::EPERM));
    assert_eq!(try_map(mm, space, Some(of), 0, 1, RW, MAP_SHARED), Err(Errno::EPERM));
    let private = map(mm, space, of, 0, 1, RW, MAP_PRIVATE);
    assert_eq!(load(mm, space, private).0, 3);
    assert_eq!(mm.add_seals(mapping, F_SEAL_GROW), Err(Errno::EPERM));
    assert_sound(mm, &[mapping]);
    mm.mmput(space);
    close(mm, open);
    assert_sound(mm, &[]);
}

#[test]
fn who_could_write_before_still_can_but_nobody_else() {
    let machine = machine(1);
    let mm = machine.mm();
    let open = file(mm);
    let (mapping, of) = open;
    mm.truncate(mapping, PAGE_SIZE).expect("it grows");
    let space = mm.mm_alloc().expect("a space");
    let before = map(mm, space, of, 0, 1, RW, MAP_SHARED);
    assert_eq!(mm.add_seals(mapping, F_SEAL_FUTURE_WRITE), Ok(()));
    crate::store(mm, space, before, 4);
    assert_eq!(try_map(mm, space, Some(of), 0, 1, RW, MAP_SHARED), Err(Errno::EPERM));
    let after = map(mm, space, of, 0, 1, PROT_READ, MAP_SHARED);
    assert_eq!(load(mm, space, after).0, 4);
    assert_eq!(mm.do_mprotect(space, VirtAddr::new(after), PAGE_SIZE, RW, &LIMITS), Err(Errno::EACCES));
    assert_sound(mm, &[mapping]);
    mm.mmput(space);
    close(mm, open);
    assert_sound(mm, &[]);
}
