//! What is counted of the machine, per CPU.

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
