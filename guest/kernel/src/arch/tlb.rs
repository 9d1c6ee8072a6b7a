//! What processors remember of the page tables, and making all of them forget (`arch/x86/mm/tlb.c`).

use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE};

use super::cpu;
use crate::smp;

/// A range of more pages is forgotten with everything else (`tlb_single_page_flush_ceiling`).
const SINGLE_PAGE_FLUSH_CEILING: u64 = 33;

/// A range of addresses.
struct Range {
    start: u64,
    end: u64,
}

impl Range {
    /// This CPU forgets it.
    fn flush(&self) {
        if (self.end - self.start) >> PAGE_SHIFT > SINGLE_PAGE_FLUSH_CEILING {
            return cpu::flush_tlb_all();
        }
        let mut virt = self.start;
        while virt < self.end {
            cpu::invlpg(virt);
            virt += PAGE_SIZE;
        }
    }
}

/// Makes all CPUs forget the addresses from `start` up to `end`, and waits until they have (`flush_tlb_kernel_range`).
pub fn flush_kernel_range(start: u64, end: u64) {
    let range = Range { start, end };
    range.flush();
    smp::call_function(smp::online(), flush_called, core::ptr::from_ref(&range).expose_provenance());
}

/// What the other CPUs run.
fn flush_called(range: usize) {
    // SAFETY: `flush_kernel_range` keeps its range until all CPUs have run this.
    unsafe { &*core::ptr::with_exposed_provenance::<Range>(range) }.flush();
}
