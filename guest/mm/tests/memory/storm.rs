//! Many threads in one address space at once.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pagevisor_mm::hosted::Topology;
use pagevisor_shared::units::PAGE_SIZE;

use crate::{MIB, assert_sound, load, private, rss, store};

const TOP: u64 = 0x7000_0000_0000;

/// A small generator: every thread has its own.
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

#[test]
fn threads_that_touch_the_same_pages_map_each_once() {
    let machine = Topology::new().node(&[(16 * MIB, 80 * MIB)], 8).boot();
    let mm = machine.mm();
    let space = mm.mm_alloc().expect("a space");
    let base = private(mm, space, TOP, 2000);
    std::thread::scope(|scope| {
        for cpu in 0..8 {
            let machine = &machine;
            scope.spawn(move || {
                machine.on_cpu(cpu, |mm| {
                    let mut seed = 0x9e37_79b9_7f4a_7c15 + cpu as u64;
                    for _ in 0..4000 {
                        let page = next(&mut seed) % 2000;
                        let addr = base + page * PAGE_SIZE + 8 * cpu as u64;
                        if next(&mut seed) & 1 == 0 {
                            store(mm, space, addr, page as u8 | 1);
                        } else {
                            let byte = load(mm, space, addr).0;
                            assert!(byte == 0 || byte == page as u8 | 1);
                        }
                    }
                });
            });
        }
    });
    assert!(rss(space) > 1500);
    assert_sound(mm);
    mm.mmput(space);
    assert_sound(mm);
}

#[test]
fn threads_fork_and_write_while_others_do() {
    let machine = Topology::new().node(&[(16 * MIB, 144 * MIB)], 6).boot();
    let mm = machine.mm();
    let parent = mm.mm_alloc().expect("a space");
    let base = private(mm, parent, TOP, 64);
    (0..64).for_each(|page| _ = store(mm, parent, base + page * PAGE_SIZE, 0));
    let forks = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for cpu in 0..6 {
            let (machine, forks) = (&machine, &forks);
            scope.spawn(move || {
                machine.on_cpu(cpu, |mm| {
                    let mut seed = 0x1234_5678_9abc_def1 * (cpu as u64 + 1);
                    for round in 0..300u64 {
                        // A byte of its own in every page: what it wrote last must be there.
                        let page = next(&mut seed) % 64;
                        let addr = base + page * PAGE_SIZE + 16 * cpu as u64;
                        store(mm, parent, addr, round as u8);
                        assert_eq!(load(mm, parent, addr).0, round as u8);
                        if round % 25 == cpu as u64 {
                            let child = mm.dup_mmap(parent).expect("a child");
                            assert_eq!(load(mm, child, addr).0, round as u8, "as it was when it was forked");
                            store(mm, child, addr, !(round as u8));
                            assert_eq!(load(mm, parent, addr).0, round as u8, "a child's write is its own");
                            mm.mmput(child);
                            forks.fetch_add(1, Relaxed);
                        }
                    }
                });
            });
        }
    });
    assert_eq!(forks.load(Relaxed), 6 * 12);
    assert_sound(mm);
    mm.mmput(parent);
    assert_sound(mm);
}
