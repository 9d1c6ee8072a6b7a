//! Zone types, watermarks, and the record of a zone in a zonelist.

use crate::units::PAGE_SHIFT;

/// Zone types of a node, with Linux's numbers (`enum zone_type` of an x86-64 kernel with device memory).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum ZoneType {
    /// Below 16 MiB.
    Dma = 0,
    /// From 16 MiB up to 4 GiB.
    Dma32 = 1,
    /// From 4 GiB.
    Normal = 2,
    /// Memory kept for movable pages.
    Movable = 3,
    /// Device memory.
    Device = 4,
}

/// Number of zone types (`MAX_NR_ZONES`).
pub const MAX_NR_ZONES: usize = 5;

/// First frame above ZONE_DMA (`MAX_DMA_PFN`): 16 MiB.
pub const MAX_DMA_PFN: u64 = (16 << 20) >> PAGE_SHIFT;
/// First frame above ZONE_DMA32 (`MAX_DMA32_PFN`): 4 GiB.
pub const MAX_DMA32_PFN: u64 = (4 << 30) >> PAGE_SHIFT;

impl ZoneType {
    /// All zone types, lowest first.
    pub const ALL: [Self; MAX_NR_ZONES] = [Self::Dma, Self::Dma32, Self::Normal, Self::Movable, Self::Device];

    /// The zone type numbered `raw`.
    pub const fn new(raw: usize) -> Option<Self> {
        if raw < MAX_NR_ZONES { Some(Self::ALL[raw]) } else { None }
    }

    /// The type of frame `pfn` by its address, on a node without ZONE_MOVABLE.
    #[inline]
    pub const fn of_frame(pfn: u64) -> Self {
        if pfn < MAX_DMA_PFN {
            Self::Dma
        } else if pfn < MAX_DMA32_PFN {
            Self::Dma32
        } else {
            Self::Normal
        }
    }

    /// The type as an index.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Linux's name (`zone_names`).
    pub const fn name(self) -> &'static str {
        ["DMA", "DMA32", "Normal", "Movable", "Device"][self as usize]
    }
}

/// Watermarks of a zone (`enum zone_watermarks`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Watermark {
    /// Below it only emergencies allocate.
    Min = 0,
    /// Below it background reclaim starts.
    Low = 1,
    /// Up to it background reclaim works.
    High = 2,
    /// Target of promotion between memory tiers.
    Promo = 3,
}

/// Number of watermarks (`NR_WMARK`).
pub const NR_WMARK: usize = 4;

/// Index of a zone in the state region's zone table: node by node, [`MAX_NR_ZONES`] each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ZoneIndex(pub u16);

impl ZoneIndex {
    /// The zone of `node` with type `zone`.
    #[inline(always)]
    pub const fn of(node: crate::units::NodeId, zone: ZoneType) -> Self {
        Self((node.index() * MAX_NR_ZONES + zone.index()) as u16)
    }

    /// The index as a number.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// An entry of a zonelist (`struct zoneref`) packed in a word: 0 ends the list, otherwise
/// `(zone index + 1) << 8 | zone type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZoneRef(pub u32);

impl ZoneRef {
    /// The end of a zonelist.
    pub const END: Self = Self(0);

    /// The entry for `zone`.
    #[inline(always)]
    pub const fn new(zone: ZoneIndex, kind: ZoneType) -> Self {
        Self(((zone.0 as u32) + 1) << 8 | kind as u32)
    }

    /// The zone, or `None` at the end.
    #[inline(always)]
    pub const fn zone(self) -> Option<ZoneIndex> {
        if self.0 == 0 { None } else { Some(ZoneIndex(((self.0 >> 8) as u16).wrapping_sub(1))) }
    }

    /// The zone's type as a number (`zonelist_zone_idx`).
    #[inline(always)]
    pub const fn zone_idx(self) -> usize {
        (self.0 & 0xff) as usize
    }
}
