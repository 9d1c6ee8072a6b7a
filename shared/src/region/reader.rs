//! A checked view of a state region, for the guest that owns it and for a host that does not trust it.

use core::fmt;
use core::marker::PhantomData;
use core::mem::{align_of, size_of};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::event::{EventRing, EventRingState};
use super::header::{GuestState, Header, RegionLayout, TABLES, Table};
use super::log::{LOG_BYTES, LogHeader, LogRing};
use super::records::{CmaRecord, CpuState, NodeCpuState, NodeState, RangeRecord, ResourceRecord, Sysctl};
use super::zone::{PcpState, ZoneState};
use crate::units::{CpuId, NodeId};
use crate::zone::{MAX_NR_ZONES, ZoneIndex, ZoneType};

/// What is wrong with a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Corrupt {
    /// The field or table.
    pub what: &'static str,
    /// What was found.
    pub found: u64,
    /// What was expected.
    pub expected: u64,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "state region: {} is {:#x}, expected {:#x}", self.what, self.found, self.expected)
    }
}

impl core::error::Error for Corrupt {}

/// A region whose header was checked. Offsets and counts are kept here; the header is not consulted for them again.
///
/// Invariant: `base` points to `layout.size` mapped bytes that live for `'a` and are only accessed atomically, and
/// `layout` is what [`RegionLayout::new`] gives for its node and CPU counts.
#[derive(Clone)]
pub struct RegionRef<'a> {
    base: NonNull<u8>,
    layout: RegionLayout,
    _memory: PhantomData<&'a AtomicU64>,
}

// SAFETY: the region is only ever accessed through atomics, which any thread may use.
unsafe impl Send for RegionRef<'_> {}
// SAFETY: it never changes, and the region is only ever accessed through atomics.
unsafe impl Sync for RegionRef<'_> {}

impl fmt::Debug for RegionRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegionRef").field("base", &self.base).field("layout", &self.layout).finish()
    }
}

const fn check(what: &'static str, found: u64, expected: u64) -> Result<(), Corrupt> {
    if found == expected { Ok(()) } else { Err(Corrupt { what, found, expected }) }
}

impl<'a> RegionRef<'a> {
    /// The header of a region that may not be laid out yet.
    ///
    /// # Safety
    /// `base` is aligned to 64 bytes and points to at least 4096 mapped bytes that live for `'a` and are only
    /// accessed atomically.
    pub unsafe fn header_at(base: NonNull<u8>) -> &'a Header {
        // SAFETY: `Header` is made of atomics, is valid for any bytes, fits in 4096 bytes; the caller vouches for
        // mapping, alignment and lifetime.
        unsafe { base.cast().as_ref() }
    }

    /// The log ring of a region whose tables may not be laid out yet.
    ///
    /// # Safety
    /// As for [`Self::header_at`], with `LOG_OFFSET + LOG_BYTES + 64` mapped bytes.
    pub unsafe fn log_at(base: NonNull<u8>) -> LogRing<'a> {
        const WORDS: usize = (LOG_BYTES / 8) as usize;
        // SAFETY: the log ring lies at a fixed offset inside what the caller vouches for, aligned to 64 bytes, and
        // is made of atomics that are valid for any bytes.
        unsafe {
            let header = base.add(RegionLayout::LOG_OFFSET as usize);
            let words = header.add(size_of::<LogHeader>()).cast::<AtomicU64>();
            LogRing::new(header.cast().as_ref(), core::slice::from_raw_parts(words.as_ptr(), WORDS))
        }
    }

    /// Lays out a region for its owner: writes the header and gives the view.
    ///
    /// # Safety
    /// `base` is aligned to 64 bytes and points to `layout.size` mapped, writable bytes that are zero (but for an
    /// early header and log), live for `'a` and are only accessed atomically.
    pub unsafe fn create(base: NonNull<u8>, layout: RegionLayout) -> Self {
        // SAFETY: the caller's promise covers the header.
        unsafe { Self::header_at(base) }.publish(&layout);
        Self { base, layout, _memory: PhantomData }
    }

    /// Checks the header of a region of `len` mapped bytes and gives the view.
    ///
    /// # Errors
    /// [`Corrupt`] names the first field that is not as this version of the contract has it.
    ///
    /// # Safety
    /// `base` is aligned to 64 bytes and points to `len` mapped bytes, at least 4096, that live for `'a` and are
    /// only accessed atomically (by anyone, the guest included).
    pub unsafe fn open(base: NonNull<u8>, len: u64) -> Result<Self, Corrupt> {
        // SAFETY: the caller's promise covers the header.
        let header = unsafe { Self::header_at(base) };
        check("magic", header.magic.load(Ordering::Acquire), Header::MAGIC)?;
        check("abi version", header.abi.load(Ordering::Relaxed) as u64, crate::ABI_VERSION as u64)?;
        let nodes = header.nr_nodes.load(Ordering::Acquire);
        let cpus = header.nr_cpus.load(Ordering::Relaxed);
        if nodes == 0 || nodes as usize > crate::MAX_NUMNODES {
            return Err(Corrupt { what: "number of nodes", found: nodes as u64, expected: crate::MAX_NUMNODES as u64 });
        }
        if cpus == 0 || cpus as usize > crate::NR_CPUS {
            return Err(Corrupt { what: "number of CPUs", found: cpus as u64, expected: crate::NR_CPUS as u64 });
        }
        let layout = RegionLayout::new(nodes, cpus);
        check("size", header.size.load(Ordering::Relaxed), layout.size)?;
        if layout.size > len {
            return Err(Corrupt { what: "mapped size", found: len, expected: layout.size });
        }
        check("log offset", header.log_offset.load(Ordering::Relaxed), RegionLayout::LOG_OFFSET)?;
        check("log size", header.log_bytes.load(Ordering::Relaxed), LOG_BYTES)?;
        for (desc, (offset, stride, count)) in header.tables.iter().zip(layout.tables) {
            check("table offset", desc.offset.load(Ordering::Relaxed), offset)?;
            check("table stride", desc.stride.load(Ordering::Relaxed) as u64, stride as u64)?;
            check("table count", desc.count.load(Ordering::Relaxed) as u64, count as u64)?;
        }
        Ok(Self { base, layout, _memory: PhantomData })
    }

    fn table<T>(&self, table: Table) -> &'a [T] {
        let (offset, stride, count) = self.layout.tables[table as usize];
        debug_assert!((table as usize) < TABLES && stride as usize == size_of::<T>() && align_of::<T>() <= 64);
        // SAFETY: by the type's invariant the table lies inside mapped memory that lives for `'a`; its offset is a
        // multiple of 64, so it is aligned; `T` is one of the records, made of atomics and valid for any bytes.
        unsafe { core::slice::from_raw_parts(self.base.add(offset as usize).cast().as_ptr(), count as usize) }
    }

    /// The layout.
    pub const fn layout(&self) -> &RegionLayout {
        &self.layout
    }

    /// Nodes possible (`nr_node_ids`).
    pub const fn nr_nodes(&self) -> usize {
        self.layout.nr_nodes as usize
    }

    /// CPUs possible (`nr_cpu_ids`).
    pub const fn nr_cpus(&self) -> usize {
        self.layout.nr_cpus as usize
    }

    /// The header.
    pub fn header(&self) -> &'a Header {
        // SAFETY: by the type's invariant.
        unsafe { Self::header_at(self.base) }
    }

    /// How far the guest has come; `None` when the word holds no such state.
    pub fn state(&self) -> Option<GuestState> {
        GuestState::new(self.header().state.load(Ordering::Acquire))
    }

    /// The log ring.
    pub fn log(&self) -> LogRing<'a> {
        // SAFETY: by the type's invariant the whole layout, which holds the log, is mapped.
        unsafe { Self::log_at(self.base) }
    }

    /// Node records, by node.
    pub fn nodes(&self) -> &'a [NodeState] {
        self.table(Table::Node)
    }

    /// Zone records, by [`ZoneIndex`].
    pub fn zones(&self) -> &'a [ZoneState] {
        self.table(Table::Zone)
    }

    /// The record of `node`'s zone of type `zone`; `None` for a node beyond `nr_nodes`.
    pub fn zone(&self, node: NodeId, zone: ZoneType) -> Option<&'a ZoneState> {
        self.zones().get(ZoneIndex::of(node, zone).index())
    }

    /// The type of the zone that frame `pfn` of `node` lies in: by its address, or ZONE_MOVABLE, which reaches from
    /// where it starts to the node's end.
    pub fn zone_type_of(&self, node: NodeId, pfn: u64) -> ZoneType {
        let movable = self.zone(node, ZoneType::Movable).filter(|zone| zone.spanned_pages.load(Ordering::Relaxed) != 0);
        match movable.map(|zone| zone.zone_start_pfn.load(Ordering::Relaxed)) {
            Some(start) if start <= pfn => ZoneType::Movable,
            _ => ZoneType::of_frame(pfn),
        }
    }

    /// Offset in bytes of zone `zone`'s record in the region.
    pub const fn zone_offset(&self, zone: ZoneIndex) -> u64 {
        let (offset, stride, _) = self.layout.tables[Table::Zone as usize];
        offset + zone.0 as u64 * stride as u64
    }

    /// Offset in bytes of node `node`'s record in the region.
    pub const fn node_offset(&self, node: NodeId) -> u64 {
        let (offset, stride, _) = self.layout.tables[Table::Node as usize];
        offset + node.index() as u64 * stride as u64
    }

    /// Pageset records, by CPU, then [`ZoneIndex`].
    pub fn pcps(&self) -> &'a [PcpState] {
        self.table(Table::Pcp)
    }

    /// The pagesets of `cpu`, by [`ZoneIndex`]; empty for a CPU beyond `nr_cpus`.
    pub fn pcps_of(&self, cpu: CpuId) -> &'a [PcpState] {
        let zones = self.nr_nodes() * MAX_NR_ZONES;
        self.pcps().chunks_exact(zones).nth(cpu.index()).unwrap_or(&[])
    }

    /// CPU records, by CPU.
    pub fn cpus(&self) -> &'a [CpuState] {
        self.table(Table::Cpu)
    }

    /// Pending node counters, by CPU, then node.
    pub fn node_cpus(&self) -> &'a [NodeCpuState] {
        self.table(Table::NodeCpu)
    }

    /// Distances, by row (from) and column (to).
    pub fn distances(&self) -> &'a [AtomicU8] {
        self.table(Table::Distance)
    }

    /// Addresses of slab caches' descriptors, by their numbers.
    pub fn slab_caches(&self) -> &'a [AtomicU64] {
        self.table(Table::Slab)
    }

    /// The capacity of the resource table; [`Header::nr_resources`] says how much is in use.
    pub fn resource_slots(&self) -> &'a [ResourceRecord] {
        self.table(Table::Resource)
    }

    /// Resources in use, in order of address.
    pub fn resources(&self) -> &'a [ResourceRecord] {
        in_use(self.resource_slots(), self.header().nr_resources.load(Ordering::Acquire))
    }

    /// The capacity of the table of memblock's memory ranges.
    pub fn memory_slots(&self) -> &'a [RangeRecord] {
        self.table(Table::Memory)
    }

    /// memblock's memory ranges, in order of address.
    pub fn memory(&self) -> &'a [RangeRecord] {
        in_use(self.memory_slots(), self.header().nr_memory.load(Ordering::Acquire))
    }

    /// The capacity of the table of memblock's reserved ranges.
    pub fn reserved_slots(&self) -> &'a [RangeRecord] {
        self.table(Table::Reserved)
    }

    /// memblock's reserved ranges, in order of address.
    pub fn reserved(&self) -> &'a [RangeRecord] {
        in_use(self.reserved_slots(), self.header().nr_reserved.load(Ordering::Acquire))
    }

    /// Contiguous memory areas, in use or not.
    pub fn cmas(&self) -> &'a [CmaRecord] {
        self.table(Table::Cma)
    }

    /// The events of `cpu`; `None` for a CPU beyond `nr_cpus`.
    pub fn events(&self, cpu: CpuId) -> Option<EventRing<'a>> {
        self.table::<EventRingState>(Table::Event).get(cpu.index()).map(EventRing::of)
    }

    /// The settings.
    pub fn sysctl(&self) -> &'a Sysctl {
        // The layout has exactly one record in this table, whatever the machine.
        &self.table(Table::Sysctl)[0]
    }
}

/// The first `count` records, or all when an untrusted count is too large.
fn in_use<T>(slots: &[T], count: u32) -> &[T] {
    &slots[..slots.len().min(count as usize)]
}
