//! Boxes and vectors.

use std::alloc::Layout;
use std::rc::Rc;

use pagevisor_mm::{KBox, KVec, NoMemory};
use pagevisor_shared::gfp::Gfp;

use crate::{assert_sound, boot, exhaust, free_pages};

/// Failures are expected, and nobody is to be told.
const QUIET: Gfp = Gfp::NOWAIT.with(Gfp::NOWARN);

#[repr(align(4096))]
#[derive(Clone, PartialEq, Debug)]
struct Page([u8; 4096]);

#[repr(align(256))]
struct Line(u8);

#[test]
fn boxes_hold_and_drop() {
    let machine = boot(1);
    let mm = machine.mm();
    let start = free_pages(mm);
    let token = Rc::new(());
    let mut held = KBox::new(mm, (17_u64, Rc::clone(&token)), Gfp::KERNEL).expect("memory");
    held.0 += 1;
    assert_eq!(held.0, 18);
    assert_eq!(mm.ksize(held.addr()), 16);
    assert_eq!(Rc::strong_count(&token), 2);
    drop(held);
    assert_eq!(Rc::strong_count(&token), 1);
    let held = KBox::new(mm, Rc::clone(&token), Gfp::KERNEL).expect("memory");
    let inner = held.into_inner();
    assert_eq!(Rc::strong_count(&token), 2);
    drop(inner);
    assert_eq!(free_pages(mm), start);
    assert_sound(&machine);
}

#[test]
fn values_without_size_need_no_memory() {
    struct Flag<'a>(&'a std::cell::Cell<u32>);
    impl Drop for Flag<'_> {
        fn drop(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }
    struct Nothing;
    thread_local!(static DROPS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) });
    impl Drop for Nothing {
        fn drop(&mut self) {
            DROPS.set(DROPS.get() + 1);
        }
    }
    let machine = boot(1);
    let mm = machine.mm();
    let taken = exhaust(mm);
    while mm.kmalloc(8, QUIET).is_some() {}
    drop(KBox::new(mm, Nothing, QUIET).expect("nothing is needed"));
    assert_eq!(DROPS.get(), 1);
    let mut many = KVec::new(mm);
    for _ in 0..1000 {
        many.push(Nothing, QUIET).expect("nothing is needed");
    }
    assert_eq!(many.len(), 1000);
    drop(many);
    assert_eq!(DROPS.get(), 1001);
    let drops = std::cell::Cell::new(0);
    assert!(KBox::new(mm, Flag(&drops), QUIET).is_err());
    assert_eq!(drops.get(), 1, "a value that found no memory is dropped");
    taken.iter().for_each(|page| mm.free_page(*page));
}

#[test]
fn values_get_the_alignment_they_ask_for() {
    let machine = boot(1);
    let mm = machine.mm();
    let start = free_pages(mm);
    let lines: Vec<_> = (0..40).map(|n| KBox::new(mm, Line(n), Gfp::KERNEL).expect("memory")).collect();
    for (n, line) in lines.iter().enumerate() {
        assert!(line.addr().raw().is_multiple_of(256));
        assert_eq!(usize::from(line.0), n);
    }
    let mut pages = KVec::with_capacity(mm, 1, Gfp::KERNEL).expect("memory");
    for n in 0..5 {
        pages.push(Page([n; 4096]), Gfp::KERNEL).expect("memory");
    }
    assert!(pages.as_ptr().addr().is_multiple_of(4096));
    assert!(pages.iter().enumerate().all(|(n, page)| *page == Page([n as u8; 4096])));
    drop(pages);
    drop(lines);
    for align in (0..=22).map(|shift| 1 << shift) {
        for size in [1, 24, 96, 100, 200, 3000, 5000, 70_000] {
            let layout = Layout::from_size_align(size, align).expect("a layout");
            let addr = mm.kmalloc_layout(layout, Gfp::KERNEL).expect("memory");
            assert!(addr.raw().is_multiple_of(align as u64), "{layout:?} at {addr:?}");
            assert!(mm.ksize(addr) >= size);
            mm.kfree(addr);
        }
    }
    assert_eq!(free_pages(mm), start);
    assert_sound(&machine);
}

#[test]
fn vectors_grow_and_shrink_as_vec_does() {
    let machine = boot(1);
    let mm = machine.mm();
    let start = free_pages(mm);
    let (mut ours, mut std) = (KVec::new(mm), Vec::new());
    let mut random = 12345_u64;
    for step in 0..4000_u64 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        match random >> 60 {
            0..9 => {
                ours.push(Rc::new(step), Gfp::KERNEL).expect("memory");
                std.push(Rc::new(step));
            }
            9 | 10 => assert_eq!(ours.pop(), std.pop()),
            11 | 12 if !std.is_empty() => {
                let at = (random >> 20) as usize % std.len();
                assert_eq!(ours.swap_remove(at), Some(std.swap_remove(at)));
            }
            13 => {
                let more: Vec<_> = (0..random >> 56 & 7).map(Rc::new).collect();
                ours.extend_from_slice(&more, Gfp::KERNEL).expect("memory");
                std.extend_from_slice(&more);
            }
            14 => {
                let len = std.len().saturating_sub(3);
                ours.truncate(len);
                std.truncate(len);
            }
            _ => ours.reserve(1, Gfp::KERNEL).expect("memory"),
        }
        assert!(ours.len() <= ours.capacity());
    }
    assert_eq!(*ours, *std);
    assert_eq!(ours.swap_remove(std.len()), None);
    drop(std);
    assert!(ours.iter().all(|value| Rc::strong_count(value) == 1), "the model has dropped its own");
    drop(ours);
    assert_eq!(free_pages(mm), start);
    assert_sound(&machine);
}

#[test]
fn a_vector_that_finds_no_memory_is_as_it_was() {
    let machine = boot(1);
    let mm = machine.mm();
    let mut vec = KVec::new(mm);
    vec.extend_from_slice(&[1_u64; 500], Gfp::KERNEL).expect("memory");
    let taken = exhaust(mm);
    let mut filled = 0;
    while vec.push(2, QUIET).is_ok() {
        filled += 1;
    }
    assert_eq!(vec.len(), 500 + filled);
    assert_eq!(vec.capacity(), vec.len());
    assert_eq!(vec.extend_from_slice(&[3; 2], QUIET), Err(NoMemory));
    assert_eq!(vec.len(), 500 + filled);
    assert!(vec[..500].iter().all(|value| *value == 1) && vec[500..].iter().all(|value| *value == 2));
    assert_eq!(KVec::<u64, _>::with_capacity(mm, usize::MAX / 4, QUIET).err(), Some(NoMemory));
    taken.iter().for_each(|page| mm.free_page(*page));
    assert_eq!(KVec::<u64, _>::with_capacity(mm, (4 << 20) / 8 + 1, QUIET).err(), Some(NoMemory));
    vec.push(4, Gfp::KERNEL).expect("memory");
    assert_eq!(vec.pop(), Some(4));
}
