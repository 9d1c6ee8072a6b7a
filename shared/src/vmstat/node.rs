//! What is counted of a node.

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
