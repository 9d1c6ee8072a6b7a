//! Heads of messages, and results.

use super::error::{OpError, Status};
use super::raw::{RawOp, long, word};

/// Bytes of a message buffer.
pub const BUFFER_BYTES: usize = 64 << 10;
/// Buffers the guest offers per queue: commands that may be in flight.
pub const NR_BUFFERS: usize = 16;
/// Most operations of a command.
pub const MAX_OPS: usize = (BUFFER_BYTES - CommandHeader::BYTES) / RawOp::BYTES;
/// [`CommandHeader::cpu`]: any CPU will do.
pub const ANY_CPU: u32 = u32::MAX;
/// [`CommandHeader::flags`]: an operation that fails ends the command.
pub const STOP_ON_ERROR: u32 = 1;

/// Head of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CommandHeader {
    /// Comes back in the reply.
    pub tag: u64,
    /// CPU that is to execute it, or [`ANY_CPU`].
    pub cpu: u32,
    /// Operations.
    pub nr_ops: u32,
    /// [`STOP_ON_ERROR`].
    pub flags: u32,
    /// Bytes of payload.
    pub payload_len: u32,
}

impl CommandHeader {
    /// Bytes of the head.
    pub const BYTES: usize = 32;
    /// `PVCM`.
    const MAGIC: u32 = u32::from_le_bytes(*b"PVCM");

    /// Bytes of the whole message.
    pub const fn message_len(&self) -> u64 {
        Self::BYTES as u64 + self.nr_ops as u64 * RawOp::BYTES as u64 + self.payload_len as u64
    }

    /// As bytes.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&Self::MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.tag.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.cpu.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.nr_ops.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes
    }

    /// The head of a message of `len` bytes that begins with `bytes`; `None` when it is none, or longer than that.
    pub fn from_bytes(bytes: &[u8; Self::BYTES], len: usize) -> Option<Self> {
        let header = Self {
            tag: long(bytes, 8),
            cpu: word(bytes, 16),
            nr_ops: word(bytes, 20),
            flags: word(bytes, 4),
            payload_len: word(bytes, 24),
        };
        (word(bytes, 0) == Self::MAGIC && header.message_len() <= len as u64).then_some(header)
    }

    /// Offset of the payload in the message.
    pub const fn payload_offset(&self) -> usize {
        Self::BYTES + self.nr_ops as usize * RawOp::BYTES
    }
}

/// Head of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyHeader {
    /// The command's tag.
    pub tag: u64,
    /// What became of it.
    pub status: Status,
    /// CPU that executed it.
    pub cpu: u32,
    /// Results.
    pub nr_results: u32,
    /// Bytes of payload.
    pub payload_len: u32,
    /// Time stamp before the first operation.
    pub tsc_start: u64,
    /// Time stamp after the last operation.
    pub tsc_end: u64,
}

impl ReplyHeader {
    /// Bytes of the head.
    pub const BYTES: usize = 64;
    /// `PVRP`.
    const MAGIC: u32 = u32::from_le_bytes(*b"PVRP");

    /// Bytes of the whole message.
    pub const fn message_len(&self) -> u64 {
        Self::BYTES as u64 + self.nr_results as u64 * OpResult::BYTES as u64 + self.payload_len as u64
    }

    /// As bytes.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&Self::MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&(self.status as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.tag.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.cpu.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.nr_results.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.payload_len.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.tsc_start.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.tsc_end.to_le_bytes());
        bytes
    }

    /// The head of a message of `len` bytes that begins with `bytes`; `None` when it is none, or longer than that.
    pub fn from_bytes(bytes: &[u8; Self::BYTES], len: usize) -> Option<Self> {
        let header = Self {
            tag: long(bytes, 8),
            status: Status::new(word(bytes, 4))?,
            cpu: word(bytes, 16),
            nr_results: word(bytes, 20),
            payload_len: word(bytes, 24),
            tsc_start: long(bytes, 32),
            tsc_end: long(bytes, 40),
        };
        (word(bytes, 0) == Self::MAGIC && header.message_len() <= len as u64).then_some(header)
    }

    /// Offset of the payload in the message.
    pub const fn payload_offset(&self) -> usize {
        Self::BYTES + self.nr_results as usize * OpResult::BYTES
    }
}

/// What an operation gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpResult {
    /// Why it failed, if it did. An allocation of several that got some of them fails, and `value` counts them.
    pub error: Option<OpError>,
    /// By operation: usually the offset of its bytes in the payload, which are `value` times what it gives.
    pub aux: u32,
    /// By operation.
    pub value: u64,
}

impl OpResult {
    /// Bytes of a result.
    pub const BYTES: usize = 16;

    /// Success, with a value.
    pub const fn ok(value: u64) -> Self {
        Self { error: None, aux: 0, value }
    }

    /// Failure.
    pub const fn err(error: OpError) -> Self {
        Self { error: Some(error), aux: 0, value: 0 }
    }

    /// As bytes.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[0..4].copy_from_slice(&self.error.map_or(0, |error| error as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.aux.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }

    /// From bytes; `None` when the error is none that there is.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let error = match word(bytes, 0) {
            0 => None,
            raw => Some(OpError::new(raw)?),
        };
        Some(Self { error, aux: word(bytes, 4), value: long(bytes, 8) })
    }
}
