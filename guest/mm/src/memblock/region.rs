//! One range of physical memory as memblock knows it.

use core::fmt;
use core::ops::BitOr;

use pagevisor_shared::MAX_NUMNODES;
use pagevisor_shared::units::{NodeId, PAGE_SIZE, Pfn, PhysAddr};

/// Attributes of a region (`enum memblock_flags`), with Linux's names and bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(transparent)]
pub struct MemblockFlags(u32);

pagevisor_shared::flag_set!(MemblockFlags);

impl MemblockFlags {
    /// No special request (`MEMBLOCK_NONE`).
    pub const NONE: Self = Self(0);
    /// Hot-pluggable region (`MEMBLOCK_HOTPLUG`): not allocated from while movable nodes are asked for.
    pub const HOTPLUG: Self = Self(0x1);
    /// Mirrored region (`MEMBLOCK_MIRROR`).
    pub const MIRROR: Self = Self(0x2);
    /// Not to be in the direct map (`MEMBLOCK_NOMAP`).
    pub const NOMAP: Self = Self(0x4);
    /// Always detected by a driver, never in the firmware's memory map (`MEMBLOCK_DRIVER_MANAGED`).
    pub const DRIVER_MANAGED: Self = Self(0x8);

    /// The raw bits.
    #[inline]
    pub const fn bits(self) -> u32 {
        self.0
    }
}

impl BitOr for MemblockFlags {
    type Output = Self;

    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for MemblockFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A range of physical memory with its node and flags (`struct memblock_region`).
///
/// Plain words without padding, each valid whatever its value: a table of regions may lie in any initialised memory.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Region {
    base: u64,
    size: u64,
    flags: MemblockFlags,
    /// Number of the node; [`MAX_NUMNODES`] (or anything above) stands for none, as in Linux.
    nid: u32,
}

const _: () = assert!(size_of::<Region>() == 24 && (PAGE_SIZE as usize).is_multiple_of(align_of::<Region>()));

impl Region {
    /// What unused slots of a table hold.
    pub(super) const EMPTY: Self = Self { base: 0, size: 0, flags: MemblockFlags::NONE, nid: MAX_NUMNODES as u32 };

    /// The region from `base` up to `end`, which is not below it.
    #[inline]
    pub(super) const fn between(base: u64, end: u64, nid: Option<NodeId>, flags: MemblockFlags) -> Self {
        let nid = match nid {
            Some(nid) => nid.index() as u32,
            None => MAX_NUMNODES as u32,
        };
        Self { base, size: end - base, flags, nid }
    }

    /// Its first byte.
    #[inline]
    pub const fn base(&self) -> PhysAddr {
        PhysAddr::new(self.base)
    }

    /// Its size in bytes.
    #[inline]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The first byte after it. Never overflows: sizes are capped when a region is added.
    #[inline]
    pub const fn end(&self) -> PhysAddr {
        PhysAddr::new(self.end_raw())
    }

    #[inline]
    pub(super) const fn base_raw(&self) -> u64 {
        self.base
    }

    #[inline]
    pub(super) const fn end_raw(&self) -> u64 {
        self.base.wrapping_add(self.size)
    }

    /// Its node (`memblock_get_region_node`).
    #[inline]
    pub const fn nid(&self) -> Option<NodeId> {
        NodeId::new(self.nid as usize)
    }

    /// Its flags.
    #[inline]
    pub const fn flags(&self) -> MemblockFlags {
        self.flags
    }

    #[inline]
    pub(super) fn set_nid(&mut self, nid: Option<NodeId>) {
        *self = Self::between(self.base, self.end_raw(), nid, self.flags);
    }

    #[inline]
    pub(super) fn set_flags(&mut self, flags: MemblockFlags) {
        self.flags = flags;
    }

    /// Cuts the region to `[base, end)`, both inside it.
    #[inline]
    pub(super) fn cut(&mut self, base: u64, end: u64) {
        self.base = base;
        self.size = end - base;
    }

    /// Grows the region upwards by the one that follows.
    #[inline]
    pub(super) fn absorb(&mut self, next: &Self) {
        self.size += next.size;
    }

    /// Whether `next` starts where this one ends and agrees in node and flags, so that both are one region.
    #[inline]
    pub(super) const fn continues_in(&self, next: &Self) -> bool {
        self.end_raw() == next.base && self.nid == next.nid && self.flags.0 == next.flags.0
    }

    /// Whether it shares a byte with `[base, end)`.
    #[inline]
    pub(super) const fn overlaps(&self, base: u64, end: u64) -> bool {
        self.base < end && base < self.end_raw()
    }

    /// First whole frame in it (`memblock_region_memory_base_pfn`).
    #[inline]
    pub const fn start_pfn(&self) -> Pfn {
        Pfn::at_or_above(self.base())
    }

    /// First frame no longer wholly in it (`memblock_region_memory_end_pfn`).
    #[inline]
    pub const fn end_pfn(&self) -> Pfn {
        Pfn::containing(self.end())
    }

    /// Whether it is hot-pluggable (`memblock_is_hotpluggable`).
    pub const fn is_hotpluggable(&self) -> bool {
        self.flags.contains(MemblockFlags::HOTPLUG)
    }

    /// Whether it is mirrored (`memblock_is_mirror`).
    pub const fn is_mirror(&self) -> bool {
        self.flags.contains(MemblockFlags::MIRROR)
    }

    /// Whether it stays out of the direct map (`memblock_is_nomap`).
    pub const fn is_nomap(&self) -> bool {
        self.flags.contains(MemblockFlags::NOMAP)
    }

    /// Whether a driver manages it (`memblock_is_driver_managed`).
    pub const fn is_driver_managed(&self) -> bool {
        self.flags.contains(MemblockFlags::DRIVER_MANAGED)
    }
}

/// The form of `memblock_dump`: ` [0x...-0x...], 0x... bytes on node 1 flags: 0x0`.
impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = self.end_raw().wrapping_sub(1);
        write!(f, "[{:#018x}-{last:#018x}], {:#018x} bytes", self.base, self.size)?;
        if let Some(nid) = self.nid() {
            write!(f, " on node {}", nid.index())?;
        }
        write!(f, " flags: {:#x}", self.flags.0)
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
