//! Commands to the guest, and its replies: the messages that go through the monitor device's two queues.
//!
//! A message is always a batch. A command is
//!
//! ```text
//! CommandHeader      32 bytes: tag, the CPU that is to execute it, how many operations
//! operations         32 bytes each ([`RawOp`]), executed in order
//! payload            bytes that operations refer to by offset
//! ```
//!
//! and its reply
//!
//! ```text
//! ReplyHeader        64 bytes: the command's tag, its status, time stamps, how many results
//! results            16 bytes each ([`OpResult`]), one per operation that was executed
//! payload            bytes that results refer to by offset
//! ```
//!
//! All numbers are little-endian. Each fits into one buffer of [`BUFFER_BYTES`]. Both sides check what they read:
//! the guest answers a message it cannot read with a [`Status`], the host treats a reply as it treats all guest
//! memory.
//!
//! New layers add operations ([`OpCode`]), kinds of handles and workloads; the transport knows none of them.

mod args;
mod error;
mod message;
mod object;
mod op;
mod raw;
pub mod trace;
pub mod workload;

pub use args::{Fault, Faulty, Isolate, Placement, Setting};
pub use error::{OpError, Status};
pub use message::{ANY_CPU, BUFFER_BYTES, CommandHeader, MAX_OPS, NR_BUFFERS, OpResult, ReplyHeader, STOP_ON_ERROR};
pub use object::{MAX_OBJECTS, Mapping, ObjectOp, Objects, Text};
pub use op::{Op, OpCode};
pub use raw::RawOp;

/// Bits of a handle: handles are numbers below this that the host chooses.
pub const MAX_HANDLE: u32 = 1 << 24;
