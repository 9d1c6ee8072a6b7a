//! What is allocated in a guest. Dropping it frees it.

use pagevisor_shared::command::Op;
use pagevisor_shared::units::{NodeId, Order, Pfn};
use pagevisor_shared::zone::ZoneType;

use super::cpu::CpuHandle;
use super::error::{Error, ErrorKind};
use super::estate::Claim;

/// Most bytes that are read or written by one message.
const CHUNK: u32 = 32 << 10;

/// Handles that stand for something in the guest.
#[derive(Debug)]
pub(super) struct Held<'g> {
    cpu: CpuHandle<'g>,
    handle: u32,
    count: u32,
}

impl<'g> Held<'g> {
    pub(super) fn new(cpu: CpuHandle<'g>, handle: u32, count: u32) -> Self {
        Self { cpu, handle, count }
    }

    /// The CPU that frees it.
    pub(super) fn cpu(&self) -> &CpuHandle<'g> {
        &self.cpu
    }

    /// The first handle.
    pub(super) fn handle(&self) -> u32 {
        self.handle
    }

    /// As [`Self::free`]; if the guest refuses, the handles stay and may be tried again.
    pub(super) fn try_release(&mut self, cpu: &CpuHandle<'_>) -> Result<(), Error> {
        let count = self.count;
        let result = self.release(cpu);
        if result.as_ref().is_err_and(|error| error.op().is_some()) {
            self.count = count;
        }
        result
    }

    /// Frees what the handles stand for, on `cpu`.
    pub(super) fn free(mut self, cpu: &CpuHandle<'_>) -> Result<(), Error> {
        self.release(cpu)
    }

    fn release(&mut self, cpu: &CpuHandle<'_>) -> Result<(), Error> {
        let count = std::mem::take(&mut self.count);
        if count == 0 {
            return Ok(());
        }
        let claims = [Claim::taken(self.handle, count)];
        cpu.execute_claiming(Op::FreePages { handle: self.handle, count }, &[], &claims)?;
        cpu.guest().give_handles(self.handle, count);
        Ok(())
    }

    /// Forgets the handles, which stand for nothing any more.
    pub(super) fn forget(self) {
        let cpu = self.cpu;
        let (handle, count) = self.into_parts();
        cpu.guest().give_handles(handle, count);
    }

    /// Hands the handles over.
    fn into_parts(mut self) -> (u32, u32) {
        (self.handle, std::mem::take(&mut self.count))
    }

    pub(super) fn read(&self, mut offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let bad = |cpu| ErrorKind::BadReply { cpu, what: "the bytes that were read" };
        for chunk in buf.chunks_mut(CHUNK as usize) {
            let len = chunk.len() as u32;
            let done = self.cpu.execute(Op::ReadPage { handle: self.handle, offset, len })?;
            let bytes = done.payload.get(done.aux as usize..).and_then(|bytes| bytes.get(..chunk.len()));
            chunk.copy_from_slice(bytes.ok_or_else(|| self.cpu.guest().error(bad(done.cpu)))?);
            offset += u64::from(len);
        }
        Ok(())
    }

    pub(super) fn write(&self, mut offset: u64, bytes: &[u8]) -> Result<(), Error> {
        for chunk in bytes.chunks(CHUNK as usize) {
            let len = chunk.len() as u32;
            self.cpu.execute_with(Op::WritePage { handle: self.handle, offset, len, payload: 0 }, chunk)?;
            offset += u64::from(len);
        }
        Ok(())
    }

    pub(super) fn fill(&self, seed: u64) -> Result<(), Error> {
        self.cpu.execute(Op::FillPattern { handle: self.handle, count: self.count, seed }).map(drop)
    }

    pub(super) fn check(&self, seed: u64) -> Result<(), Error> {
        self.cpu.execute(Op::CheckPattern { handle: self.handle, count: self.count, seed }).map(drop)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let cpu = self.cpu;
        // A guest that has ended has nothing to be freed; one that does not answer is not waited for.
        if self.count != 0 && !cpu.guest().takes_over(self.handle, self.count) {
            let _ = self.release(&cpu);
        }
    }
}

/// Methods of everything that is held by one handle.
macro_rules! contents {
    () => {
        /// What the guest knows it by.
        pub fn handle(&self) -> u32 {
            self.held.handle()
        }

        /// Has the guest read bytes from `offset` on.
        ///
        /// # Errors
        /// As every command.
        pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
            self.held.read(offset, buf)
        }

        /// Has the guest write bytes from `offset` on.
        ///
        /// # Errors
        /// As every command.
        pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
            self.held.write(offset, bytes)
        }

        /// Fills it with the pattern `seed` ([`pagevisor_shared::command::Op::pattern`]), as far as its owner may use it
        /// (`ksize`).
        ///
        /// # Errors
        /// As every command.
        pub fn fill(&self, seed: u64) -> Result<(), Error> {
            self.held.fill(seed)
        }

        /// Checks that it has the pattern `seed`.
        ///
        /// # Errors
        /// [`pagevisor_shared::command::OpError::Mismatch`], and as every command.
        pub fn check(&self, seed: u64) -> Result<(), Error> {
            self.held.check(seed)
        }

        /// Frees it, and says whether that worked.
        ///
        /// # Errors
        /// As every command.
        pub fn free(self) -> Result<(), Error> {
            let cpu = *self.held.cpu();
            self.held.free(&cpu)
        }

        /// Frees it on another CPU.
        ///
        /// # Errors
        /// As every command.
        pub fn free_on(self, cpu: &CpuHandle<'_>) -> Result<(), Error> {
            self.held.free(cpu)
        }
    };
}
pub(super) use contents;

/// Methods of everything that is one block of pages.
macro_rules! pages {
    () => {
        contents!();

        /// Its first frame.
        pub fn pfn(&self) -> Pfn {
            self.pfn
        }

        /// The node it is on.
        ///
        /// # Errors
        /// When the guest's tables say nothing sensible about it.
        pub fn node(&self) -> Result<NodeId, Error> {
            self.held.cpu.guest().zone_of(self.pfn.raw()).map(|(node, _)| node)
        }

        /// The type of the zone it is in.
        ///
        /// # Errors
        /// When the guest's tables say nothing sensible about it.
        pub fn zone(&self) -> Result<ZoneType, Error> {
            self.held.cpu.guest().zone_of(self.pfn.raw()).map(|(_, zone)| zone)
        }
    };
}

/// A block of pages.
#[derive(Debug)]
#[must_use = "dropping it frees it"]
pub struct Pages<'g> {
    held: Held<'g>,
    pfn: Pfn,
    order: Order,
}

impl<'g> Pages<'g> {
    pub(super) fn new(held: Held<'g>, pfn: Pfn, order: Order) -> Self {
        Self { held, pfn, order }
    }

    pages!();

    /// Its order.
    pub fn order(&self) -> Order {
        self.order
    }

    /// `split_page`: the block becomes single pages, in order of address.
    ///
    /// # Errors
    /// As every command; the block is freed then.
    pub fn split(self) -> Result<Vec<Pages<'g>>, Error> {
        let cpu = self.held.cpu;
        let count = self.order.pages() as u32;
        let into = cpu.guest().take_handles(count)?;
        let handle = self.held.handle;
        let claims = [Claim::taken(handle, 1), Claim::given(into, count)];
        if let Err(error) = cpu.execute_claiming(Op::SplitPage { handle, into }, &[], &claims) {
            match error.kind() {
                ErrorKind::Op { .. } => cpu.guest().give_handles(into, count),
                // Somebody else looks after the block now, or its pages.
                ErrorKind::TimedOut { .. } => drop(self.held.into_parts()),
                _ => {}
            }
            return Err(error);
        }
        let pfn = self.pfn;
        self.held.forget();
        let page = |index: u32| Pages::new(Held::new(cpu, into + index, 1), pfn.add(index.into()), Order::ZERO);
        Ok((0..count).map(page).collect())
    }
}

/// A range of frames: `alloc_contig_range` and `cma_alloc`.
#[derive(Debug)]
#[must_use = "dropping it frees it"]
pub struct Frames<'g> {
    held: Held<'g>,
    pfn: Pfn,
    pages: u64,
}

impl<'g> Frames<'g> {
    pub(super) fn new(held: Held<'g>, pfn: Pfn, pages: u64) -> Self {
        Self { held, pfn, pages }
    }

    pages!();

    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.pages
    }
}

/// Many blocks of one order.
#[derive(Debug)]
#[must_use = "dropping it frees them"]
pub struct Blocks<'g> {
    cpu: CpuHandle<'g>,
    order: Order,
    held: Vec<Held<'g>>,
    pfns: Vec<Pfn>,
}

impl<'g> Blocks<'g> {
    pub(super) fn new(cpu: CpuHandle<'g>, order: Order) -> Self {
        Self { cpu, order, held: Vec::new(), pfns: Vec::new() }
    }

    pub(super) fn add(&mut self, held: Held<'g>, pfns: Vec<Pfn>) {
        self.held.push(held);
        self.pfns.extend(pfns);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.pfns.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pfns.is_empty()
    }

    /// Their order.
    pub fn order(&self) -> Order {
        self.order
    }

    /// Their first frames, in order of allocation.
    pub fn pfns(&self) -> &[Pfn] {
        &self.pfns
    }

    /// Node and zone type of each, in order of allocation.
    ///
    /// # Errors
    /// When the guest's tables say nothing sensible about one.
    pub fn places(&self) -> Result<Vec<(NodeId, ZoneType)>, Error> {
        self.pfns.iter().map(|pfn| self.cpu.guest().zone_of(pfn.raw())).collect()
    }

    /// Fills all with patterns; each message's blocks count from 0.
    ///
    /// # Errors
    /// As every command.
    pub fn fill(&self, seed: u64) -> Result<(), Error> {
        self.held.iter().try_for_each(|held| held.fill(seed))
    }

    /// Checks the patterns.
    ///
    /// # Errors
    /// [`pagevisor_shared::command::OpError::Mismatch`], and as every command.
    pub fn check(&self, seed: u64) -> Result<(), Error> {
        self.held.iter().try_for_each(|held| held.check(seed))
    }

    /// One by one: each can be freed by itself.
    pub fn into_pages(mut self) -> Vec<Pages<'g>> {
        let (cpu, order) = (self.cpu, self.order);
        let handles = self.held.drain(..).flat_map(|mut held| {
            let count = std::mem::take(&mut held.count);
            held.handle..held.handle + count
        });
        let handles: Vec<u32> = handles.collect();
        let page = |(handle, pfn): (u32, &Pfn)| Pages::new(Held::new(cpu, handle, 1), *pfn, order);
        handles.into_iter().zip(&self.pfns).map(page).collect()
    }

    /// Frees all, and says whether that worked.
    ///
    /// # Errors
    /// As every command.
    pub fn free(self) -> Result<(), Error> {
        let cpu = self.cpu;
        self.held.into_iter().try_for_each(|held| held.free(&cpu))
    }
}
