//! Per-CPU memory: whose an address is.

use std::mem::offset_of;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::NR_CPUS;
use pagevisor_shared::percpu::{ChunkLayout, PCPU_MAX_UNIT_PAGES, PCPU_MIN_ALLOC_SIZE, PcpuChunk, PcpuRoot};
use pagevisor_shared::units::PAGE_SIZE;

use super::StateView;
use super::error::StateError;
use super::slab::Record;

/// Most chunks that are looked at.
const MAX_CHUNKS: usize = 1 << 14;
/// How often the records are read again that a running guest changes meanwhile.
const TRIES: u32 = 100;

/// What there is at an address of per-CPU memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PercpuUse {
    /// The kernel's own variables.
    Static,
    /// An allocation.
    Allocated {
        /// From the unit's start to that of the CPU's instance.
        start: u64,
        /// Bytes of an instance.
        size: u64,
    },
    /// Nobody has allocated it.
    Free,
    /// There is not even memory.
    Unpopulated,
}

/// An address of per-CPU memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PercpuAddress {
    /// Guest-virtual address of the chunk's record; 0 for static variables.
    pub chunk: u64,
    /// The CPU whose it is.
    pub cpu: usize,
    /// Address of the CPU's unit of the chunk.
    pub unit: u64,
    /// From there to the address.
    pub offset: u64,
    /// From what per-CPU pointers count from to unit 0's counterpart of the unit: a pointer is this and an offset.
    pub pointer_base: u64,
    /// What is there.
    pub used: PercpuUse,
}

/// The root, as far as addresses are told by it.
struct Root {
    base: u64,
    unit_size: u64,
    static_size: u64,
    chunks: u64,
    /// By CPU.
    units: Vec<u64>,
}

impl Root {
    fn of(bytes: &[u8], cpus: usize) -> Self {
        let record = Record(bytes);
        let unit = |cpu| record.u64(offset_of!(PcpuRoot, unit_off) + cpu * size_of::<u64>());
        Self {
            base: record.u64(offset_of!(PcpuRoot, base_addr)),
            unit_size: record.u64(offset_of!(PcpuRoot, unit_size)),
            static_size: record.u64(offset_of!(PcpuRoot, static_size)),
            chunks: record.u64(offset_of!(PcpuRoot, chunks)),
            units: (0..cpus.min(NR_CPUS)).map(unit).collect(),
        }
    }

    /// The CPU in whose unit `address` lies, of units that start at `base` and have `len` bytes, and the unit.
    fn unit_at(&self, base: u64, len: u64, address: u64) -> Option<(usize, u64)> {
        let mut units = self.units.iter().map(|unit| base.wrapping_add(*unit)).enumerate();
        units.find(|(_, start)| address.wrapping_sub(*start) < len)
    }
}

impl StateView {
    /// Copies a record of the direct map; `false` when it is not in memory.
    fn read_direct(&self, address: u64, bytes: &mut [u8]) -> Result<bool, StateError> {
        let Some(gpa) = address.checked_sub(self.roots().page_offset) else { return Ok(false) };
        match self.memory().read(gpa, bytes) {
            Err(error) if error.is_corrupt() => Ok(false),
            read => read.map(|()| true),
        }
    }

    /// What `address` is of per-CPU memory; `None` when it is something else. Damaged records are no per-CPU memory.
    ///
    /// # Errors
    /// When the guest's memory cannot be read.
    pub fn percpu_at(&self, address: u64) -> Result<Option<PercpuAddress>, StateError> {
        let root_address = self.region().header().roots.percpu.load(Relaxed);
        let mut bytes = vec![0; size_of::<PcpuRoot>()];
        for _ in 0..TRIES {
            if root_address == 0 || !self.read_direct(root_address, &mut bytes)? {
                return Ok(None);
            }
            let seq = Record(&bytes).u32(offset_of!(PcpuRoot, seq));
            let found = self.percpu_of(&Root::of(&bytes, self.region().nr_cpus()), address)?;
            if !self.read_direct(root_address, &mut bytes)? {
                return Ok(None);
            }
            if seq & 1 == 0 && Record(&bytes).u32(offset_of!(PcpuRoot, seq)) == seq {
                return Ok(found);
            }
            std::thread::yield_now();
        }
        Ok(None)
    }

    fn percpu_of(&self, root: &Root, address: u64) -> Result<Option<PercpuAddress>, StateError> {
        if let Some((cpu, unit)) = root.unit_at(root.base, root.static_size.min(root.unit_size), address) {
            let (offset, used) = (address.wrapping_sub(unit), PercpuUse::Static);
            return Ok(Some(PercpuAddress { chunk: 0, cpu, unit, offset, pointer_base: 0, used }));
        }
        let mut chunk = root.chunks;
        for _ in 0..MAX_CHUNKS {
            let mut head = [0; size_of::<PcpuChunk>()];
            if chunk == 0 || !self.read_direct(chunk, &mut head)? {
                break;
            }
            if let Some(found) = self.percpu_in_chunk(root, chunk, Record(&head), address)? {
                return Ok(Some(found));
            }
            chunk = Record(&head).u64(offset_of!(PcpuChunk, all_next));
        }
        Ok(None)
    }

    fn percpu_in_chunk(
        &self,
        root: &Root,
        chunk: u64,
        head: Record<'_>,
        address: u64,
    ) -> Result<Option<PercpuAddress>, StateError> {
        let pages = head.u32(offset_of!(PcpuChunk, nr_pages)) as usize;
        let len = pages as u64 * PAGE_SIZE;
        if pages == 0 || pages > PCPU_MAX_UNIT_PAGES || len > root.unit_size {
            return Ok(None);
        }
        let base = head.u64(offset_of!(PcpuChunk, base_addr));
        let Some((cpu, unit)) = root.unit_at(base, len, address) else { return Ok(None) };
        let offset = address.wrapping_sub(unit);
        let (before, behind) =
            (head.u32(offset_of!(PcpuChunk, start_offset)), head.u32(offset_of!(PcpuChunk, end_offset)));
        if offset < before.into() || offset >= len.saturating_sub(behind.into()) {
            return Ok(None);
        }
        let layout = ChunkLayout::new(pages);
        let mut maps = vec![0; layout.size];
        if !self.read_direct(chunk, &mut maps)? {
            return Ok(None);
        }
        let bit =
            |map: usize, bit: u64| maps.get(map + bit as usize / 8).is_some_and(|byte| byte >> (bit % 8) & 1 != 0);
        let (taken, starts) = (|at| bit(layout.alloc_map, at), |at| bit(layout.bound_map, at));
        let at = offset / PCPU_MIN_ALLOC_SIZE;
        let used = if !bit(layout.populated, offset / PAGE_SIZE) {
            PercpuUse::Unpopulated
        } else if !taken(at) {
            PercpuUse::Free
        } else {
            let start = (0..=at).rev().find(|at| starts(*at)).unwrap_or(0);
            let end = (start + 1..len / PCPU_MIN_ALLOC_SIZE).find(|at| starts(*at) || !taken(*at));
            let end = end.unwrap_or(len / PCPU_MIN_ALLOC_SIZE);
            PercpuUse::Allocated { start: start * PCPU_MIN_ALLOC_SIZE, size: (end - start) * PCPU_MIN_ALLOC_SIZE }
        };
        let pointer_base = PcpuRoot::pointer(root.base, base);
        Ok(Some(PercpuAddress { chunk, cpu, unit, offset, pointer_base, used }))
    }
}
