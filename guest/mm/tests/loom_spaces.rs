//! Every interleaving of the locks of address spaces: run with `RUSTFLAGS="--cfg loom"`.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use pagevisor_mm::rwsem::{self, SemWord};
use pagevisor_shared::region::seq;

#[derive(Default)]
struct Word(AtomicU32);

impl SemWord for Word {
    fn peek(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn read(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    fn write(&self, value: u32) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn publish(&self, value: u32) {
        self.0.store(value, Ordering::Release);
    }

    fn exchange(&self, old: u32, new: u32) -> bool {
        self.0.compare_exchange(old, new, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn take(&self, by: u32) -> u32 {
        self.0.fetch_add(by, Ordering::Acquire)
    }

    fn give(&self, by: u32) -> u32 {
        self.0.fetch_sub(by, Ordering::AcqRel)
    }
}

fn wait(_value: u32) {
    // Sleeping may end at any time.
    thread::yield_now();
}

/// A space with an area and what a fault reads of it.
#[derive(Default)]
struct Area {
    mmap_lock: Word,
    mm_lock_seq: Word,
    vm_lock: Word,
    vm_lock_seq: Word,
    seq: AtomicU32,
    /// 1 while it is in the tree.
    linked: AtomicU32,
    content: UnsafeCell<[u32; 2]>,
}

impl Area {
    fn new() -> Arc<Self> {
        let area = Self::default();
        area.linked.store(1, Ordering::Relaxed);
        // A number that no area was locked with.
        area.mm_lock_seq.write(1);
        Arc::new(area)
    }

    /// As `lock_vma`; gives what it found.
    fn fault(&self) -> Option<u32> {
        let start = seq::read_begin(&self.seq)?;
        if self.linked.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let held = rwsem::vma_start_read(&self.vm_lock, &self.vm_lock_seq, &self.mm_lock_seq, || {});
        if !held {
            return None;
        }
        let found = (!seq::read_retry(&self.seq, start)).then(|| {
            // SAFETY: locked; loom checks that this excludes writers.
            let [a, b] = self.content.with(|content| unsafe { *content });
            assert_eq!(a, b, "half a change");
            a
        });
        rwsem::vma_end_read(&self.vm_lock, || {});
        found
    }

    /// As `mprotect`, and as `munmap` if it is to go.
    fn change(&self, goes: bool) {
        rwsem::down_write(&self.mmap_lock, wait);
        rwsem::vma_start_write(&self.vm_lock, &self.vm_lock_seq, &self.mm_lock_seq, wait);
        self.content.with_mut(|content| {
            // SAFETY: locked; loom checks that this excludes others.
            let [a, b] = unsafe { &mut *content };
            *a += 1;
            *b += 1;
        });
        if goes {
            seq::write_begin(&self.seq);
            self.linked.store(0, Ordering::Relaxed);
            seq::write_end(&self.seq);
            // Freed: the next owner writes what it likes.
            self.content.with_mut(|content| {
                // SAFETY: locked for writing; loom checks that this excludes others.
                unsafe { *content = [100, 200] };
            });
        }
        rwsem::vma_end_write_all(&self.mm_lock_seq);
        rwsem::up_write(&self.mmap_lock, || {});
    }
}

#[test]
fn a_fault_finds_an_area_before_or_after_a_change() {
    loom::model(|| {
        let area = Area::new();
        let writer = {
            let area = Arc::clone(&area);
            thread::spawn(move || area.change(false))
        };
        if let Some(found) = area.fault() {
            assert!(found <= 1);
        }
        writer.join().expect("the writer");
        assert_eq!(area.fault(), Some(1));
    });
}

#[test]
fn a_fault_never_works_on_an_area_that_is_gone() {
    loom::model(|| {
        let area = Area::new();
        let writer = {
            let area = Arc::clone(&area);
            thread::spawn(move || area.change(true))
        };
        if let Some(found) = area.fault() {
            assert_eq!(found, 0);
        }
        writer.join().expect("the writer");
        assert_eq!(area.fault(), None);
    });
}

/// A reader and a writer of a space.
#[test]
fn readers_and_writers_of_a_space_exclude_each_other() {
    loom::model(|| {
        let area = Area::new();
        let writer = {
            let area = Arc::clone(&area);
            thread::spawn(move || area.change(false))
        };
        rwsem::down_read(&area.mmap_lock, wait);
        // SAFETY: locked; loom checks that this excludes writers.
        let [a, b] = area.content.with(|content| unsafe { *content });
        assert_eq!(a, b);
        rwsem::up_read(&area.mmap_lock, || {});
        writer.join().expect("the writer");
        assert_eq!(area.mmap_lock.peek(), 0);
    });
}
