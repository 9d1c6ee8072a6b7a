//! Entries of page tables that keep programs' pages (`asm/pgtable.h`).

use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::units::{PAGE_SHIFT, Pfn};

/// An entry of a table of the lowest level (`pte_t`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pte(pub(crate) u64);

/// Bits that stay when the protection changes (`_PAGE_CHG_MASK`).
const KEPT: u64 =
    Entry::ADDRESS | Entry::ACCESSED | Entry::DIRTY | Entry::SPECIAL | Entry::MLOCKED | Entry::CACHE_DISABLE;

impl Pte {
    /// Keeps the page at `pfn` (`mk_pte`).
    #[inline(always)]
    pub(crate) const fn new(pfn: u32, protection: u64) -> Self {
        Self((pfn as u64) << PAGE_SHIFT | protection)
    }

    /// Whether there is nothing (`pte_none`).
    #[inline(always)]
    pub(crate) const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether it keeps a page (`pte_present`).
    #[inline(always)]
    pub(crate) const fn keeps_page(self) -> bool {
        Entry(self.0).keeps_page()
    }

    /// Whether it keeps a page that nobody has access to (`pte_protnone`).
    #[inline(always)]
    pub(crate) const fn is_protnone(self) -> bool {
        self.0 & (Entry::PRESENT | Entry::PROTNONE) == Entry::PROTNONE
    }

    /// Whether it has one of these bits.
    #[inline(always)]
    pub(crate) const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    /// Whether the page may be written to (`pte_write`).
    #[inline(always)]
    pub(crate) const fn is_writable(self) -> bool {
        self.has(Entry::WRITABLE)
    }

    /// Whether it was written to (`pte_dirty`).
    #[inline(always)]
    pub(crate) const fn is_dirty(self) -> bool {
        self.has(Entry::DIRTY)
    }

    /// Whether the page has no counts of who maps it (`pte_special`).
    #[inline(always)]
    pub(crate) const fn is_special(self) -> bool {
        self.has(Entry::SPECIAL)
    }

    /// The frame.
    #[inline(always)]
    pub(crate) const fn frame(self) -> u32 {
        ((self.0 & Entry::ADDRESS) >> PAGE_SHIFT) as u32
    }

    /// The frame.
    #[inline(always)]
    pub(crate) const fn pfn(self) -> Pfn {
        Pfn::new(self.frame() as u64)
    }

    /// With these bits.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    /// Without these bits.
    #[inline(always)]
    #[must_use]
    pub(crate) const fn without(self, bits: u64) -> Self {
        Self(self.0 & !bits)
    }

    /// With another protection (`pte_modify`).
    #[inline(always)]
    #[must_use]
    pub(crate) const fn modify(self, protection: u64) -> Self {
        Self(self.0 & KEPT | protection & !KEPT)
    }

    /// Writable if the area's flags are (`maybe_mkwrite`).
    #[inline(always)]
    #[must_use]
    pub(crate) const fn maybe_writable(self, flags: VmaFlags) -> Self {
        if flags.contains(VmaFlags::WRITE) { self.with(Entry::WRITABLE) } else { self }
    }
}

/// What entries of an area with `flags` allow at first (`vm_get_page_prot`, `protection_map`): private pages are writable
/// only once they are somebody's own.
#[inline(always)]
pub(crate) const fn page_prot(flags: VmaFlags) -> u64 {
    PROTECTIONS[flags.0 as usize & 15]
}

const PROTECTIONS: [u64; 16] = {
    let mut map = [0; 16];
    let mut bits = 0;
    while bits < 16 {
        let flags = VmaFlags(bits as u64);
        map[bits] = if !flags.intersects(VmaFlags::ACCESS) {
            Entry::PROTNONE | Entry::ACCESSED
        } else {
            let write = flags.contains(VmaFlags::WRITE.with(VmaFlags::SHARED));
            Entry::PRESENT
                | Entry::USER
                | Entry::ACCESSED
                | if write { Entry::WRITABLE } else { 0 }
                | if flags.contains(VmaFlags::EXEC) { 0 } else { Entry::NO_EXECUTE }
        };
        bits += 1;
    }
    map
};

/// Whether pages of an area with `flags` are copied when they are written to (`is_cow_mapping`).
#[inline(always)]
pub(crate) const fn is_cow(flags: VmaFlags) -> bool {
    flags.0 & (VmaFlags::SHARED.0 | VmaFlags::MAYWRITE.0) == VmaFlags::MAYWRITE.0
}
