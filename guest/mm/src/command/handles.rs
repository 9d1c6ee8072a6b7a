//! What the host has allocated, by the handles it chose.
//!
//! A table in pages, three levels deep, that grows with the handles in use and never shrinks. A handle has two words: the
//! first is 0 or says what kind of thing the handle stands for, the second is its address or length. While an operation
//! uses a handle its first word is locked, so that two CPUs cannot use it at once.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::command::{MAX_HANDLE, OpError};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, Pfn, VirtAddr};

use crate::Mm;
use crate::percpu::PerCpuPtr;
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// What a handle stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Held {
    /// A block of the page allocator.
    Block(Pfn, Order),
    /// So many frames side by side, each a page of its own.
    Range(Pfn, u64),
    /// So many frames of the contiguous memory area of that number.
    Cma(u8, Pfn, u64),
    /// What `kmalloc` gave.
    Kmalloc(VirtAddr),
    /// An object of a slab cache.
    Object(VirtAddr),
    /// So many pages from `vmalloc`.
    Vmalloc(VirtAddr, u32),
    /// Per-CPU memory, so many bytes for each CPU.
    Percpu(PerCpuPtr, u32),
    /// A slab cache, by the address of its descriptor.
    Cache(VirtAddr),
    /// A shrinker, by the address of its record.
    Shrinker(VirtAddr),
}

/// Set while an operation uses the handle.
const LOCKED: u64 = 1 << 63;
const KIND_SHIFT: u32 = 32;
const SMALL_SHIFT: u32 = 40;
/// First number of frames that a range cannot have.
pub(super) const MAX_RANGE: u64 = 1 << 24;

impl Held {
    fn encode(self) -> [u64; 2] {
        let (kind, small, low, second) = match self {
            Self::Block(pfn, order) => (1, order.raw() as u8, pfn.raw() as u32, 0),
            Self::Range(pfn, count) => (2, 0, pfn.raw() as u32, count),
            Self::Cma(area, pfn, count) => (3, area, pfn.raw() as u32, count),
            Self::Kmalloc(addr) => (4, 0, 0, addr.raw()),
            Self::Object(addr) => (5, 0, 0, addr.raw()),
            Self::Vmalloc(addr, pages) => (6, 0, pages, addr.raw()),
            Self::Percpu(ptr, size) => (7, 0, size, ptr.raw()),
            Self::Cache(addr) => (8, 0, 0, addr.raw()),
            Self::Shrinker(addr) => (9, 0, 0, addr.raw()),
        };
        [u64::from(low) | kind << KIND_SHIFT | u64::from(small) << SMALL_SHIFT, second]
    }

    /// As [`Self::decode`], for what is a block and not locked.
    #[inline(always)]
    fn decode_block(first: u64) -> Option<(Pfn, Order)> {
        let order = Order::new((first >> SMALL_SHIFT) as u32).ok()?;
        (first >> KIND_SHIFT & 0xff == 1).then_some((Pfn::new(first as u32 as u64), order))
    }

    fn decode(first: u64, second: u64) -> Option<Self> {
        let (low, small) = (first as u32, (first >> SMALL_SHIFT) as u8);
        let (pfn, addr) = (Pfn::new(low.into()), VirtAddr::new(second));
        match first >> KIND_SHIFT & 0xff {
            1 => Some(Self::Block(pfn, Order::new(small.into()).ok()?)),
            2 => Some(Self::Range(pfn, second)),
            3 => Some(Self::Cma(small, pfn, second)),
            4 => Some(Self::Kmalloc(addr)),
            5 => Some(Self::Object(addr)),
            6 => Some(Self::Vmalloc(addr, low)),
            7 => Some(Self::Percpu(PerCpuPtr::new(second), low)),
            8 => Some(Self::Cache(addr)),
            9 => Some(Self::Shrinker(addr)),
            _ => None,
        }
    }
}

/// A handle that its holder alone uses. Dropped without a word it stays locked, so each way ends in one of the methods.
#[derive(Debug)]
#[must_use]
pub(super) struct Slot(&'static [AtomicU64; 2]);

impl Slot {
    /// The handle stands for `held` from now on.
    #[inline(always)]
    pub(super) fn put(self, held: Held) {
        store(self.0, held);
    }

    /// The handle stands for nothing.
    pub(super) fn clear(self) {
        self.0[0].store(0, Release);
    }
}

/// Writes what a locked handle stands for from now on, and unlocks it.
#[inline(always)]
fn store(words: &[AtomicU64; 2], held: Held) {
    let [first, second] = held.encode();
    words[1].set(second);
    // Release: who takes the handle sees its second word, and what was done with what it stands for.
    words[0].store(first, Release);
}

/// Words in a page, as a shift.
const LEVEL_BITS: u32 = 9;
/// Handles that have their words in a page, as a shift.
const LEAF_BITS: u32 = LEVEL_BITS - 1;
const ROOTS: usize = (MAX_HANDLE >> (LEVEL_BITS + LEAF_BITS)) as usize;

/// The table.
#[derive(Debug)]
pub(super) struct Handles {
    /// Frames of the second level; 0 for none.
    roots: [AtomicU64; ROOTS],
    grow: AtomicU32,
}

impl Handles {
    pub(super) const fn new() -> Self {
        Self { roots: [const { AtomicU64::new(0) }; ROOTS], grow: AtomicU32::new(0) }
    }

    /// Takes hold of a handle that stands for nothing yet.
    #[inline(always)]
    pub(super) fn reserve<P: Platform>(&self, mm: &Mm<P>, handle: u32) -> Result<Slot, OpError> {
        let words = match self.find(mm, handle) {
            Some(words) => words,
            None => self.make(mm, handle)?,
        };
        match words[0].compare_exchange(0, LOCKED, Acquire, Relaxed) {
            Ok(_) => Ok(Slot(words)),
            Err(_) => Err(OpError::HandleInUse),
        }
    }

    /// Takes hold of a handle that stands for something, once no other CPU uses it.
    pub(super) fn take<P: Platform>(&self, mm: &Mm<P>, handle: u32) -> Result<(Slot, Held), OpError> {
        let words = self.find(mm, handle).ok_or(OpError::BadHandle)?;
        loop {
            let now = words[0].load(Relaxed);
            if now == 0 {
                return Err(OpError::BadHandle);
            }
            if now & LOCKED == 0 && words[0].compare_exchange(now, now | LOCKED, Acquire, Relaxed).is_ok() {
                let held = Held::decode(now, words[1].get()).ok_or(OpError::BadHandle)?;
                return Ok((Slot(words), held));
            }
            mm.platform.relax();
        }
    }

    /// Takes hold of a handle that stands for a block of pages, if no other CPU uses it.
    #[inline(always)]
    pub(super) fn take_block<P: Platform>(&self, mm: &Mm<P>, handle: u32) -> Option<(Slot, Pfn, Order)> {
        let words = self.find(mm, handle)?;
        let now = words[0].load(Relaxed);
        let (pfn, order) = Held::decode_block(now)?;
        words[0].compare_exchange(now, now | LOCKED, Acquire, Relaxed).ok()?;
        Some((Slot(words), pfn, order))
    }

    /// Lets go of a handle that [`Self::reserve`] took hold of: it stands for `held` from now on.
    pub(super) fn unlock<P: Platform>(&self, mm: &Mm<P>, handle: u32, held: Option<Held>) {
        if let Some(words) = self.find(mm, handle) {
            match held {
                Some(held) => store(words, held),
                None => words[0].store(0, Release),
            }
        }
    }

    /// The words of a handle, if there is a page for them.
    #[inline(always)]
    fn find<P: Platform>(&self, mm: &Mm<P>, handle: u32) -> Option<&'static [AtomicU64; 2]> {
        let (root, middle, leaf) = place(handle)?;
        let second = table(mm, self.roots.get(root)?.load(Acquire))?;
        table(mm, second.get(middle)?.load(Acquire))?.as_chunks().0.get(leaf)
    }

    /// The words of a handle, in a page that is allocated for them if there is none.
    #[cold]
    #[inline(never)]
    fn make<P: Platform>(&self, mm: &Mm<P>, handle: u32) -> Result<&'static [AtomicU64; 2], OpError> {
        let (root, middle, _) = place(handle).ok_or(OpError::BadHandle)?;
        let second = self.grow(mm, &self.roots[root])?;
        self.grow(mm, &second[middle])?;
        self.find(mm, handle).ok_or(OpError::BadHandle)
    }

    /// The page that `entry` names, from now on if it did not name any.
    fn grow<P: Platform>(&self, mm: &Mm<P>, entry: &AtomicU64) -> Result<&'static [AtomicU64], OpError> {
        sync::lock(&self.grow, || mm.platform.relax());
        let mut pfn = entry.load(Acquire);
        if pfn == 0 {
            pfn = table_page(mm).map_or(0, Pfn::raw);
            // Release: who finds the page finds it cleared.
            entry.store(pfn, Release);
        }
        sync::unlock(&self.grow);
        table(mm, pfn).ok_or(OpError::NoMemory)
    }
}

/// Where the words of a handle are: the entries of the three levels.
#[inline(always)]
const fn place(handle: u32) -> Option<(usize, usize, usize)> {
    if handle >= MAX_HANDLE {
        return None;
    }
    let (root, middle) = (handle >> (LEVEL_BITS + LEAF_BITS), handle >> LEAF_BITS & ((1 << LEVEL_BITS) - 1));
    Some((root as usize, middle as usize, (handle & ((1 << LEAF_BITS) - 1)) as usize))
}

/// The page that an entry of the table names.
#[inline(always)]
#[allow(unsafe_code, reason = "the table lies in pages of its own")]
fn table<P: Platform>(mm: &Mm<P>, pfn: u64) -> Option<&'static [AtomicU64]> {
    if pfn == 0 {
        return None;
    }
    // SAFETY: entries are 0 or name pages that were allocated for the table and are never given back.
    Some(unsafe { mm.direct_map().words(Pfn::new(pfn)) })
}

/// A page for the table. It is none of the allocations that the host asked for, so none that it has made to fail;
/// `__GFP_NOFAIL` says so, where it can be had without waiting.
fn table_page<P: Platform>(mm: &Mm<P>) -> Option<Pfn> {
    const ENOUGH: u64 = 2048;
    let gfp = Gfp::KERNEL | Gfp::ZERO | Gfp::NOWARN;
    let gfp = if mm.nr_free_pages(gfp) > ENOUGH { gfp | Gfp::NOFAIL } else { gfp };
    mm.alloc_page(gfp)
}
