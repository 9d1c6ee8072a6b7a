//! Many CPUs map, fork, write and cut one file at once.

use pagevisor_mm::mmap::{MmapRequest, Space};
use pagevisor_shared::mm_types::uapi::*;
use pagevisor_shared::random::SplitMix64;
use pagevisor_shared::units::{PAGE_SIZE, VirtAddr};

use crate::{LIMITS, Stack, assert_sound, close, file, machine, map, store};

const PAGES: u64 = 40;
const CPUS: usize = 6;

/// What one CPU does to the file and to the space that all use.
fn lane(
    mm: &Stack,
    space: Space,
    open: (pagevisor_mm::filemap::FileMapping, pagevisor_mm::mmap::MappedFileRef),
    at: [u64; 2],
    cpu: u64,
) {
    let mut random = SplitMix64::new(cpu);
    let own = 0x3000_0000 + cpu * (1 << 24);
    for round in 0..400u64 {
        let page = random.below(PAGES);
        let addr = VirtAddr::new(at[random.below(2) as usize] + page * PAGE_SIZE + cpu);
        match random.below(8) {
            0 => mm.truncate(open.0, random.below(PAGES * PAGE_SIZE)).expect("it is not sealed"),
            1 => {
                let _ = mm.file_write(open.0, page * PAGE_SIZE, &[cpu as u8 + 1; 5000]).expect("there is memory");
            }
            2 => {
                let mut bytes = [0; 5000];
                let read = mm.file_read(open.0, page * PAGE_SIZE, &mut bytes);
                assert!(bytes[..read].iter().all(|byte| *byte <= CPUS as u8), "only what somebody wrote");
            }
            3 => {
                // Where two tables meet, and tables go with the area.
                let addr = VirtAddr::new(own + (1 << 21) - 4 * PAGE_SIZE);
                let request = MmapRequest {
                    addr,
                    len: 8 * PAGE_SIZE,
                    prot: PROT_READ | PROT_WRITE,
                    flags: MAP_FIXED | if round % 2 == 0 { MAP_SHARED } else { MAP_PRIVATE },
                    file: Some(open.1),
                    pgoff: page,
                };
                mm.do_mmap(space, &request, &LIMITS).expect("there is room");
                let _ = mm.user_store(space, VirtAddr::new(addr.raw() + 3 * PAGE_SIZE), cpu as u8 + 1, &LIMITS);
                let _ = mm.user_load(space, VirtAddr::new(addr.raw() + 4 * PAGE_SIZE), &LIMITS);
                mm.do_munmap(space, addr, 8 * PAGE_SIZE).expect("it is mapped");
            }
            4 if round % 16 == 0 => {
                let child = mm.dup_mmap(space).expect("a child");
                let _ = mm.user_store(child, addr, cpu as u8 + 1, &LIMITS);
                mm.mmput(child);
            }
            5 => {
                let _ = mm.user_load(space, addr, &LIMITS);
            }
            _ => {
                // SIGBUS where the file ends just now.
                let _ = mm.user_store(space, addr, cpu as u8 + 1, &LIMITS);
            }
        }
    }
}

#[test]
fn many_cpus_use_a_file_while_it_is_cut() {
    let machine = machine(CPUS);
    let mm = machine.mm();
    let open = file(mm);
    let space = mm.mm_alloc().expect("a space");
    mm.truncate(open.0, PAGES * PAGE_SIZE).expect("it grows");
    let prot = PROT_READ | PROT_WRITE;
    let at = [MAP_SHARED, MAP_PRIVATE].map(|kind| map(mm, space, open.1, 0, PAGES, prot, kind));
    store(mm, space, at[0], 1);
    std::thread::scope(|scope| {
        for cpu in 0..CPUS {
            let machine = &machine;
            scope.spawn(move || machine.on_cpu(cpu, |mm| lane(mm, space, open, at, cpu as u64)));
        }
    });
    assert_sound(mm, &[open.0]);
    mm.mmput(space);
    assert_sound(mm, &[open.0]);
    mm.truncate(open.0, 0).expect("it shrinks");
    assert_sound(mm, &[open.0]);
    close(mm, open);
    assert_sound(mm, &[]);
}
