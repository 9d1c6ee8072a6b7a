//! The operations: what the host can ask the guest to do.

use super::args::{Fault, Faulty, Isolate, Placement, Setting};
use super::error::OpError;
use super::object::ObjectOp;
use super::raw::RawOp;
use crate::gfp::Gfp;
use crate::migrate::MigrateType;
use crate::random::{GOLDEN, mix};
use crate::units::{NodeId, Order, Pfn};

/// Numbers of operations. A number is never used again for another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum OpCode {
    /// [`Op::Nop`].
    Nop = 0,
    /// [`Op::AllocPages`].
    AllocPages = 1,
    /// [`Op::FreePages`].
    FreePages = 2,
    /// [`Op::SplitPage`].
    SplitPage = 3,
    /// [`Op::ReadPage`].
    ReadPage = 4,
    /// [`Op::WritePage`].
    WritePage = 5,
    /// [`Op::FillPattern`].
    FillPattern = 6,
    /// [`Op::CheckPattern`].
    CheckPattern = 7,
    /// [`Op::DrainPages`].
    DrainPages = 8,
    /// [`Op::Set`].
    Set = 9,
    /// [`Op::Isolate`].
    Isolate = 10,
    /// [`Op::AllocContigRange`].
    AllocContigRange = 11,
    /// [`Op::ReserveCma`].
    ReserveCma = 12,
    /// [`Op::CmaAlloc`].
    CmaAlloc = 13,
    /// [`Op::Run`].
    Run = 14,
    /// [`Op::ReleaseWorkload`].
    ReleaseWorkload = 15,
    /// [`Op::SetEvents`].
    SetEvents = 16,
    /// [`Op::Barrier`].
    Barrier = 17,
    /// [`Op::FailPageAlloc`].
    FailPageAlloc = 18,
    /// [`Op::FailNth`].
    FailNth = 19,
    /// [`Op::Shutdown`].
    Shutdown = 20,
    /// [`ObjectOp::CacheCreate`].
    KmemCacheCreate = 21,
    /// [`ObjectOp::CacheDestroy`].
    KmemCacheDestroy = 22,
    /// [`ObjectOp::CacheAlloc`].
    KmemCacheAlloc = 23,
    /// [`ObjectOp::CacheFree`].
    KmemCacheFree = 24,
    /// [`ObjectOp::CacheShrink`].
    KmemCacheShrink = 25,
    /// [`ObjectOp::Kmalloc`].
    Kmalloc = 26,
    /// [`ObjectOp::Kfree`].
    Kfree = 27,
    /// [`ObjectOp::Vmalloc`].
    Vmalloc = 28,
    /// [`ObjectOp::Vfree`].
    Vfree = 29,
    /// [`ObjectOp::AllocPercpu`].
    AllocPercpu = 30,
    /// [`ObjectOp::FreePercpu`].
    FreePercpu = 31,
    /// [`ObjectOp::SetSlabinfo`].
    SetSlabinfo = 32,
    /// [`Op::Failslab`].
    Failslab = 33,
    /// [`ObjectOp::SetFailslab`].
    SetFailslab = 34,
    /// [`ObjectOp::RegisterShrinker`].
    RegisterShrinker = 35,
    /// [`ObjectOp::UnregisterShrinker`].
    UnregisterShrinker = 36,
}

impl OpCode {
    /// All of them, by number.
    pub const ALL: [Self; 37] = [
        Self::Nop,
        Self::AllocPages,
        Self::FreePages,
        Self::SplitPage,
        Self::ReadPage,
        Self::WritePage,
        Self::FillPattern,
        Self::CheckPattern,
        Self::DrainPages,
        Self::Set,
        Self::Isolate,
        Self::AllocContigRange,
        Self::ReserveCma,
        Self::CmaAlloc,
        Self::Run,
        Self::ReleaseWorkload,
        Self::SetEvents,
        Self::Barrier,
        Self::FailPageAlloc,
        Self::FailNth,
        Self::Shutdown,
        Self::KmemCacheCreate,
        Self::KmemCacheDestroy,
        Self::KmemCacheAlloc,
        Self::KmemCacheFree,
        Self::KmemCacheShrink,
        Self::Kmalloc,
        Self::Kfree,
        Self::Vmalloc,
        Self::Vfree,
        Self::AllocPercpu,
        Self::FreePercpu,
        Self::SetSlabinfo,
        Self::Failslab,
        Self::SetFailslab,
        Self::RegisterShrinker,
        Self::UnregisterShrinker,
    ];

    /// The one numbered `raw`.
    pub fn new(raw: u16) -> Option<Self> {
        Self::ALL.get(raw as usize).copied()
    }
}

/// An operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Nothing.
    Nop,
    /// `alloc_pages`, `count` times; the blocks get the handles from `handle` on. The result's value is the frame of
    /// a single block; for several it is how many there are, and the payload at `aux` holds their frames, 32 bits
    /// each. When memory runs out the blocks allocated so far stay, and are counted in `value`.
    AllocPages {
        /// Flags.
        gfp: Gfp,
        /// Size of each.
        order: Order,
        /// Where from.
        placement: Placement,
        /// First handle.
        handle: u32,
        /// Number of blocks, 1 to 8192.
        count: u32,
    },
    /// Frees what `count` handles stand for, whatever that is.
    FreePages {
        /// First handle.
        handle: u32,
        /// Number of handles.
        count: u32,
    },
    /// `split_page`: a block becomes pages, with the handles from `into` on (the first may be `handle` itself).
    SplitPage {
        /// The block.
        handle: u32,
        /// First handle of the pages.
        into: u32,
    },
    /// Reads `len` bytes from `offset` of what the handle stands for into the payload, at `aux`.
    ReadPage {
        /// The block.
        handle: u32,
        /// Byte to start at.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Writes `len` bytes of the payload, from `payload` on.
    WritePage {
        /// The block.
        handle: u32,
        /// Byte to start at.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Offset in the command's payload.
        payload: u32,
    },
    /// Fills blocks with a pattern: word `i` of block `n` is a function of `seed`, `n` and `i` (see
    /// [`Op::pattern`]).
    FillPattern {
        /// First block.
        handle: u32,
        /// Number of blocks.
        count: u32,
        /// Names the pattern.
        seed: u64,
    },
    /// Checks the pattern. A mismatch is [`super::OpError::Mismatch`], with the block's number in `aux` and the byte
    /// offset in `value`.
    CheckPattern {
        /// First block.
        handle: u32,
        /// Number of blocks.
        count: u32,
        /// Names the pattern.
        seed: u64,
    },
    /// Empties pagesets: `drain_all_pages`, or `drain_local_pages` of the executing CPU.
    DrainPages {
        /// Of all CPUs.
        all: bool,
    },
    /// Writes a setting.
    Set {
        /// Which.
        setting: Setting,
        /// Which of several (zone type).
        index: u8,
        /// The value.
        value: u64,
    },
    /// Isolates page blocks, or ends that.
    Isolate {
        /// Which of both.
        action: Isolate,
        /// First frame, at a page block's start.
        start: Pfn,
        /// Frame behind the last one, at a page block's end.
        end: Pfn,
        /// Their type before (`Start` puts back on failure, `Undo` sets it).
        migratetype: MigrateType,
    },
    /// `alloc_contig_range`: exactly the frames from `start` to before `end`. Freed by [`Op::FreePages`].
    AllocContigRange {
        /// First frame.
        start: Pfn,
        /// Frame behind the last one.
        end: Pfn,
        /// [`MigrateType::Movable`] or [`MigrateType::Cma`].
        migratetype: MigrateType,
        /// Flags.
        gfp: Gfp,
        /// The handle for the range.
        handle: u32,
    },
    /// Sets a contiguous memory area aside: free page blocks become CMA. The value is the area's number.
    ReserveCma {
        /// Pages, rounded up to page blocks.
        pages: u64,
        /// Node they are to come from.
        node: Option<NodeId>,
    },
    /// `cma_alloc`. Freed by [`Op::FreePages`] (`cma_release`). The value is the first frame.
    CmaAlloc {
        /// Number of the area.
        area: u8,
        /// Pages.
        pages: u32,
        /// Alignment.
        align: Order,
        /// The handle for the range.
        handle: u32,
    },
    /// Runs a workload, [`super::workload::Params`] in the payload; gives a [`super::workload::Report`].
    Run {
        /// Offset of the parameters in the command's payload.
        payload: u32,
        /// Bytes of parameters and what they carry.
        len: u32,
    },
    /// Frees the pages that workloads have kept, and ends a replay whose last message has not come.
    ReleaseWorkload,
    /// Switches on exactly these events: bits by [`crate::region::event::EventKind`].
    SetEvents {
        /// The bits.
        mask: u64,
    },
    /// Ends when every CPU has been between two operations since it began.
    Barrier,
    /// Sets fault injection into allocations of pages.
    FailPageAlloc(Fault),
    /// Sets fault injection into allocations of objects.
    Failslab(Fault),
    /// The `nth` allocation from now on fails, exactly that one; 0 takes it back.
    FailNth {
        /// Of what.
        of: Faulty,
        /// Which.
        nth: u64,
        /// Counts only the executing CPU's allocations.
        this_cpu: bool,
    },
    /// Powers off; the machine ends with this code.
    Shutdown {
        /// Exit code, 0 for a good end.
        code: u16,
    },
    /// Something with objects.
    Object(ObjectOp),
}

impl Op {
    /// Word `word` of the pattern `seed` in block `block`.
    pub const fn pattern(seed: u64, block: u32, word: u64) -> u64 {
        mix(seed.wrapping_add(((block as u64) << 32).wrapping_add(word + 1).wrapping_mul(GOLDEN)))
    }

    /// As it goes into a message.
    pub fn encode(&self) -> RawOp {
        let op = |code: OpCode| RawOp { code: code as u16, ..RawOp::default() };
        match *self {
            Self::Nop => op(OpCode::Nop),
            Self::AllocPages { gfp, order, placement, handle, count } => {
                let (small, a) = placement.to_raw();
                RawOp { order: order.raw() as u8, small, gfp: gfp.bits(), handle, count, a, ..op(OpCode::AllocPages) }
            }
            Self::FreePages { handle, count } => RawOp { handle, count, ..op(OpCode::FreePages) },
            Self::SplitPage { handle, into } => RawOp { handle, count: into, ..op(OpCode::SplitPage) },
            Self::ReadPage { handle, offset, len } => RawOp { handle, count: len, a: offset, ..op(OpCode::ReadPage) },
            Self::WritePage { handle, offset, len, payload } => {
                RawOp { handle, count: len, a: offset, b: payload as u64, ..op(OpCode::WritePage) }
            }
            Self::FillPattern { handle, count, seed } => RawOp { handle, count, a: seed, ..op(OpCode::FillPattern) },
            Self::CheckPattern { handle, count, seed } => RawOp { handle, count, a: seed, ..op(OpCode::CheckPattern) },
            Self::DrainPages { all } => RawOp { small: all as u8, ..op(OpCode::DrainPages) },
            Self::Set { setting, index, value } => {
                RawOp { small: setting as u8, order: index, a: value, ..op(OpCode::Set) }
            }
            Self::Isolate { action, start, end, migratetype } => RawOp {
                small: action as u8,
                order: migratetype as u8,
                a: start.raw(),
                b: end.raw(),
                ..op(OpCode::Isolate)
            },
            Self::AllocContigRange { start, end, migratetype, gfp, handle } => RawOp {
                order: migratetype as u8,
                gfp: gfp.bits(),
                handle,
                a: start.raw(),
                b: end.raw(),
                ..op(OpCode::AllocContigRange)
            },
            Self::ReserveCma { pages, node } => {
                RawOp { a: pages, b: node.map_or(u64::MAX, |node| node.index() as u64), ..op(OpCode::ReserveCma) }
            }
            Self::CmaAlloc { area, pages, align, handle } => {
                RawOp { small: area, order: align.raw() as u8, count: pages, handle, ..op(OpCode::CmaAlloc) }
            }
            Self::Run { payload, len } => RawOp { count: len, a: payload as u64, ..op(OpCode::Run) },
            Self::ReleaseWorkload => op(OpCode::ReleaseWorkload),
            Self::SetEvents { mask } => RawOp { a: mask, ..op(OpCode::SetEvents) },
            Self::Barrier => op(OpCode::Barrier),
            Self::FailPageAlloc(fault) => fault.encode(op(OpCode::FailPageAlloc)),
            Self::Failslab(fault) => fault.encode(op(OpCode::Failslab)),
            Self::FailNth { of, nth, this_cpu } => {
                RawOp { order: of as u8, a: nth, small: this_cpu as u8, ..op(OpCode::FailNth) }
            }
            Self::Shutdown { code } => RawOp { count: code as u32, ..op(OpCode::Shutdown) },
            Self::Object(object) => object.encode(),
        }
    }

    /// From a message, if it is one that is done in no time: nothing, or one block of pages. None for all others, and for
    /// arguments that mean nothing; [`Self::decode`] knows what they are.
    ///
    /// Messages are full of these. They are told apart where the call stands, so that they do not pay for what other
    /// operations there are.
    #[inline(always)]
    pub fn decode_short(raw: &RawOp) -> Option<Self> {
        const NOP: u16 = OpCode::Nop as u16;
        const ALLOC_PAGES: u16 = OpCode::AllocPages as u16;
        const FREE_PAGES: u16 = OpCode::FreePages as u16;
        match raw.code {
            NOP => Some(Self::Nop),
            ALLOC_PAGES if raw.count == 1 => Self::alloc_pages(raw).ok(),
            FREE_PAGES if raw.count == 1 => Some(Self::FreePages { handle: raw.handle, count: 1 }),
            _ => None,
        }
    }

    #[inline(always)]
    fn alloc_pages(raw: &RawOp) -> Result<Self, OpError> {
        let placement = Placement::from_raw(raw.small, raw.a)?;
        let RawOp { handle, count, .. } = *raw;
        Ok(Self::AllocPages { gfp: gfp(raw.gfp)?, order: order(raw.order)?, placement, handle, count })
    }

    /// From a message.
    ///
    /// # Errors
    /// [`OpError::Unknown`] for an operation that does not exist, [`OpError::Invalid`] for arguments that mean
    /// nothing.
    pub fn decode(raw: &RawOp) -> Result<Self, OpError> {
        let RawOp { handle, count, a, b, .. } = *raw;
        let code = OpCode::new(raw.code).ok_or(OpError::Unknown)?;
        Ok(match code {
            OpCode::Nop => Self::Nop,
            OpCode::AllocPages => Self::alloc_pages(raw)?,
            OpCode::FreePages => Self::FreePages { handle, count },
            OpCode::SplitPage => Self::SplitPage { handle, into: count },
            OpCode::ReadPage => Self::ReadPage { handle, offset: a, len: count },
            OpCode::WritePage => Self::WritePage { handle, offset: a, len: count, payload: narrow(b)? },
            OpCode::FillPattern => Self::FillPattern { handle, count, seed: a },
            OpCode::CheckPattern => Self::CheckPattern { handle, count, seed: a },
            OpCode::DrainPages => Self::DrainPages { all: raw.small != 0 },
            OpCode::Set => {
                let setting = Setting::ALL.get(raw.small as usize).copied().ok_or(OpError::Invalid)?;
                Self::Set { setting, index: raw.order, value: a }
            }
            OpCode::Isolate => Self::Isolate {
                action: if raw.small == 0 { Isolate::Start } else { Isolate::Undo },
                start: Pfn::new(a),
                end: Pfn::new(b),
                migratetype: migratetype(raw.order)?,
            },
            OpCode::AllocContigRange => Self::AllocContigRange {
                start: Pfn::new(a),
                end: Pfn::new(b),
                migratetype: migratetype(raw.order)?,
                gfp: gfp(raw.gfp)?,
                handle,
            },
            OpCode::ReserveCma => Self::ReserveCma { pages: a, node: node(b)? },
            OpCode::CmaAlloc => Self::CmaAlloc { area: raw.small, pages: count, align: order(raw.order)?, handle },
            OpCode::Run => Self::Run { payload: narrow(a)?, len: count },
            OpCode::ReleaseWorkload => Self::ReleaseWorkload,
            OpCode::SetEvents => Self::SetEvents { mask: a },
            OpCode::Barrier => Self::Barrier,
            OpCode::FailPageAlloc => Self::FailPageAlloc(Fault::decode(raw)?),
            OpCode::Failslab => Self::Failslab(Fault::decode(raw)?),
            OpCode::FailNth => Self::FailNth { of: Faulty::new(raw.order)?, nth: a, this_cpu: raw.small != 0 },
            OpCode::Shutdown => Self::Shutdown { code: u16::try_from(count).map_err(|_| OpError::Invalid)? },
            code => Self::Object(ObjectOp::decode(code, raw)?),
        })
    }
}

fn gfp(raw: u32) -> Result<Gfp, OpError> {
    Gfp::from_bits(raw).ok_or(OpError::Invalid)
}

fn order(raw: u8) -> Result<Order, OpError> {
    Order::new(raw as u32).map_err(|_| OpError::Invalid)
}

fn migratetype(raw: u8) -> Result<MigrateType, OpError> {
    MigrateType::new(raw as usize).ok_or(OpError::Invalid)
}

fn narrow(raw: u64) -> Result<u32, OpError> {
    u32::try_from(raw).map_err(|_| OpError::Invalid)
}

fn node(raw: u64) -> Result<Option<NodeId>, OpError> {
    match raw {
        u64::MAX => Ok(None),
        raw => usize::try_from(raw).ok().and_then(NodeId::new).map(Some).ok_or(OpError::Invalid),
    }
}
