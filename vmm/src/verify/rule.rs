//! The rules, each with a name that scripts can rely on.

use std::fmt;

macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $rule:ident = $name:literal,)+) => {
        /// Something that must hold.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Rule {
            $($(#[doc = $doc])+ $rule,)+
        }

        impl Rule {
            /// All rules.
            pub const ALL: &[Self] = &[$(Self::$rule),+];

            /// The rule's name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$rule => $name,)+
                }
            }
        }
    };
}

rules! {
    /// memblock's memory ranges ascend, do not overlap, and name nodes that exist.
    MemblockMemory = "memblock-memory",
    /// memblock's memory ranges are memory that the machine has.
    MemblockBacking = "memblock-backing",
    /// memblock's reserved ranges ascend and do not overlap.
    MemblockReserved = "memblock-reserved",
    /// `max_pfn`, the number of sections and the count of all pages are those of memblock's memory.
    MemblockTotals = "memblock-totals",
    /// The section table has an entry for exactly the sections with memory, and names their zones.
    SectionTable = "section-table",
    /// Every page block's byte names a migrate type.
    PageblockType = "pageblock-type",
    /// Page tables lie in memory, each is used once, and none of them on a free page.
    PageTable = "page-table",
    /// Every vCPU's page-table root has the kernel's half of the address space as the kernel's own root has it.
    PageTableRoot = "page-table-root",
    /// Nothing can be written and executed.
    MapWritableExecutable = "map-writable-executable",
    /// The kernel's root maps nothing in the user's half.
    MapUserHalf = "map-user-half",
    /// The direct map maps an address to its own physical address.
    DirectMapTarget = "direct-map-target",
    /// The direct map maps RAM only.
    DirectMapNotRam = "direct-map-not-ram",
    /// Every GiB of the direct map that is filled maps all the RAM in it.
    DirectMapHole = "direct-map-hole",
    /// The direct map is data: writable but for the kernel's text and read-only data, never executable.
    DirectMapProtection = "direct-map-protection",
    /// The kernel's image is mapped where it was loaded.
    KernelMapTarget = "kernel-map-target",
    /// Text runs and cannot be written, read-only data can do neither, data can be written and do not run.
    KernelMapProtection = "kernel-map-protection",
    /// All of the kernel's image is mapped, and nothing beyond.
    KernelMapExtent = "kernel-map-extent",
    /// The state region is mapped where the roots say.
    RegionMap = "region-map",
    /// Page metadata is mapped for every section that exists.
    MemmapMissing = "memmap-missing",
    /// Page metadata is mapped for no section that does not exist.
    MemmapStray = "memmap-stray",
    /// Page metadata lies in reserved memory, and no two sections share it.
    MemmapBacking = "memmap-backing",
    /// No free page is mapped anywhere but in the direct map.
    FreePageMapped = "free-page-mapped",
    /// A page in use is mapped as often as its `_mapcount` says.
    PageMapcount = "page-mapcount",
    /// Links of a free list lead to frames of the zone that have metadata.
    FreeListZone = "free-list-zone",
    /// Blocks of a free list are aligned to their order.
    FreeListAlign = "free-list-align",
    /// The backward link of each block leads to where the forward link came from.
    FreeListBackLink = "free-list-back-link",
    /// A free list ends at the block that its head names.
    FreeListEnd = "free-list-end",
    /// A free list has no more blocks than the zone can have.
    FreeListLength = "free-list-length",
    /// The head of a free block is marked as one of the list's order.
    FreeListMark = "free-list-mark",
    /// A free block names the migrate type of the list it is on.
    FreeListType = "free-list-type",
    /// Free blocks of isolated page blocks and of contiguous areas are on the lists for these, and no others.
    FreeListPageblock = "free-list-pageblock",
    /// Nobody holds a reference to a free block.
    FreeListReferences = "free-list-references",
    /// A free block has no page flags.
    FreeListFlags = "free-list-flags",
    /// The buddy of a free block is not a free block of the same order.
    FreeListBuddy = "free-list-buddy",
    /// `nr_free` of a list is the number of blocks on it.
    FreeListCount = "free-list-count",
    /// A block that is marked as free is on a free list.
    BuddyMarkStray = "buddy-mark-stray",
    /// Links of a pageset's list are sound.
    PagesetLink = "pageset-link",
    /// Blocks on a pageset's list are of the zone and aligned to the list's order.
    PagesetBlock = "pageset-block",
    /// Nobody holds a reference to a page on a pageset, and it is no free block of the zone.
    PagesetReferences = "pageset-references",
    /// A block on a pageset has no flags, and the list's order.
    PagesetFlags = "pageset-flags",
    /// A block on a pageset is on the list of its migrate type.
    PagesetType = "pageset-type",
    /// `count` of a pageset is the number of pages on its lists.
    PagesetCount = "pageset-count",
    /// A pageset's lock is free.
    PagesetLock = "pageset-lock",
    /// `high` of a pageset follows from the zone's size and the settings.
    PagesetHigh = "pageset-high",
    /// `batch` of a pageset follows from the zone's size.
    PagesetBatch = "pageset-batch",
    /// A page is in one state only: free, on a pageset, in use, or reserved.
    PageTwoStates = "page-two-states",
    /// Every page is in some state.
    PageNoState = "page-no-state",
    /// Nothing is said about pages that are not there.
    PageOutsideMemory = "page-outside-memory",
    /// A block in use has an order that fits where it is; a compound page has more than one page.
    PageInUse = "page-in-use",
    /// Nobody holds a reference to memory that was reserved at boot.
    ReservedReferences = "reserved-references",
    /// Free memory that is said to hold zeros does.
    FreePageZero = "free-page-zero",
    /// A zone's record is that of its place in the table.
    ZoneIdentity = "zone-identity",
    /// A zone's lock is free and its sequence counter even.
    ZoneLock = "zone-lock",
    /// A zone's first frame and span are those of its memory.
    ZoneSpan = "zone-span",
    /// `present_pages` of a zone is the memory it has.
    ZonePresentPages = "zone-present-pages",
    /// `managed_pages` of a zone is what it has without what was reserved.
    ZoneManagedPages = "zone-managed-pages",
    /// Free pages, pages on pagesets, in use and reserved are all the pages of a zone.
    ZoneAccounting = "zone-accounting",
    /// `nr_free_pages` with what CPUs hold back is what is on the free lists, but for isolated blocks.
    ZoneNrFreePages = "zone-nr-free-pages",
    /// `nr_free_cma` with what CPUs hold back is what is on the free lists of contiguous areas.
    ZoneNrFreeCma = "zone-nr-free-cma",
    /// A zone counter that nothing counts yet is zero.
    ZoneCounter = "zone-counter",
    /// `cma_pages` covers the page blocks of contiguous areas.
    ZoneCmaPages = "zone-cma-pages",
    /// `nr_reserved_highatomic` is whole page blocks, at least as many as there are, within its limit.
    ZoneHighatomic = "zone-highatomic",
    /// The watermarks follow from managed pages and settings.
    ZoneWatermark = "zone-watermark",
    /// The watermark boost is within its limit.
    ZoneWatermarkBoost = "zone-watermark-boost",
    /// `alloc_mark` is the sum it stands for.
    ZoneAllocMark = "zone-alloc-mark",
    /// `lowmem_reserve` follows from the managed pages of the zones above and the settings.
    ZoneLowmemReserve = "zone-lowmem-reserve",
    /// The zone's copies of `high` and `batch` follow from its size and the settings.
    ZonePageset = "zone-pageset",
    /// A CPU holds back no more of a counter than its threshold, which follows from the zone's size.
    StatThreshold = "stat-threshold",
    /// `percpu_drift_mark` follows from the watermarks and the threshold.
    PercpuDriftMark = "percpu-drift-mark",
    /// The settings are values that Linux accepts.
    SysctlRange = "sysctl-range",
    /// A node's sizes are those of its memory.
    NodeSizes = "node-sizes",
    /// A node's CPUs are those that say so, and online.
    NodeCpus = "node-cpus",
    /// Distances are valid, and each node is nearest to itself.
    NodeDistance = "node-distance",
    /// The fallback order of nodes follows from the distances.
    NodeFallbackOrder = "node-fallback-order",
    /// The zonelists hold the populated zones of the nodes in fallback order, highest first.
    NodeZonelist = "node-zonelist",
    /// The starting points in a zonelist are the first zones not above each type.
    NodeFirstZone = "node-first-zone",
    /// A CPU allocates from its node first, or from the nearest with memory.
    CpuMemNode = "cpu-mem-node",
    /// Page tables that were allocated are typed as such, and no other page is.
    PageTableType = "page-table-type",
    /// A page table's count is that of its entries.
    PageTableEntries = "page-table-entries",
    /// `nr_page_table_pages` of a node is the number of its page tables.
    PageTableStat = "page-table-stat",
    /// The table of slab caches holds the descriptors in use, each once, and all of them.
    SlabTable = "slab-table",
    /// What a slab cache's descriptor says of sizes can be.
    SlabDescriptor = "slab-descriptor",
    /// Locks of slab lists and arrays are free, and sequence counters even.
    SlabLock = "slab-lock",
    /// Links of a list of slabs lead forth and back, each slab is on one list, and the list ends where its head says.
    SlabListLink = "slab-list-link",
    /// What is on a list of slabs is a slab, allocated with the cache's order.
    SlabListMember = "slab-list-member",
    /// A slab is on the list that its number of free objects says.
    SlabListPlace = "slab-list-place",
    /// A node's counters of slabs and free objects are those of its lists.
    SlabCounters = "slab-counters",
    /// Every page of a slab names the cache, the node, and its distance to the first.
    SlabPageWord = "slab-page-word",
    /// A slab's memory is of the node whose list it is on.
    SlabPageNode = "slab-page-node",
    /// A page that is marked as a slab's belongs to a slab on a list.
    SlabPageStray = "slab-page-stray",
    /// A slab's list of free objects names as many as are free, objects that there are, and each once.
    SlabFreelist = "slab-freelist",
    /// A slab's list of free objects lies in memory that is there for it.
    SlabFreelistPlace = "slab-freelist-place",
    /// An array has no more objects than it may have, and none without memory.
    SlabArrayLimit = "slab-array-limit",
    /// An array lies in memory that is allocated and large enough.
    SlabArrayMemory = "slab-array-memory",
    /// What is in an array is the start of an object of the cache.
    SlabArrayObject = "slab-array-object",
    /// Objects in an array are of the node that it is for.
    SlabArrayNode = "slab-array-node",
    /// A free object is in its slab or in one array, and once.
    SlabObjectTwice = "slab-object-twice",
    /// `nr_slab_reclaimable` and `nr_slab_unreclaimable` of a node are the pages of its slabs and of large blocks of kmalloc.
    SlabStat = "slab-stat",
    /// The lock of per-CPU memory is free, and its sizes and units fit.
    PercpuRoot = "percpu-root",
    /// Chunks are linked both ways, and each is on the list of its largest free area.
    PercpuChunks = "percpu-chunks",
    /// A chunk's maps have a start for each allocation, as many as it counts, and none where others' memory is.
    PercpuMaps = "percpu-maps",
    /// `free_bytes` of a chunk is what its map has left.
    PercpuFreeBytes = "percpu-free-bytes",
    /// What is known of the free areas of a chunk and its blocks is so.
    PercpuHints = "percpu-hints",
    /// The counts of pages with memory, and of empty ones, are those of the maps.
    PercpuPopulated = "percpu-populated",
    /// Pages of per-CPU memory are mapped, for every CPU, to memory of their own.
    PercpuMapped = "percpu-mapped",
    /// A CPU's unit is memory of its node, if that has any, had any left, and never had to have others serve for it.
    PercpuNode = "percpu-node",
    /// The units of a chunk are in areas that name it, and those areas have units.
    PercpuArea = "percpu-area",
    /// `nr_percpu_pages` is the pages of all units.
    PercpuPages = "percpu-pages",
    /// The locks of the vmalloc space are free and its trees' sequence counters even.
    VmallocLock = "vmalloc-lock",
    /// The trees of areas are trees of records in memory, whose links up are those down.
    VmapTree = "vmap-tree",
    /// The trees of areas are red-black trees.
    VmapBalance = "vmap-balance",
    /// The areas of a tree ascend, do not overlap, and are whole pages of the vmalloc space.
    VmapOrder = "vmap-order",
    /// The list of a tree's areas has them in the tree's order.
    VmapList = "vmap-list",
    /// `subtree_max_size` of a free area is the largest at or below it.
    VmapMaxSize = "vmap-max-size",
    /// All areas together are the vmalloc space, each address once, and free areas do not touch.
    VmapTiling = "vmap-tiling",
    /// `lazy_nr` is the pages of the areas that wait to be purged.
    VmapLazy = "vmap-lazy",
    /// An area in use has a record that agrees with it.
    VmapRecord = "vmap-record",
    /// Exactly the pages of areas in use are mapped in the vmalloc space: no guard page, and nothing that was freed.
    VmapMapped = "vmap-mapped",
    /// An area maps pages in use of its own, each once, somebody's pages, or its device.
    VmapBacking = "vmap-backing",
    /// `nr_vmalloc_pages` is the pages that areas have of their own.
    VmallocPages = "vmalloc-pages",
    /// Address spaces are linked both ways.
    SpaceList = "space-list",
    /// Areas of an address space ascend, do not overlap, are linked both ways, and are as many as it counts.
    AreaOrder = "area-order",
    /// `total_vm` and its like are the pages of an address space's areas.
    SpaceSizes = "space-sizes",
    /// `rss_stat` of an address space is what its page tables map.
    SpaceRss = "space-rss",
    /// `pgtables_bytes` of an address space is its page tables, but for the top one.
    SpaceTables = "space-tables",
    /// Page tables of programs lie in memory, and each is used once.
    ProgramTables = "program-tables",
    /// A program maps pages in use, in its areas, and can write only where they say so.
    ProgramMapping = "program-mapping",
    /// Every mapping of a page by a program holds a reference.
    ProgramReferences = "program-references",
    /// The tree of areas is a red-black tree of those on the list, in the same order.
    AreaTree = "area-tree",
    /// Every area knows the largest gap below an area of its subtree, the address space the end of the highest.
    AreaGap = "area-gap",
    /// An area's flags do not contradict each other.
    AreaFlags = "area-flags",
    /// Tasks are linked both ways, are as many as there are said to be, and have numbers of their own.
    TaskList = "task-list",
    /// A task is on a CPU that there is, and on no CPU are two.
    TaskCpu = "task-cpu",
    /// A task's address space is one, and threads of the kernel have none.
    TaskSpace = "task-space",
    /// An address space has no fewer users than tasks have it.
    SpaceUsers = "space-users",
    /// `nr_kernel_stack` is the stacks that tasks have.
    TaskStacks = "task-stacks",
    /// Areas and families of anonymous pages are linked both ways, and an area to its own family.
    FamilyLinks = "family-links",
    /// A family counts its children, its areas and its references right.
    FamilyCounts = "family-counts",
    /// The number of a family or file leads to it.
    MappingNumbers = "mapping-numbers",
    /// A file knows the areas that map it, and these it.
    FileAreas = "file-areas",
    /// A file's tree has the pages that say that they are the file's, at their places, and as many as it counts.
    FilePages = "file-pages",
    /// A page that a program maps belongs to the area's file or family, at that place.
    ProgramPage = "program-page",
    /// A program writes to private pages only that are its own, and these are mapped once.
    ProgramExclusive = "program-exclusive",
    /// `nr_anon_pages` and `nr_mapped` of a node are the pages that programs map.
    ProgramStat = "program-stat",
    /// A page is marked as locked if entries of locked areas keep it, and counts these; no other entry locks one.
    ProgramLocked = "program-locked",
    /// `nr_mlock`, `nr_zone_unevictable` and `nr_unevictable` are the pages that are locked.
    MlockStat = "mlock-stat",
    /// `Committed_AS` is the pages of areas that count as promised.
    CommittedAs = "committed-as",
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
