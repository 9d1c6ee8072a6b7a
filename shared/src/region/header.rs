//! The region's header, and where its tables lie.

use core::mem::{align_of, size_of};
use core::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

use super::event::EventRingState;
use super::log::{LOG_BYTES, LogHeader};
use super::records::{
    CmaRecord, CpuState, MAX_CMA_AREAS, NodeCpuState, NodeState, RangeRecord, ResourceRecord, Sysctl,
};
use super::zone::{PcpState, ZoneState};
use crate::slab::MAX_CACHES;
use crate::vmalloc::VmallocState;
use crate::zone::MAX_NR_ZONES;

/// How far the guest has come, as [`Header::state`] tells.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u32)]
pub enum GuestState {
    /// Nothing has been written.
    Empty = 0,
    /// The log ring works; the tables do not exist.
    Early = 1,
    /// Tables are in place; the allocator and the CPUs are coming up.
    Tables = 2,
    /// Everything is up.
    Ready = 3,
    /// Powered off in order.
    Off = 4,
    /// Panicked; [`Header::panic`] says how.
    Panicked = 5,
}

impl GuestState {
    /// The state numbered `raw`.
    pub const fn new(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::Empty,
            1 => Self::Early,
            2 => Self::Tables,
            3 => Self::Ready,
            4 => Self::Off,
            5 => Self::Panicked,
            _ => return None,
        })
    }
}

/// Tables of the region; the number is the index into [`Header::tables`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Table {
    /// [`NodeState`] by node.
    Node = 0,
    /// [`ZoneState`] by node and zone type: index `node * MAX_NR_ZONES + type`.
    Zone = 1,
    /// [`PcpState`] by CPU, then zone: index `cpu * zones + zone`.
    Pcp = 2,
    /// [`CpuState`] by CPU.
    Cpu = 3,
    /// [`NodeCpuState`] by CPU, then node: index `cpu * nodes + node`.
    NodeCpu = 4,
    /// One byte per pair of nodes, by row (from), then column (to): `node_distance`.
    Distance = 5,
    /// [`ResourceRecord`], the tree of `/proc/iomem` in order of address.
    Resource = 6,
    /// [`RangeRecord`], memblock's memory ranges.
    Memory = 7,
    /// [`RangeRecord`], memblock's reserved ranges.
    Reserved = 8,
    /// [`Sysctl`], one record.
    Sysctl = 9,
    /// [`CmaRecord`]; those in use have pages.
    Cma = 10,
    /// [`EventRingState`] by CPU.
    Event = 11,
    /// Virtual address of the [`crate::slab::KmemCache`] with each number, a 64-bit word each; 0 for none.
    Slab = 12,
}

/// Number of tables.
pub const TABLES: usize = 13;

/// Where a table lies.
#[repr(C)]
#[derive(Debug, Default)]
pub struct TableDesc {
    /// Bytes from the start of the region.
    pub offset: AtomicU64,
    /// Bytes from one record to the next.
    pub stride: AtomicU32,
    /// Number of records.
    pub count: AtomicU32,
}

/// The guest's well-known roots: what a stranger needs to walk its memory.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Roots {
    /// Physical address of the kernel's top page table (CR3).
    pub pgd: AtomicU64,
    /// Virtual address of the memory map: [`crate::page::Page`] by frame number.
    pub vmemmap: AtomicU64,
    /// Virtual address of the direct map.
    pub page_offset: AtomicU64,
    /// Physical address of the section table: per section a u16, the section's zone index + 1; 0 for a section
    /// without memory, [`super::zone::SECTION_MIXED`] where zones meet.
    pub sections: AtomicU64,
    /// Entries in the section table.
    pub nr_sections: AtomicU64,
    /// Physical address of the page-block table: a byte per page block
    /// ([`crate::migrate::MigrateType::of_block`]).
    pub pageblocks: AtomicU64,
    /// First frame above all memory (`max_pfn`).
    pub max_pfn: AtomicU64,
    /// Virtual address of this region in the guest.
    pub region_virt: AtomicU64,
    /// Physical address of this region.
    pub region_phys: AtomicU64,
    /// Virtual address of the node table (`node_data`); the region's node records when 0.
    pub node_data: AtomicU64,
    /// Physical address of the table of page owners, [`crate::page_owner::OwnerRecord`] by frame up to
    /// [`Self::max_pfn`]; 0 when nobody keeps it.
    pub page_owner: AtomicU64,
    /// Physical address of the table of call traces, [`crate::page_owner::StackRecord`].
    pub stacks: AtomicU64,
    /// Records in that table.
    pub nr_stacks: AtomicU64,
    /// Areas of the kernel's virtual address space.
    pub vmalloc: VmallocState,
    /// Virtual address, in the direct map, of the [`crate::percpu::PcpuRoot`]; 0 when there is no per-CPU memory.
    pub percpu: AtomicU64,
    /// Virtual address of the first [`crate::sched::TaskStruct`]; 0 when there are none.
    pub tasks: AtomicU64,
    /// Tasks on that list.
    pub nr_tasks: AtomicU64,
    /// Virtual address of the first [`crate::mm_types::MmStruct`]; 0 when there are none.
    pub mms: AtomicU64,
    /// Physical address of the top page of the [`crate::mm_types::MappingTable`]; 0 when there is none.
    pub mappings: AtomicU64,
    /// Frame of the page that stands for untouched private memory (`empty_zero_page`); 0 when there is none.
    pub zero_pfn: AtomicU64,
    /// Pages that programs may come to use (`vm_committed_as`).
    pub committed_as: AtomicI64,
}

/// Most frames in a recorded backtrace.
pub const MAX_BACKTRACE: usize = 32;

/// How the guest panicked. Written once, before [`Header::state`] becomes [`GuestState::Panicked`].
#[repr(C)]
#[derive(Debug)]
pub struct PanicRecord {
    /// CPU that panicked.
    pub cpu: AtomicU32,
    /// Exception vector, or `u32::MAX` for a panic of the kernel's own.
    pub vector: AtomicU32,
    /// Error code of the exception.
    pub error_code: AtomicU64,
    /// RIP, RSP, RFLAGS, CS, SS, CR0, CR2, CR3, CR4, then RAX RBX RCX RDX RSI RDI RBP R8..R15.
    pub registers: [AtomicU64; 24],
    /// Return addresses, innermost first; 0 ends the list.
    pub backtrace: [AtomicU64; MAX_BACKTRACE],
    /// Bytes of [`Self::message`] in use.
    pub message_len: AtomicU32,
    /// Padding.
    pub reserved: AtomicU32,
    /// The message, UTF-8, as little-endian words.
    pub message: [AtomicU64; 64],
}

/// Names of [`PanicRecord::registers`], by index.
pub const REGISTER_NAMES: [&str; 24] = [
    "RIP", "RSP", "RFLAGS", "CS", "SS", "CR0", "CR2", "CR3", "CR4", "RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP",
    "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15",
];

impl PanicRecord {
    /// Names of [`Self::registers`], by index.
    pub const REGISTER_NAMES: [&str; 24] = REGISTER_NAMES;
}

/// The first page of the region.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Header {
    /// [`Self::MAGIC`]; written last.
    pub magic: AtomicU64,
    /// [`crate::ABI_VERSION`].
    pub abi: AtomicU32,
    /// A [`GuestState`].
    pub state: AtomicU32,
    /// Bytes of the region that the layout uses.
    pub size: AtomicU64,
    /// Nodes possible (`nr_node_ids`).
    pub nr_nodes: AtomicU32,
    /// CPUs possible (`nr_cpu_ids`).
    pub nr_cpus: AtomicU32,
    /// Bytes of a [`crate::page::Page`].
    pub page_struct_size: AtomicU32,
    /// Zone types per node.
    pub zones_per_node: AtomicU32,
    /// Offset of the log ring in bytes.
    pub log_offset: AtomicU64,
    /// Bytes of text memory in the log ring.
    pub log_bytes: AtomicU64,
    /// Where the tables are, by [`Table`].
    pub tables: [TableDesc; TABLES],
    /// Roots for walking guest memory.
    pub roots: Roots,
    /// TSC at the kernel's first instruction.
    pub tsc_entry: AtomicU64,
    /// TSC when the machine was ready.
    pub tsc_ready: AtomicU64,
    /// TSC frequency in kHz, 0 when unknown.
    pub tsc_khz: AtomicU64,
    /// CPUs that have come up, a bit each.
    pub cpus_online: AtomicU64,
    /// Nodes that are online (have memory or CPUs), a bit each.
    pub nodes_online: AtomicU64,
    /// Page frames of RAM that memblock knew (`totalram` before reservations are taken off).
    pub pages_total: AtomicU64,
    /// Records in use in [`Table::Resource`].
    pub nr_resources: AtomicU32,
    /// Records in use in [`Table::Memory`].
    pub nr_memory: AtomicU32,
    /// Records in use in [`Table::Reserved`].
    pub nr_reserved: AtomicU32,
    /// 4 KiB pages, and 2 MiB pages, of the direct map that the guest would show (`DirectMap4k`, `DirectMap2M`),
    /// in KiB.
    pub direct_map_4k: AtomicU32,
    /// See [`Self::direct_map_4k`]; in KiB.
    pub direct_map_2m: AtomicU64,
    /// Kinds of events that are written, bits by [`super::event::EventKind`].
    pub event_mask: AtomicU64,
    /// Written by the host: not 0 asks every CPU to come to a safe point (between two operations of a command, two
    /// steps of a workload, or in idle) and to stay there as [`super::records::Activity::Parked`] until it is 0 again.
    pub park_request: AtomicU32,
    /// Padding.
    pub reserved: AtomicU32,
    /// Pages that vmalloc areas hold (`nr_vmalloc_pages`).
    pub nr_vmalloc_pages: AtomicU64,
    /// Pages of per-CPU memory, all units together (`pcpu_nr_pages`).
    pub nr_percpu_pages: AtomicU64,
    /// How the guest panicked.
    pub panic: PanicRecord,
}

const _: () = assert!(size_of::<Header>() <= RegionLayout::LOG_OFFSET as usize);

impl Header {
    /// `PAGEVISR` in little-endian bytes.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"PAGEVISR");

    /// Writes the fixed part, everything before the tables are known: the log ring can be used after this.
    pub fn publish_early(&self) {
        self.abi.store(crate::ABI_VERSION, Ordering::Relaxed);
        self.log_offset.store(RegionLayout::LOG_OFFSET, Ordering::Relaxed);
        self.log_bytes.store(LOG_BYTES, Ordering::Relaxed);
        self.state.store(GuestState::Early as u32, Ordering::Relaxed);
        self.magic.store(Self::MAGIC, Ordering::Release);
    }

    /// Writes where the tables are and says that they exist.
    pub fn publish(&self, layout: &RegionLayout) {
        self.size.store(layout.size, Ordering::Relaxed);
        self.nr_nodes.store(layout.nr_nodes, Ordering::Relaxed);
        self.nr_cpus.store(layout.nr_cpus, Ordering::Relaxed);
        self.page_struct_size.store(crate::page::PAGE_STRUCT_SIZE as u32, Ordering::Relaxed);
        self.zones_per_node.store(MAX_NR_ZONES as u32, Ordering::Relaxed);
        for (desc, (offset, stride, count)) in self.tables.iter().zip(layout.tables) {
            desc.offset.store(offset, Ordering::Relaxed);
            desc.stride.store(stride, Ordering::Relaxed);
            desc.count.store(count, Ordering::Relaxed);
        }
        self.state.store(GuestState::Tables as u32, Ordering::Release);
    }
}

/// Where everything lies for a machine of a given size. Pure arithmetic: the host sizes the region with it, the
/// guest fills the header from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionLayout {
    /// Nodes possible.
    pub nr_nodes: u32,
    /// CPUs possible.
    pub nr_cpus: u32,
    /// `(offset, stride, count)` by [`Table`].
    pub tables: [(u64, u32, u32); TABLES],
    /// Bytes in all, a multiple of 4096.
    pub size: u64,
}

impl RegionLayout {
    /// Offset of the log ring, the same in every region.
    pub const LOG_OFFSET: u64 = 0x1000;
    /// Capacity of the resource and memblock tables.
    pub const MAX_RANGES: u32 = 1024;

    /// The layout for `nr_nodes` nodes and `nr_cpus` CPUs, each at least 1 and at most 64.
    pub const fn new(nr_nodes: u32, nr_cpus: u32) -> Self {
        const fn record<T>() -> u32 {
            assert!(align_of::<T>() <= 64);
            size_of::<T>() as u32
        }
        let zones = nr_nodes * MAX_NR_ZONES as u32;
        let shapes = [
            (record::<NodeState>(), nr_nodes),
            (record::<ZoneState>(), zones),
            (record::<PcpState>(), zones * nr_cpus),
            (record::<CpuState>(), nr_cpus),
            (record::<NodeCpuState>(), nr_nodes * nr_cpus),
            (1, nr_nodes * nr_nodes),
            (record::<ResourceRecord>(), Self::MAX_RANGES),
            (record::<RangeRecord>(), Self::MAX_RANGES),
            (record::<RangeRecord>(), Self::MAX_RANGES),
            (record::<Sysctl>(), 1),
            (record::<CmaRecord>(), MAX_CMA_AREAS as u32),
            (record::<EventRingState>(), nr_cpus),
            (record::<AtomicU64>(), MAX_CACHES as u32),
        ];
        let mut offset = Self::LOG_OFFSET + size_of::<LogHeader>() as u64 + LOG_BYTES;
        let mut tables = [(0, 0, 0); TABLES];
        let mut table = 0;
        while table < TABLES {
            offset = offset.next_multiple_of(64);
            let (stride, count) = shapes[table];
            tables[table] = (offset, stride, count);
            offset += stride as u64 * count as u64;
            table += 1;
        }
        Self { nr_nodes, nr_cpus, tables, size: offset.next_multiple_of(4096) }
    }
}

const _: () = assert!(RegionLayout::new(64, 64).size <= crate::layout::STATE_REGION_WINDOW);
