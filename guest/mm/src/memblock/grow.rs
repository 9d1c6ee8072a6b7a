//! A table that is full moves to a larger place (`memblock_double_array`).

use core::ops::Range;

use pagevisor_shared::units::{PAGE_SIZE, PhysAddr};

use super::region::Region;
use super::{Kind, Level, Memblock, TableFull};

impl Memblock {
    /// Moves a table to one of twice the size, in memory of its own (`memblock_double_array`).
    ///
    /// `pending` is a range about to be reserved; the new place of the reserved table must not be in it. Above it is
    /// tried first, then below.
    pub(super) fn double_array(&mut self, kind: Kind, pending: Range<u64>) -> Result<(), TableFull> {
        if !self.can_resize {
            return Err(TableFull(kind));
        }
        let slots = self.table(kind).capacity();
        let size = table_bytes(slots * 2);
        let avoid = if kind == Kind::Reserved { pending } else { 0..0 };
        let limit = self.current_limit;
        let mut found = self.find_in_range(PhysAddr::new(avoid.end), PhysAddr::new(limit), size, PAGE_SIZE);
        if found.is_none() && !avoid.is_empty() {
            found = self.find_in_range(PhysAddr::new(0), PhysAddr::new(avoid.start.min(limit)), size, PAGE_SIZE);
        }
        let Some(addr) = found.filter(|addr| self.window.covers(addr.raw(), size)) else {
            self.say(
                Level::Err,
                format_args!(
                    "memblock: Failed to double {} array from {slots} to {} entries !",
                    kind.name(),
                    slots * 2
                ),
            );
            return Err(TableFull(kind));
        };
        if self.debug {
            let last = addr.raw() + (slots * 2 * size_of::<Region>()) as u64 - 1;
            self.say(
                Level::Info,
                format_args!(
                    "memblock: {} is doubled to {} at [{:#018x}-{last:#018x}]",
                    kind.name(),
                    slots * 2,
                    addr.raw()
                ),
            );
        }
        // The memory table may wait until its new place is reserved. The reserved table has room for that only once it
        // has moved; then it cannot fail.
        if kind == Kind::Memory {
            self.reserve(addr, size)?;
        }
        let larger = self.window.table(addr, slots * 2);
        let old = self.table_mut(kind).move_to(larger);
        if kind == Kind::Reserved {
            self.reserve(addr, size)?;
        }
        if let Some(old) = old {
            // Without room to split a region the old place stays reserved, as in Linux.
            let _ = self.phys_free(old.addr(), table_bytes(slots));
        }
        Ok(())
    }
}

/// Bytes of whole pages that a table of `slots` regions takes.
pub(super) const fn table_bytes(slots: usize) -> u64 {
    ((slots * size_of::<Region>()) as u64).next_multiple_of(PAGE_SIZE)
}
