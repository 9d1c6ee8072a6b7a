//! A pattern in free pages, looked at when they are allocated: who writes to a page that is not his gives himself away
//! (`page_poison=1`, `mm/page_poison.c`).
//!
//! Pages that were free at boot do not have the pattern, for boot touches nobody's memory; a page has it from its first
//! freeing on. A bit per frame tells.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::units::{Order, PAGE_SIZE, Pfn};

use crate::Mm;
use crate::memblock::{AllocError, Memblock};
use crate::platform::{Level, Platform};
use crate::raw::BootTable;
use crate::sync::Plain;

/// What a free page is filled with (`PAGE_POISON`).
pub const PAGE_POISON: u8 = 0xaa;
/// Nanoseconds in which [`BURST`] reports may be made.
const INTERVAL: u64 = 5_000_000_000;
/// Reports in an interval.
const BURST: u32 = 10;

/// Which pages have the pattern.
#[derive(Debug)]
pub(super) struct Poison {
    bits: BootTable<AtomicU64>,
    /// When the interval began, and reports made in it.
    begin: AtomicU64,
    reported: AtomicU32,
}

impl Poison {
    /// Not in use.
    pub(super) const fn none() -> Self {
        Self { bits: BootTable::none(), begin: AtomicU64::new(0), reported: AtomicU32::new(0) }
    }

    /// Room for a bit per frame.
    pub(super) fn allocate<P: Platform>(
        platform: &P,
        memblock: &mut Memblock,
        frames: u64,
    ) -> Result<Self, AllocError> {
        Ok(Self { bits: BootTable::allocate(platform, memblock, frames.div_ceil(64))?, ..Self::none() })
    }

    /// Sets the bit of frame `pfn`.
    fn mark(&self, pfn: u32) {
        if let Some(word) = self.bits.get().get(pfn as usize / 64) {
            word.fetch_or(1 << (pfn % 64), Relaxed);
        }
    }

    /// Clears the bit of frame `pfn`; tells whether it was set.
    fn unmark(&self, pfn: u32) -> bool {
        let bit = 1 << (pfn % 64);
        self.bits.get().get(pfn as usize / 64).is_some_and(|word| word.fetch_and(!bit, Relaxed) & bit != 0)
    }

    /// Whether a report may be made at time `now` (`__ratelimit`).
    fn allow(&self, now: u64) -> bool {
        if now.wrapping_sub(self.begin.get()) >= INTERVAL || self.reported.get() == 0 {
            self.begin.set(now);
            self.reported.set(0);
        }
        self.reported.fetch_add(1, Relaxed) < BURST
    }
}

/// A line of `print_hex_dump` with 16 bytes: `address: bytes  text`.
struct HexLine<'a> {
    address: u64,
    bytes: &'a [u8],
}

impl fmt::Display for HexLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}: ", self.address)?;
        self.bytes.iter().try_for_each(|byte| write!(f, "{byte:02x} "))?;
        // The text starts in column 49 however many bytes there are.
        write!(f, "{:width$}", "", width = 1 + 3 * (16 - self.bytes.len()))?;
        self.bytes.iter().try_for_each(|&byte| {
            write!(f, "{}", if byte.is_ascii_graphic() || byte == b' ' { byte as char } else { '.' })
        })
    }
}

impl<P: Platform> Mm<P> {
    /// Fills a block that nobody has any more (`kernel_poison_pages`).
    #[allow(unsafe_code, reason = "writes to pages that nobody has")]
    pub(super) fn poison_block(&self, pfn: u32, order: u32) {
        let Ok(block) = Order::new(order) else { return };
        // SAFETY: only called on a block whose last owner has just given it up and that is not on a list yet.
        unsafe { self.direct_map().fill(Pfn::new(pfn as u64), block, PAGE_POISON) };
        (pfn..pfn + (1 << order)).for_each(|page| self.instrument.poison.mark(page));
    }

    /// Looks at the pattern of a block that was just taken off the lists (`kernel_unpoison_pages`).
    pub(super) fn unpoison_block(&self, pfn: u32, order: u32) {
        for page in pfn..pfn + (1 << order) {
            if self.instrument.poison.unmark(page) {
                self.check_poison(Pfn::new(page as u64));
            }
        }
    }

    /// `check_poison_mem`.
    fn check_poison(&self, pfn: Pfn) {
        const WORD: u64 = u64::from_ne_bytes([PAGE_POISON; 8]);
        let words = self.frame_words(pfn);
        let (Some(first), Some(last)) =
            (words.iter().position(|word| word.get() != WORD), words.iter().rposition(|word| word.get() != WORD))
        else {
            return;
        };
        if !self.instrument.poison.allow(self.platform.now()) {
            return;
        }
        let byte = |at: usize| words.get(at / 8).map_or(PAGE_POISON, |word| word.get().to_ne_bytes()[at % 8]);
        // The page may change back under our eyes; then the words as a whole are what was found.
        let start = (first * 8..first * 8 + 8).find(|&at| byte(at) != PAGE_POISON).unwrap_or(first * 8);
        let end = (start..last * 8 + 8).rev().find(|&at| byte(at) != PAGE_POISON).unwrap_or(start) + 1;
        let flipped = byte(start) ^ PAGE_POISON;
        let what = if start + 1 == end && flipped.is_power_of_two() { "single bit error" } else { "memory corruption" };
        self.platform.log(Level::Err, format_args!("pagealloc: {what}"));
        let base = self.virt(pfn.addr()).raw();
        for row in (start..end).step_by(16) {
            let mut bytes = [0; 16];
            let bytes = &mut bytes[..(end - row).min(16)];
            bytes.iter_mut().zip(row..).for_each(|(slot, at)| *slot = byte(at));
            self.platform.log(Level::Err, format_args!("{}", HexLine { address: base + row as u64, bytes }));
        }
        self.platform.dump_stack();
        self.dump_page(pfn, "pagealloc: corrupted page details");
    }

    /// The content of a page that was just taken off the lists.
    #[allow(unsafe_code, reason = "reads pages that nobody has")]
    fn frame_words(&self, pfn: Pfn) -> &'static [AtomicU64] {
        const _: () = assert!(PAGE_SIZE.is_multiple_of(8));
        // SAFETY: pages on the free lists are RAM.
        unsafe { self.direct_map().words(pfn) }
    }
}
