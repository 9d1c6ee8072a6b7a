//! Who allocated each page, and who freed it last (`page_owner=on`, `mm/page_owner.c`).
//!
//! The tables are [`pagevisor_shared::page_owner`]'s; boot takes them from memblock when the command line asks for
//! them, and the host reads them. Only the record of a block's first frame is written. Call traces are kept once each
//! (`lib/stackdepot.c`), in a table of fixed size with open addressing; when that is full, further traces are not known.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::page_owner::{OwnerRecord, OwnerState, STACK_DEPTH, StackRecord};
use pagevisor_shared::region::Roots;

use crate::Mm;
use crate::memblock::{AllocError, Memblock};
use crate::platform::Platform;
use crate::raw::BootTable;
use crate::sync::{self, Plain};

/// Call traces there is room for. A kernel this small has a few hundred places that allocate.
const STACKS: u64 = 4096;
/// How far from its hash's place a trace may be.
const PROBES: usize = 64;

/// The tables.
#[derive(Debug)]
pub(super) struct Owners {
    records: BootTable<OwnerRecord>,
    stacks: BootTable<StackRecord>,
    /// Guards additions to `stacks`.
    lock: AtomicU32,
}

impl Owners {
    /// Not in use.
    pub(super) const fn none() -> Self {
        Self { records: BootTable::none(), stacks: BootTable::none(), lock: AtomicU32::new(0) }
    }

    /// Tables for that many frames.
    pub(super) fn allocate<P: Platform>(
        platform: &P,
        memblock: &mut Memblock,
        frames: u64,
    ) -> Result<Self, AllocError> {
        let records = BootTable::allocate(platform, memblock, frames)?;
        Ok(Self { records, stacks: BootTable::allocate(platform, memblock, STACKS)?, ..Self::none() })
    }

    /// Tells the host where the tables are.
    pub(super) fn publish<P: Platform>(&self, platform: &P, roots: &Roots) {
        roots.stacks.set(self.stacks.addr(platform).raw());
        roots.nr_stacks.set(self.stacks.get().len() as u64);
        roots.page_owner.set(self.records.addr(platform).raw());
    }

    fn record(&self, pfn: u32) -> Option<&'static OwnerRecord> {
        self.records.get().get(pfn as usize)
    }

    /// The place of `trace` in the table, plus 1, if it is there; else a free place for it, plus 1, negated.
    fn find(&self, hash: u32, trace: &[u64]) -> Option<Result<u32, u32>> {
        let stacks = self.stacks.get();
        let places = (0..PROBES.min(stacks.len())).map(|probe| (hash as usize + probe) % stacks.len());
        for place in places {
            let stack = &stacks[place];
            // Acquire pairs with the release in `save_stack`: whoever sees the length sees the addresses.
            if stack.len.load(Acquire) == 0 {
                return Some(Err(place as u32 + 1));
            }
            if stack.hash.get() == hash && stack.holds(trace) {
                return Some(Ok(place as u32 + 1));
            }
        }
        None
    }
}

/// A hash of a call trace.
fn hash(trace: &[u64]) -> u32 {
    let mixed = trace
        .iter()
        .fold(trace.len() as u64, |hash, address| (hash ^ address).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
    (mixed ^ mixed >> 32) as u32
}

impl<P: Platform> Mm<P> {
    /// A block was allocated (`__set_page_owner`).
    pub(super) fn set_page_owner(&self, pfn: u32, order: u32, gfp: Gfp) {
        let Some(record) = self.instrument.owners.record(pfn) else { return };
        let before = OwnerState::unpack(record.state.get());
        record.gfp.set(gfp.bits());
        record.ts_nsec.set(self.platform.now());
        record.stack.set(self.save_stack());
        let cpu = self.platform.this_cpu().cpu.index() as u8;
        let state = OwnerState { allocated: true, order: order as u8, cpu, ..before };
        // Release: the host that sees the state sees the rest.
        record.state.store(state.pack(), Release);
    }

    /// A block is freed (`__reset_page_owner`). Who allocated it stays readable.
    pub(super) fn reset_page_owner(&self, pfn: u32) {
        let Some(record) = self.instrument.owners.record(pfn) else { return };
        let before = OwnerState::unpack(record.state.get());
        record.free_ts_nsec.set(self.platform.now());
        record.free_stack.set(self.save_stack());
        let free_cpu = self.platform.this_cpu().cpu.index() as u8;
        record.state.store(OwnerState { allocated: false, free_cpu, ..before }.pack(), Release);
    }

    /// The first `pages` pages of the block at `pfn` go on as pages of their own (`__split_page_owner`).
    #[cold]
    pub(crate) fn split_page_owner(&self, pfn: u32, pages: u32) {
        let Some(head) = self.instrument.owners.record(pfn) else { return };
        let state = OwnerState { order: 0, ..OwnerState::unpack(head.state.get()) };
        head.state.store(state.pack(), Release);
        if !state.allocated {
            return;
        }
        for record in (pfn + 1..pfn + pages).filter_map(|page| self.instrument.owners.record(page)) {
            record.gfp.set(head.gfp.get());
            record.ts_nsec.set(head.ts_nsec.get());
            record.stack.set(head.stack.get());
            let free_cpu = OwnerState::unpack(record.state.get()).free_cpu;
            record.state.store(OwnerState { free_cpu, ..state }.pack(), Release);
        }
    }

    /// The handle of the calls that led here (`stack_depot_save`); 0 when they are not known.
    fn save_stack(&self) -> u32 {
        let mut trace = [0; STACK_DEPTH];
        let len = self.platform.backtrace(&mut trace).min(STACK_DEPTH);
        let Some(trace) = trace.get(..len).filter(|trace| !trace.is_empty()) else { return 0 };
        let hash = hash(trace);
        let owners = &self.instrument.owners;
        match owners.find(hash, trace) {
            Some(Ok(handle)) => handle,
            Some(Err(_)) => self.add_stack(hash, trace),
            None => 0,
        }
    }

    /// Adds a trace, unless another CPU has done so meanwhile.
    #[cold]
    fn add_stack(&self, hash: u32, trace: &[u64]) -> u32 {
        let owners = &self.instrument.owners;
        let flags = self.platform.irq_save();
        sync::lock(&owners.lock, || self.platform.relax());
        let handle = match owners.find(hash, trace) {
            Some(Ok(handle)) => handle,
            Some(Err(handle)) => {
                let stack = &owners.stacks.get()[handle as usize - 1];
                stack.entries.iter().zip(trace).for_each(|(entry, address)| entry.store(*address, Relaxed));
                stack.hash.set(hash);
                stack.len.store(trace.len() as u32, Release);
                handle
            }
            None => 0,
        };
        sync::unlock(&owners.lock);
        self.platform.irq_restore(flags);
        handle
    }
}
