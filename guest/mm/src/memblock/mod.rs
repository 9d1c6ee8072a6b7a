//! The allocator of early boot (`mm/memblock.c`): what memory there is, and what of it is taken.
//!
//! Two tables of regions, *memory* and *reserved*. Memory may overlap reserved in any way; free is what is memory and
//! not reserved. Boot adds what the firmware reports, reserves what is in use (the kernel image, the initrd, tables),
//! sets node ids, allows the tables to grow, allocates, and at last hands all free ranges to the buddy allocator.
//!
//! ```
//! use pagevisor_mm::memblock::{Memblock, PhysWindow};
//! use pagevisor_shared::units::PhysAddr;
//!
//! let mut memblock = Memblock::new(PhysWindow::closed());
//! memblock.add(PhysAddr::new(1 << 20), 64 << 20)?;
//! memblock.reserve(PhysAddr::new(16 << 20), 2 << 20)?;
//! let table = memblock.phys_alloc(4096, 4096)?;
//! assert_eq!(table, PhysAddr::new((65 << 20) - 4096), "top-down unless asked otherwise");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! - [`Memblock`] here: the tables and everything that changes them;
//! - `query`: questions about addresses and sizes;
//! - `iter`: walks over ranges; `find`: the search for a free range;
//! - `grow`: a table that is full moves to a larger place;
//! - `alloc`: `memblock_phys_alloc*` and `memblock_alloc*`; [`bootmem`]: the `alloc_bootmem` family;
//! - `table`, `region`: a sorted table of regions; `raw`: the one place that touches memory.
//!
//! Linux 6.1 is followed case by case. Where it returns 0 for failure, these return an error that prints Linux's
//! message. Three differences, none visible in what is placed where: neighbours are merged around a change instead of
//! in the whole table; `trim_memory` keeps the total right; a table that grows reserves its new place before it frees
//! the old one.

mod alloc;
pub mod bootmem;
mod find;
mod grow;
mod iter;
mod query;
mod raw;
mod region;
mod table;

use core::fmt;
use core::ops::Range;

use pagevisor_shared::units::{NodeId, PhysAddr};

pub use alloc::AllocError;
pub use iter::{FreeRanges, FreeRangesRev, FreeWalk, MemRange, PfnRange};
pub use raw::PhysWindow;
pub use region::{MemblockFlags, Region};
pub use table::INIT_MEMBLOCK_REGIONS;

use crate::platform::Level;
use table::Table;

/// As the end of a search: no limit (`MEMBLOCK_ALLOC_ANYWHERE`).
pub const MEMBLOCK_ALLOC_ANYWHERE: PhysAddr = PhysAddr::new(u64::MAX);
/// As the end of a search: the current limit (`MEMBLOCK_ALLOC_ACCESSIBLE`).
pub const MEMBLOCK_ALLOC_ACCESSIBLE: PhysAddr = PhysAddr::new(0);
/// As the start of a search: from the first page (`MEMBLOCK_LOW_LIMIT`).
pub const MEMBLOCK_LOW_LIMIT: PhysAddr = PhysAddr::new(0);
/// Alignment of an allocation that asks for none (`SMP_CACHE_BYTES`).
pub const SMP_CACHE_BYTES: u64 = 64;
/// The first address too high for a low allocation (`ARCH_LOW_ADDRESS_LIMIT`), 4 GiB - 1.
pub const ARCH_LOW_ADDRESS_LIMIT: PhysAddr = PhysAddr::new(0xffff_ffff);

/// Which table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The memory there is.
    Memory,
    /// What of it is taken.
    Reserved,
}

impl Kind {
    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Reserved => "reserved",
        }
    }
}

/// A table is full and may not grow, or finds no place to grow to (`-ENOMEM`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableFull(
    /// The table.
    pub Kind,
);

impl fmt::Display for TableFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memblock: no room in the {} array", self.0.name())
    }
}

impl core::error::Error for TableFull {}

/// The early allocator (`struct memblock`).
#[derive(Debug)]
pub struct Memblock {
    memory: Table,
    reserved: Table,
    window: PhysWindow,
    bottom_up: bool,
    current_limit: u64,
    can_resize: bool,
    movable_node: bool,
    mirrored_kernelcore: bool,
    has_some_mirror: bool,
    debug: bool,
    log: Option<fn(Level, fmt::Arguments<'_>)>,
    /// Hull of everything that was reserved once and freed again: memory there may have been written.
    used: Range<u64>,
}

impl Memblock {
    /// A memblock that knows no memory. It clears what it allocates, and keeps tables that outgrow their arrays,
    /// through `window`.
    pub const fn new(window: PhysWindow) -> Self {
        Self {
            memory: Table::new(),
            reserved: Table::new(),
            window,
            bottom_up: false,
            current_limit: u64::MAX,
            can_resize: false,
            movable_node: false,
            mirrored_kernelcore: false,
            has_some_mirror: false,
            debug: false,
            log: None,
            used: 0..0,
        }
    }

    /// Where messages go; nowhere at first. With `debug` every change is reported (`memblock=debug`).
    pub fn set_log(&mut self, log: fn(Level, fmt::Arguments<'_>), debug: bool) {
        self.log = Some(log);
        self.debug = debug;
    }

    /// Lets the tables grow (`memblock_allow_resize`). To be called once all that must not be handed out is
    /// reserved: a larger table goes to memory that is free at that moment.
    pub fn allow_resize(&mut self) {
        self.can_resize = true;
    }

    /// Searches from low addresses up, or from high ones down, the default (`memblock_set_bottom_up`).
    pub fn set_bottom_up(&mut self, enable: bool) {
        self.bottom_up = enable;
    }

    /// Bounds allocations that name no end of their own (`memblock_set_current_limit`).
    pub fn set_current_limit(&mut self, limit: PhysAddr) {
        self.current_limit = limit.raw();
    }

    /// Keeps allocations out of hot-pluggable memory (`movable_node`).
    pub fn set_movable_node(&mut self, enabled: bool) {
        self.movable_node = enabled;
    }

    /// Makes [`Self::mark_mirror`] effective (`kernelcore=mirror`).
    pub fn set_mirrored_kernelcore(&mut self, enabled: bool) {
        self.mirrored_kernelcore = enabled;
    }

    const fn table(&self, kind: Kind) -> &Table {
        match kind {
            Kind::Memory => &self.memory,
            Kind::Reserved => &self.reserved,
        }
    }

    const fn table_mut(&mut self, kind: Kind) -> &mut Table {
        match kind {
            Kind::Memory => &mut self.memory,
            Kind::Reserved => &mut self.reserved,
        }
    }

    /// Adds memory of no node (`memblock_add`). What overlaps known memory changes nothing there.
    ///
    /// # Errors
    /// [`TableFull`], nothing added.
    pub fn add(&mut self, base: PhysAddr, size: u64) -> Result<(), TableFull> {
        self.report("memblock_add", base, size);
        self.add_range(Kind::Memory, base, size, None, MemblockFlags::NONE)
    }

    /// Adds memory of node `nid` with `flags` (`memblock_add_node`).
    ///
    /// # Errors
    /// [`TableFull`], nothing added.
    pub fn add_node(&mut self, base: PhysAddr, size: u64, nid: NodeId, flags: MemblockFlags) -> Result<(), TableFull> {
        self.report("memblock_add_node", base, size);
        self.add_range(Kind::Memory, base, size, Some(nid), flags)
    }

    /// Forgets memory (`memblock_remove`).
    ///
    /// # Errors
    /// [`TableFull`]: removing from the middle of a region makes two of it.
    pub fn remove(&mut self, base: PhysAddr, size: u64) -> Result<(), TableFull> {
        self.report("memblock_remove", base, size);
        self.remove_range(Kind::Memory, base, size)
    }

    /// Marks a range as taken, whether there is memory or not (`memblock_reserve`).
    ///
    /// # Errors
    /// [`TableFull`], nothing reserved.
    pub fn reserve(&mut self, base: PhysAddr, size: u64) -> Result<(), TableFull> {
        self.report("memblock_reserve", base, size);
        self.add_range(Kind::Reserved, base, size, None, MemblockFlags::NONE)
    }

    /// Gives back a range, allocated or reserved (`memblock_phys_free`).
    ///
    /// # Errors
    /// [`TableFull`]: freeing the middle of a region makes two of it.
    pub fn phys_free(&mut self, base: PhysAddr, size: u64) -> Result<(), TableFull> {
        self.report("memblock_phys_free", base, size);
        self.remove_range(Kind::Reserved, base, size)
    }

    /// Marks memory as hot-pluggable (`memblock_mark_hotplug`).
    ///
    /// # Errors
    /// [`TableFull`], nothing marked.
    pub fn mark_hotplug(&mut self, base: PhysAddr, size: u64) -> Result<(), TableFull> {
        self.set_or_clear(base, size, MemblockFlags::HOTPLUG, true)
    }

    /// Marks memory as not hot-pluggable (`memblock_clear_hotplug`).
    ///
    /// # Errors
    /// [`TableFull`], nothing changed.
    pub fn clear_hotplug(&mut self, base: PhysAddr, size: u64) -> Result<(), TableFull> {
        self.set_or_clear(base, size, MemblockFlags::HOTPLUG, false)
    }

    /// Marks memory as mirrored, if mirroring is asked for (`memblock_mark_mirror`). From then on allocations try
    /// mirrored memory first.
    ///
    /// # Errors
    /// [`TableFull`], nothing marked.
    pub fn mark_mirror(&mut self, base: PhysAddr, size: u64) -> Result<(), TableFull> {
        if !self.mirrored_kernelcore {
            return Ok(());
        }
        self.has_some_mirror = true;
        self.set_or_clear(base, size, MemblockFlags::MIRROR, true)
    }

    /// Keeps memory out of the direct map and of allocations (`memblock_mark_nomap`).
    ///
    /// # Errors
    /// [`TableFull`], nothing marked.
    pub fn mark_nomap(&mut self, base: PhysAddr, size: u64) -> Result<(), TableFull> {
        self.set_or_clear(base, size, MemblockFlags::NOMAP, true)
    }

    /// Undoes [`Self::mark_nomap`] (`memblock_clear_nomap`).
    ///
    /// # Errors
    /// [`TableFull`], nothing changed.
    pub fn clear_nomap(&mut self, base: PhysAddr, size: u64) -> Result<(), TableFull> {
        self.set_or_clear(base, size, MemblockFlags::NOMAP, false)
    }

    /// Sets the node of what is known in a range (`memblock_set_node`).
    ///
    /// # Errors
    /// [`TableFull`], nothing changed.
    pub fn set_node(&mut self, base: PhysAddr, size: u64, kind: Kind, nid: Option<NodeId>) -> Result<(), TableFull> {
        self.change(kind, base, size, |region| region.set_nid(nid))
    }

    /// Shrinks every memory region to multiples of `align`, a power of two (`memblock_trim_memory`).
    pub fn trim_memory(&mut self, align: u64) {
        assert!(align.is_power_of_two(), "memblock: alignment {align:#x} is not a power of two");
        self.memory.trim(align);
    }

    /// Forgets everything outside `[base, base + size)`, but for memory marked `NOMAP`
    /// (`memblock_cap_memory_range`).
    pub fn cap_memory_range(&mut self, base: PhysAddr, size: u64) {
        if size == 0 {
            return;
        }
        if self.memory.total() == 0 {
            self.warn(format_args!("memblock_cap_memory_range: No memory registered yet"));
            return;
        }
        let Ok(inside) = self.isolate(Kind::Memory, base, size) else { return };
        for index in (inside.end..self.memory.regions().len()).rev().chain((0..inside.start).rev()) {
            if !self.memory.regions()[index].is_nomap() {
                self.memory.remove(index..index + 1);
            }
        }
        // A region that must stay may have been split at the edge of the range.
        self.memory.merge(0, self.memory.regions().len());
        let end = PhysAddr::new(capped_end(base, size));
        // Cutting at the ends of a table splits nothing in two, so neither call can run out of room for good; a
        // full table that cannot grow keeps its regions, as in Linux.
        let _ = self.remove_range(Kind::Reserved, PhysAddr::new(0), base.raw());
        let _ = self.remove_range(Kind::Reserved, end, u64::MAX);
    }

    /// Forgets all but the lowest `limit` bytes of memory (`memblock_enforce_memory_limit`, the `mem=` option).
    pub fn enforce_memory_limit(&mut self, limit: u64) {
        if let Some(end) = self.end_of_first(limit) {
            let _ = self.remove_range(Kind::Memory, end, u64::MAX);
            let _ = self.remove_range(Kind::Reserved, end, u64::MAX);
        }
    }

    /// As [`Self::enforce_memory_limit`], but keeps memory marked `NOMAP` (`memblock_mem_limit_remove_map`).
    pub fn mem_limit_remove_map(&mut self, limit: u64) {
        if let Some(end) = self.end_of_first(limit) {
            self.cap_memory_range(PhysAddr::new(0), end.raw());
        }
    }

    /// The address at which the lowest `limit` bytes of memory end, unless that is all there is
    /// (`__find_max_addr`).
    fn end_of_first(&self, limit: u64) -> Option<PhysAddr> {
        let mut left = limit;
        if limit == 0 {
            return None;
        }
        for region in self.memory.regions() {
            if left <= region.size() {
                return region.base().checked_add(left);
            }
            left -= region.size();
        }
        None
    }

    /// Adds what of a range is not in the table yet (`memblock_add_range`).
    fn add_range(
        &mut self,
        kind: Kind,
        base: PhysAddr,
        size: u64,
        nid: Option<NodeId>,
        flags: MemblockFlags,
    ) -> Result<(), TableFull> {
        let (start, end) = (base.raw(), capped_end(base, size));
        loop {
            let new = self.table(kind).count_new(start, end);
            if new == 0 {
                return Ok(());
            }
            if self.table(kind).has_room(new) {
                break;
            }
            // Placing the larger table may itself have reserved something, so everything is looked up again.
            self.double_array(kind, start..end)?;
        }
        self.table_mut(kind).add(start, end, nid, flags);
        Ok(())
    }

    /// Splits the regions of a table at both ends of a range; returns those inside.
    fn isolate(&mut self, kind: Kind, base: PhysAddr, size: u64) -> Result<Range<usize>, TableFull> {
        let (start, end) = (base.raw(), capped_end(base, size));
        if start == end {
            return Ok(0..0);
        }
        while !self.table(kind).has_room(2) {
            self.double_array(kind, start..end)?;
        }
        Ok(self.table_mut(kind).isolate(start, end))
    }

    fn remove_range(&mut self, kind: Kind, base: PhysAddr, size: u64) -> Result<(), TableFull> {
        let inside = self.isolate(kind, base, size)?;
        if kind == Kind::Reserved
            && let Some(freed) = self.reserved.regions().get(inside.clone())
        {
            self.used = freed.iter().fold(self.used.clone(), hull);
        }
        self.table_mut(kind).remove(inside);
        Ok(())
    }

    fn set_or_clear(&mut self, base: PhysAddr, size: u64, flag: MemblockFlags, set: bool) -> Result<(), TableFull> {
        self.change(Kind::Memory, base, size, |region| {
            region.set_flags(if set { region.flags() | flag } else { region.flags().without(flag) });
        })
    }

    /// Changes node or flags of everything in a range, then merges what has become alike.
    fn change(
        &mut self,
        kind: Kind,
        base: PhysAddr,
        size: u64,
        change: impl FnMut(&mut Region),
    ) -> Result<(), TableFull> {
        let inside = self.isolate(kind, base, size)?;
        let table = self.table_mut(kind);
        table.regions_mut()[inside.clone()].iter_mut().for_each(change);
        table.merge(inside.start, inside.end);
        Ok(())
    }

    fn say(&self, level: Level, message: fmt::Arguments<'_>) {
        if let Some(log) = self.log {
            log(level, message);
        }
    }

    fn warn(&self, message: fmt::Arguments<'_>) {
        self.say(Level::Warning, message);
    }

    /// A line about a change, under `memblock=debug`.
    #[inline]
    fn report(&self, what: &str, base: PhysAddr, size: u64) {
        if self.debug {
            let (first, last) = (base.raw(), base.raw().wrapping_add(size).wrapping_sub(1));
            self.say(Level::Info, format_args!("{what}: [{first:#018x}-{last:#018x}]"));
        }
    }
}

/// End of the range of `size` bytes at `base`, cut so that it does not overflow (`memblock_cap_size`).
#[inline]
const fn capped_end(base: PhysAddr, size: u64) -> u64 {
    base.raw().saturating_add(size)
}

fn hull(used: Range<u64>, region: &Region) -> Range<u64> {
    if used.is_empty() {
        return region.base_raw()..region.end_raw();
    }
    used.start.min(region.base_raw())..used.end.max(region.end_raw())
}
