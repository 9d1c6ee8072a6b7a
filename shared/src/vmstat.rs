//! Counters: zone, NUMA, node and event items, in the order and with the names of `/proc/vmstat` of Linux 6.1.
//!
//! Items of layers that are not built keep their place and stay 0, as they do in a Linux that does not use them.

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

/// Counters of a node (`enum node_stat_item`), in pages but for `nr_kernel_stack` (KiB).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum NodeStat {
    /// `nr_inactive_anon`
    NrInactiveAnon = 0,
    /// `nr_active_anon`
    NrActiveAnon = 1,
    /// `nr_inactive_file`
    NrInactiveFile = 2,
    /// `nr_active_file`
    NrActiveFile = 3,
    /// `nr_unevictable`
    NrUnevictable = 4,
    /// `nr_slab_reclaimable`
    NrSlabReclaimable = 5,
    /// `nr_slab_unreclaimable`
    NrSlabUnreclaimable = 6,
    /// `nr_isolated_anon`
    NrIsolatedAnon = 7,
    /// `nr_isolated_file`
    NrIsolatedFile = 8,
    /// `workingset_nodes`
    WorkingsetNodes = 9,
    /// `workingset_refault_anon`
    WorkingsetRefaultAnon = 10,
    /// `workingset_refault_file`
    WorkingsetRefaultFile = 11,
    /// `workingset_activate_anon`
    WorkingsetActivateAnon = 12,
    /// `workingset_activate_file`
    WorkingsetActivateFile = 13,
    /// `workingset_restore_anon`
    WorkingsetRestoreAnon = 14,
    /// `workingset_restore_file`
    WorkingsetRestoreFile = 15,
    /// `workingset_nodereclaim`
    WorkingsetNodereclaim = 16,
    /// `nr_anon_pages`
    NrAnonPages = 17,
    /// `nr_mapped`
    NrMapped = 18,
    /// `nr_file_pages`
    NrFilePages = 19,
    /// `nr_dirty`
    NrDirty = 20,
    /// `nr_writeback`
    NrWriteback = 21,
    /// `nr_writeback_temp`
    NrWritebackTemp = 22,
    /// `nr_shmem`
    NrShmem = 23,
    /// `nr_shmem_hugepages`
    NrShmemHugepages = 24,
    /// `nr_shmem_pmdmapped`
    NrShmemPmdmapped = 25,
    /// `nr_file_hugepages`
    NrFileHugepages = 26,
    /// `nr_file_pmdmapped`
    NrFilePmdmapped = 27,
    /// `nr_anon_transparent_hugepages`
    NrAnonTransparentHugepages = 28,
    /// `nr_vmscan_write`
    NrVmscanWrite = 29,
    /// `nr_vmscan_immediate_reclaim`
    NrVmscanImmediateReclaim = 30,
    /// `nr_dirtied`
    NrDirtied = 31,
    /// `nr_written`
    NrWritten = 32,
    /// `nr_throttled_written`
    NrThrottledWritten = 33,
    /// `nr_kernel_misc_reclaimable`
    NrKernelMiscReclaimable = 34,
    /// `nr_foll_pin_acquired`
    NrFollPinAcquired = 35,
    /// `nr_foll_pin_released`
    NrFollPinReleased = 36,
    /// `nr_kernel_stack`
    NrKernelStack = 37,
    /// `nr_page_table_pages`
    NrPageTablePages = 38,
    /// `nr_sec_page_table_pages`
    NrSecPageTablePages = 39,
    /// `nr_swapcached`
    NrSwapcached = 40,
    /// `pgpromote_success`
    PgpromoteSuccess = 41,
    /// `pgpromote_candidate`
    PgpromoteCandidate = 42,
}

/// Number of node counters.
pub const NR_VM_NODE_STAT_ITEMS: usize = 43;

impl NodeStat {
    /// Names as in Linux's files, in Linux's order.
    pub const NAMES: [&str; NR_VM_NODE_STAT_ITEMS] = [
        "nr_inactive_anon",
        "nr_active_anon",
        "nr_inactive_file",
        "nr_active_file",
        "nr_unevictable",
        "nr_slab_reclaimable",
        "nr_slab_unreclaimable",
        "nr_isolated_anon",
        "nr_isolated_file",
        "workingset_nodes",
        "workingset_refault_anon",
        "workingset_refault_file",
        "workingset_activate_anon",
        "workingset_activate_file",
        "workingset_restore_anon",
        "workingset_restore_file",
        "workingset_nodereclaim",
        "nr_anon_pages",
        "nr_mapped",
        "nr_file_pages",
        "nr_dirty",
        "nr_writeback",
        "nr_writeback_temp",
        "nr_shmem",
        "nr_shmem_hugepages",
        "nr_shmem_pmdmapped",
        "nr_file_hugepages",
        "nr_file_pmdmapped",
        "nr_anon_transparent_hugepages",
        "nr_vmscan_write",
        "nr_vmscan_immediate_reclaim",
        "nr_dirtied",
        "nr_written",
        "nr_throttled_written",
        "nr_kernel_misc_reclaimable",
        "nr_foll_pin_acquired",
        "nr_foll_pin_released",
        "nr_kernel_stack",
        "nr_page_table_pages",
        "nr_sec_page_table_pages",
        "nr_swapcached",
        "pgpromote_success",
        "pgpromote_candidate",
    ];

    /// The item as an index.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// Events counted per CPU (`enum vm_event_item`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum VmEvent {
    /// `pgpgin`
    Pgpgin = 0,
    /// `pgpgout`
    Pgpgout = 1,
    /// `pswpin`
    Pswpin = 2,
    /// `pswpout`
    Pswpout = 3,
    /// `pgalloc_dma`
    PgallocDma = 4,
    /// `pgalloc_dma32`
    PgallocDma32 = 5,
    /// `pgalloc_normal`
    PgallocNormal = 6,
    /// `pgalloc_movable`
    PgallocMovable = 7,
    /// `pgalloc_device`
    PgallocDevice = 8,
    /// `allocstall_dma`
    AllocstallDma = 9,
    /// `allocstall_dma32`
    AllocstallDma32 = 10,
    /// `allocstall_normal`
    AllocstallNormal = 11,
    /// `allocstall_movable`
    AllocstallMovable = 12,
    /// `allocstall_device`
    AllocstallDevice = 13,
    /// `pgskip_dma`
    PgskipDma = 14,
    /// `pgskip_dma32`
    PgskipDma32 = 15,
    /// `pgskip_normal`
    PgskipNormal = 16,
    /// `pgskip_movable`
    PgskipMovable = 17,
    /// `pgskip_device`
    PgskipDevice = 18,
    /// `pgfree`
    Pgfree = 19,
    /// `pgactivate`
    Pgactivate = 20,
    /// `pgdeactivate`
    Pgdeactivate = 21,
    /// `pglazyfree`
    Pglazyfree = 22,
    /// `pgfault`
    Pgfault = 23,
    /// `pgmajfault`
    Pgmajfault = 24,
    /// `pglazyfreed`
    Pglazyfreed = 25,
    /// `pgrefill`
    Pgrefill = 26,
    /// `pgreuse`
    Pgreuse = 27,
    /// `pgsteal_kswapd`
    PgstealKswapd = 28,
    /// `pgsteal_direct`
    PgstealDirect = 29,
    /// `pgdemote_kswapd`
    PgdemoteKswapd = 30,
    /// `pgdemote_direct`
    PgdemoteDirect = 31,
    /// `pgscan_kswapd`
    PgscanKswapd = 32,
    /// `pgscan_direct`
    PgscanDirect = 33,
    /// `pgscan_direct_throttle`
    PgscanDirectThrottle = 34,
    /// `pgscan_anon`
    PgscanAnon = 35,
    /// `pgscan_file`
    PgscanFile = 36,
    /// `pgsteal_anon`
    PgstealAnon = 37,
    /// `pgsteal_file`
    PgstealFile = 38,
    /// `zone_reclaim_failed`
    ZoneReclaimFailed = 39,
    /// `pginodesteal`
    Pginodesteal = 40,
    /// `slabs_scanned`
    SlabsScanned = 41,
    /// `kswapd_inodesteal`
    KswapdInodesteal = 42,
    /// `kswapd_low_wmark_hit_quickly`
    KswapdLowWmarkHitQuickly = 43,
    /// `kswapd_high_wmark_hit_quickly`
    KswapdHighWmarkHitQuickly = 44,
    /// `pageoutrun`
    Pageoutrun = 45,
    /// `pgrotated`
    Pgrotated = 46,
    /// `drop_pagecache`
    DropPagecache = 47,
    /// `drop_slab`
    DropSlab = 48,
    /// `oom_kill`
    OomKill = 49,
    /// `numa_pte_updates`
    NumaPteUpdates = 50,
    /// `numa_huge_pte_updates`
    NumaHugePteUpdates = 51,
    /// `numa_hint_faults`
    NumaHintFaults = 52,
    /// `numa_hint_faults_local`
    NumaHintFaultsLocal = 53,
    /// `numa_pages_migrated`
    NumaPagesMigrated = 54,
    /// `pgmigrate_success`
    PgmigrateSuccess = 55,
    /// `pgmigrate_fail`
    PgmigrateFail = 56,
    /// `thp_migration_success`
    ThpMigrationSuccess = 57,
    /// `thp_migration_fail`
    ThpMigrationFail = 58,
    /// `thp_migration_split`
    ThpMigrationSplit = 59,
    /// `compact_migrate_scanned`
    CompactMigrateScanned = 60,
    /// `compact_free_scanned`
    CompactFreeScanned = 61,
    /// `compact_isolated`
    CompactIsolated = 62,
    /// `compact_stall`
    CompactStall = 63,
    /// `compact_fail`
    CompactFail = 64,
    /// `compact_success`
    CompactSuccess = 65,
    /// `compact_daemon_wake`
    CompactDaemonWake = 66,
    /// `compact_daemon_migrate_scanned`
    CompactDaemonMigrateScanned = 67,
    /// `compact_daemon_free_scanned`
    CompactDaemonFreeScanned = 68,
    /// `htlb_buddy_alloc_success`
    HtlbBuddyAllocSuccess = 69,
    /// `htlb_buddy_alloc_fail`
    HtlbBuddyAllocFail = 70,
    /// `unevictable_pgs_culled`
    UnevictablePgsCulled = 71,
    /// `unevictable_pgs_scanned`
    UnevictablePgsScanned = 72,
    /// `unevictable_pgs_rescued`
    UnevictablePgsRescued = 73,
    /// `unevictable_pgs_mlocked`
    UnevictablePgsMlocked = 74,
    /// `unevictable_pgs_munlocked`
    UnevictablePgsMunlocked = 75,
    /// `unevictable_pgs_cleared`
    UnevictablePgsCleared = 76,
    /// `unevictable_pgs_stranded`
    UnevictablePgsStranded = 77,
    /// `thp_fault_alloc`
    ThpFaultAlloc = 78,
    /// `thp_fault_fallback`
    ThpFaultFallback = 79,
    /// `thp_fault_fallback_charge`
    ThpFaultFallbackCharge = 80,
    /// `thp_collapse_alloc`
    ThpCollapseAlloc = 81,
    /// `thp_collapse_alloc_failed`
    ThpCollapseAllocFailed = 82,
    /// `thp_file_alloc`
    ThpFileAlloc = 83,
    /// `thp_file_fallback`
    ThpFileFallback = 84,
    /// `thp_file_fallback_charge`
    ThpFileFallbackCharge = 85,
    /// `thp_file_mapped`
    ThpFileMapped = 86,
    /// `thp_split_page`
    ThpSplitPage = 87,
    /// `thp_split_page_failed`
    ThpSplitPageFailed = 88,
    /// `thp_deferred_split_page`
    ThpDeferredSplitPage = 89,
    /// `thp_split_pmd`
    ThpSplitPmd = 90,
    /// `thp_scan_exceed_none_pte`
    ThpScanExceedNonePte = 91,
    /// `thp_scan_exceed_swap_pte`
    ThpScanExceedSwapPte = 92,
    /// `thp_scan_exceed_share_pte`
    ThpScanExceedSharePte = 93,
    /// `thp_split_pud`
    ThpSplitPud = 94,
    /// `thp_zero_page_alloc`
    ThpZeroPageAlloc = 95,
    /// `thp_zero_page_alloc_failed`
    ThpZeroPageAllocFailed = 96,
    /// `thp_swpout`
    ThpSwpout = 97,
    /// `thp_swpout_fallback`
    ThpSwpoutFallback = 98,
    /// `balloon_inflate`
    BalloonInflate = 99,
    /// `balloon_deflate`
    BalloonDeflate = 100,
    /// `balloon_migrate`
    BalloonMigrate = 101,
    /// `swap_ra`
    SwapRa = 102,
    /// `swap_ra_hit`
    SwapRaHit = 103,
    /// `ksm_swpin_copy`
    KsmSwpinCopy = 104,
    /// `cow_ksm`
    CowKsm = 105,
    /// `zswpin`
    Zswpin = 106,
    /// `zswpout`
    Zswpout = 107,
    /// `direct_map_level2_splits`
    DirectMapLevel2Splits = 108,
    /// `direct_map_level3_splits`
    DirectMapLevel3Splits = 109,
}

/// Number of events.
pub const NR_VM_EVENT_ITEMS: usize = 110;

impl VmEvent {
    /// Names as in Linux's files, in Linux's order.
    pub const NAMES: [&str; NR_VM_EVENT_ITEMS] = [
        "pgpgin",
        "pgpgout",
        "pswpin",
        "pswpout",
        "pgalloc_dma",
        "pgalloc_dma32",
        "pgalloc_normal",
        "pgalloc_movable",
        "pgalloc_device",
        "allocstall_dma",
        "allocstall_dma32",
        "allocstall_normal",
        "allocstall_movable",
        "allocstall_device",
        "pgskip_dma",
        "pgskip_dma32",
        "pgskip_normal",
        "pgskip_movable",
        "pgskip_device",
        "pgfree",
        "pgactivate",
        "pgdeactivate",
        "pglazyfree",
        "pgfault",
        "pgmajfault",
        "pglazyfreed",
        "pgrefill",
        "pgreuse",
        "pgsteal_kswapd",
        "pgsteal_direct",
        "pgdemote_kswapd",
        "pgdemote_direct",
        "pgscan_kswapd",
        "pgscan_direct",
        "pgscan_direct_throttle",
        "pgscan_anon",
        "pgscan_file",
        "pgsteal_anon",
        "pgsteal_file",
        "zone_reclaim_failed",
        "pginodesteal",
        "slabs_scanned",
        "kswapd_inodesteal",
        "kswapd_low_wmark_hit_quickly",
        "kswapd_high_wmark_hit_quickly",
        "pageoutrun",
        "pgrotated",
        "drop_pagecache",
        "drop_slab",
        "oom_kill",
        "numa_pte_updates",
        "numa_huge_pte_updates",
        "numa_hint_faults",
        "numa_hint_faults_local",
        "numa_pages_migrated",
        "pgmigrate_success",
        "pgmigrate_fail",
        "thp_migration_success",
        "thp_migration_fail",
        "thp_migration_split",
        "compact_migrate_scanned",
        "compact_free_scanned",
        "compact_isolated",
        "compact_stall",
        "compact_fail",
        "compact_success",
        "compact_daemon_wake",
        "compact_daemon_migrate_scanned",
        "compact_daemon_free_scanned",
        "htlb_buddy_alloc_success",
        "htlb_buddy_alloc_fail",
        "unevictable_pgs_culled",
        "unevictable_pgs_scanned",
        "unevictable_pgs_rescued",
        "unevictable_pgs_mlocked",
        "unevictable_pgs_munlocked",
        "unevictable_pgs_cleared",
        "unevictable_pgs_stranded",
        "thp_fault_alloc",
        "thp_fault_fallback",
        "thp_fault_fallback_charge",
        "thp_collapse_alloc",
        "thp_collapse_alloc_failed",
        "thp_file_alloc",
        "thp_file_fallback",
        "thp_file_fallback_charge",
        "thp_file_mapped",
        "thp_split_page",
        "thp_split_page_failed",
        "thp_deferred_split_page",
        "thp_split_pmd",
        "thp_scan_exceed_none_pte",
        "thp_scan_exceed_swap_pte",
        "thp_scan_exceed_share_pte",
        "thp_split_pud",
        "thp_zero_page_alloc",
        "thp_zero_page_alloc_failed",
        "thp_swpout",
        "thp_swpout_fallback",
        "balloon_inflate",
        "balloon_deflate",
        "balloon_migrate",
        "swap_ra",
        "swap_ra_hit",
        "ksm_swpin_copy",
        "cow_ksm",
        "zswpin",
        "zswpout",
        "direct_map_level2_splits",
        "direct_map_level3_splits",
    ];

    /// The item as an index.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }
}
