//! Chunk records of per-CPU memory with their maps, and the memory of units.
//!
//! Rests on this: the addresses in chunk lists, roots and areas are those of records that this file made, until
//! [`crate::percpu`] takes them off all lists and out of their areas, under the lock; after that it frees them. All of a
//! record is atomics, valid with any content. And [`crate::percpu`] has memory cleared only between taking it and telling
//! anybody of it.

use core::mem::size_of;
use core::ptr::with_exposed_provenance_mut;
use core::slice;
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::percpu::{ChunkLayout, PCPU_BLOCK_BITS, PCPU_MAX_UNIT_PAGES, PcpuBlock, PcpuChunk, PcpuRoot};
use pagevisor_shared::units::{PAGE_SIZE, Pfn, PhysAddr, VirtAddr};

use super::DirectMap;
use crate::Mm;
use crate::memblock::{AllocError, Memblock};
use crate::platform::Platform;
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
    /// The record of a chunk with units of `nr_pages` pages, at most [`PCPU_MAX_UNIT_PAGES`], without any, in memory of
    /// `mm`'s; [`Self::free`] gives it back.
    pub(crate) fn new<P: Platform>(mm: &Mm<P>, nr_pages: usize, gfp: Gfp) -> Option<Self> {
        let size = ChunkLayout::new(nr_pages).size;
        // Aligned to 64, like all kmalloc classes of that size.
        let record = mm.kzalloc(size + size_of::<u32>() * nr_pages * mm.cpus.len(), gfp)?;
        // SAFETY: the memory is in the direct map, large enough, aligned, and nobody else's until `free`.
        let chunk = unsafe { Self::adopt(record, nr_pages) };
        chunk.pages.set(record.raw() + size as u64);
        Some(chunk)
    }

    /// Gives back a record that [`Self::new`] made and that nothing leads to any more.
    pub(crate) fn free<P: Platform>(self, mm: &Mm<P>) {
        mm.kfree(VirtAddr::new(self.addr()));
    }

    /// Makes the zeroed memory at `addr` the record of a chunk with units of `nr_pages` pages, at most
    /// [`PCPU_MAX_UNIT_PAGES`].
    ///
    /// # Safety
    /// [`ChunkLayout::size`] bytes at `addr` are RAM in the direct map, aligned to 64, that nobody else uses as long as
    /// the record is in use.
    unsafe fn adopt(addr: VirtAddr, nr_pages: usize) -> Self {
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
    /// Clears `len` bytes from `start` on in all units, through the direct map. For an area that was just taken, whose
    /// pages are there.
    pub(crate) fn zero_pages(self, map: DirectMap, cpus: usize, start: u64, len: u64) {
        let (end, mut from) = (start + len, start);
        while from < end {
            let stop = end.min((from | (PAGE_SIZE - 1)) + 1);
            let page = (from / PAGE_SIZE) as usize;
            for frame in self.pages(cpus).iter().skip(page * cpus).take(cpus) {
                let addr = Pfn::new(frame.get().into()).addr().raw() + from % PAGE_SIZE;
                let at = map.at(PhysAddr::new(addr)).expose_provenance() as u64;
                // SAFETY: the pages of the area were populated, and stay while it is allocated; nobody was told of it
                // yet (this file's promise).
                unsafe { zero_direct(VirtAddr::new(at), (stop - from) as usize) };
            }
            from = stop;
        }
    }

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

/// Takes memory for ever, for the root and the records of the first chunk's two parts, with units of so many pages.
pub(crate) fn boot_records<P: Platform>(
    platform: &P,
    memblock: &mut Memblock,
    lowest: PhysAddr,
    pages: [usize; 2],
) -> Result<(&'static PcpuRoot, [Chunk; 2]), AllocError> {
    let sizes = pages.map(|pages| ChunkLayout::new(pages.min(PCPU_MAX_UNIT_PAGES)).size.next_multiple_of(64));
    let root_size = size_of::<PcpuRoot>().next_multiple_of(64);
    let bytes = (root_size + sizes[0] + sizes[1]) as u64;
    let memory = memblock.alloc_from(bytes.next_multiple_of(PAGE_SIZE), PAGE_SIZE, lowest)?;
    let base = DirectMap::new(platform).at(memory).expose_provenance() as u64;
    let at = |offset: usize| VirtAddr::new(base + offset as u64);
    // SAFETY: memblock has just given and cleared that much RAM, whose parts are multiples of 64 and large enough;
    // nobody else uses it, and it is never given back. Atomics are valid with any content.
    Ok(unsafe {
        let reserved = Chunk::adopt(at(root_size), pages[0]);
        let dynamic = Chunk::adopt(at(root_size + sizes[0]), pages[1]);
        (&*direct(base).cast::<PcpuRoot>(), [reserved, dynamic])
    })
}

/// Clears the `used` bytes at `start`, which memblock has just given for a unit, and writes `initial`, which is not more,
/// to their start.
pub(crate) fn boot_unit<P: Platform>(
    platform: &P,
    memblock: &mut Memblock,
    start: PhysAddr,
    used: u64,
    initial: &[u8],
) {
    memblock.clear_unless_fresh(start, used);
    let to = DirectMap::new(platform).at(start);
    // SAFETY: memblock has just given the unit, and RAM lies in the direct map; nobody knows the unit yet.
    unsafe { to.copy_from_nonoverlapping(initial.as_ptr(), initial.len().min(used as usize)) };
}

/// Clears `len` bytes, a multiple of 4, at `addr`, a multiple of 4, in the unit at offset 0, and in the others of `cpus`
/// CPUs: an area of the first chunk, that was just taken.
#[inline(always)]
pub(crate) fn zero_units(root: &PcpuRoot, cpus: usize, addr: u64, len: usize) {
    for offset in root.unit_off.iter().take(cpus) {
        // SAFETY: the area was just taken (this file's promise), so it has memory in each CPU's unit and nobody uses it.
        unsafe { zero_direct(VirtAddr::new(addr.wrapping_add(offset.get())), len) };
    }
}

/// Writes zero to `len` bytes, a multiple of 4, at `addr`, a multiple of 4.
///
/// # Safety
/// They are in the direct map and part of an allocation of per-CPU memory that nobody has been told of yet.
#[inline(always)]
unsafe fn zero_direct(addr: VirtAddr, len: usize) {
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
