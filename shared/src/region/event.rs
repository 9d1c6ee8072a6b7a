//! Events: a ring per CPU that the guest fills and any number of readers follow.
//!
//! The CPU is the ring's only writer (it writes with interrupts off) and never waits: it overwrites the oldest
//! record. `head` counts the records written since the start. Record `i` lies in slot `i % slots`; it can be trusted
//! by a reader that, after copying it, still finds `head < i + slots`: while `head` is `i + slots` the writer may be
//! overwriting it. What a reader finds overwritten it has lost, and it knows how many.
//!
//! Which kinds are written is [`super::Header::event_mask`]; the allocator's fast paths look at a word of the
//! pageset they hold instead (see [`super::zone::PcpState`]), so events that are off cost them one compare.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::gfp::Gfp;
use crate::sync::Word;

/// Words of a record.
pub const EVENT_WORDS: usize = 8;
/// Records in a ring.
pub const EVENT_SLOTS: usize = 2048;

/// Kinds of events: the names of Linux's tracepoints. The number is the bit in the mask.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum EventKind {
    /// Pages were allocated. `pfn`, order, gfp, migrate type.
    MmPageAlloc = 0,
    /// Pages were freed. `pfn`, order.
    MmPageFree = 1,
    /// A page was freed as one of many. `pfn`.
    MmPageFreeBatched = 2,
    /// A block was taken from a zone's free lists. `pfn`, order, migrate type; `args[0]` 1 for a refill of a pageset.
    MmPageAllocZoneLocked = 3,
    /// A block went from a pageset to the free lists. `pfn`, order, migrate type.
    MmPagePcpuDrain = 4,
    /// A block was taken from another migrate type. `pfn`; order and `args[0]` the order of the block that was split,
    /// migrate type and `args[1]` the type it was on the list of, `args[2]` 1 when the page block changed hands.
    MmPageAllocExtfrag = 5,
    /// Background reclaim was woken. Node, zone, order, gfp.
    MmVmscanWakeupKswapd = 6,
    /// An isolation was tested. `args[0]` first frame, `args[1]` frame behind the last, `args[2]` frame it failed at.
    TestPagesIsolated = 7,
    /// `cma_alloc` begins. `args[0]` pages, `args[1]` alignment, `args[2]` area.
    CmaAllocStart = 8,
    /// `cma_alloc` ended. `pfn` (0 for failure), `args[0]` pages, `args[1]` alignment, `args[2]` area.
    CmaAllocFinish = 9,
    /// `cma_release`. `pfn`, `args[0]` pages, `args[2]` area.
    CmaRelease = 10,
    /// An allocation failed because it was told to. Order, gfp.
    FailPageAlloc = 11,
    /// A part of a workload begins or ends: [`crate::command::workload::Mark`].
    WorkloadMark = 12,
    /// `kmalloc` or a relative. `args[0]` address (0 for failure), `args[1]` bytes asked for, `args[2]` bytes there are;
    /// gfp; node, [`NO_NODE`] for the CPU's.
    Kmalloc = 13,
    /// `kfree`. `args[0]` address.
    Kfree = 14,
    /// An object of a cache was allocated. As [`Self::Kmalloc`].
    KmemCacheAlloc = 15,
    /// An object of a cache is freed. `args[0]` address; `pfn`, `args[1]` and `args[2]` the start of the cache's name:
    /// [`Event::text`].
    KmemCacheFree = 16,
    /// Per-CPU memory was allocated. `pfn` start of the chunk, `args[0]` pointer, `args[1]` size and, 32 bits higher, the
    /// place in the chunk, `args[2]` bytes of all CPUs; order of the alignment; gfp; zone 1 for reserved, 2 for atomic.
    PercpuAllocPercpu = 17,
    /// Per-CPU memory is freed. `pfn` start of the chunk, `args[0]` pointer, `args[1]` place in the chunk.
    PercpuFreePercpu = 18,
    /// A shrinker is asked for its share. Node, gfp, order the priority, migrate type the number of the shrinker; the
    /// caller is its function; `pfn` objects left over from earlier, `args[0]` objects it could free, `args[1]` share of
    /// this call, `args[2]` objects it is to look at.
    MmShrinkSlabStart = 19,
    /// A shrinker has been asked. Node, migrate type, caller as [`Self::MmShrinkSlabStart`]; `pfn` objects left over before,
    /// `args[0]` after, `args[1]` objects that were not looked at, `args[2]` objects it freed.
    MmShrinkSlabEnd = 20,
    /// An allocation of an object failed because it was told to. `args[0]` size, gfp.
    Failslab = 21,
    /// A program's page fault has been dealt with: [`super::fault::PageFault`].
    PageFaultUser = 22,
    /// The kernel's page fault at an address of a program, or a bad one, has been dealt with. As [`Self::PageFaultUser`].
    PageFaultKernel = 23,
}

/// [`Event::node`] of an allocation for which any node would do (`NUMA_NO_NODE`).
pub const NO_NODE: u8 = 0xff;
/// Bytes of [`Event::text`].
pub const TEXT_BYTES: usize = 24;

impl EventKind {
    /// All of them, by number.
    pub const ALL: [Self; 24] = [
        Self::MmPageAlloc,
        Self::MmPageFree,
        Self::MmPageFreeBatched,
        Self::MmPageAllocZoneLocked,
        Self::MmPagePcpuDrain,
        Self::MmPageAllocExtfrag,
        Self::MmVmscanWakeupKswapd,
        Self::TestPagesIsolated,
        Self::CmaAllocStart,
        Self::CmaAllocFinish,
        Self::CmaRelease,
        Self::FailPageAlloc,
        Self::WorkloadMark,
        Self::Kmalloc,
        Self::Kfree,
        Self::KmemCacheAlloc,
        Self::KmemCacheFree,
        Self::PercpuAllocPercpu,
        Self::PercpuFreePercpu,
        Self::MmShrinkSlabStart,
        Self::MmShrinkSlabEnd,
        Self::Failslab,
        Self::PageFaultUser,
        Self::PageFaultKernel,
    ];

    /// The kind numbered `raw`.
    pub fn new(raw: u8) -> Option<Self> {
        Self::ALL.get(raw as usize).copied()
    }

    /// Its bit in the mask.
    #[inline(always)]
    pub const fn bit(self) -> u64 {
        1 << self as u8
    }

    /// The tracepoint's name.
    pub const fn name(self) -> &'static str {
        [
            "mm_page_alloc",
            "mm_page_free",
            "mm_page_free_batched",
            "mm_page_alloc_zone_locked",
            "mm_page_pcpu_drain",
            "mm_page_alloc_extfrag",
            "mm_vmscan_wakeup_kswapd",
            "test_pages_isolated",
            "cma_alloc_start",
            "cma_alloc_finish",
            "cma_release",
            "fail_page_alloc",
            "workload_mark",
            "kmalloc",
            "kfree",
            "kmem_cache_alloc",
            "kmem_cache_free",
            "percpu_alloc_percpu",
            "percpu_free_percpu",
            "mm_shrink_slab_start",
            "mm_shrink_slab_end",
            "failslab",
            "page_fault_user",
            "page_fault_kernel",
        ][self as usize]
    }

    /// Whether it is about a shrinker; the caller then is the shrinker's function.
    pub const fn is_of_shrinker(self) -> bool {
        matches!(self, Self::MmShrinkSlabStart | Self::MmShrinkSlabEnd)
    }

    /// Whether it is about a page fault; the caller then is the instruction that made it.
    pub const fn is_of_fault(self) -> bool {
        matches!(self, Self::PageFaultUser | Self::PageFaultKernel)
    }

    /// The kind of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// An event. Fields that a kind does not use are 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Time stamp.
    pub tsc: u64,
    /// Kind.
    pub kind: EventKind,
    /// CPU.
    pub cpu: u8,
    /// Node.
    pub node: u8,
    /// Zone type.
    pub zone: u8,
    /// Order.
    pub order: u8,
    /// Migrate type.
    pub migratetype: u8,
    /// Flags of the allocation.
    pub gfp: Gfp,
    /// First frame.
    pub pfn: u64,
    /// Return address of the call that caused it.
    pub caller: u64,
    /// More, by kind.
    pub args: [u64; 3],
}

impl Event {
    /// An event of `kind` with nothing else known.
    pub const fn new(kind: EventKind) -> Self {
        Self {
            tsc: 0,
            kind,
            cpu: 0,
            node: 0,
            zone: 0,
            order: 0,
            migratetype: 0,
            gfp: Gfp::NONE,
            pfn: 0,
            caller: 0,
            args: [0; 3],
        }
    }

    /// With words that are text: as much of it as there is room for, filled up with zeros.
    #[must_use]
    pub const fn with_text(self, words: [u64; 3]) -> Self {
        let [pfn, first, second] = words;
        Self { pfn, args: [self.args[0], first, second], ..self }
    }

    /// The words that are text where a kind has some: up to the first zero.
    pub fn text(&self) -> [u8; TEXT_BYTES] {
        let mut bytes = [0; TEXT_BYTES];
        for (chunk, word) in bytes.as_chunks_mut().0.iter_mut().zip([self.pfn, self.args[1], self.args[2]]) {
            *chunk = word.to_le_bytes();
        }
        bytes
    }

    /// As words.
    pub const fn encode(&self) -> [u64; EVENT_WORDS] {
        let small = [self.kind as u8, self.cpu, self.node, self.zone, self.order, self.migratetype, 0, 0];
        [
            self.tsc,
            u64::from_le_bytes(small),
            self.gfp.bits() as u64,
            self.pfn,
            self.caller,
            self.args[0],
            self.args[1],
            self.args[2],
        ]
    }

    /// From words; `None` when they hold no event.
    pub fn decode(words: &[u64; EVENT_WORDS]) -> Option<Self> {
        let [kind, cpu, node, zone, order, migratetype, _, _] = words[1].to_le_bytes();
        Some(Self {
            tsc: words[0],
            kind: EventKind::new(kind)?,
            cpu,
            node,
            zone,
            order,
            migratetype,
            gfp: Gfp::from_bits(u32::try_from(words[2]).ok()?)?,
            pfn: words[3],
            caller: words[4],
            args: [words[5], words[6], words[7]],
        })
    }
}

/// A ring as it lies in the region.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct EventRingState {
    /// Records written since the start.
    pub head: AtomicU64,
    /// Padding.
    pub reserved: [AtomicU64; 7],
    /// The slots.
    pub words: [AtomicU64; EVENT_SLOTS * EVENT_WORDS],
}

/// What [`EventRing::read`] found at a position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventRead {
    /// A record; the next one is at the position after it.
    Event(Event),
    /// Nothing newer yet.
    End,
    /// The record was overwritten. The oldest that can be read is at this position; all before it are lost.
    Lost(u64),
    /// The slot holds no event: the ring is damaged.
    Corrupt,
}

/// A ring: its head and its slots.
#[derive(Clone, Copy, Debug)]
pub struct EventRing<'a, W = AtomicU64> {
    head: &'a W,
    words: &'a [W],
}

impl<'a> EventRing<'a> {
    /// The ring of a region.
    pub const fn of(state: &'a EventRingState) -> Self {
        Self { head: &state.head, words: &state.words }
    }
}

impl<'a, W: Word<u64>> EventRing<'a, W> {
    /// The ring made of `head` and `words`, which hold at least two records.
    pub const fn new(head: &'a W, words: &'a [W]) -> Self {
        assert!(words.len() >= 2 * EVENT_WORDS && words.len().is_multiple_of(EVENT_WORDS));
        Self { head, words }
    }

    const fn slots(&self) -> u64 {
        (self.words.len() / EVENT_WORDS) as u64
    }

    fn slot(&self, position: u64) -> &'a [W] {
        // In range: the remainder is below the number of slots, which the constructors proved to be above zero.
        let start = (position % self.slots()) as usize * EVENT_WORDS;
        &self.words[start..start + EVENT_WORDS]
    }

    /// Appends a record. The caller is the only writer, interrupts included.
    pub fn write(&self, event: &Event) {
        let head = self.head.load(Ordering::Relaxed);
        // Pairs with the acquire fence in `read`: who sees a word of this record sees the head of the last one.
        W::fence(Ordering::Release);
        for (word, value) in self.slot(head).iter().zip(event.encode()) {
            word.store(value, Ordering::Relaxed);
        }
        // Release pairs with the acquire load in `read`.
        self.head.store(head.wrapping_add(1), Ordering::Release);
    }

    /// Position behind the newest record.
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// Position of the oldest record that can still be read.
    pub fn oldest(&self) -> u64 {
        self.oldest_below(self.head())
    }

    const fn oldest_below(&self, head: u64) -> u64 {
        head.saturating_add(1).saturating_sub(self.slots())
    }

    /// Reads the record at `position`.
    pub fn read(&self, position: u64) -> EventRead {
        let head = self.head();
        if position >= head {
            return EventRead::End;
        }
        let mut words = [0; EVENT_WORDS];
        for (value, word) in words.iter_mut().zip(self.slot(position)) {
            *value = word.load(Ordering::Relaxed);
        }
        W::fence(Ordering::Acquire);
        // A hostile head may be anything, at each look another one; a reader goes to what this says and no further.
        let oldest = self.oldest_below(self.head.load(Ordering::Relaxed));
        if position < oldest {
            return EventRead::Lost(oldest);
        }
        Event::decode(&words).map_or(EventRead::Corrupt, EventRead::Event)
    }
}
