//! Executing the host's commands: messages in, replies out.
//!
//! The operations are those of [`pagevisor_shared::command`]. Whatever a message says, the answer is a reply: what the
//! host has allocated it names by handles, which are looked up; frames come from handles only; arguments are checked.
//! The machine around (other CPUs, ending it, coming to a safe point) is behind [`Services`].

mod content;
mod execute;
mod handles;
mod object;
mod place;
mod reply;
mod reserve;

use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::command::workload::Touch;
use pagevisor_shared::command::{CommandHeader, Op, OpError, OpResult, RawOp, ReplyHeader, STOP_ON_ERROR, Status};
use pagevisor_shared::units::CpuMask;

use crate::Mm;
use crate::platform::Platform;
use crate::raw::RecordCache;
use crate::workload::Left;
use handles::Handles;
use reply::Reply;

pub(crate) use place::{Placer, may_try};
pub(crate) use reserve::Reserve;

/// The machine that commands are executed on, as far as it is not the memory stack's.
pub trait Services: Sync {
    /// The time stamp.
    fn ticks(&self) -> u64;

    /// The allocator's structures are whole as far as this CPU is concerned: it stops here if it is asked to.
    fn safe_point(&self);

    /// A round of waiting for another CPU: a safe point and a pause, and what others want this CPU to run.
    fn relax(&self);

    /// CPUs that are there.
    fn online(&self) -> CpuMask;

    /// Runs `part` on each of `cpus`, at the same time, with the CPU's number among them, and waits for all.
    fn run_on(&self, cpus: CpuMask, part: &(dyn Fn(usize) + Sync));

    /// Waits until each other CPU has been at a safe point, or idle.
    fn barrier(&self);

    /// Runs the program of [`pagevisor_shared::command::workload::Kind::Fault`] on this CPU, and waits for its end; gives the
    /// page faults that it and its children had. `None` if it could not be run, or came to a bad end.
    fn run_program(&self, touch: Touch, pages: u64) -> Option<u64>;

    /// Powers off.
    fn shutdown(&self, code: u16);
}

/// What commands leave behind for later ones.
#[derive(Debug)]
pub struct Commands {
    handles: Handles,
    left: Left,
    /// Allocations whose nodes took turns.
    turn: AtomicU64,
    /// Held while page blocks are isolated.
    contig: AtomicU32,
    /// Held while caches come, go or are tuned by their names.
    caches: AtomicU32,
    reserves: RecordCache<Reserve>,
}

impl Commands {
    /// Nothing is allocated.
    pub const fn new() -> Self {
        let (turn, contig, caches) = (AtomicU64::new(0), AtomicU32::new(0), AtomicU32::new(0));
        let reserves = RecordCache::new();
        Self { handles: Handles::new(), left: Left::new(), turn, contig, caches, reserves }
    }
}

impl Default for Commands {
    fn default() -> Self {
        Self::new()
    }
}

/// Executes the command in `message` on this CPU and writes the reply; gives its length in bytes.
///
/// The first bytes of `message` must be there; behind those that belong to the command may be anything.
pub fn execute<P: Platform, S: Services>(
    mm: &Mm<P>,
    state: &Commands,
    services: &S,
    message: &[u8],
    reply: &[AtomicU64],
) -> usize {
    let start = services.ticks();
    let mut head = ReplyHeader {
        tag: 0,
        status: Status::Malformed,
        cpu: mm.platform.this_cpu().cpu.index() as u32,
        nr_results: 0,
        payload_len: 0,
        tsc_start: start,
        tsc_end: start,
    };
    let header = message.first_chunk().and_then(|first| CommandHeader::from_bytes(first, message.len()));
    let ops = header.map_or(0, |header| header.nr_ops as usize);
    let Some(mut out) = Reply::new(reply, ops).or_else(|| Reply::new(reply, 0)) else { return 0 };
    if let Some(header) = header {
        head.tag = header.tag;
        if let Some((ops, payload)) = parts(&header, message) {
            let mut batch = Batch { mm, state, services, payload, reply: &mut out };
            head.status = batch.run(ops, header.flags & STOP_ON_ERROR != 0);
        }
    }
    head.tsc_end = services.ticks();
    out.finish(head)
}

/// Writes the reply of a command that no CPU can execute; gives its length in bytes.
pub fn refuse(header: Option<&CommandHeader>, status: Status, cpu: u32, now: u64, reply: &[AtomicU64]) -> usize {
    let tag = header.map_or(0, |header| header.tag);
    let head = ReplyHeader { tag, status, cpu, nr_results: 0, payload_len: 0, tsc_start: now, tsc_end: now };
    Reply::new(reply, 0).map_or(0, |out| out.finish(head))
}

/// Whether a message is one operation that takes no longer than a notification of the host does.
pub fn is_short(message: &[u8]) -> bool {
    let header = message.first_chunk().and_then(|first| CommandHeader::from_bytes(first, message.len()));
    let ops = header.filter(|header| header.nr_ops == 1).and_then(|header| parts(&header, message));
    ops.and_then(|(ops, _)| Op::decode_short(&RawOp::from_bytes(ops.first()?))).is_some()
}

/// The operations and the payload of a message.
fn parts<'a>(header: &CommandHeader, message: &'a [u8]) -> Option<(&'a [[u8; RawOp::BYTES]], &'a [u8])> {
    let end = usize::try_from(header.message_len()).ok()?;
    let ops = message.get(CommandHeader::BYTES..header.payload_offset())?;
    Some((ops.as_chunks().0, message.get(header.payload_offset()..end)?))
}

/// A command in execution.
struct Batch<'a, 'r, P: Platform, S> {
    mm: &'a Mm<P>,
    state: &'a Commands,
    services: &'a S,
    payload: &'a [u8],
    reply: &'a mut Reply<'r>,
}

impl<'a, P: Platform, S: Services> Batch<'a, '_, P, S> {
    fn run(&mut self, ops: &[[u8; RawOp::BYTES]], stop_on_error: bool) -> Status {
        for raw in ops {
            self.services.safe_point();
            let result = self.one(raw);
            self.reply.push(result);
            if result.error.is_some() && stop_on_error {
                return Status::Stopped;
            }
        }
        Status::Done
    }

    /// Bytes `[from, from + len)` of the command's payload.
    fn bytes(&self, from: u32, len: u32) -> Result<&'a [u8], OpError> {
        let (from, len) = (from as usize, len as usize);
        self.payload.get(from..from.saturating_add(len)).ok_or(OpError::Invalid)
    }
}

/// An operation that came to an end as `value` says, but for `error`.
fn partly(error: OpError, value: u64, aux: u32) -> OpResult {
    OpResult { error: Some(error), aux, value }
}
