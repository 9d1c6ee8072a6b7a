//! Blocks in a row, linked through the word of their metadata that is their owner's.

use core::sync::atomic::AtomicU32;

use pagevisor_shared::units::{Order, Pfn};

use crate::Mm;
use crate::command::Services;
use crate::page_alloc::{PageVec, allocated_order};
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// Blocks that a workload holds, first in, first out.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Chain {
    /// Frames; 0 for none.
    pub(super) first: u32,
    last: u32,
    pub(super) len: u64,
}

impl Chain {
    /// A chain of `len` blocks from `first` to one without a successor, for taking from only.
    pub(super) fn from_parts(first: u32, len: u64) -> Self {
        Self { first, last: 0, len }
    }

    /// Appends a block that the caller has allocated.
    #[inline]
    pub(super) fn push<P: Platform>(&mut self, mm: &Mm<P>, pfn: Pfn) {
        let pfn = pfn.raw() as u32;
        mm.memmap().page(pfn).index.set(0);
        if self.first == 0 {
            self.first = pfn;
        } else {
            mm.memmap().page(self.last).index.set(pfn);
        }
        self.last = pfn;
        self.len += 1;
    }

    /// Takes the first block.
    #[inline]
    pub(super) fn pop<P: Platform>(&mut self, mm: &Mm<P>) -> Option<(Pfn, Order)> {
        if self.first == 0 {
            return None;
        }
        let pfn = self.first;
        let page = mm.memmap().page(pfn);
        self.first = page.index.get();
        self.len = self.len.saturating_sub(1);
        let order = Order::new(allocated_order(page.flags.get())).unwrap_or_default();
        Some((Pfn::new(pfn.into()), order))
    }
}

/// Blocks that workloads have kept.
#[derive(Debug)]
pub struct Kept {
    lock: AtomicU32,
    /// The first frame; 0 for none.
    first: AtomicU32,
}

impl Kept {
    pub(crate) const fn new() -> Self {
        Self { lock: AtomicU32::new(0), first: AtomicU32::new(0) }
    }

    /// Keeps all blocks of `chain`.
    pub(super) fn keep<P: Platform>(&self, mm: &Mm<P>, chain: Chain) {
        if chain.first == 0 {
            return;
        }
        sync::lock(&self.lock, || mm.platform.relax());
        mm.memmap().page(chain.last).index.set(self.first.get());
        self.first.set(chain.first);
        sync::unlock(&self.lock);
    }

    /// Frees all; gives how many blocks there were.
    pub(crate) fn release<P: Platform, S: Services>(&self, mm: &Mm<P>, services: &S) -> u64 {
        sync::lock(&self.lock, || mm.platform.relax());
        let mut chain = Chain::from_parts(self.first.get(), u64::MAX);
        self.first.set(0);
        sync::unlock(&self.lock);
        let (mut pages, mut count) = (PageVec::new(), 0);
        while let Some((pfn, order)) = chain.pop(mm) {
            services.safe_point();
            pages.add(mm, pfn, order);
            count += 1;
        }
        pages.release(mm);
        count
    }
}
