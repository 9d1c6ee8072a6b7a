//! A CPU of a guest, and what it can be told.

use std::time::Duration;

use pagevisor_shared::command::{ANY_CPU, Faulty, Isolate, Op, OpError, OpResult, Placement};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::units::{NodeId, NodeMask, Order, Pfn};

use super::batch::Batch;
use super::error::{Error, ErrorKind};
use super::estate::Claim;
use super::pages::{Blocks, Frames, Held, Pages};
use super::session::{Call, Executed, Guest, single, single_error};

/// Most blocks of one operation: their frames fill half of a reply.
pub(super) const MAX_BLOCKS: u32 = 8192;

/// A CPU that executes operations. Copies are for the same CPU; each has a memory policy of its own.
#[derive(Clone, Copy, Debug)]
pub struct CpuHandle<'g> {
    guest: &'g Guest,
    cpu: u32,
    placement: Placement,
    timeout: Duration,
}

impl<'g> CpuHandle<'g> {
    pub(super) fn new(guest: &'g Guest, cpu: u32) -> Self {
        Self { guest, cpu, placement: Placement::Local, timeout: guest.command_timeout() }
    }

    /// The guest.
    pub fn guest(&self) -> &'g Guest {
        self.guest
    }

    /// Its number; `None` if any will do.
    pub fn number(&self) -> Option<u32> {
        (self.cpu != ANY_CPU).then_some(self.cpu)
    }

    pub(super) fn raw(&self) -> u32 {
        self.cpu
    }

    /// The CPU with another memory policy for its allocations.
    #[must_use]
    pub fn with(self, placement: Placement) -> Self {
        Self { placement, ..self }
    }

    /// The CPU, given another time to answer than the guest's builder says. What is allocated is also freed in that time.
    #[must_use]
    pub fn within(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Allocating from these nodes only (`MPOL_BIND`).
    #[must_use]
    pub fn bind(self, nodes: NodeMask) -> Self {
        self.with(Placement::Bind(nodes))
    }

    /// Allocating from these nodes in turn (`MPOL_INTERLEAVE`).
    #[must_use]
    pub fn interleave(self, nodes: NodeMask) -> Self {
        self.with(Placement::Interleave(nodes))
    }

    /// Allocating from this node or as near to it as can be (`MPOL_PREFERRED`).
    #[must_use]
    pub fn prefer(self, node: NodeId) -> Self {
        self.with(Placement::Preferred(node))
    }

    pub(super) fn placement(&self) -> Placement {
        self.placement
    }

    /// Executes one operation without a payload. Handles in it are the caller's matter.
    ///
    /// # Errors
    /// [`ErrorKind::Op`] if it failed; [`ErrorKind::TimedOut`], [`ErrorKind::Ended`] and the like if there is no reply.
    pub fn execute(&self, op: Op) -> Result<Executed, Error> {
        self.execute_with(op, &[])
    }

    /// Executes one operation with a payload.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn execute_with(&self, op: Op, payload: &[u8]) -> Result<Executed, Error> {
        self.execute_claiming(op, payload, &[])
    }

    /// As [`Self::execute_with`], of an operation that does so to handles. They are the caller's again unless nobody
    /// waits for the reply in the end.
    pub(super) fn execute_claiming(&self, op: Op, payload: &[u8], claims: &[Claim]) -> Result<Executed, Error> {
        let (result, done) = self.outcome(op, payload, claims)?;
        single_error(&op, &result, done.cpu).map_err(|kind| self.guest.error(kind))?;
        Ok(done)
    }

    /// What an operation gave, failed or not.
    fn outcome(&self, op: Op, payload: &[u8], claims: &[Claim]) -> Result<(OpResult, Executed), Error> {
        let timeout = self.timeout;
        let reply = self.guest.call(&Call { payload, timeout, claims, ..Call::new(self.cpu, &[op]) })?;
        let result = single(&reply).map_err(|kind| self.guest.error(kind))?;
        let done = Executed {
            value: result.value,
            aux: result.aux,
            cpu: reply.header.cpu,
            ticks: reply.header.tsc_end.saturating_sub(reply.header.tsc_start),
            payload: reply.payload,
        };
        Ok((result, done))
    }

    /// Does nothing, in order with what else the CPU is told.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn nop(&self) -> Result<Executed, Error> {
        self.execute(Op::Nop)
    }

    /// `alloc_pages`.
    ///
    /// # Errors
    /// [`pagevisor_shared::command::OpError::NoMemory`], and as [`Self::execute`].
    pub fn alloc_pages(&self, gfp: Gfp, order: Order) -> Result<Pages<'g>, Error> {
        let handle = self.guest.take_handles(1)?;
        let op = Op::AllocPages { gfp, order, placement: self.placement, handle, count: 1 };
        match self.execute_claiming(op, &[], &[Claim::given(handle, 1)]) {
            Ok(done) => Ok(Pages::new(Held::new(*self, handle, 1), Pfn::new(done.value), order)),
            Err(error) => Err(self.not_taken(handle, 1, error)),
        }
    }

    /// `alloc_pages_node`: from `node`, or as near to it as can be.
    ///
    /// # Errors
    /// As [`Self::alloc_pages`].
    pub fn alloc_on(&self, node: NodeId, gfp: Gfp, order: Order) -> Result<Pages<'g>, Error> {
        self.prefer(node).alloc_pages(gfp, order)
    }

    /// `count` blocks, as many as fit into a message at a time. When memory runs out the result has fewer.
    ///
    /// # Errors
    /// As [`Self::execute`], but not for want of memory.
    pub fn alloc_many(&self, gfp: Gfp, order: Order, count: u32) -> Result<Blocks<'g>, Error> {
        let mut blocks = Blocks::new(*self, order);
        let mut left = count;
        while left != 0 {
            let wanted = left.min(MAX_BLOCKS);
            let got = self.alloc_some(gfp, order, wanted, &mut blocks)?;
            if got < wanted {
                break;
            }
            left -= wanted;
        }
        Ok(blocks)
    }

    /// Up to [`MAX_BLOCKS`] blocks; how many there were.
    fn alloc_some(&self, gfp: Gfp, order: Order, count: u32, blocks: &mut Blocks<'g>) -> Result<u32, Error> {
        let handle = self.guest.take_handles(count)?;
        let op = Op::AllocPages { gfp, order, placement: self.placement, handle, count };
        let (result, done) = self.outcome(op, &[], &[Claim::given(handle, count)])?;
        // Memory that runs out leaves what there was until then.
        let got = match result.error {
            None | Some(OpError::NoMemory) => frames(&result, &done.payload, count),
            Some(_) => {
                let error = single_error(&op, &result, done.cpu).map_err(|kind| self.guest.error(kind));
                return error.map_err(|error| self.not_taken(handle, count, error)).map(|()| 0);
            }
        };
        let Some(frames) = got else {
            return Err(self.guest.error(ErrorKind::BadReply { cpu: done.cpu, what: "the frames of the blocks" }));
        };
        let got = frames.len() as u32;
        self.guest.give_handles(handle + got, count - got);
        blocks.add(Held::new(*self, handle, got), frames);
        Ok(got)
    }

    /// Gives back handles for which the guest has nothing; those of a command without a reply it may have, or somebody
    /// else looks after them.
    pub(super) fn not_taken(&self, handle: u32, count: u32, error: Error) -> Error {
        if let ErrorKind::Op { .. } | ErrorKind::Refused { .. } = error.kind() {
            self.guest.give_handles(handle, count);
        }
        error
    }

    /// Empties the CPU's pagesets (`drain_local_pages`).
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn drain_pages(&self) -> Result<(), Error> {
        self.execute(Op::DrainPages { all: false }).map(drop)
    }

    /// Makes the CPU's `nth` allocation from now on fail; 0 takes it back.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn fail_nth(&self, nth: u64) -> Result<(), Error> {
        self.execute(Op::FailNth { of: Faulty::Pages, nth, this_cpu: true }).map(drop)
    }

    /// Makes the CPU's `nth` allocation of an object from now on fail, as [`Guest::failslab`] does; 0 takes it back.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn failslab_nth(&self, nth: u64) -> Result<(), Error> {
        self.execute(Op::FailNth { of: Faulty::Objects, nth, this_cpu: true }).map(drop)
    }

    /// `start_isolate_page_range`: nobody allocates from these page blocks any more. `migratetype` is theirs, should it
    /// fail half-way.
    ///
    /// # Errors
    /// [`pagevisor_shared::command::OpError::Busy`], and as [`Self::execute`].
    pub fn isolate(&self, start: Pfn, end: Pfn, migratetype: MigrateType) -> Result<(), Error> {
        self.execute(Op::Isolate { action: Isolate::Start, start, end, migratetype }).map(drop)
    }

    /// `undo_isolate_page_range`: the page blocks become `migratetype`.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn unisolate(&self, start: Pfn, end: Pfn, migratetype: MigrateType) -> Result<(), Error> {
        self.execute(Op::Isolate { action: Isolate::Undo, start, end, migratetype }).map(drop)
    }

    /// `alloc_contig_range`: exactly the frames from `start` to before `end`.
    ///
    /// # Errors
    /// [`pagevisor_shared::command::OpError::Busy`], and as [`Self::execute`].
    pub fn alloc_contig_range(
        &self,
        start: Pfn,
        end: Pfn,
        migratetype: MigrateType,
        gfp: Gfp,
    ) -> Result<Frames<'g>, Error> {
        let pages = end.raw().saturating_sub(start.raw());
        let handle = self.guest.take_handles(1)?;
        let op = Op::AllocContigRange { start, end, migratetype, gfp, handle };
        match self.execute_claiming(op, &[], &[Claim::given(handle, 1)]) {
            Ok(_) => Ok(Frames::new(Held::new(*self, handle, 1), start, pages)),
            Err(error) => Err(self.not_taken(handle, 1, error)),
        }
    }

    /// `cma_alloc` from the area of that number.
    ///
    /// # Errors
    /// [`pagevisor_shared::command::OpError::NoMemory`], and as [`Self::execute`].
    pub fn cma_alloc(&self, area: u8, pages: u32, align: Order) -> Result<Frames<'g>, Error> {
        let handle = self.guest.take_handles(1)?;
        let op = Op::CmaAlloc { area, pages, align, handle };
        match self.execute_claiming(op, &[], &[Claim::given(handle, 1)]) {
            Ok(done) => Ok(Frames::new(Held::new(*self, handle, 1), Pfn::new(done.value), pages.into())),
            Err(error) => Err(self.not_taken(handle, 1, error)),
        }
    }

    /// Operations that are to be executed together.
    pub fn batch(&self) -> Batch<'g> {
        Batch::new(*self)
    }
}

/// The frames in a reply to an allocation of `count` blocks, of which there may be fewer.
fn frames(result: &OpResult, payload: &[u8], count: u32) -> Option<Vec<Pfn>> {
    if count == 1 {
        return Some(if result.error.is_none() { vec![Pfn::new(result.value)] } else { Vec::new() });
    }
    let got = usize::try_from(result.value).ok().filter(|got| *got <= count as usize)?;
    let bytes = payload.get(result.aux as usize..)?.get(..got * 4)?;
    Some(bytes.as_chunks().0.iter().map(|&word| Pfn::new(u32::from_le_bytes(word).into())).collect())
}
