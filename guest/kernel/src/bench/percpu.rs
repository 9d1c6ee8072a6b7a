//! Per-CPU memory.

use core::sync::atomic::Ordering::Relaxed;

use super::{Bench, Pages, now};

/// Hot pairs of a run.
const HOT: u64 = 200;
/// Allocations of a burst.
const BURST: usize = 256;

/// Sizes in bytes, with the names of their figures.
const SIZES: [(u64, &str, &str); 4] = [
    (8, "percpu_8_hot", "percpu_8_burst256"),
    (64, "percpu_64_hot", "percpu_64_burst256"),
    (512, "percpu_512_hot", "percpu_512_burst256"),
    (4096, "percpu_4096_hot", "percpu_4096_burst256"),
];

/// What is measured: `__alloc_percpu` and `free_percpu`, with pointers as numbers, 0 for none.
pub trait PerCpuMemory {
    /// `__alloc_percpu(size, 8)`.
    fn alloc_percpu(&self, size: u64) -> u64;
    /// `free_percpu`.
    fn free_percpu(&self, ptr: u64);
    /// Does what was put off, as an idle CPU would.
    fn balance_percpu(&self);
}

impl<P: Pages + PerCpuMemory> Bench<'_, P> {
    pub(super) fn percpu(&self) {
        for (size, hot, burst) in SIZES {
            self.each(hot, HOT, || {
                let ptr = self.alloc_percpu(size);
                self.free_percpu(ptr);
            });
            self.halves(hot, |alloc, free| {
                for _ in 0..HOT {
                    let mut ptr = 0;
                    alloc.time(|| ptr = self.alloc_percpu(size));
                    free.time(|| self.free_percpu(ptr));
                }
            });
            self.percpu_burst(burst, size);
        }
    }

    /// All allocated, then all freed.
    fn percpu_burst(&self, name: &str, size: u64) {
        let slots = &self.slots[..BURST];
        self.halves(name, |alloc, free| {
            let start = now();
            slots.iter().for_each(|slot| slot.store(self.alloc_percpu(size), Relaxed));
            let middle = now();
            slots.iter().for_each(|slot| self.free_percpu(slot.load(Relaxed)));
            let end = now();
            alloc.add(middle - start, BURST as u64);
            free.add(end - middle, BURST as u64);
            self.pages.balance_percpu();
        });
    }

    #[inline(never)]
    fn alloc_percpu(&self, size: u64) -> u64 {
        self.pages.alloc_percpu(size)
    }

    #[inline(never)]
    fn free_percpu(&self, ptr: u64) {
        self.pages.free_percpu(ptr);
    }
}
