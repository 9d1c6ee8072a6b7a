//! Workloads that the guest runs, their parameters and what they report.
//!
//! A workload is reproducible: what it does is a function of its parameters, the seed among them, and, with one CPU,
//! so are the placement of every page and the free lists at its end. Parameters and reports are sequences of 64-bit
//! little-endian words.

use super::args::Placement;
use super::error::OpError;
use crate::gfp::Gfp;
use crate::region::event::{Event, EventKind};
use crate::units::{CpuMask, MAX_ORDER, Order};
use crate::zone::MAX_NR_ZONES;

pub use super::trace::{MAX_IDS, Part, TraceRecord};

/// The workloads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Allocates `ops` blocks in turn of the orders of the mix, then frees them in the order of allocation.
    Sequential = 0,
    /// `ops` steps, each an allocation of a random order of the mix or the freeing of a random block held.
    Random = 1,
    /// The first half of the CPUs allocate, the second half free what the first hand over.
    ProducerConsumer = 2,
    /// Fills memory (`fill` percent of what is free, but at most `hold` pages if that is not 0) with order-0 pages, frees all but every `nth`, then asks for
    /// `ops` blocks of `order`.
    Fragment = 3,
    /// Takes ZONE_DMA until an allocation fails.
    DmaExhaust = 4,
    /// Takes a node's memory until allocations have fallen back to `ops` pages of others.
    NodeExhaust = 5,
    /// Two CPUs alternate between filling and emptying their pagesets.
    PcpPingPong = 6,
    /// Replays the records of an allocation trace, each on the CPU that it names.
    Replay = 7,
    /// Reads and writes `ops` random words of `fill` percent of free memory, allocated as placement says: nothing
    /// but accesses, for comparing placements.
    Access = 8,
    /// `ops` steps, each an allocation of a random size from `kmalloc` or a slab cache, or the freeing of one. CPUs free
    /// what others have allocated.
    SlabMix = 9,
    /// As [`Self::SlabMix`], of `vmalloc` alone.
    VmallocMix = 10,
    /// As [`Self::SlabMix`], of everything: pages, `kmalloc`, caches, `vmalloc` and per-CPU memory.
    MemoryMix = 11,
    /// Each CPU has a scull device: `hold` KiB are written to it, `ops` random parts of it are read back and compared,
    /// and it is trimmed. Its quanta come from `kmalloc`.
    Scull = 12,
    /// As [`Self::Scull`], with quanta from a slab cache.
    Scullc = 13,
    /// As [`Self::Scull`], with quanta that are blocks of pages of `order`.
    Scullp = 14,
    /// As [`Self::Scull`], with quanta from `vmalloc`, of the pages of `order`.
    Scullv = 15,
    /// A program in user mode on each CPU touches `hold` pages so that faults of the kind `fault` come.
    Fault = 16,
}

/// What the program of [`Kind::Fault`] does.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Touch {
    /// Writes to new anonymous memory.
    #[default]
    Anon = 0,
    /// Reads new anonymous memory: the zero page.
    Zero = 1,
    /// As [`Self::Anon`], then forks; the child writes to all of it, which copies it.
    Cow = 2,
    /// As [`Self::Anon`], then forks; when the child has gone writes again to what is its own once more.
    CowReuse = 3,
    /// Writes to new memory that would be shared with children: a file of nobody else.
    File = 4,
    /// Writes down its stack, which grows.
    Stack = 5,
    /// As [`Self::Anon`], then takes the right to write away, gives it back, and writes again.
    Mprotect = 6,
    /// Reads a file of its own in memory, mapped shared: faults bring pages around in (`do_fault_around`).
    FileRead = 7,
    /// Writes to such a file.
    FileWrite = 8,
    /// As [`Self::FileRead`], mapped private.
    PrivateRead = 9,
    /// Writes to such a mapping, which copies the file's pages.
    PrivateWrite = 10,
    /// As [`Self::File`], then gives the page table entries up, and writes again on the same CPU.
    NodeLocal = 11,
    /// As [`Self::NodeLocal`], but writes again on a CPU of another node: from there the pages are remote. Fails where there
    /// is no such CPU.
    NodeRemote = 12,
}

impl Touch {
    /// All of them, by number.
    pub const ALL: [Self; 13] = [
        Self::Anon,
        Self::Zero,
        Self::Cow,
        Self::CowReuse,
        Self::File,
        Self::Stack,
        Self::Mprotect,
        Self::FileRead,
        Self::FileWrite,
        Self::PrivateRead,
        Self::PrivateWrite,
        Self::NodeLocal,
        Self::NodeRemote,
    ];

    /// Whether it maps a file that is there before.
    pub const fn has_file(self) -> bool {
        matches!(self, Self::FileRead | Self::FileWrite | Self::PrivateRead | Self::PrivateWrite)
    }

    /// Whether its memory is shared.
    pub const fn is_shared(self) -> bool {
        matches!(self, Self::File | Self::FileRead | Self::FileWrite | Self::NodeLocal | Self::NodeRemote)
    }

    /// Its name for users.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anon => "anon",
            Self::Zero => "zero",
            Self::Cow => "cow",
            Self::CowReuse => "cow-reuse",
            Self::File => "file",
            Self::Stack => "stack",
            Self::Mprotect => "mprotect",
            Self::FileRead => "file-read",
            Self::FileWrite => "file-write",
            Self::PrivateRead => "private-read",
            Self::PrivateWrite => "private-write",
            Self::NodeLocal => "node-local",
            Self::NodeRemote => "node-remote",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|touch| touch.name() == name)
    }
}

impl Kind {
    /// All of them, by number.
    pub const ALL: [Self; 17] = [
        Self::Sequential,
        Self::Random,
        Self::ProducerConsumer,
        Self::Fragment,
        Self::DmaExhaust,
        Self::NodeExhaust,
        Self::PcpPingPong,
        Self::Replay,
        Self::Access,
        Self::SlabMix,
        Self::VmallocMix,
        Self::MemoryMix,
        Self::Scull,
        Self::Scullc,
        Self::Scullp,
        Self::Scullv,
        Self::Fault,
    ];

    /// Whether it allocates nothing but blocks of pages. Such a workload alone can keep them at the end.
    pub const fn is_of_pages(self) -> bool {
        use Kind::*;
        !matches!(self, SlabMix | VmallocMix | MemoryMix | Scull | Scullc | Scullp | Scullv | Fault)
    }

    /// Its name for users.
    pub const fn name(self) -> &'static str {
        [
            "sequential",
            "random",
            "producer-consumer",
            "fragment",
            "dma-exhaust",
            "node-exhaust",
            "pcp-pingpong",
            "replay",
            "access",
            "slab-mix",
            "vmalloc-mix",
            "memory-mix",
            "scull",
            "scullc",
            "scullp",
            "scullv",
            "fault",
        ][self as usize]
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Parameters of a workload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Params {
    /// Which.
    pub kind: Kind,
    /// Start of the random numbers.
    pub seed: u64,
    /// Steps; what a step is, the workload says.
    pub ops: u64,
    /// CPUs that take part; empty for the executing one (or as many as the workload needs, from there on). Records of
    /// a trace are for these only.
    pub cpus: CpuMask,
    /// Flags of its allocations.
    pub gfp: Gfp,
    /// Order that the workload asks for.
    pub order: Order,
    /// Where its pages come from.
    pub placement: Placement,
    /// How often each order comes in the mix; all zero for `order` alone.
    pub mix: [u16; MAX_ORDER],
    /// Keep every so many-th page when fragmenting.
    pub nth: u32,
    /// Percent of free memory to fill.
    pub fill: u32,
    /// Most blocks held at a time, KiB of a scull device, or pages that a program touches; 0 for the workload's own choice.
    pub hold: u32,
    /// 64-byte lines that are written and read in each page that was allocated, at most 64. These are the accesses
    /// that are counted.
    pub touch: u32,
    /// Keep what is allocated at the end, until [`super::Op::ReleaseWorkload`].
    pub keep: bool,
    /// [`Kind::Replay`]: records that follow, [`TraceRecord::WORDS`] words each.
    pub records: u32,
    /// [`Kind::Replay`]: which part of the trace these are.
    pub part: Part,
    /// [`Kind::Replay`], where a trace begins: ids of its blocks are below this, which is at most [`MAX_IDS`].
    pub ids: u32,
    /// [`Kind::Fault`]: what the program does.
    pub fault: Touch,
}

impl Params {
    /// 64-bit words of the parameters.
    pub const WORDS: usize = 16;

    /// Parameters of `kind`, all others at rest: seed 1, order 0, `GFP_KERNEL`, local.
    pub const fn new(kind: Kind) -> Self {
        Self {
            kind,
            seed: 1,
            ops: 1000,
            cpus: CpuMask(0),
            gfp: Gfp::KERNEL,
            order: Order::ZERO,
            placement: Placement::Local,
            mix: [0; MAX_ORDER],
            nth: 2,
            fill: 50,
            hold: 0,
            touch: 0,
            keep: false,
            records: 0,
            part: Part::Whole,
            ids: 0,
            fault: Touch::Anon,
        }
    }

    /// As words.
    pub fn encode(&self) -> [u64; Self::WORDS] {
        let (policy, nodes) = self.placement.to_raw();
        let mut words = [0; Self::WORDS];
        words[0] = self.kind as u64 | (self.order.raw() as u64) << 8 | (policy as u64) << 16 | (self.keep as u64) << 24;
        words[1] = self.seed;
        words[2] = self.ops;
        words[3] = self.cpus.0;
        words[4] = self.gfp.bits() as u64 | (self.nth as u64) << 32;
        words[5] = nodes;
        words[6] = self.fill as u64 | (self.hold as u64) << 32;
        words[7] = self.touch as u64 | (self.records as u64) << 32;
        for (order, weight) in self.mix.iter().enumerate() {
            words[8 + order / 4] |= (*weight as u64) << (order % 4 * 16);
        }
        words[11] = self.ids as u64 | (self.part as u64) << 32 | (self.fault as u64) << 40;
        words
    }

    /// From words.
    ///
    /// # Errors
    /// [`OpError::Invalid`] for numbers that mean nothing.
    pub fn decode(words: &[u64; Self::WORDS]) -> Result<Self, OpError> {
        let byte = |at: u32| (words[0] >> at & 0xff) as u8;
        let mut mix = [0; MAX_ORDER];
        for (order, weight) in mix.iter_mut().enumerate() {
            *weight = (words[8 + order / 4] >> (order % 4 * 16)) as u16;
        }
        Ok(Self {
            kind: *Kind::ALL.get(byte(0) as usize).ok_or(OpError::Invalid)?,
            seed: words[1],
            ops: words[2],
            cpus: CpuMask(words[3]),
            gfp: Gfp::from_bits(words[4] as u32).ok_or(OpError::Invalid)?,
            order: Order::new(byte(8) as u32).map_err(|_| OpError::Invalid)?,
            placement: Placement::from_raw(byte(16), words[5])?,
            mix,
            nth: (words[4] >> 32) as u32,
            fill: words[6] as u32,
            hold: (words[6] >> 32) as u32,
            touch: words[7] as u32,
            keep: byte(24) != 0,
            records: (words[7] >> 32) as u32,
            part: *Part::ALL.get((words[11] >> 32 & 0xff) as usize).ok_or(OpError::Invalid)?,
            ids: words[11] as u32,
            fault: *Touch::ALL.get((words[11] >> 40 & 0xff) as usize).ok_or(OpError::Invalid)?,
        })
    }
}

/// Parts of a workload that are told apart in its marks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Phase {
    /// All of it, on one CPU.
    Whole = 0,
    /// Allocates what the rest works with.
    Fill = 1,
    /// Frees all but every n-th page.
    Thin = 2,
    /// Asks for blocks.
    Probe = 3,
    /// Accesses memory.
    Access = 4,
    /// Frees what it holds at the end.
    Release = 5,
}

impl Phase {
    /// All of them, by number.
    pub const ALL: [Self; 6] = [Self::Whole, Self::Fill, Self::Thin, Self::Probe, Self::Access, Self::Release];

    /// Its name for users.
    pub const fn name(self) -> &'static str {
        ["whole", "fill", "thin", "probe", "access", "release"][self as usize]
    }
}

/// What [`crate::region::event::EventKind::WorkloadMark`] says: a CPU begins or ends a part of a workload. The parts of
/// a CPU are nested: first the whole begins, then its phases follow one another, then it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Which workload.
    pub kind: Kind,
    /// Which part.
    pub phase: Phase,
    /// The part ends; else it begins.
    pub end: bool,
    /// Number of the CPU among those that take part.
    pub lane: u8,
    /// Flags of its allocations.
    pub gfp: Gfp,
    /// Order that it asks for.
    pub order: Order,
    /// Its steps.
    pub ops: u64,
    /// Start of its random numbers.
    pub seed: u64,
}

impl Mark {
    /// The mark of lane `lane` of a workload with these parameters.
    pub const fn new(params: &Params, phase: Phase, end: bool, lane: u8) -> Self {
        let Params { kind, gfp, order, ops, seed, .. } = *params;
        Self { kind, phase, end, lane, gfp, order, ops, seed }
    }

    /// As an event, with the time and CPU still to be filled in.
    pub const fn encode(self) -> Event {
        let what = self.kind as u64 | (self.phase as u64) << 8 | (self.end as u64) << 16 | (self.lane as u64) << 24;
        let args = [what, self.ops, self.seed];
        Event { gfp: self.gfp, order: self.order.raw() as u8, args, ..Event::new(EventKind::WorkloadMark) }
    }

    /// From an event of that kind; `None` for numbers that mean nothing.
    pub fn decode(event: &Event) -> Option<Self> {
        let [kind, phase, end, lane, 0, 0, 0, 0] = event.args[0].to_le_bytes() else { return None };
        Some(Self {
            kind: *Kind::ALL.get(usize::from(kind))?,
            phase: *Phase::ALL.get(usize::from(phase))?,
            end: [false, true].get(usize::from(end)).copied()?,
            lane,
            gfp: event.gfp,
            order: Order::new(event.order.into()).ok()?,
            ops: event.args[1],
            seed: event.args[2],
        })
    }
}

/// The fixed part of a report, one word each. Tables follow: pages allocated by node and zone type, accesses by
/// node of the CPU and node of the page, and the least number of free pages seen by node and zone type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Count {
    /// Allocations that succeeded.
    Allocs = 0,
    /// Allocations that failed.
    Failed = 1,
    /// Blocks freed.
    Freed = 2,
    /// Blocks kept.
    Kept = 3,
    /// Pages that came from another node than the one asked for.
    NodeFallback = 4,
    /// Pages that came from a lower zone of the node than the highest that its flags allow there.
    ZoneFallback = 5,
    /// Attempts at [`Params::order`] after fragmenting; parts of a device that were read back.
    Tries = 6,
    /// Those that succeeded, or were as they had been written.
    Hits = 7,
    /// Time stamp ticks from start to end, of the slowest CPU.
    Ticks = 8,
    /// Nodes of the machine: the size of the tables.
    Nodes = 9,
    /// Objects, or parts of a device, whose content was not what had been written.
    Mismatches = 10,
    /// Page faults of the workload's programs.
    Faults = 11,
}

/// A report as it lies in a reply.
#[derive(Clone, Copy, Debug)]
pub struct Report;

impl Report {
    /// Words of the fixed part.
    pub const COUNTS: usize = 16;

    /// Words of the report of a machine of `nodes` nodes.
    pub const fn words(nodes: usize) -> usize {
        Self::accesses(nodes) + nodes * nodes + nodes * MAX_NR_ZONES
    }

    /// First word of the table of pages by node and zone type.
    pub const fn placement() -> usize {
        Self::COUNTS
    }

    /// First word of the table of accesses by node of the CPU and node of the page.
    pub const fn accesses(nodes: usize) -> usize {
        Self::COUNTS + nodes * MAX_NR_ZONES
    }

    /// First word of the table of least free pages by node and zone type.
    pub const fn min_free(nodes: usize) -> usize {
        Self::accesses(nodes) + nodes * nodes
    }
}

const _: () = assert!(Report::words(crate::MAX_NUMNODES) * 8 < super::BUFFER_BYTES - 1024);
