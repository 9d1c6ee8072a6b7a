//! Many operations in few messages.

use std::ops::Range;

use pagevisor_shared::command::{
    BUFFER_BYTES, CommandHeader, MAX_OPS, Op, OpError, OpResult, RawOp, ReplyHeader, STOP_ON_ERROR, Status,
};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, Pfn};

use super::cpu::CpuHandle;
use super::error::{Error, ErrorKind};
use super::estate::Claim;
use super::pages::{Held, Pages};
use super::session::Call;

/// Operations for a CPU, executed in order, in as few messages as they fit into. What allocations of the batch give, and
/// no operation of it frees, belongs to the [`Outcome`].
#[derive(Debug)]
#[must_use]
pub struct Batch<'g> {
    cpu: CpuHandle<'g>,
    steps: Vec<Step>,
    blocks: Vec<Block>,
    stop: bool,
    failed: Option<Error>,
}

#[derive(Debug)]
struct Step {
    op: Op,
    /// What goes into the command's payload.
    data: Vec<u8>,
    /// Bytes of the reply's payload that the result may take.
    room: usize,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    handle: u32,
    order: Order,
    /// The operation that allocates it.
    at: usize,
    /// The operation that frees it.
    freed: Option<usize>,
}

/// A block that an operation of a batch allocates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchBlock(usize);

impl<'g> Batch<'g> {
    pub(super) fn new(cpu: CpuHandle<'g>) -> Self {
        Self { cpu, steps: Vec::new(), blocks: Vec::new(), stop: false, failed: None }
    }

    /// An operation that fails ends the batch.
    pub fn stop_on_error(mut self) -> Self {
        self.stop = true;
        self
    }

    /// Adds an operation without payloads. Handles in it are the caller's matter.
    pub fn push(&mut self, op: Op) {
        self.steps.push(Step { op, data: Vec::new(), room: 0 });
    }

    /// Adds an allocation.
    pub fn alloc(&mut self, gfp: Gfp, order: Order) -> BatchBlock {
        let handle = match self.cpu.guest().take_handles(1) {
            Ok(handle) => handle,
            Err(error) => {
                self.failed.get_or_insert(error);
                0
            }
        };
        self.blocks.push(Block { handle, order, at: self.steps.len(), freed: None });
        self.push(Op::AllocPages { gfp, order, placement: self.cpu.placement(), handle, count: 1 });
        BatchBlock(self.blocks.len() - 1)
    }

    /// Adds the freeing of a block of this batch.
    pub fn free(&mut self, block: BatchBlock) {
        let at = self.steps.len();
        let Some(block) = self.blocks.get_mut(block.0) else { return };
        block.freed.get_or_insert(at);
        let handle = block.handle;
        self.push(Op::FreePages { handle, count: 1 });
    }

    /// Adds the filling of a block of this batch with a pattern.
    pub fn fill(&mut self, block: BatchBlock, seed: u64) {
        let Some(handle) = self.blocks.get(block.0).map(|block| block.handle) else { return };
        self.push(Op::FillPattern { handle, count: 1, seed });
    }

    /// Adds the check of a pattern.
    pub fn check(&mut self, block: BatchBlock, seed: u64) {
        let Some(handle) = self.blocks.get(block.0).map(|block| block.handle) else { return };
        self.push(Op::CheckPattern { handle, count: 1, seed });
    }

    /// Adds writing bytes to a block of this batch.
    pub fn write(&mut self, block: BatchBlock, offset: u64, bytes: &[u8]) {
        let Some(handle) = self.blocks.get(block.0).map(|block| block.handle) else { return };
        let op = Op::WritePage { handle, offset, len: bytes.len() as u32, payload: 0 };
        self.steps.push(Step { op, data: bytes.to_vec(), room: 0 });
    }

    /// Adds reading bytes of a block of this batch; they come with the operation's result.
    pub fn read(&mut self, block: BatchBlock, offset: u64, len: u32) {
        let Some(handle) = self.blocks.get(block.0).map(|block| block.handle) else { return };
        self.steps.push(Step { op: Op::ReadPage { handle, offset, len }, data: Vec::new(), room: len as usize });
    }

    /// Operations so far.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Has them executed. An operation that fails is no error here: its result says so.
    ///
    /// # Errors
    /// As [`CpuHandle::execute`]; what the messages before have allocated is freed.
    pub fn run(mut self) -> Result<Outcome<'g>, Error> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let mut outcome =
            Outcome { results: Vec::with_capacity(self.steps.len()), ticks: 0, messages: 0, blocks: Vec::new() };
        let mut next = 0;
        let (mut error, mut unknown) = (None, 0..0);
        while next < self.steps.len() && error.is_none() {
            let end = self.message_end(next);
            let steps = next..end.max(next + 1);
            match self.send(steps.clone(), &mut outcome) {
                Ok(true) => next = steps.end,
                Ok(false) => break,
                Err(failed) => {
                    // Nobody knows what the guest has of these; if it was given up on, somebody else looks after them.
                    error = Some(failed);
                    unknown = steps;
                }
            }
        }
        self.settle(&mut outcome, &unknown);
        error.map_or(Ok(outcome), Err)
    }

    /// The end of the message that starts with operation `start`: as many as fit, both there and back.
    fn message_end(&self, start: usize) -> usize {
        let (mut there, mut back) = (CommandHeader::BYTES, ReplyHeader::BYTES);
        let mut end = start;
        for step in self.steps.iter().skip(start).take(MAX_OPS) {
            there += RawOp::BYTES + step.data.len();
            // The guest may align what it puts into the payload.
            back += OpResult::BYTES + step.room.next_multiple_of(8);
            if there > BUFFER_BYTES || back > BUFFER_BYTES {
                break;
            }
            end += 1;
        }
        end
    }

    /// Sends a message; whether to go on.
    fn send(&self, steps: Range<usize>, outcome: &mut Outcome<'g>) -> Result<bool, Error> {
        let guest = self.cpu.guest();
        let (mut ops, mut payload) = (Vec::new(), Vec::new());
        for step in self.steps.get(steps.clone()).unwrap_or(&[]) {
            ops.push(match step.op {
                Op::WritePage { handle, offset, len, .. } => {
                    Op::WritePage { handle, offset, len, payload: payload.len() as u32 }
                }
                op => op,
            });
            payload.extend_from_slice(&step.data);
        }
        let flags = if self.stop { STOP_ON_ERROR } else { 0 };
        let timeout = self.cpu.timeout();
        let claims = self.claims(&steps);
        let call = Call { flags, payload: &payload, timeout, claims: &claims, ..Call::new(self.cpu.raw(), &ops) };
        let reply = guest.call(&call)?;
        outcome.messages += 1;
        outcome.ticks += reply.header.tsc_end.saturating_sub(reply.header.tsc_start);
        for (result, op) in reply.results.iter().zip(&ops) {
            let data = match (op, result.error) {
                (Op::ReadPage { len, .. }, None) => {
                    let bytes = reply.payload.get(result.aux as usize..).and_then(|bytes| bytes.get(..*len as usize));
                    let kind = ErrorKind::BadReply { cpu: reply.header.cpu, what: "the bytes that were read" };
                    bytes.ok_or_else(|| guest.error(kind))?.to_vec()
                }
                _ => Vec::new(),
            };
            outcome.results.push(BatchResult { result: *result, data });
        }
        Ok(reply.header.status == Status::Done)
    }

    /// What operations of a message do to handles.
    fn claims(&self, steps: &Range<usize>) -> Vec<Claim> {
        let within = |at: usize| steps.contains(&at).then(|| at - steps.start);
        let claim = |block: &Block| {
            let (given, taken) = (within(block.at), block.freed.and_then(within));
            (given.is_some() || taken.is_some()).then_some(Claim { handle: block.handle, count: 1, given, taken })
        };
        self.blocks.iter().filter_map(claim).collect()
    }

    /// Finds out which blocks there are now, and gives back the handles of the others, but for those that operations
    /// whose results are not known allocate or free.
    fn settle(&mut self, outcome: &mut Outcome<'g>, unknown: &Range<usize>) {
        let ok = |at: usize| outcome.results.get(at).map(|result| result.result.error.is_none());
        let mut found = Vec::new();
        for (index, block) in self.blocks.drain(..).enumerate() {
            if unknown.contains(&block.at) || block.freed.is_some_and(|at| unknown.contains(&at)) {
                continue;
            }
            match (ok(block.at), block.freed.and_then(ok)) {
                // Allocated, and not freed.
                (Some(true), None | Some(false)) => found.push((index, block)),
                _ => self.cpu.guest().give_handles(block.handle, 1),
            }
        }
        outcome.blocks = found
            .into_iter()
            .map(|(index, block)| {
                let pfn = outcome.results.get(block.at).map_or(0, |result| result.result.value);
                (index, Some(Pages::new(Held::new(self.cpu, block.handle, 1), Pfn::new(pfn), block.order)))
            })
            .collect();
    }
}

#[derive(Debug)]
struct BatchResult {
    result: OpResult,
    data: Vec<u8>,
}

/// What a batch gave. Dropping it frees the blocks that were not taken out.
#[derive(Debug)]
#[must_use = "dropping it frees what was allocated"]
pub struct Outcome<'g> {
    results: Vec<BatchResult>,
    /// By number of the block.
    blocks: Vec<(usize, Option<Pages<'g>>)>,
    ticks: u64,
    messages: usize,
}

impl<'g> Outcome<'g> {
    /// Operations that were executed.
    pub fn len(&self) -> usize {
        self.results.len()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    /// The value of operation `index`, in the order in which they were added, or why it failed; `None` if it was not
    /// executed.
    pub fn result(&self, index: usize) -> Option<Result<u64, OpError>> {
        let result = self.results.get(index)?.result;
        Some(result.error.map_or(Ok(result.value), Err))
    }

    /// All of them.
    pub fn results(&self) -> impl Iterator<Item = Result<u64, OpError>> + '_ {
        self.results.iter().map(|result| result.result.error.map_or(Ok(result.result.value), Err))
    }

    /// The bytes that operation `index` read.
    pub fn bytes(&self, index: usize) -> &[u8] {
        self.results.get(index).map_or(&[], |result| &result.data)
    }

    /// The first operation that failed, and why.
    pub fn first_error(&self) -> Option<(usize, OpError)> {
        self.results.iter().enumerate().find_map(|(index, result)| Some((index, result.result.error?)))
    }

    /// Takes a block out, if it was allocated and not freed.
    pub fn take(&mut self, block: BatchBlock) -> Option<Pages<'g>> {
        let at = self.blocks.binary_search_by_key(&block.0, |(index, _)| *index).ok()?;
        self.blocks.get_mut(at)?.1.take()
    }

    /// Ticks of the time stamp counter that the operations took in the guest.
    pub fn ticks(&self) -> u64 {
        self.ticks
    }

    /// Messages that were needed.
    pub fn messages(&self) -> usize {
        self.messages
    }
}
