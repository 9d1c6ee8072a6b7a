//! Page flags, with the bit numbers of Linux 6.1 (x86-64 with memory failure handling).

/// Bits of `page->flags` (`enum pageflags`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PageFlag {
    /// `PG_locked`
    Locked = 0,
    /// `PG_referenced`
    Referenced = 1,
    /// `PG_uptodate`
    Uptodate = 2,
    /// `PG_dirty`
    Dirty = 3,
    /// `PG_lru`
    Lru = 4,
    /// `PG_active`
    Active = 5,
    /// `PG_workingset`
    Workingset = 6,
    /// `PG_waiters`
    Waiters = 7,
    /// `PG_error`
    Error = 8,
    /// `PG_slab`
    Slab = 9,
    /// `PG_owner_priv_1`
    OwnerPriv1 = 10,
    /// `PG_arch_1`
    Arch1 = 11,
    /// `PG_reserved`
    Reserved = 12,
    /// `PG_private`
    Private = 13,
    /// `PG_private_2`
    Private2 = 14,
    /// `PG_writeback`
    Writeback = 15,
    /// `PG_head`
    Head = 16,
    /// `PG_mappedtodisk`
    Mappedtodisk = 17,
    /// `PG_reclaim`
    Reclaim = 18,
    /// `PG_swapbacked`
    Swapbacked = 19,
    /// `PG_unevictable`
    Unevictable = 20,
    /// `PG_mlocked`
    Mlocked = 21,
    /// `PG_uncached`
    Uncached = 22,
    /// `PG_hwpoison`
    Hwpoison = 23,
    /// `PG_arch_2`
    Arch2 = 24,
}

/// Number of page flags (`__NR_PAGEFLAGS`).
pub const NR_PAGEFLAGS: usize = 25;

/// Own flag, above Linux's: the page's content is not known to be zero. It is clear on memory that nobody has used
/// since the machine started or that was cleared while free, and lets `__GFP_ZERO` skip clearing.
pub const PG_NOTZERO: u32 = 1 << 31;

/// Own field, above Linux's flags: the order of the block that this page heads while it is allocated or on a per-CPU
/// list. It is what a page is checked against when it is freed.
pub const PG_ORDER_SHIFT: u32 = NR_PAGEFLAGS as u32;
/// Mask of the field at [`PG_ORDER_SHIFT`].
pub const PG_ORDER_MASK: u32 = 0xf << PG_ORDER_SHIFT;
/// Own flag, above Linux's: the owner has written `mapping`, `private` or `_mapcount` since the page was allocated, so
/// they must be looked at when it is freed.
pub const PG_OWNED: u32 = 1 << 30;
/// Own flag, above Linux's, of the head of a free block with [`PG_NOTZERO`]: some of it has been cleared since it became free.
/// It goes when the block leaves its list or becomes part of another.
pub const PG_CLEARING: u32 = 1 << 29;
const _: () = assert!(PG_ORDER_MASK & (PG_NOTZERO | PG_OWNED | PG_CLEARING) == 0);

impl PageFlag {
    /// `PG_anon_exclusive`: an anonymous page that one address space alone can come to, so that it may write to it. The
    /// same bit as [`Self::Mappedtodisk`], which such pages have no use for.
    pub const ANON_EXCLUSIVE: Self = Self::Mappedtodisk;

    /// Linux's names without the `PG_` prefix, by bit.
    pub const NAMES: [&str; NR_PAGEFLAGS] = [
        "locked",
        "referenced",
        "uptodate",
        "dirty",
        "lru",
        "active",
        "workingset",
        "waiters",
        "error",
        "slab",
        "owner_priv_1",
        "arch_1",
        "reserved",
        "private",
        "private_2",
        "writeback",
        "head",
        "mappedtodisk",
        "reclaim",
        "swapbacked",
        "unevictable",
        "mlocked",
        "uncached",
        "hwpoison",
        "arch_2",
    ];

    /// The flag as a mask.
    #[inline(always)]
    pub const fn mask(self) -> u32 {
        1 << self as u32
    }
}
