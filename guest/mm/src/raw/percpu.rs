//! Chunk records of per-CPU memory with their maps, and the memory of units.
//!
//! Rests on this: the addresses in chunk lists and roots are those of records that [`Chunk::adopt`] was given, until
//! [`crate::percpu`] takes them off all lists, under the lock. All of a record is atomics, valid with any content.

use core::ptr::with_exposed_provenance_mut;
use core::slice;
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::percpu::{ChunkLayout, PCPU_BLOCK_BITS, PCPU_MAX_UNIT_PAGES, PcpuBlock, PcpuChunk, PcpuRoot};
use pagevisor_shared::units::VirtAddr;

use crate::sync::Plain;

/// A chunk's record and maps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk(&'static PcpuChunk);

impl core::ops::Deref for Chunk {
    type Target = PcpuChunk;

    #[inline(always)]
    fn deref(&self) -> &PcpuChunk {
        self.0
    }
}

/// A pointer to `addr`, which is in the direct map.
#[inline(always)]
fn direct(addr: u64) -> *mut u8 {
    with_exposed_provenance_mut(addr as usize)
}

impl Chunk {
    /// Makes the zeroed memory at `addr` the record of a chunk with units of `nr_pages` pages, at most
    /// [`PCPU_MAX_UNIT_PAGES`].
    ///
    /// # Safety
    /// [`ChunkLayout::size`] bytes at `addr` are RAM in the direct map, aligned to 64, that nobody else uses as long as
    /// the record is in use.
    pub(crate) unsafe fn adopt(addr: VirtAddr, nr_pages: usize) -> Self {
        // SAFETY: the caller's promise; atomics are valid with any content.
        let record = unsafe { &*direct(addr.raw()).cast::<PcpuChunk>() };
        record.nr_pages.set(nr_pages.min(PCPU_MAX_UNIT_PAGES) as u32);
        Self(record)
    }

    /// The chunk whose record is at `addr`, as a list or a root says; `None` for 0.
    #[inline(always)]
    pub(crate) fn at(addr: u64) -> Option<Self> {
        // SAFETY: what is in the lists was adopted and is in use (the promise that this module rests on).
        (addr != 0).then(|| Self(unsafe { &*direct(addr).cast::<PcpuChunk>() }))
    }

    /// The record's address.
    #[inline(always)]
    pub(crate) fn addr(self) -> u64 {
        core::ptr::from_ref(self.0).addr() as u64
    }

    /// Its maps.
    #[inline(always)]
    pub(crate) fn maps(self) -> Maps {
        let pages = (self.nr_pages.get() as usize).min(PCPU_MAX_UNIT_PAGES);
        let layout = ChunkLayout::new(pages);
        let base = core::ptr::from_ref(self.0).cast::<u8>();
        // SAFETY: `adopt` was given that much memory for a record with so many pages; all is atomics, and the record
        // is aligned for them.
        unsafe {
            let words = |at: usize, count: usize| slice::from_raw_parts(base.add(at).cast::<AtomicU64>(), count);
            Maps {
                blocks: slice::from_raw_parts(base.add(layout.blocks).cast::<PcpuBlock>(), pages),
                populated: words(layout.populated, pages.div_ceil(64)),
                alloc: words(layout.alloc_map, pages * PCPU_BLOCK_BITS / 64),
                bound: words(layout.bound_map, pages * PCPU_BLOCK_BITS / 64),
            }
        }
    }
}

impl Chunk {
    /// The frames behind its pages, for a machine of `cpus` CPUs; none for the first chunk.
    #[inline]
    pub(crate) fn pages(self, cpus: usize) -> &'static [AtomicU32] {
        let (table, pages) = (self.pages.get(), (self.nr_pages.get() as usize).min(PCPU_MAX_UNIT_PAGES));
        if table == 0 {
            return &[];
        }
        // SAFETY: set only by who gave `adopt` the record, to as large a table behind it; atomics are valid with any
        // content.
        unsafe { slice::from_raw_parts(direct(table).cast::<AtomicU32>(), pages * cpus) }
    }
}

/// The maps of a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Maps {
    /// Free areas by page.
    pub(crate) blocks: &'static [PcpuBlock],
    /// Which pages have memory.
    pub(crate) populated: &'static [AtomicU64],
    /// What is allocated.
    pub(crate) alloc: &'static [AtomicU64],
    /// Where allocations start.
    pub(crate) bound: &'static [AtomicU64],
}

/// Makes the zeroed memory at `addr` the root.
///
/// # Safety
/// It is RAM in the direct map, large enough for the record and aligned for it, that nobody else ever uses.
pub(crate) unsafe fn adopt_root(addr: VirtAddr) -> &'static PcpuRoot {
    // SAFETY: the caller's promise; atomics are valid with any content.
    unsafe { &*direct(addr.raw()).cast::<PcpuRoot>() }
}

/// Writes zero to `len` bytes, a multiple of 4, at `addr`, a multiple of 4.
///
/// # Safety
/// They are in the direct map and part of an allocation of per-CPU memory that nobody has been told of yet.
#[inline(always)]
pub(crate) unsafe fn zero_direct(addr: VirtAddr, len: usize) {
    let at = direct(addr.raw());
    // SAFETY: the caller's promise; words are aligned.
    unsafe {
        if len == 8 {
            at.cast::<[u32; 2]>().write([0; 2]);
        } else {
            at.write_bytes(0, len);
        }
    }
}

/// Writes `from` to `addr`.
///
/// # Safety
/// As much memory at `addr` is in the direct map, and nobody else uses it.
pub(crate) unsafe fn copy_direct(addr: VirtAddr, from: &[u8]) {
    // SAFETY: the caller's promise.
    unsafe { direct(addr.raw()).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
}
