//! What operations are told: where pages come from, which setting, how allocations are to fail.

use super::error::OpError;
use super::raw::RawOp;
use crate::gfp::Gfp;
use crate::units::{NodeId, NodeMask};

/// From which nodes an allocation takes its pages: the memory policies of `set_mempolicy(2)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Placement {
    /// From the node of the CPU (`MPOL_LOCAL`).
    #[default]
    Local,
    /// From this node, or as near to it as can be (`MPOL_PREFERRED`, `alloc_pages_node`).
    Preferred(NodeId),
    /// From these nodes only, the nearest first (`MPOL_BIND`, a node mask).
    Bind(NodeMask),
    /// From these nodes in turn (`MPOL_INTERLEAVE`).
    Interleave(NodeMask),
}

impl Placement {
    /// As a number and an argument.
    pub const fn to_raw(self) -> (u8, u64) {
        match self {
            Self::Local => (0, 0),
            Self::Preferred(node) => (1, node.index() as u64),
            Self::Bind(nodes) => (2, nodes.0),
            Self::Interleave(nodes) => (3, nodes.0),
        }
    }

    /// From a number and an argument.
    ///
    /// # Errors
    /// [`OpError::Invalid`] for numbers that mean nothing, and for an empty set of nodes.
    pub fn from_raw(kind: u8, argument: u64) -> Result<Self, OpError> {
        match (kind, argument) {
            (0, _) => Ok(Self::Local),
            (1, node) => usize::try_from(node).ok().and_then(NodeId::new).map(Self::Preferred).ok_or(OpError::Invalid),
            (2, nodes) if nodes != 0 => Ok(Self::Bind(NodeMask(nodes))),
            (3, nodes) if nodes != 0 => Ok(Self::Interleave(NodeMask(nodes))),
            _ => Err(OpError::Invalid),
        }
    }
}

/// Settings that can be changed at run time, `/proc/sys/vm/*`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Setting {
    /// `min_free_kbytes`, KiB.
    MinFreeKbytes = 0,
    /// `watermark_scale_factor`, 1/10000 of a zone.
    WatermarkScaleFactor = 1,
    /// `watermark_boost_factor`, 1/10000 of the high watermark.
    WatermarkBoostFactor = 2,
    /// `lowmem_reserve_ratio`; the index is the zone type.
    LowmemReserveRatio = 3,
    /// `percpu_pagelist_high_fraction`.
    PercpuPagelistHighFraction = 4,
    /// `zone_reclaim_mode`.
    ZoneReclaimMode = 5,
    /// `drop_caches`: nothing that stays, but a request to drop caches.
    DropCaches = 6,
    /// `overcommit_memory`: how much programs may be promised.
    OvercommitMemory = 7,
    /// `overcommit_ratio`, percent of RAM.
    OvercommitRatio = 8,
    /// `overcommit_kbytes`, KiB.
    OvercommitKbytes = 9,
    /// `max_map_count`, areas of a program.
    MaxMapCount = 10,
    /// `mmap_min_addr`, the lowest address that programs may map.
    MmapMinAddr = 11,
}

impl Setting {
    /// All of them, by number.
    pub const ALL: [Self; 12] = [
        Self::MinFreeKbytes,
        Self::WatermarkScaleFactor,
        Self::WatermarkBoostFactor,
        Self::LowmemReserveRatio,
        Self::PercpuPagelistHighFraction,
        Self::ZoneReclaimMode,
        Self::DropCaches,
        Self::OvercommitMemory,
        Self::OvercommitRatio,
        Self::OvercommitKbytes,
        Self::MaxMapCount,
        Self::MmapMinAddr,
    ];

    /// Its name below `/proc/sys/vm`.
    pub const fn name(self) -> &'static str {
        [
            "min_free_kbytes",
            "watermark_scale_factor",
            "watermark_boost_factor",
            "lowmem_reserve_ratio",
            "percpu_pagelist_high_fraction",
            "zone_reclaim_mode",
            "drop_caches",
            "overcommit_memory",
            "overcommit_ratio",
            "overcommit_kbytes",
            "max_map_count",
            "mmap_min_addr",
        ][self as usize]
    }

    /// The setting of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|setting| setting.name() == name)
    }
}

/// What to do with a range of page blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolate {
    /// `start_isolate_page_range`.
    Start,
    /// `undo_isolate_page_range`.
    Undo,
}

/// What is made to fail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Faulty {
    /// Allocations of pages (`fail_page_alloc`).
    Pages = 0,
    /// Allocations of objects from slab caches (`failslab`).
    Objects = 1,
}

impl Faulty {
    /// The one numbered `raw`.
    pub(super) const fn new(raw: u8) -> Result<Self, OpError> {
        match raw {
            0 => Ok(Self::Pages),
            1 => Ok(Self::Objects),
            _ => Err(OpError::Invalid),
        }
    }
}

/// Fault injection, the attributes of Linux's `fail_page_alloc` and `failslab` (`struct fault_attr`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fault {
    /// Percent of allocations that fail; 0 switches injection off.
    pub probability: u32,
    /// Only every so many-th is considered; 0 counts as 1.
    pub interval: u32,
    /// How many may fail; -1 for any number.
    pub times: i32,
    /// Pages, or bytes of objects, that may be allocated before the first failure.
    pub space: u32,
    /// Orders below this never fail. Means nothing to objects.
    pub min_order: u8,
    /// Allocations that may reclaim never fail (`ignore-gfp-wait`).
    pub ignore_gfp_wait: bool,
    /// Allocations for high memory never fail (`ignore-gfp-highmem`). Means nothing to objects.
    pub ignore_gfp_highmem: bool,
    /// Only objects of caches with [`crate::slab::SlabFlags::FAILSLAB`] fail (`cache-filter`). Means nothing to pages.
    pub cache_filter: bool,
    /// Only allocations with all of these flags fail.
    pub gfp: Gfp,
    /// Start of the random numbers, so that a run can be repeated.
    pub seed: u64,
}

impl Fault {
    const IGNORE_WAIT: u8 = 1;
    const IGNORE_HIGHMEM: u8 = 2;
    const CACHE_FILTER: u8 = 4;

    pub(super) fn encode(self, op: RawOp) -> RawOp {
        let wait = if self.ignore_gfp_wait { Self::IGNORE_WAIT } else { 0 };
        let highmem = if self.ignore_gfp_highmem { Self::IGNORE_HIGHMEM } else { 0 };
        let filter = if self.cache_filter { Self::CACHE_FILTER } else { 0 };
        RawOp {
            order: self.min_order,
            small: wait | highmem | filter,
            gfp: self.gfp.bits(),
            handle: self.probability,
            count: self.interval,
            a: self.times as u32 as u64 | (self.space as u64) << 32,
            b: self.seed,
            ..op
        }
    }

    pub(super) fn decode(raw: &RawOp) -> Result<Self, OpError> {
        Ok(Self {
            probability: raw.handle,
            interval: raw.count,
            times: raw.a as u32 as i32,
            space: (raw.a >> 32) as u32,
            min_order: raw.order,
            ignore_gfp_wait: raw.small & Self::IGNORE_WAIT != 0,
            ignore_gfp_highmem: raw.small & Self::IGNORE_HIGHMEM != 0,
            cache_filter: raw.small & Self::CACHE_FILTER != 0,
            gfp: Gfp::from_bits(raw.gfp).ok_or(OpError::Invalid)?,
            seed: raw.b,
        })
    }
}
