//! Where memblock touches the memory it hands out: to keep a table that outgrew its array, and to clear.
//!
//! The only unsafe code of memblock. Everything goes through one pointer, made once from the base of the direct map
//! (or of a test's arena), and through bounds checked here.
#![allow(unsafe_code, reason = "physical memory is reached through a pointer")]

use core::ptr::NonNull;

use pagevisor_shared::units::PhysAddr;

use super::region::Region;

/// A mapping of physical memory from address 0 up to some end.
#[derive(Debug)]
pub struct PhysWindow {
    base: NonNull<u8>,
    end: u64,
    fresh_is_zero: bool,
}

// SAFETY: the pointer is an address that means the same on every CPU; what is behind it is reached only through
// `&mut Memblock` or shared borrows of it.
unsafe impl Send for PhysWindow {}

impl PhysWindow {
    /// A window over physical addresses `0..end`, with address 0 at `base`. `fresh_is_zero` says that memory nobody
    /// has written since the machine started reads as zero, so that clearing it can be spared.
    ///
    /// # Safety
    /// Whatever the owning [`Memblock`](super::Memblock) is told of as memory (and not marked `NOMAP`) below `end`
    /// is readable and writable at `base` plus its address, at the latest when first touched, for as long as the
    /// memblock lives. Nothing else accesses what memblock has not handed out, nor the tables it placed for itself.
    /// With `fresh_is_zero`, all of it is zero except what is reserved before the first allocation.
    pub const unsafe fn new(base: NonNull<u8>, end: PhysAddr, fresh_is_zero: bool) -> Self {
        Self { base, end: end.raw(), fresh_is_zero }
    }

    /// A window onto nothing, for bookkeeping without memory behind it: tables cannot grow, clearing panics.
    pub const fn closed() -> Self {
        Self { base: NonNull::dangling(), end: 0, fresh_is_zero: false }
    }

    /// Whether memory nobody has written yet reads as zero.
    pub(super) const fn fresh_is_zero(&self) -> bool {
        self.fresh_is_zero
    }

    /// Whether `[addr, addr + size)` can be reached through the window.
    pub(super) const fn covers(&self, addr: u64, size: u64) -> bool {
        match addr.checked_add(size) {
            Some(end) => end <= self.end,
            None => false,
        }
    }

    /// The address behind the window of `[addr, addr + size)`, which must be covered.
    fn at(&mut self, addr: u64, size: u64) -> NonNull<u8> {
        assert!(self.covers(addr, size), "memblock: [{addr:#x}-{:#x}) is not mapped", addr.wrapping_add(size));
        // SAFETY: the range lies inside the window, so the offset stays inside its mapping (contract of `new`).
        unsafe { self.base.add(addr as usize) }
    }

    /// Writes zero to `[addr, addr + size)`, which memblock has just given out.
    pub(super) fn clear(&mut self, addr: PhysAddr, size: u64) {
        let at = self.at(addr.raw(), size);
        // SAFETY: `at` checked the range against the window; it was free memory of this memblock a moment ago, so
        // it is writable and nothing else uses it (contract of `new`).
        unsafe { at.write_bytes(0, size as usize) };
    }

    /// Turns free memory at `addr`, aligned to a page, into a table of `slots` empty regions.
    pub(super) fn table(&mut self, addr: PhysAddr, slots: usize) -> GrownTable {
        let size = slots * size_of::<Region>();
        let first = self.at(addr.raw(), size as u64).cast::<Region>();
        assert!(first.is_aligned(), "memblock: {addr} cannot hold a table");
        for slot in 0..slots {
            // SAFETY: slot `slot` lies inside the range that `at` checked, aligned for a region, and
            // the range is memory of this memblock that nothing else uses (contract of `new`).
            unsafe { first.add(slot).write(Region::EMPTY) };
        }
        GrownTable { first, slots, addr }
    }
}

/// A table of regions in memory that memblock took from itself.
#[derive(Debug)]
pub(super) struct GrownTable {
    first: NonNull<Region>,
    slots: usize,
    addr: PhysAddr,
}

// SAFETY: as for `PhysWindow`: a fixed address, reached only through borrows of the owning memblock.
unsafe impl Send for GrownTable {}

impl GrownTable {
    /// Where the table lies.
    pub(super) const fn addr(&self) -> PhysAddr {
        self.addr
    }

    /// All slots.
    #[inline]
    pub(super) const fn slots(&self) -> &[Region] {
        // SAFETY: `PhysWindow::table` wrote every slot; the memory stays mapped and is used for nothing else while
        // the memblock lives (contract of `PhysWindow::new`), and a region is valid with any content.
        unsafe { core::slice::from_raw_parts(self.first.as_ptr(), self.slots) }
    }

    /// All slots, to change.
    #[inline]
    pub(super) const fn slots_mut(&mut self) -> &mut [Region] {
        // SAFETY: as in `slots`; the exclusive borrow of the one handle to the table makes this the only access.
        unsafe { core::slice::from_raw_parts_mut(self.first.as_ptr(), self.slots) }
    }
}
