//! Who allocated each page and who freed it last (`page_owner=on`): two tables in guest memory, at the addresses that
//! [`crate::region::Roots`] has.
//!
//! The first has an [`OwnerRecord`] per frame; the record of a block's first frame speaks for the block. Memory that
//! nobody allocated since boot has all-zero records. The second holds each call trace once ([`StackRecord`]).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Return addresses kept of a call trace (`PAGE_OWNER_STACK_DEPTH`).
pub const STACK_DEPTH: usize = 16;
/// Most call traces there can be.
pub const MAX_STACKS: u32 = 1 << 20;

/// The block that starts at a frame (`struct page_owner`).
#[repr(C)]
#[derive(Debug, Default)]
pub struct OwnerRecord {
    /// Flags it was allocated with.
    pub gfp: AtomicU32,
    /// [`OwnerState`], packed.
    pub state: AtomicU32,
    /// When it was allocated, in nanoseconds since boot.
    pub ts_nsec: AtomicU64,
    /// When it was freed last.
    pub free_ts_nsec: AtomicU64,
    /// Who allocated it: index in the table of call traces plus 1; 0 when not known.
    pub stack: AtomicU32,
    /// Who freed it last.
    pub free_stack: AtomicU32,
}

/// Bytes of an [`OwnerRecord`].
pub const OWNER_RECORD_SIZE: u64 = 32;
const _: () = assert!(size_of::<OwnerRecord>() as u64 == OWNER_RECORD_SIZE);

/// What [`OwnerRecord::state`] holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OwnerState {
    /// The frame heads a block that is allocated (`PAGE_EXT_OWNER_ALLOCATED`).
    pub allocated: bool,
    /// Order of the block.
    pub order: u8,
    /// CPU that allocated it.
    pub cpu: u8,
    /// CPU that freed it last.
    pub free_cpu: u8,
}

impl OwnerState {
    /// The word.
    pub const fn pack(self) -> u32 {
        self.allocated as u32 | (self.order as u32) << 8 | (self.cpu as u32) << 16 | (self.free_cpu as u32) << 24
    }

    /// From the word.
    pub const fn unpack(word: u32) -> Self {
        let [flags, order, cpu, free_cpu] = word.to_le_bytes();
        Self { allocated: flags & 1 != 0, order, cpu, free_cpu }
    }
}

/// A call trace.
#[repr(C)]
#[derive(Debug, Default)]
pub struct StackRecord {
    /// Addresses in use; 0 for a record that is not. Written last.
    pub len: AtomicU32,
    /// Hash of the addresses.
    pub hash: AtomicU32,
    /// Return addresses, innermost first.
    pub entries: [AtomicU64; STACK_DEPTH],
}

/// Bytes of a [`StackRecord`].
pub const STACK_RECORD_SIZE: u64 = 8 + 8 * STACK_DEPTH as u64;
const _: () = assert!(size_of::<StackRecord>() as u64 == STACK_RECORD_SIZE);

impl StackRecord {
    /// Whether it holds just these addresses.
    pub fn holds(&self, trace: &[u64]) -> bool {
        self.len.load(Relaxed) as usize == trace.len()
            && self.entries.iter().zip(trace).all(|(entry, address)| entry.load(Relaxed) == *address)
    }
}
