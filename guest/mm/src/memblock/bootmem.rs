//! The classic boot-time calls (`alloc_bootmem` and its family), on top of memblock.
//!
//! Each takes a size; alignment, goal, limit and node are in its name or in [`Bootmem`]. The goal is the address from
//! which memory is wanted: it is given up rather than to fail, the limit is not. All memory reads as zero. The plain
//! calls panic when there is no memory, as boot cannot go on; those named `_nopanic` return `None`.

use pagevisor_shared::units::{NodeId, PAGE_SIZE, PhysAddr};

use super::alloc::Request;
use super::{
    ARCH_LOW_ADDRESS_LIMIT, AllocError, Level, MEMBLOCK_ALLOC_ACCESSIBLE, MEMBLOCK_LOW_LIMIT, Memblock, SMP_CACHE_BYTES,
};

/// The goal of calls that name none (`BOOTMEM_LOW_LIMIT`): above the memory that old DMA engines reach.
pub const BOOTMEM_LOW_LIMIT: PhysAddr = PhysAddr::new(16 << 20);

/// A request of any form; the named calls are shorthands for it.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Bootmem(Request);

impl Bootmem {
    /// `size` bytes, aligned to a cache line, preferably above [`BOOTMEM_LOW_LIMIT`], on any node.
    pub const fn new(size: u64) -> Self {
        Self(Request { min_addr: BOOTMEM_LOW_LIMIT, ..Request::new(size, SMP_CACHE_BYTES) })
    }

    /// Aligned to the power of two `align`; 0 means a cache line.
    pub const fn align(self, align: u64) -> Self {
        Self(Request { align, ..self.0 })
    }

    /// From `goal` up, if possible.
    pub const fn goal(self, goal: PhysAddr) -> Self {
        Self(Request { min_addr: goal, ..self.0 })
    }

    /// Below `limit` and the current limit; [`MEMBLOCK_ALLOC_ACCESSIBLE`] leaves the latter alone.
    pub const fn limit(self, limit: PhysAddr) -> Self {
        Self(Request { max_addr: limit, ..self.0 })
    }

    /// On `node` if possible, else on any.
    pub const fn node(self, node: NodeId) -> Self {
        Self(Request { nid: Some(node), exact_nid: false, ..self.0 })
    }

    /// On `node` and no other.
    pub const fn node_exact(self, node: NodeId) -> Self {
        Self(Request { nid: Some(node), exact_nid: true, ..self.0 })
    }

    /// Below 4 GiB, without a goal.
    const fn low(self) -> Self {
        self.goal(MEMBLOCK_LOW_LIMIT).limit(ARCH_LOW_ADDRESS_LIMIT)
    }

    const fn pages(self) -> Self {
        self.align(PAGE_SIZE)
    }

    /// Serves the request.
    ///
    /// # Errors
    /// [`AllocError`] if no free range fits.
    pub fn try_alloc(self, memblock: &mut Memblock) -> Result<PhysAddr, AllocError> {
        memblock.alloc_cleared(self.0)
    }

    /// Serves the request.
    ///
    /// # Panics
    /// `Out of memory` if no free range fits, after a line in the log that names the size.
    pub fn alloc(self, memblock: &mut Memblock) -> PhysAddr {
        self.try_alloc(memblock).unwrap_or_else(|error| {
            memblock.say(Level::Alert, format_args!("bootmem alloc of {} bytes failed!", error.size));
            panic!("Out of memory: {error}")
        })
    }
}

/// # Panics
/// The calls without `_nopanic` panic if no free range fits.
impl Memblock {
    /// `alloc_bootmem`
    pub fn alloc_bootmem(&mut self, size: u64) -> PhysAddr {
        Bootmem::new(size).alloc(self)
    }

    /// `alloc_bootmem_align`
    pub fn alloc_bootmem_align(&mut self, size: u64, align: u64) -> PhysAddr {
        Bootmem::new(size).align(align).alloc(self)
    }

    /// `alloc_bootmem_nopanic`
    pub fn alloc_bootmem_nopanic(&mut self, size: u64) -> Option<PhysAddr> {
        Bootmem::new(size).try_alloc(self).ok()
    }

    /// `alloc_bootmem_pages`: aligned to a page.
    pub fn alloc_bootmem_pages(&mut self, size: u64) -> PhysAddr {
        Bootmem::new(size).pages().alloc(self)
    }

    /// `alloc_bootmem_pages_nopanic`
    pub fn alloc_bootmem_pages_nopanic(&mut self, size: u64) -> Option<PhysAddr> {
        Bootmem::new(size).pages().try_alloc(self).ok()
    }

    /// `alloc_bootmem_low`: below 4 GiB.
    pub fn alloc_bootmem_low(&mut self, size: u64) -> PhysAddr {
        Bootmem::new(size).low().alloc(self)
    }

    /// `alloc_bootmem_low_pages`
    pub fn alloc_bootmem_low_pages(&mut self, size: u64) -> PhysAddr {
        Bootmem::new(size).low().pages().alloc(self)
    }

    /// `alloc_bootmem_low_pages_nopanic`
    pub fn alloc_bootmem_low_pages_nopanic(&mut self, size: u64) -> Option<PhysAddr> {
        Bootmem::new(size).low().pages().try_alloc(self).ok()
    }

    /// `alloc_bootmem_node`: on `node` if possible, else on any.
    pub fn alloc_bootmem_node(&mut self, node: NodeId, size: u64) -> PhysAddr {
        Bootmem::new(size).node(node).alloc(self)
    }

    /// `alloc_bootmem_node_nopanic`
    pub fn alloc_bootmem_node_nopanic(&mut self, node: NodeId, size: u64) -> Option<PhysAddr> {
        Bootmem::new(size).node(node).try_alloc(self).ok()
    }

    /// `alloc_bootmem_pages_node`
    pub fn alloc_bootmem_pages_node(&mut self, node: NodeId, size: u64) -> PhysAddr {
        Bootmem::new(size).node(node).pages().alloc(self)
    }

    /// `alloc_bootmem_pages_node_nopanic`
    pub fn alloc_bootmem_pages_node_nopanic(&mut self, node: NodeId, size: u64) -> Option<PhysAddr> {
        Bootmem::new(size).node(node).pages().try_alloc(self).ok()
    }

    /// `alloc_bootmem_low_pages_node`
    pub fn alloc_bootmem_low_pages_node(&mut self, node: NodeId, size: u64) -> PhysAddr {
        Bootmem::new(size).node(node).low().pages().alloc(self)
    }

    /// `__alloc_bootmem`: aligned to `align`, from `goal` up if possible.
    pub fn alloc_bootmem_goal(&mut self, size: u64, align: u64, goal: PhysAddr) -> PhysAddr {
        Bootmem::new(size).align(align).goal(goal).limit(MEMBLOCK_ALLOC_ACCESSIBLE).alloc(self)
    }
}
