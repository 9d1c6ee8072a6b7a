//! Areas of virtually contiguous memory, not touched; purging included as it falls due.

use pagevisor_shared::units::PAGE_SIZE;

use super::{Bench, Pages};

/// Name, pages, pairs of a run.
const SIZES: &[(&str, u64, u64)] = &[
    ("vmalloc_1_pages", 1, 5000),
    ("vmalloc_16_pages", 16, 1000),
    ("vmalloc_256_pages", 256, 100),
    ("vmalloc_4096_pages", 4096, 8),
];

impl<P: Pages> Bench<'_, P> {
    pub(super) fn vmalloc(&self) {
        self.kvmalloc();
        for &(name, pages, ops) in SIZES {
            let bytes = pages * PAGE_SIZE;
            self.each(name, ops, || self.vfree(self.area(bytes)));
            self.halves(name, |alloc, free| {
                for _ in 0..ops {
                    let mut area = 0;
                    alloc.time(|| area = self.area(bytes));
                    free.time(|| self.vfree(area));
                }
            });
        }
    }

    /// What mostly comes without an area.
    fn kvmalloc(&self) {
        self.each("kvmalloc_65536_hot", 200, || self.pages.kvfree(self.pages.kvmalloc(65536)));
    }

    #[inline(never)]
    fn area(&self, bytes: u64) -> u64 {
        self.pages.vmalloc(bytes)
    }

    #[inline(never)]
    fn vfree(&self, addr: u64) {
        self.pages.vfree(addr);
    }
}
