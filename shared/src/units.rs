//! Addresses, page frame numbers, orders and ids: one type per unit, conversions by name.
//!
//! `Display` carries a prefix (`pfn:0x..`, `order:3`, `node:1`) so that a log line is never ambiguous.

use core::fmt;

/// log2 of the size of a page in bytes (`PAGE_SHIFT`).
pub const PAGE_SHIFT: u32 = 12;
/// Size of a page in bytes (`PAGE_SIZE`).
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Number of orders, 0 to 10 (`MAX_ORDER` of Linux 6.1, which counts them).
pub const MAX_ORDER: usize = 11;
/// Pages in a block of the largest order (`MAX_ORDER_NR_PAGES`): 1024.
pub const MAX_ORDER_NR_PAGES: u64 = 1 << (MAX_ORDER - 1);
/// Order of a page block, the unit of migrate types (`pageblock_order`): 9, which is 2 MiB.
pub const PAGEBLOCK_ORDER: u32 = 9;
/// Pages in a page block (`pageblock_nr_pages`): 512.
pub const PAGEBLOCK_NR_PAGES: u64 = 1 << PAGEBLOCK_ORDER;
/// log2 of the bytes in a memory section (`SECTION_SIZE_BITS`): 27, which is 128 MiB.
pub const SECTION_SIZE_BITS: u32 = 27;
/// log2 of the pages in a section (`PFN_SECTION_SHIFT`).
pub const PFN_SECTION_SHIFT: u32 = SECTION_SIZE_BITS - PAGE_SHIFT;
/// Pages in a section (`PAGES_PER_SECTION`): 32768.
pub const PAGES_PER_SECTION: u64 = 1 << PFN_SECTION_SHIFT;
/// log2 of the first physical address beyond what a machine may have: 16 TiB. List links in page metadata are
/// 32-bit frame numbers, which is what bounds it (Linux's `MAX_PHYSMEM_BITS` is 46).
pub const MAX_PHYSMEM_BITS: u32 = 44;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($raw:ty), $fmt:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        #[repr(transparent)]
        pub struct $name($raw);

        impl $name {
            /// Wraps a raw number.
            #[inline(always)]
            pub const fn new(raw: $raw) -> Self {
                Self(raw)
            }

            /// The raw number.
            #[inline(always)]
            pub const fn raw(self) -> $raw {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $fmt, self.0)
            }
        }
    };
}

unit! {
    /// A page frame number: a physical address divided by the page size.
    Pfn(u64), "pfn:{:#x}"
}
unit! {
    /// A guest-physical address in bytes.
    PhysAddr(u64), "phys:{:#x}"
}
unit! {
    /// A guest-virtual address in bytes.
    VirtAddr(u64), "virt:{:#x}"
}

impl Pfn {
    /// The frame that holds `addr` (`PFN_DOWN`).
    #[inline(always)]
    pub const fn containing(addr: PhysAddr) -> Self {
        Self(addr.0 >> PAGE_SHIFT)
    }

    /// The first frame at or above `addr` (`PFN_UP`).
    #[inline(always)]
    pub const fn at_or_above(addr: PhysAddr) -> Self {
        Self((addr.0 >> PAGE_SHIFT) + (addr.0 & (PAGE_SIZE - 1) != 0) as u64)
    }

    /// Address of the frame's first byte (`PFN_PHYS`).
    #[inline(always)]
    pub const fn addr(self) -> PhysAddr {
        PhysAddr(self.0 << PAGE_SHIFT)
    }

    /// The frame `pages` further up; wraps on overflow, which no frame below [`MAX_PHYSMEM_BITS`] can reach.
    #[inline(always)]
    pub const fn add(self, pages: u64) -> Self {
        Self(self.0.wrapping_add(pages))
    }

    /// Whether the frame starts a block of `order`.
    #[inline(always)]
    pub const fn is_aligned(self, order: Order) -> bool {
        self.0 & (order.pages() - 1) == 0
    }

    /// Number of the section the frame lies in (`pfn_to_section_nr`).
    #[inline(always)]
    pub const fn section(self) -> u64 {
        self.0 >> PFN_SECTION_SHIFT
    }

    /// Number of the page block the frame lies in.
    #[inline(always)]
    pub const fn pageblock(self) -> u64 {
        self.0 >> PAGEBLOCK_ORDER
    }
}

impl PhysAddr {
    /// The address `bytes` further up, or `None` beyond 2^64.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

/// An order is not below [`MAX_ORDER`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadOrder(
    /// The number that was given.
    pub u32,
);

impl fmt::Display for BadOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "order {} is not between 0 and {}", self.0, MAX_ORDER - 1)
    }
}

impl core::error::Error for BadOrder {}

/// log2 of a number of pages, 0 to 10.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct Order(u8);

impl Order {
    /// One page.
    pub const ZERO: Self = Self(0);
    /// The largest order, 10: 4 MiB.
    pub const MAX: Self = Self(MAX_ORDER as u8 - 1);
    /// The order of a page block, 9: 2 MiB.
    pub const PAGEBLOCK: Self = Self(PAGEBLOCK_ORDER as u8);

    /// The order `raw`.
    ///
    /// # Errors
    /// [`BadOrder`] when it is not below [`MAX_ORDER`].
    pub const fn new(raw: u32) -> Result<Self, BadOrder> {
        if (raw as usize) < MAX_ORDER { Ok(Self(raw as u8)) } else { Err(BadOrder(raw)) }
    }

    /// The raw number.
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self.0 as u32
    }

    /// The order as an index into a table of [`MAX_ORDER`] entries.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Pages in a block of this order.
    #[inline(always)]
    pub const fn pages(self) -> u64 {
        1 << self.0
    }

    /// Bytes in a block of this order.
    #[inline(always)]
    pub const fn bytes(self) -> u64 {
        PAGE_SIZE << self.0
    }

    /// Smallest order whose block holds `bytes` (`get_order`); `None` above the largest.
    pub const fn for_bytes(bytes: u64) -> Option<Self> {
        let mut order = 0;
        while order < MAX_ORDER as u32 {
            if bytes <= PAGE_SIZE << order {
                return Some(Self(order as u8));
            }
            order += 1;
        }
        None
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "order:{}", self.0)
    }
}

/// Number of a NUMA node, below [`crate::MAX_NUMNODES`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct NodeId(u8);

/// Number of a CPU, below [`crate::NR_CPUS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(transparent)]
pub struct CpuId(u8);

macro_rules! id {
    ($name:ident, $limit:expr, $prefix:literal) => {
        impl $name {
            /// The id `raw`, or `None` when it is not below the limit.
            #[inline]
            pub const fn new(raw: usize) -> Option<Self> {
                if raw < $limit { Some(Self(raw as u8)) } else { None }
            }

            /// The id as an index.
            #[inline(always)]
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, ":{}"), self.0)
            }
        }
    };
}

id!(NodeId, crate::MAX_NUMNODES, "node");
id!(CpuId, crate::NR_CPUS, "cpu");

/// A set of nodes (`nodemask_t`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct NodeMask(pub u64);

/// A set of CPUs (`cpumask_t`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct CpuMask(pub u64);

macro_rules! mask {
    ($mask:ident, $id:ident) => {
        impl $mask {
            /// Whether `id` is in the set.
            #[inline(always)]
            pub const fn contains(self, id: $id) -> bool {
                self.0 >> id.index() & 1 != 0
            }

            /// The set with `id` in it.
            #[must_use]
            #[inline(always)]
            pub const fn with(self, id: $id) -> Self {
                Self(self.0 | 1 << id.index())
            }

            /// How many are in the set. By shifts: guest ring 0 may not execute `popcnt`, and the compiler's
            /// baseline does not.
            pub const fn weight(self) -> u32 {
                self.0.count_ones()
            }

            /// The members, lowest first.
            pub fn iter(self) -> impl Iterator<Item = $id> {
                let mut left = self.0;
                core::iter::from_fn(move || {
                    let bit = left.trailing_zeros();
                    left &= left.wrapping_sub(1);
                    (bit < 64).then_some($id(bit as _))
                })
            }
        }

        /// The list form of Linux's `%*pbl`: `0-3,5`.
        impl fmt::Display for $mask {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut first = true;
                let mut bit = 0;
                while bit < 64 {
                    if self.0 >> bit & 1 == 0 {
                        bit += 1;
                        continue;
                    }
                    let start = bit;
                    while bit < 64 && self.0 >> bit & 1 != 0 {
                        bit += 1;
                    }
                    if !first {
                        f.write_str(",")?;
                    }
                    first = false;
                    write!(f, "{start}")?;
                    if bit - start > 1 {
                        write!(f, "-{}", bit - 1)?;
                    }
                }
                Ok(())
            }
        }
    };
}

mask!(NodeMask, NodeId);
mask!(CpuMask, CpuId);
