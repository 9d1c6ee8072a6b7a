//! Records of allocation traces, as a replay gets them.
//!
//! A trace is a row of records, cut into messages of [`super::workload::Kind::Replay`], whose parts [`Part`] tells. Each
//! record names the CPU that does it, and a block by an id; the guest keeps the blocks of a trace in a table of
//! [`super::workload::Params::ids`] words from its first message to its last one.
//!
//! # Order
//! - A CPU does its records one after another, as they are in the message.
//! - All records of a message are done before the first one of the next message is.
//! - Records of different CPUs in the same message are done at the same time, in any order, but for
//!   [`TraceRecord::Wait`]: the CPU goes on when the other one has done its records up to the one named, and sees what
//!   they did.
//!
//! So who writes a trace puts a wait in front of each record whose block was last allocated or freed, in the same
//! message, by another CPU. A wait is for an earlier record always, so no two CPUs wait for each other.
//!
//! # Bad records
//! A record that cannot be done (an id that stands for nothing is freed, one that stands for a block is allocated, or
//! one is beyond the table; a CPU that does not take part; an order too large; flags that there are none of, or
//! `__GFP_NOFAIL`; a wait for a record that does not come before) ends the replay: [`OpError::BadRecord`] names the first
//! one by its number in the message and says in `aux`, by the number of an [`OpError`], what is wrong. All records in
//! front of it have been done, other CPUs may have done some behind it, and all blocks of the trace have been freed.
//! That there is no memory for an allocation is none of these: the id stands for no memory then, and its free does
//! nothing.

use super::error::OpError;
use crate::NR_CPUS;
use crate::gfp::Gfp;
use crate::units::{CpuId, Order};

/// Ids of a trace are below this: so many blocks can be live at a time. The table takes 8 bytes for each.
pub const MAX_IDS: u32 = 1 << 24;

/// Which of the messages of a trace one is. Only one trace of more than one message is replayed at a time;
/// [`super::Op::ReleaseWorkload`] ends one whose last message does not come.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum Part {
    /// The only one.
    #[default]
    Whole = 0,
    /// The first one: the blocks stay for the next.
    First = 1,
    /// One in between.
    Middle = 2,
    /// The last one: blocks that are left are freed, or kept.
    Last = 3,
}

impl Part {
    /// All of them, by number.
    pub const ALL: [Self; 4] = [Self::Whole, Self::First, Self::Middle, Self::Last];

    /// Whether the trace begins with it.
    pub const fn begins(self) -> bool {
        matches!(self, Self::Whole | Self::First)
    }

    /// Whether the trace ends with it.
    pub const fn ends(self) -> bool {
        matches!(self, Self::Whole | Self::Last)
    }
}

/// A step of a recorded trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TraceRecord {
    /// Allocate a block and call it `id`.
    Alloc {
        /// CPU that does it.
        cpu: CpuId,
        /// The block's name in the trace.
        id: u32,
        /// Size.
        order: Order,
        /// Flags.
        gfp: Gfp,
    },
    /// Free the block `id`.
    Free {
        /// CPU that does it.
        cpu: CpuId,
        /// The block's name in the trace.
        id: u32,
    },
    /// Wait until CPU `peer` has done its records up to number `record` of the message.
    Wait {
        /// CPU that waits.
        cpu: CpuId,
        /// CPU that is waited for.
        peer: CpuId,
        /// Number of the record in the message, which is one before this.
        record: u32,
    },
}

const ALLOC: u64 = 1;
const FREE: u64 = 2;
const WAIT: u64 = 3;
/// Bits of a record: what it is, the order, the CPU, flags or the other CPU, and the id or the record.
const ORDER_SHIFT: u32 = 2;
const CPU_SHIFT: u32 = 6;
const ARG_SHIFT: u32 = 12;
const ID_SHIFT: u32 = 36;
const ID_BITS: u32 = 24;
const CPU_MASK: u64 = NR_CPUS as u64 - 1;
const ARG_MASK: u64 = (1 << (ID_SHIFT - ARG_SHIFT)) - 1;

const _: () = assert!(MAX_IDS == 1 << ID_BITS && NR_CPUS == 1 << (ARG_SHIFT - CPU_SHIFT));

impl TraceRecord {
    /// 64-bit words of a record.
    pub const WORDS: usize = 1;

    /// As a word. Of ids and numbers of records 24 bits count.
    pub const fn encode(self) -> u64 {
        let (kind, order, cpu, arg, id) = match self {
            Self::Alloc { cpu, id, order, gfp } => (ALLOC, order.raw(), cpu, gfp.bits() as u64, id),
            Self::Free { cpu, id } => (FREE, 0, cpu, 0, id),
            Self::Wait { cpu, peer, record } => (WAIT, 0, cpu, peer.index() as u64, record),
        };
        kind | (order as u64) << ORDER_SHIFT
            | (cpu.index() as u64) << CPU_SHIFT
            | (arg & ARG_MASK) << ARG_SHIFT
            | ((id & (MAX_IDS - 1)) as u64) << ID_SHIFT
    }

    /// The number of the CPU in a record's word.
    #[inline]
    pub const fn cpu_of(word: u64) -> usize {
        (word >> CPU_SHIFT & CPU_MASK) as usize
    }

    /// From a word.
    ///
    /// # Errors
    /// [`OpError::Invalid`] for numbers that mean nothing.
    pub fn decode(word: u64) -> Result<Self, OpError> {
        let cpu = |number: u64| CpuId::new((number & CPU_MASK) as usize).ok_or(OpError::Invalid);
        let at = cpu(word >> CPU_SHIFT)?;
        let (order, arg) = ((word >> ORDER_SHIFT & 0xf) as u32, word >> ARG_SHIFT & ARG_MASK);
        let id = (word >> ID_SHIFT) as u32;
        match word & 3 {
            _ if id >= MAX_IDS => Err(OpError::Invalid),
            ALLOC => {
                let order = Order::new(order).map_err(|_| OpError::Invalid)?;
                Ok(Self::Alloc { cpu: at, id, order, gfp: Gfp::from_bits(arg as u32).ok_or(OpError::Invalid)? })
            }
            FREE if order == 0 && arg == 0 => Ok(Self::Free { cpu: at, id }),
            WAIT if order == 0 && arg <= CPU_MASK => Ok(Self::Wait { cpu: at, peer: cpu(arg)?, record: id }),
            _ => Err(OpError::Invalid),
        }
    }
}
