//! No wake-up between the sides of a virtqueue is lost, in any order of things: run with `RUSTFLAGS="--cfg loom"`.
#![cfg(loom)]

use loom::sync::Arc;
use loom::sync::Notify;
use loom::sync::atomic::{AtomicU16, AtomicU32, Ordering::*};
use loom::thread;
use pagevisor_shared::virtq;

/// A ring's index and its reader's event, the entries themselves, and the bell.
struct Ring {
    index: AtomicU16,
    event: AtomicU16,
    entries: [AtomicU32; 4],
    bell: Notify,
}

impl Ring {
    /// As it is once `start` entries have come and gone.
    fn new(start: u16) -> Arc<Self> {
        let entries = [0; 4].map(AtomicU32::new);
        Arc::new(Self { index: AtomicU16::new(start), event: AtomicU16::new(start), entries, bell: Notify::new() })
    }

    /// Puts an entry in, without telling.
    fn put(&self, at: u16) {
        self.entries[at as usize % 4].store(1 + u32::from(at), Relaxed);
        self.index.store(at.wrapping_add(1), Release);
    }

    /// Takes `count` entries out, sleeping in between; loom fails if nobody wakes it.
    fn take(&self, mut seen: u16, count: u16) {
        let end = seen.wrapping_add(count);
        loop {
            while self.index.load(Acquire) != seen {
                assert_eq!(self.entries[seen as usize % 4].load(Relaxed), 1 + u32::from(seen));
                seen = seen.wrapping_add(1);
            }
            if seen == end {
                return;
            }
            if virtq::sleep(&self.event, &self.index, seen) {
                self.bell.wait();
            }
        }
    }
}

/// Puts in entries in groups, each told of once, while another thread takes them out.
fn groups(start: u16, sizes: &'static [u16]) {
    loom::model(move || {
        let ring = Ring::new(start);
        let taker = {
            let ring = ring.clone();
            thread::spawn(move || ring.take(start, sizes.iter().sum()))
        };
        let mut old = start;
        for size in sizes {
            let new = old.wrapping_add(*size);
            (0..*size).for_each(|at| ring.put(old.wrapping_add(at)));
            if virtq::must_tell(&ring.event, new, old) {
                ring.bell.notify();
            }
            old = new;
        }
        taker.join().unwrap();
    });
}

#[test]
fn whoever_sleeps_is_woken() {
    groups(0, &[1, 1]);
    groups(0, &[2]);
    groups(0, &[2, 1]);
}

#[test]
fn the_counters_may_wrap() {
    groups(u16::MAX, &[1, 1]);
    groups(u16::MAX, &[2]);
}
