//! What programs say about memory, with the numbers of Linux on x86-64 (`uapi/asm-generic/mman-common.h`,
//! `uapi/linux/mman.h`, `uapi/asm/mman.h`).

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        $($(#[$doc])* pub const $name: u32 = $number;)*
    };
}

numbers! {
    /// Pages can be read.
    PROT_READ = 0x1;
    /// Pages can be written.
    PROT_WRITE = 0x2;
    /// Pages can be executed.
    PROT_EXEC = 0x4;
    /// Pages may be used for atomic operations. Means nothing here.
    PROT_SEM = 0x8;
    /// No access.
    PROT_NONE = 0x0;
    /// `mprotect` goes down to the start of the area, which grows down.
    PROT_GROWSDOWN = 0x0100_0000;
    /// `mprotect` goes up to the end of the area, which grows up.
    PROT_GROWSUP = 0x0200_0000;

    /// Changes are seen by others.
    MAP_SHARED = 0x01;
    /// Changes are private.
    MAP_PRIVATE = 0x02;
    /// As [`MAP_SHARED`], and unknown flags are refused.
    MAP_SHARED_VALIDATE = 0x03;
    /// The bits that say which of these it is.
    MAP_TYPE = 0x0f;
    /// At that address and no other; what is there goes.
    MAP_FIXED = 0x10;
    /// No file.
    MAP_ANONYMOUS = 0x20;
    /// Below 2 GiB.
    MAP_32BIT = 0x40;
    /// The area grows down, as a stack does.
    MAP_GROWSDOWN = 0x0100;
    /// Means nothing.
    MAP_DENYWRITE = 0x0800;
    /// Means nothing.
    MAP_EXECUTABLE = 0x1000;
    /// Pages are locked.
    MAP_LOCKED = 0x2000;
    /// Does not count as committed memory.
    MAP_NORESERVE = 0x4000;
    /// Pages are there at once.
    MAP_POPULATE = 0x8000;
    /// With [`MAP_POPULATE`]: but only those that need no waiting.
    MAP_NONBLOCK = 0x1_0000;
    /// Means nothing.
    MAP_STACK = 0x2_0000;
    /// Huge pages of the pool.
    MAP_HUGETLB = 0x4_0000;
    /// Writes reach the medium at once.
    MAP_SYNC = 0x8_0000;
    /// At that address and no other; nothing is there.
    MAP_FIXED_NOREPLACE = 0x10_0000;
    /// Pages need not be cleared. Means nothing here.
    MAP_UNINITIALIZED = 0x0400_0000;

    /// It may move.
    MREMAP_MAYMOVE = 1;
    /// To that address and no other; what is there goes.
    MREMAP_FIXED = 2;
    /// The old addresses stay, without pages.
    MREMAP_DONTUNMAP = 4;

    /// Writing starts, nobody waits.
    MS_ASYNC = 1;
    /// Other mappings of the file must see it.
    MS_INVALIDATE = 2;
    /// Writing is waited for.
    MS_SYNC = 4;

    /// `mlock2`: pages are locked as they come.
    MLOCK_ONFAULT = 1;
    /// `mlockall`: all areas there are.
    MCL_CURRENT = 1;
    /// `mlockall`: all areas to come.
    MCL_FUTURE = 2;
    /// `mlockall`: pages are locked as they come.
    MCL_ONFAULT = 4;

    /// No further treatment.
    MADV_NORMAL = 0;
    /// Page references come in random order.
    MADV_RANDOM = 1;
    /// They come in order.
    MADV_SEQUENTIAL = 2;
    /// These pages will be needed.
    MADV_WILLNEED = 3;
    /// These pages are not needed any more: they go at once.
    MADV_DONTNEED = 4;
    /// These pages may go as long as nobody writes to them.
    MADV_FREE = 8;
    /// The range of the file goes.
    MADV_REMOVE = 9;
    /// Not for children.
    MADV_DONTFORK = 10;
    /// For children too.
    MADV_DOFORK = 11;
    /// Pages that are alike may be merged.
    MADV_MERGEABLE = 12;
    /// They may not.
    MADV_UNMERGEABLE = 13;
    /// Huge pages are welcome.
    MADV_HUGEPAGE = 14;
    /// They are not.
    MADV_NOHUGEPAGE = 15;
    /// Not in core dumps.
    MADV_DONTDUMP = 16;
    /// In core dumps.
    MADV_DODUMP = 17;
    /// Zero in children.
    MADV_WIPEONFORK = 18;
    /// As they are in children.
    MADV_KEEPONFORK = 19;
    /// These pages are not used now.
    MADV_COLD = 20;
    /// These pages can be swapped out.
    MADV_PAGEOUT = 21;
    /// Makes pages present, for reading.
    MADV_POPULATE_READ = 22;
    /// Makes pages present, for writing.
    MADV_POPULATE_WRITE = 23;
    /// As [`MADV_DONTNEED`], of locked pages too.
    MADV_DONTNEED_LOCKED = 24;
}

/// Where flags of a mapping of huge pages say their size, as a power of two: in all bits from this on.
pub const MAP_HUGE_SHIFT: u32 = 26;

/// Flags that [`MAP_SHARED_VALIDATE`] knows (`LEGACY_MAP_MASK`).
pub const LEGACY_MAP_MASK: u32 = MAP_SHARED
    | MAP_PRIVATE
    | MAP_FIXED
    | MAP_ANONYMOUS
    | MAP_DENYWRITE
    | MAP_EXECUTABLE
    | MAP_UNINITIALIZED
    | MAP_GROWSDOWN
    | MAP_LOCKED
    | MAP_NORESERVE
    | MAP_POPULATE
    | MAP_NONBLOCK
    | MAP_STACK
    | MAP_HUGETLB
    | MAP_32BIT;

/// No more seals (`F_SEAL_SEAL`).
pub const F_SEAL_SEAL: u32 = 1;
/// The file must not become smaller (`F_SEAL_SHRINK`).
pub const F_SEAL_SHRINK: u32 = 2;
/// The file must not become larger (`F_SEAL_GROW`).
pub const F_SEAL_GROW: u32 = 4;
/// Nobody writes to the file (`F_SEAL_WRITE`).
pub const F_SEAL_WRITE: u32 = 8;
/// Nobody begins to write to the file (`F_SEAL_FUTURE_WRITE`).
pub const F_SEAL_FUTURE_WRITE: u32 = 16;
