//! Per-CPU memory (`mm/percpu.c`): every CPU has an instance of what is allocated, in memory of its own node.
//!
//! | module | what |
//! |---|---|
//! | [`first`] | the first chunk, from memblock: static variables and the first dynamic areas |
//! | `bits`, `hints` | maps of what is allocated; what is known of them without looking |
//! | `area` | areas of a chunk: taken, given back |
//! | `slots` | the chunks, by the size of their largest free area |
//! | `alloc` | allocating and freeing |
//! | `grow`, `balance` | further chunks in the vmalloc space, page by page; giving back what is not needed |
//!
//! [`pagevisor_shared::percpu`] tells how it lies in memory, and what a per-CPU pointer is.
//!
//! # Locks
//! [`PcpuRoot::lock`], with interrupts off, guards all records. Nothing is allocated under it, and no other lock is taken
//! but that of the areas in use ([`crate::vmalloc`]), which know their chunks. Who adds chunks or pages or
//! takes them away holds [`PcpuRoot::alloc_mutex`] meanwhile, without the lock.

mod alloc;
mod area;
mod balance;
mod bits;
pub mod first;
mod grow;
mod hints;
mod slots;

use core::fmt;
use core::sync::atomic::AtomicU32;

use pagevisor_shared::percpu::{PCPU_BLOCK_BITS, PcpuRoot};
use pagevisor_shared::units::{CpuId, PAGE_SIZE, PhysAddr, VirtAddr};

pub use first::{FirstChunk, FirstChunkConfig, setup_per_cpu_areas};

pub(crate) use slots::{NO_SLOT, all as all_chunks, list as slot_list, slot_of};

use crate::Mm;
use crate::platform::{IrqFlags, Platform};
use crate::raw::{Chunk, Maps};
use crate::sync::{self, Plain};

/// What an allocation of per-CPU memory is called by (`void __percpu *`): [`Mm::per_cpu_ptr`] tells where the instance
/// of a CPU is. GS-relative, it is the current CPU's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PerCpuPtr(u64);

impl PerCpuPtr {
    /// The pointer with the number `raw`, which [`Self::raw`] gave.
    #[inline]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// Its number: what is added to the address of a CPU's first unit.
    #[inline(always)]
    pub const fn raw(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for PerCpuPtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PerCpuPtr({:#x})", self.0)
    }
}

/// Per-CPU memory, once there is some.
#[derive(Debug)]
pub(crate) struct PerCpuMemory {
    areas: Option<Areas>,
    /// Failures that are still reported (`warn_limit`).
    warnings: AtomicU32,
}

/// What stays as it is.
#[derive(Clone, Copy, Debug)]
struct Areas {
    root: &'static PcpuRoot,
    /// What is looked at first.
    first: Part,
    /// The slots whose chunks serve allocations: not those of chunks that are being emptied.
    serving: u32,
}

/// Failures that are reported before it is said that no more are.
const WARN_LIMIT: u32 = 10;

impl PerCpuMemory {
    pub(crate) fn new(first: Option<FirstChunk>) -> Self {
        let areas = first.map(|FirstChunk { root, dynamic }| {
            let serving = ((1 << root.sidelined_slot.get()) - 1) | 1 << root.free_slot.get();
            Areas { root, first: dynamic, serving }
        });
        Self { areas, warnings: AtomicU32::new(WARN_LIMIT) }
    }

    /// The record of all, if there is any.
    #[inline(always)]
    fn root(&self) -> Option<&'static PcpuRoot> {
        self.areas.as_ref().map(|areas| areas.root)
    }
}

/// The dynamic part of the first chunk, which stays as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    chunk: Chunk,
    maps: Maps,
    /// The pointer of its first byte.
    start: u64,
    /// Its bytes.
    len: u64,
    /// The bit of its first byte.
    bit: usize,
}

/// The lock, held.
struct Locked<'a, P: Platform> {
    platform: &'static P,
    root: &'a PcpuRoot,
    flags: IrqFlags,
}

impl<'a, P: Platform> Locked<'a, P> {
    #[inline(always)]
    fn new(platform: &'static P, root: &'a PcpuRoot) -> Self {
        let flags = platform.irq_save();
        sync::lock(&root.lock, || platform.relax());
        root.seq.set(root.seq.get().wrapping_add(1));
        // Whoever reads without the lock sees the odd number before anything else that is written here.
        core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
        Self { platform, root, flags }
    }

    #[inline(always)]
    fn unlock(self) {
        self.root.seq.store(self.root.seq.get().wrapping_add(1), core::sync::atomic::Ordering::Release);
        sync::unlock(&self.root.lock);
        self.platform.irq_restore(self.flags);
    }
}

impl<P: Platform> Mm<P> {
    /// Where the instance of CPU `cpu` is (`per_cpu_ptr`).
    #[inline]
    pub fn per_cpu_ptr(&self, ptr: PerCpuPtr, cpu: CpuId) -> VirtAddr {
        let (base, offset) =
            self.percpu.root().map_or((0, 0), |root| (root.base_addr.get(), root.unit_off[cpu.index()].get()));
        VirtAddr::new(base.wrapping_add(offset).wrapping_add(ptr.0))
    }

    /// Where the instance of the current CPU is (`this_cpu_ptr`).
    #[inline]
    pub fn this_cpu_ptr(&self, ptr: PerCpuPtr) -> VirtAddr {
        self.per_cpu_ptr(ptr, self.platform.this_cpu().cpu)
    }

    /// The memory behind the byte at `offset` of CPU `cpu`'s instance (`per_cpu_ptr_to_phys`); `None` when nothing is
    /// allocated there.
    pub fn per_cpu_phys(&self, ptr: PerCpuPtr, offset: u64, cpu: CpuId) -> Option<PhysAddr> {
        let root = self.percpu.root()?;
        let locked = Locked::new(self.platform, root);
        let ptr = PerCpuPtr(ptr.0.wrapping_add(offset));
        let found = self.find_chunk(root, PerCpuPtr(ptr.0 & !3)).and_then(|(chunk, _, at)| {
            let all = self.cpus.len();
            match chunk.pages(all).get(at / PCPU_BLOCK_BITS * all + cpu.index()).map(Plain::get) {
                None => self.phys(self.per_cpu_ptr(ptr, cpu)),
                Some(0) => None,
                Some(frame) => {
                    let addr = chunk.base_addr.get().wrapping_sub(root.base_addr.get());
                    let byte = ptr.0.wrapping_sub(addr) % PAGE_SIZE;
                    Some(PhysAddr::new(u64::from(frame) * PAGE_SIZE + byte))
                }
            }
        });
        locked.unlock();
        found
    }

    /// Pages of per-CPU memory, those of all units together (`pcpu_nr_pages`).
    pub fn pcpu_nr_pages(&self) -> u64 {
        self.percpu.root().map_or(0, |root| root.nr_populated.get() * u64::from(root.nr_units.get()))
    }

    /// The record of all per-CPU memory, for those who look at it.
    pub fn percpu_root(&self) -> Option<&'static PcpuRoot> {
        self.percpu.root()
    }
}
