//! What the host has allocated, by the handles it chose.
//!
//! A table of words in pages, three levels deep, that grows with the handles in use and never shrinks. A word is 0 or
//! says what the handle stands for; while an operation uses it, it is locked, so that two CPUs cannot use it at once.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::command::{MAX_HANDLE, OpError};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, Pfn};

use crate::Mm;
use crate::platform::Platform;
use crate::sync;

/// What a handle stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Held {
    /// A block of the page allocator.
    Block(Pfn, Order),
    /// So many frames side by side, each a page of its own.
    Range(Pfn, u64),
    /// So many frames of the contiguous memory area of that number.
    Cma(u8, Pfn, u64),
}

/// Set while an operation uses the handle.
const LOCKED: u64 = 1 << 63;
const KIND_SHIFT: u32 = 32;
const ARG_SHIFT: u32 = 34;
const AREA_BITS: u32 = 5;
/// First number of frames that a range cannot have.
pub(super) const MAX_RANGE: u64 = 1 << 24;

impl Held {
    fn encode(self) -> u64 {
        let (kind, pfn, arg) = match self {
            Self::Block(pfn, order) => (1, pfn, u64::from(order.raw())),
            Self::Range(pfn, count) => (2, pfn, count),
            Self::Cma(area, pfn, count) => (3, pfn, u64::from(area) | count << AREA_BITS),
        };
        pfn.raw() | kind << KIND_SHIFT | arg << ARG_SHIFT
    }

    fn decode(word: u64) -> Option<Self> {
        let pfn = Pfn::new(word & 0xffff_ffff);
        let arg = (word & !LOCKED) >> ARG_SHIFT;
        match word >> KIND_SHIFT & 3 {
            1 => Some(Self::Block(pfn, Order::new(arg as u32).ok()?)),
            2 => Some(Self::Range(pfn, arg)),
            3 => Some(Self::Cma((arg & ((1 << AREA_BITS) - 1)) as u8, pfn, arg >> AREA_BITS)),
            _ => None,
        }
    }

    /// The first frame, and how many there are.
    pub(super) fn frames(self) -> (Pfn, u64) {
        match self {
            Self::Block(pfn, order) => (pfn, order.pages()),
            Self::Range(pfn, count) | Self::Cma(_, pfn, count) => (pfn, count),
        }
    }
}

const _: () = assert!(MAX_RANGE << AREA_BITS <= 1 << (63 - ARG_SHIFT));

/// A handle that its holder alone uses. Dropped without a word it stays locked, so each way ends in one of the methods.
#[derive(Debug)]
#[must_use]
pub(super) struct Slot(&'static AtomicU64);

impl Slot {
    /// The handle stands for `held` from now on.
    pub(super) fn put(self, held: Held) {
        // Release: who takes the handle sees what was done with what it stands for.
        self.0.store(held.encode(), Release);
    }

    /// The handle stands for nothing.
    pub(super) fn clear(self) {
        self.0.store(0, Release);
    }
}

/// Words in a page, as a shift.
const LEVEL_BITS: u32 = 9;
const ROOTS: usize = (MAX_HANDLE >> (2 * LEVEL_BITS)) as usize;

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
    pub(super) fn reserve<P: Platform>(&self, mm: &Mm<P>, handle: u32) -> Result<Slot, OpError> {
        let word = self.word(mm, handle, true)?.ok_or(OpError::NoMemory)?;
        match word.compare_exchange(0, LOCKED, Acquire, Relaxed) {
            Ok(_) => Ok(Slot(word)),
            Err(_) => Err(OpError::HandleInUse),
        }
    }

    /// Takes hold of a handle that stands for something, once no other CPU uses it.
    pub(super) fn take<P: Platform>(&self, mm: &Mm<P>, handle: u32) -> Result<(Slot, Held), OpError> {
        let word = self.word(mm, handle, false)?.ok_or(OpError::BadHandle)?;
        loop {
            let now = word.load(Relaxed);
            if now == 0 {
                return Err(OpError::BadHandle);
            }
            if now & LOCKED == 0 && word.compare_exchange(now, now | LOCKED, Acquire, Relaxed).is_ok() {
                let held = Held::decode(now).ok_or(OpError::BadHandle)?;
                return Ok((Slot(word), held));
            }
            mm.platform.relax();
        }
    }

    /// Lets go of a handle that [`Self::reserve`] took hold of: it stands for `held` from now on.
    pub(super) fn unlock<P: Platform>(&self, mm: &Mm<P>, handle: u32, held: Option<Held>) {
        if let Ok(Some(word)) = self.word(mm, handle, false) {
            word.store(held.map_or(0, Held::encode), Release);
        }
    }

    /// The word of a handle, if there is a page for it.
    fn word<P: Platform>(&self, mm: &Mm<P>, handle: u32, create: bool) -> Result<Option<&'static AtomicU64>, OpError> {
        if handle >= MAX_HANDLE {
            return Err(OpError::BadHandle);
        }
        let (high, middle, low) = (
            handle >> (2 * LEVEL_BITS),
            handle >> LEVEL_BITS & ((1 << LEVEL_BITS) - 1),
            handle & ((1 << LEVEL_BITS) - 1),
        );
        let Some(second) = self.page(mm, &self.roots[high as usize % ROOTS], create) else { return Ok(None) };
        let Some(leaf) = self.page(mm, &second[middle as usize], create) else { return Ok(None) };
        Ok(leaf.get(low as usize))
    }

    /// The page that `entry` names.
    #[allow(unsafe_code, reason = "the table lies in pages of its own")]
    fn page<P: Platform>(&self, mm: &Mm<P>, entry: &AtomicU64, create: bool) -> Option<&'static [AtomicU64]> {
        let mut pfn = entry.load(Acquire);
        if pfn == 0 && create {
            sync::lock(&self.grow, || mm.platform.relax());
            pfn = entry.load(Acquire);
            if pfn == 0 {
                pfn = table_page(mm).map_or(0, Pfn::raw);
                // Release: who finds the page finds it cleared.
                entry.store(pfn, Release);
            }
            sync::unlock(&self.grow);
        }
        // SAFETY: entries are 0 or name pages that were allocated for this table and are never given back.
        (pfn != 0).then(|| unsafe { mm.direct_map().words(Pfn::new(pfn)) })
    }
}

/// A page for the table. It is none of the allocations that the host asked for, so none that it has made to fail;
/// `__GFP_NOFAIL` says so, where it can be had without waiting.
fn table_page<P: Platform>(mm: &Mm<P>) -> Option<Pfn> {
    const ENOUGH: u64 = 2048;
    let gfp = Gfp::KERNEL | Gfp::ZERO | Gfp::NOWARN;
    let gfp = if mm.nr_free_pages(gfp) > ENOUGH { gfp | Gfp::NOFAIL } else { gfp };
    mm.alloc_page(gfp)
}
