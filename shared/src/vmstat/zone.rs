//! What is counted of a zone: pages, and where allocations came from.

/// Page counters of a zone (`enum zone_stat_item`), in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ZoneStat {
    /// `nr_free_pages`
    NrFreePages = 0,
    /// `nr_zone_inactive_anon`
    NrZoneInactiveAnon = 1,
    /// `nr_zone_active_anon`
    NrZoneActiveAnon = 2,
    /// `nr_zone_inactive_file`
    NrZoneInactiveFile = 3,
    /// `nr_zone_active_file`
    NrZoneActiveFile = 4,
    /// `nr_zone_unevictable`
    NrZoneUnevictable = 5,
    /// `nr_zone_write_pending`
    NrZoneWritePending = 6,
    /// `nr_mlock`
    NrMlock = 7,
    /// `nr_bounce`
    NrBounce = 8,
    /// `nr_zspages`
    NrZspages = 9,
    /// `nr_free_cma`
    NrFreeCma = 10,
}

/// Number of zone counters.
pub const NR_VM_ZONE_STAT_ITEMS: usize = 11;

impl ZoneStat {
    /// All of them, in Linux's order.
    pub const ALL: [Self; NR_VM_ZONE_STAT_ITEMS] = [
        Self::NrFreePages,
        Self::NrZoneInactiveAnon,
        Self::NrZoneActiveAnon,
        Self::NrZoneInactiveFile,
        Self::NrZoneActiveFile,
        Self::NrZoneUnevictable,
        Self::NrZoneWritePending,
        Self::NrMlock,
        Self::NrBounce,
        Self::NrZspages,
        Self::NrFreeCma,
    ];

    /// Names as in Linux's files, in Linux's order.
    pub const NAMES: [&str; NR_VM_ZONE_STAT_ITEMS] = [
        "nr_free_pages",
        "nr_zone_inactive_anon",
        "nr_zone_active_anon",
        "nr_zone_inactive_file",
        "nr_zone_active_file",
        "nr_zone_unevictable",
        "nr_zone_write_pending",
        "nr_mlock",
        "nr_bounce",
        "nr_zspages",
        "nr_free_cma",
    ];

    /// The item as an index.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// NUMA events of a zone (`enum numa_stat_item`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum NumaStat {
    /// `numa_hit`
    NumaHit = 0,
    /// `numa_miss`
    NumaMiss = 1,
    /// `numa_foreign`
    NumaForeign = 2,
    /// `numa_interleave`
    NumaInterleave = 3,
    /// `numa_local`
    NumaLocal = 4,
    /// `numa_other`
    NumaOther = 5,
}

/// Number of NUMA events.
pub const NR_VM_NUMA_EVENT_ITEMS: usize = 6;

impl NumaStat {
    /// All of them, in Linux's order.
    pub const ALL: [Self; NR_VM_NUMA_EVENT_ITEMS] =
        [Self::NumaHit, Self::NumaMiss, Self::NumaForeign, Self::NumaInterleave, Self::NumaLocal, Self::NumaOther];

    /// Names as in Linux's files, in Linux's order.
    pub const NAMES: [&str; NR_VM_NUMA_EVENT_ITEMS] =
        ["numa_hit", "numa_miss", "numa_foreign", "numa_interleave", "numa_local", "numa_other"];

    /// The item as an index.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }
}
