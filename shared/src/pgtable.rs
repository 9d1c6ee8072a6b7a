//! Page-table entries of x86-64 with four levels (`asm/pgtable_types.h`, `asm/pgtable_64_types.h`).
//!
//! Levels are numbered from below: 0 is a page table (PTE), 1 a page directory (PMD), 2 a page-directory-pointer table
//! (PUD), 3 the top (PGD). An entry of level 0, or one of level 1 with [`Entry::LARGE`], maps memory; any other that is
//! present leads to a table.

use core::fmt;

use crate::units::{PAGE_SHIFT, PAGE_SIZE, PhysAddr};

/// Entries of a table (`PTRS_PER_PTE`).
pub const PTRS_PER_TABLE: usize = 512;
/// log2 of the bytes behind a page table (`PMD_SHIFT`), which are also those of a large page.
pub const PMD_SHIFT: u32 = 21;
/// Bytes of a large page: 2 MiB (`PMD_SIZE`).
pub const PMD_SIZE: u64 = 1 << PMD_SHIFT;
/// The top level.
pub const TOP_LEVEL: u32 = 3;

/// log2 of the bytes behind an entry of `level`.
#[inline(always)]
pub const fn level_shift(level: u32) -> u32 {
    PAGE_SHIFT + 9 * level
}

/// Bytes behind an entry of `level`.
#[inline(always)]
pub const fn level_size(level: u32) -> u64 {
    1 << level_shift(level)
}

/// Index of the entry for `virt` in its table of `level` (`pte_index` and so on); below [`PTRS_PER_TABLE`].
#[inline(always)]
pub const fn table_index(virt: u64, level: u32) -> usize {
    (virt >> level_shift(level)) as usize & (PTRS_PER_TABLE - 1)
}

/// The first address behind the table of `level` that `virt` goes through, or `end` if that comes first
/// (`pmd_addr_end` and so on). 0 stands for the end of the address space.
#[inline(always)]
pub const fn table_end(virt: u64, end: u64, level: u32) -> u64 {
    let boundary = (virt & !(level_size(level + 1) - 1)).wrapping_add(level_size(level + 1));
    if boundary.wrapping_sub(1) < end.wrapping_sub(1) { boundary } else { end }
}

/// The processor's table of memory types (`MSR_IA32_CR_PAT`), a byte for each that entries can name: write-back,
/// write-combining, uncached unless a range register says otherwise, uncached; then, by a bit that no entry here has,
/// write-back, write-protected, the third again and write-through. As Linux sets it (`pat_bp_init`).
pub const PAT: u64 = 0x0407_0506_0007_0106;

/// How the processor caches a mapping (`enum page_cache_mode`), by the bits PWT and PCD, which name one of the first four
/// types of [`PAT`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheMode {
    /// Cached: memory.
    WriteBack,
    /// Not cached; writes may be gathered (`WC`).
    WriteCombining,
    /// Not cached, unless a range register says that writes may be gathered (`UC-`).
    UncachedMinus,
    /// Not cached at all.
    Uncached,
}

impl CacheMode {
    /// The mode's bits in an entry.
    #[inline]
    pub const fn bits(self) -> u64 {
        match self {
            Self::WriteBack => 0,
            Self::WriteCombining => Entry::WRITE_THROUGH,
            Self::UncachedMinus => Entry::CACHE_DISABLE,
            Self::Uncached => Entry::CACHE_DISABLE | Entry::WRITE_THROUGH,
        }
    }
}

/// What an entry allows, beside the address (`pgprot_t`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Protection(u64);

impl Protection {
    /// `PAGE_KERNEL`: data, cached.
    pub const KERNEL: Self =
        Self(Entry::PRESENT | Entry::WRITABLE | Entry::ACCESSED | Entry::DIRTY | Entry::GLOBAL | Entry::NO_EXECUTE);
    /// `PAGE_KERNEL_RO`.
    pub const KERNEL_RO: Self = Self(Self::KERNEL.0 & !Entry::WRITABLE);
    /// `PAGE_KERNEL_EXEC`.
    pub const KERNEL_EXEC: Self = Self(Self::KERNEL.0 & !Entry::NO_EXECUTE);
    /// `PAGE_KERNEL_ROX`.
    pub const KERNEL_ROX: Self = Self(Self::KERNEL_RO.0 & !Entry::NO_EXECUTE);

    /// `PAGE_SHARED`: a user's data, which may be written.
    pub const SHARED: Self = Self(Entry::PRESENT | Entry::WRITABLE | Entry::USER | Entry::ACCESSED | Entry::NO_EXECUTE);
    /// `PAGE_SHARED_EXEC`.
    pub const SHARED_EXEC: Self = Self(Self::SHARED.0 & !Entry::NO_EXECUTE);
    /// `PAGE_READONLY`: a user's, which may be read; also what is to be copied when it is written (`PAGE_COPY`).
    pub const READONLY: Self = Self(Self::SHARED.0 & !Entry::WRITABLE);
    /// `PAGE_READONLY_EXEC`.
    pub const READONLY_EXEC: Self = Self(Self::READONLY.0 & !Entry::NO_EXECUTE);

    /// The same, cached in another way.
    #[must_use]
    pub const fn cached(self, mode: CacheMode) -> Self {
        Self(self.0 & !CacheMode::Uncached.bits() | mode.bits())
    }

    /// As bits of an entry.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&Entry(self.0), f)
    }
}

/// An entry of a table of any level.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Entry(pub u64);

impl Entry {
    /// The entry maps or leads somewhere (`_PAGE_PRESENT`).
    pub const PRESENT: u64 = 1;
    /// Writes are allowed (`_PAGE_RW`).
    pub const WRITABLE: u64 = 1 << 1;
    /// For ring 3 too (`_PAGE_USER`).
    pub const USER: u64 = 1 << 2;
    /// `_PAGE_PWT`.
    pub const WRITE_THROUGH: u64 = 1 << 3;
    /// `_PAGE_PCD`.
    pub const CACHE_DISABLE: u64 = 1 << 4;
    /// `_PAGE_ACCESSED`.
    pub const ACCESSED: u64 = 1 << 5;
    /// `_PAGE_DIRTY`.
    pub const DIRTY: u64 = 1 << 6;
    /// A directory entry that maps a large page (`_PAGE_PSE`).
    pub const LARGE: u64 = 1 << 7;
    /// Survives address-space switches (`_PAGE_GLOBAL`).
    pub const GLOBAL: u64 = 1 << 8;
    /// In an entry that is not present: it still keeps a page, to which nobody has access (`_PAGE_PROTNONE`).
    pub const PROTNONE: u64 = Self::GLOBAL;
    /// The page has no counts of who maps it (`_PAGE_SPECIAL`). For software.
    pub const SPECIAL: u64 = 1 << 9;
    /// The page is locked by this entry (`PG_mlocked`). For software; Linux asks the area instead.
    pub const MLOCKED: u64 = 1 << 58;
    /// `_PAGE_NX`.
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// Bits that are an address (`PTE_PFN_MASK`).
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// An entry that leads to a table of the kernel's (`_KERNPG_TABLE`), but for the dirty bit, which means nothing there.
    pub const TABLE: u64 = Self::PRESENT | Self::WRITABLE | Self::ACCESSED;

    /// An entry that leads to a table of a user address space (`_PAGE_TABLE`), as [`Self::TABLE`].
    pub const USER_TABLE: u64 = Self::TABLE | Self::USER;

    /// No entry.
    pub const NONE: Self = Self(0);

    /// An entry that leads to the table at `table`.
    #[inline(always)]
    pub const fn to_table(table: PhysAddr) -> Self {
        Self(table.raw() & Self::ADDRESS | Self::TABLE)
    }

    /// An entry of level 0 that maps the page at `page`.
    #[inline(always)]
    pub const fn to_page(page: PhysAddr, protection: Protection) -> Self {
        Self(page.raw() & Self::ADDRESS | protection.bits())
    }

    /// An entry of level 1 that maps the large page at `page`.
    #[inline(always)]
    pub const fn to_large_page(page: PhysAddr, protection: Protection) -> Self {
        Self(page.raw() & Self::ADDRESS & !(PMD_SIZE - 1) | protection.bits() | Self::LARGE)
    }

    /// Whether it maps or leads somewhere.
    #[inline(always)]
    pub const fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// Whether, as an entry of level 0 of a user address space, it keeps a page (`pte_present`): one that is mapped, or
    /// one that nobody has access to at the moment.
    #[inline(always)]
    pub const fn keeps_page(self) -> bool {
        self.0 & (Self::PRESENT | Self::PROTNONE) != 0
    }

    /// Whether there is nothing at all (`pte_none`): not even a note of where a page went.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether it allows writing (`pte_write`).
    #[inline(always)]
    pub const fn is_writable(self) -> bool {
        self.0 & Self::WRITABLE != 0
    }

    /// Whether the page was written to since the bit was last cleared (`pte_dirty`).
    #[inline(always)]
    pub const fn is_dirty(self) -> bool {
        self.0 & Self::DIRTY != 0
    }

    /// Whether, as an entry of `level`, it maps memory.
    #[inline(always)]
    pub const fn is_leaf(self, level: u32) -> bool {
        self.is_present() && (level == 0 || self.0 & Self::LARGE != 0)
    }

    /// The memory it maps or the table it leads to. For a leaf of `level`, whose page is larger the higher it is.
    #[inline(always)]
    pub const fn address(self, level: u32) -> PhysAddr {
        let low = if level > 0 && self.0 & Self::LARGE != 0 { level_size(level) - 1 } else { PAGE_SIZE - 1 };
        PhysAddr::new(self.0 & Self::ADDRESS & !low)
    }

    /// Names of the bits that are set beside the address, from below, as crash has them.
    pub fn flags(self) -> impl Iterator<Item = &'static str> {
        let names = [
            (Self::PRESENT, "PRESENT"),
            (Self::WRITABLE, "RW"),
            (Self::USER, "USER"),
            (Self::WRITE_THROUGH, "PWT"),
            (Self::CACHE_DISABLE, "PCD"),
            (Self::ACCESSED, "ACCESSED"),
            (Self::DIRTY, "DIRTY"),
            (Self::LARGE, "PSE"),
            (Self::GLOBAL, "GLOBAL"),
            (Self::NO_EXECUTE, "NX"),
        ];
        names.into_iter().filter(move |(bit, _)| self.0 & bit != 0).map(|(_, name)| name)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0 & Self::ADDRESS)?;
        self.flags().try_for_each(|name| write!(f, "|{name}"))
    }
}

const _: () = assert!(table_end(0x1000, 0x2000, 0) == 0x2000 && table_end(0x1000, 0x40_0000, 0) == PMD_SIZE);
const _: () = assert!(table_end(0xffff_ffff_ffff_f000, 0, 0) == 0);
