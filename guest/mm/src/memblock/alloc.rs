//! Allocation: `memblock_phys_alloc*`, which return an address, and `memblock_alloc*`, which also clear.

use core::fmt;

use pagevisor_shared::units::{NodeId, PhysAddr};

use super::region::MemblockFlags;
use super::{
    ARCH_LOW_ADDRESS_LIMIT, MEMBLOCK_ALLOC_ACCESSIBLE, MEMBLOCK_LOW_LIMIT, Memblock, SMP_CACHE_BYTES, capped_end,
};

/// An allocation found no place. Prints as Linux's callers do before they panic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocError {
    /// Bytes asked for.
    pub size: u64,
    /// Alignment asked for.
    pub align: u64,
    /// Lowest address asked for.
    pub from: PhysAddr,
    /// Bound asked for; 0 is the current limit.
    pub max_addr: PhysAddr,
    /// Node asked for.
    pub nid: Option<NodeId>,
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failed to allocate {} bytes align={:#x} nid=", self.size, self.align)?;
        match self.nid {
            Some(nid) => write!(f, "{}", nid.index())?,
            // NUMA_NO_NODE
            None => f.write_str("-1")?,
        }
        write!(f, " from={:#x} max_addr={:#x}", self.from.raw(), self.max_addr.raw())
    }
}

impl core::error::Error for AllocError {}

/// What an allocation asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) size: u64,
    pub(super) align: u64,
    pub(super) min_addr: PhysAddr,
    pub(super) max_addr: PhysAddr,
    pub(super) nid: Option<NodeId>,
    pub(super) exact_nid: bool,
}

impl Request {
    pub(super) const fn new(size: u64, align: u64) -> Self {
        Self {
            size,
            align,
            min_addr: MEMBLOCK_LOW_LIMIT,
            max_addr: MEMBLOCK_ALLOC_ACCESSIBLE,
            nid: None,
            exact_nid: false,
        }
    }

    const fn between(self, min_addr: PhysAddr, max_addr: PhysAddr) -> Self {
        Self { min_addr, max_addr, ..self }
    }

    const fn on(self, nid: Option<NodeId>) -> Self {
        Self { nid, ..self }
    }

    const fn failed(self) -> AllocError {
        AllocError { size: self.size, align: self.align, from: self.min_addr, max_addr: self.max_addr, nid: self.nid }
    }
}

type Allocated = Result<PhysAddr, AllocError>;

/// # Errors
/// Every call here fails with [`AllocError`] if no free range fits.
impl Memblock {
    /// `size` bytes aligned to `align` (0: a cache line), anywhere below the current limit
    /// (`memblock_phys_alloc`). Not cleared.
    pub fn phys_alloc(&mut self, size: u64, align: u64) -> Allocated {
        self.alloc_range_nid(Request::new(size, align))
    }

    /// As [`Self::phys_alloc`], inside `[start, end)` (`memblock_phys_alloc_range`).
    pub fn phys_alloc_range(&mut self, size: u64, align: u64, start: PhysAddr, end: PhysAddr) -> Allocated {
        self.alloc_range_nid(Request::new(size, align).between(start, end))
    }

    /// As [`Self::phys_alloc`], on node `nid` if possible, else on any (`memblock_phys_alloc_try_nid`).
    pub fn phys_alloc_try_nid(&mut self, size: u64, align: u64, nid: Option<NodeId>) -> Allocated {
        self.alloc_range_nid(Request::new(size, align).on(nid))
    }

    /// `size` bytes inside `[start, end)` on node `nid`; with `exact_nid` on no other
    /// (`memblock_alloc_range_nid`). Not cleared.
    pub fn phys_alloc_range_nid(
        &mut self,
        size: u64,
        align: u64,
        start: PhysAddr,
        end: PhysAddr,
        nid: Option<NodeId>,
        exact_nid: bool,
    ) -> Allocated {
        self.alloc_range_nid(Request { exact_nid, ..Request::new(size, align).between(start, end).on(nid) })
    }

    /// `size` bytes aligned to `align` (0: a cache line), reading as zero (`memblock_alloc`).
    pub fn alloc(&mut self, size: u64, align: u64) -> Allocated {
        self.alloc_cleared(Request::new(size, align))
    }

    /// As [`Self::alloc`], not cleared (`memblock_alloc_raw`).
    pub fn alloc_raw(&mut self, size: u64, align: u64) -> Allocated {
        self.alloc_internal(Request::new(size, align))
    }

    /// As [`Self::alloc`], from `min_addr` up if possible, else anywhere (`memblock_alloc_from`).
    pub fn alloc_from(&mut self, size: u64, align: u64, min_addr: PhysAddr) -> Allocated {
        self.alloc_cleared(Request::new(size, align).between(min_addr, MEMBLOCK_ALLOC_ACCESSIBLE))
    }

    /// As [`Self::alloc`], below 4 GiB (`memblock_alloc_low`).
    pub fn alloc_low(&mut self, size: u64, align: u64) -> Allocated {
        self.alloc_cleared(Request::new(size, align).between(MEMBLOCK_LOW_LIMIT, ARCH_LOW_ADDRESS_LIMIT))
    }

    /// As [`Self::alloc`], on node `nid` if possible, else on any (`memblock_alloc_node`).
    pub fn alloc_node(&mut self, size: u64, align: u64, nid: Option<NodeId>) -> Allocated {
        self.alloc_cleared(Request::new(size, align).on(nid))
    }

    /// `size` cleared bytes inside `[min_addr, max_addr)` on node `nid`; if none are free there, on any node; if none
    /// there, below `min_addr` in the same order (`memblock_alloc_try_nid`).
    pub fn alloc_try_nid(
        &mut self,
        size: u64,
        align: u64,
        min_addr: PhysAddr,
        max_addr: PhysAddr,
        nid: Option<NodeId>,
    ) -> Allocated {
        self.alloc_cleared(Request::new(size, align).between(min_addr, max_addr).on(nid))
    }

    /// As [`Self::alloc_try_nid`], not cleared (`memblock_alloc_try_nid_raw`).
    pub fn alloc_try_nid_raw(
        &mut self,
        size: u64,
        align: u64,
        min_addr: PhysAddr,
        max_addr: PhysAddr,
        nid: Option<NodeId>,
    ) -> Allocated {
        self.alloc_internal(Request::new(size, align).between(min_addr, max_addr).on(nid))
    }

    /// As [`Self::alloc_try_nid_raw`], on no other node (`memblock_alloc_exact_nid_raw`).
    pub fn alloc_exact_nid_raw(
        &mut self,
        size: u64,
        align: u64,
        min_addr: PhysAddr,
        max_addr: PhysAddr,
        nid: Option<NodeId>,
    ) -> Allocated {
        let request = Request::new(size, align).between(min_addr, max_addr).on(nid);
        self.alloc_internal(Request { exact_nid: true, ..request })
    }

    /// `memblock_alloc_range_nid`: the node, then any node, each first in mirrored memory where there is some.
    fn alloc_range_nid(&mut self, request: Request) -> Allocated {
        let align = if request.align == 0 { SMP_CACHE_BYTES } else { request.align };
        let mut flags = self.choose_flags();
        loop {
            let any_node = (request.nid.is_some() && !request.exact_nid).then_some(None);
            for nid in core::iter::once(request.nid).chain(any_node) {
                let (start, end) = (request.min_addr, request.max_addr);
                let found = self.find_in_range_node(request.size, align, start, end, nid, flags);
                if let Some(addr) = found
                    && self.reserve(addr, request.size).is_ok()
                {
                    return Ok(addr);
                }
            }
            if !flags.contains(MemblockFlags::MIRROR) {
                return Err(request.failed());
            }
            flags = flags.without(MemblockFlags::MIRROR);
            self.warn_no_mirror(request.size);
        }
    }

    /// `memblock_alloc_internal`: never above the current limit; gives up `min_addr` rather than fail.
    pub(super) fn alloc_internal(&mut self, request: Request) -> Allocated {
        let max_addr = PhysAddr::new(request.max_addr.raw().min(self.current_limit));
        let first = self.alloc_range_nid(Request { max_addr, ..request });
        if first.is_ok() || request.min_addr == MEMBLOCK_LOW_LIMIT {
            return first.map_err(|_| request.failed());
        }
        let second = Request { min_addr: MEMBLOCK_LOW_LIMIT, max_addr, ..request };
        self.alloc_range_nid(second).map_err(|_| request.failed())
    }

    pub(super) fn alloc_cleared(&mut self, request: Request) -> Allocated {
        let addr = self.alloc_internal(request)?;
        self.clear_unless_fresh(addr, request.size);
        Ok(addr)
    }

    /// Clears what has just been allocated, unless it reads as zero anyway.
    pub(crate) fn clear_unless_fresh(&mut self, addr: PhysAddr, size: u64) {
        let end = capped_end(addr, size);
        let untouched = end <= self.used.start || self.used.end <= addr.raw();
        if size > 0 && !(self.window.fresh_is_zero() && untouched) {
            self.window.clear(addr, size);
        }
    }
}
