//! Records of nodes, CPUs, memory ranges and settings.

use core::sync::atomic::{AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::MAX_NUMNODES;
use crate::units::PAGE_SHIFT;
use crate::vmstat::{NR_VM_EVENT_ITEMS, NR_VM_NODE_STAT_ITEMS};
use crate::zone::MAX_NR_ZONES;

/// Index of the zonelist that may fall back to other nodes (`ZONELIST_FALLBACK`).
pub const ZONELIST_FALLBACK: usize = 0;
/// Index of the zonelist of the node alone (`ZONELIST_NOFALLBACK`).
pub const ZONELIST_NOFALLBACK: usize = 1;
/// Number of zonelists of a node.
pub const MAX_ZONELISTS: usize = 2;
/// Entries of a zonelist, the end included.
pub const MAX_ZONES_PER_ZONELIST: usize = MAX_NUMNODES * MAX_NR_ZONES + 1;

/// A node (`struct pglist_data`). Sizes in pages.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct NodeState {
    /// First frame.
    pub node_start_pfn: AtomicU64,
    /// Pages that exist.
    pub node_present_pages: AtomicU64,
    /// From the first to the last page, holes included.
    pub node_spanned_pages: AtomicU64,
    /// CPUs of the node, a bit each.
    pub cpus: AtomicU64,
    /// Counters, by [`crate::vmstat::NodeStat`]; CPUs hold back up to a threshold each.
    pub vm_stat: [AtomicI64; NR_VM_NODE_STAT_ITEMS],
    /// The zonelists: [`crate::zone::ZoneRef`] words, ended by 0.
    pub node_zonelists: [[AtomicU32; MAX_ZONES_PER_ZONELIST]; MAX_ZONELISTS],
    /// Position in each zonelist of the first zone not above a zone type
    /// (`first_zones_zonelist` without a node mask).
    pub first_zone: [[AtomicU16; MAX_NR_ZONES]; MAX_ZONELISTS],
    /// Nodes in fallback order, this node first; as many as [`Self::nr_fallback`].
    pub fallback_order: [AtomicU8; MAX_NUMNODES],
    /// Entries in [`Self::fallback_order`].
    pub nr_fallback: AtomicU32,
    /// ACPI proximity domain the node stands for.
    pub proximity: AtomicU32,
}

/// What a CPU is doing, as far as stopping it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Activity {
    /// Anything: its structures may be half changed.
    Running = 0,
    /// Nothing; it waits for an interrupt, whose handler touches none of the allocator's structures.
    Idle = 1,
    /// It waits for [`super::Header::park_request`] to become 0.
    Parked = 2,
}

impl Activity {
    /// The activity numbered `raw`.
    pub const fn new(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::Running,
            1 => Self::Idle,
            2 => Self::Parked,
            _ => return None,
        })
    }
}

/// A CPU.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct CpuState {
    /// Local APIC id.
    pub apic_id: AtomicU32,
    /// Node it belongs to.
    pub node: AtomicU32,
    /// 1 once it has come up.
    pub online: AtomicU32,
    /// Node its allocations start from: its own, or the nearest with memory (`numa_mem_id`).
    pub mem_node: AtomicU32,
    /// What it is doing, an [`Activity`].
    pub activity: AtomicU32,
    /// Commands it has finished.
    pub commands: AtomicU32,
    /// Events, by [`crate::vmstat::VmEvent`].
    pub vm_events: [AtomicU64; NR_VM_EVENT_ITEMS],
    /// Pages that were cleared because their new owners wanted zeros.
    pub pages_cleared: AtomicU64,
    /// Pages of zeros that needed no clearing, since they were known to be zero.
    pub clears_saved: AtomicU64,
    /// Free pages that were cleared because there was nothing else to do.
    pub idle_cleared: AtomicU64,
}

/// What a CPU holds back of a node's counters (`struct per_cpu_nodestat`).
#[repr(C)]
#[derive(Debug)]
pub struct NodeCpuState {
    /// How much may be held back.
    pub stat_threshold: AtomicI32,
    /// Pending deltas of [`NodeState::vm_stat`].
    pub vm_node_stat_diff: [AtomicI32; NR_VM_NODE_STAT_ITEMS],
}

/// Kinds of entries of `/proc/iomem`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ResourceKind {
    /// Reserved by firmware.
    Reserved = 0,
    /// RAM.
    SystemRam = 1,
    /// ACPI tables that may be reclaimed.
    AcpiTables = 2,
    /// ACPI storage that must be kept.
    AcpiNvs = 3,
    /// Kernel text.
    KernelCode = 4,
    /// Kernel read-only data.
    KernelRodata = 5,
    /// Kernel data.
    KernelData = 6,
    /// Kernel zero-initialised data.
    KernelBss = 7,
    /// Local APIC registers.
    LocalApic = 8,
    /// I/O APIC registers.
    IoApic = 9,
    /// The monitor device's registers.
    Monitor = 10,
    /// The state region.
    StateRegion = 11,
}

impl ResourceKind {
    /// All kinds, by number.
    pub const ALL: [Self; 12] = [
        Self::Reserved,
        Self::SystemRam,
        Self::AcpiTables,
        Self::AcpiNvs,
        Self::KernelCode,
        Self::KernelRodata,
        Self::KernelData,
        Self::KernelBss,
        Self::LocalApic,
        Self::IoApic,
        Self::Monitor,
        Self::StateRegion,
    ];

    /// The name Linux prints.
    pub const fn name(self) -> &'static str {
        [
            "Reserved",
            "System RAM",
            "ACPI Tables",
            "ACPI Non-volatile Storage",
            "Kernel code",
            "Kernel rodata",
            "Kernel data",
            "Kernel bss",
            "Local APIC",
            "IOAPIC 0",
            "virtio-mmio.0",
            "pagevisor state",
        ][self as usize]
    }
}

/// A line of `/proc/iomem`.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ResourceRecord {
    /// First byte.
    pub start: AtomicU64,
    /// Last byte.
    pub end: AtomicU64,
    /// A [`ResourceKind`].
    pub kind: AtomicU32,
    /// Depth in the tree, 0 at the top.
    pub depth: AtomicU32,
}

/// A range of memblock.
#[repr(C)]
#[derive(Debug, Default)]
pub struct RangeRecord {
    /// First byte.
    pub base: AtomicU64,
    /// Bytes.
    pub size: AtomicU64,
    /// Node, or `u32::MAX` for none.
    pub node: AtomicU32,
    /// memblock's flags (`MEMBLOCK_HOTPLUG` 1, ...).
    pub flags: AtomicU32,
}

/// Most contiguous memory areas (`MAX_CMA_AREAS`).
pub const MAX_CMA_AREAS: usize = 20;
/// Bytes of an area's name, the ending zeros included.
pub const CMA_NAME_BYTES: usize = 16;

/// A contiguous memory area (`struct cma`, `/sys/kernel/debug/cma`).
#[repr(C)]
#[derive(Debug, Default)]
pub struct CmaRecord {
    /// First frame.
    pub base_pfn: AtomicU64,
    /// Pages; 0 for a record that is not in use. Written last.
    pub count: AtomicU64,
    /// Pages that are allocated from the area.
    pub used: AtomicU64,
    /// A bit of its bitmap stands for so many pages, as an order.
    pub order_per_bit: AtomicU32,
    /// Padding.
    pub reserved: AtomicU32,
    /// Name, ended by zeros if it is shorter, as little-endian words.
    pub name: [AtomicU64; CMA_NAME_BYTES / 8],
}

impl CmaRecord {
    /// Writes the name; what does not fit is cut.
    pub fn set_name(&self, name: &str) {
        let mut bytes = [0; CMA_NAME_BYTES];
        bytes.iter_mut().zip(name.bytes()).for_each(|(slot, byte)| *slot = byte);
        for (word, part) in self.name.iter().zip(bytes.as_chunks().0) {
            word.store(u64::from_le_bytes(*part), Relaxed);
        }
    }

    /// The bytes of the name: untrusted, and not even text.
    pub fn name_bytes(&self) -> [u8; CMA_NAME_BYTES] {
        let mut bytes = [0; CMA_NAME_BYTES];
        for (part, word) in bytes.as_chunks_mut().0.iter_mut().zip(&self.name) {
            *part = word.load(Relaxed).to_le_bytes();
        }
        bytes
    }
}

/// Settings of the allocator (`/proc/sys/vm`).
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Sysctl {
    /// KiB kept free for emergencies.
    pub min_free_kbytes: AtomicU64,
    /// Distance between watermarks, in 1/10000 of the zone.
    pub watermark_scale_factor: AtomicU32,
    /// See Linux's documentation of it.
    pub watermark_boost_factor: AtomicU32,
    /// Ratios of the reserves by zone type; 0 for none.
    pub lowmem_reserve_ratio: [AtomicU32; MAX_NR_ZONES],
    /// Fraction of a zone that the pagesets may hold; 0 for the default.
    pub percpu_pagelist_high_fraction: AtomicU32,
    /// 0 until the allocator ran out of mobility room (`page_group_by_mobility_disabled`).
    pub page_group_by_mobility_disabled: AtomicU32,
    /// Whether a node is reclaimed before its neighbours are asked (`RECLAIM_ZONE` 1, `RECLAIM_WRITE` 2,
    /// `RECLAIM_UNMAP` 4).
    pub zone_reclaim_mode: AtomicU32,
    /// How much memory programs may be promised: 0 for as much as is plausible, 1 for any amount, 2 for no more than
    /// [`Self::commit_limit`].
    pub overcommit_memory: AtomicU32,
    /// Percentage of RAM that may be promised in mode 2.
    pub overcommit_ratio: AtomicU32,
    /// Most areas that a program may have.
    pub max_map_count: AtomicU32,
    /// KiB of RAM that may be promised in mode 2; 0 for what the ratio says.
    pub overcommit_kbytes: AtomicU64,
    /// KiB that no single program may be promised in mode 2.
    pub user_reserve_kbytes: AtomicU64,
    /// KiB that only the administrator may be promised in mode 2.
    pub admin_reserve_kbytes: AtomicU64,
    /// Lowest address that programs may map.
    pub mmap_min_addr: AtomicU64,
    /// Allocations that are made to fail.
    pub fail_page_alloc: FaultState,
    /// Allocations of objects that are made to fail.
    pub failslab: FaultState,
}

impl Sysctl {
    /// Pages that may be promised in mode 2 on a machine with `totalram` of them (`vm_commit_limit`); there is no swap.
    pub fn commit_limit(&self, totalram: u64) -> u64 {
        match self.overcommit_kbytes.load(Relaxed) {
            0 => totalram.wrapping_mul(u64::from(self.overcommit_ratio.load(Relaxed))) / 100,
            kbytes => kbytes >> (PAGE_SHIFT - 10),
        }
    }
}

/// Fault injection (`struct fault_attr` and what `fail_page_alloc` and `failslab` add): what is set, and how far it has come.
#[repr(C)]
#[derive(Debug, Default)]
pub struct FaultState {
    /// Percentage of allocations that fail by chance; 0 for none.
    pub probability: AtomicU32,
    /// Only every so many allocations are looked at.
    pub interval: AtomicU32,
    /// How many may still fail by chance; `u32::MAX` (-1) for no limit.
    pub times: AtomicU32,
    /// Pages, or bytes of objects, that are still to be allocated before any allocation fails by chance.
    pub space: AtomicI32,
    /// Orders below it never fail by chance.
    pub min_order: AtomicU32,
    /// 1 if allocations that may reclaim never fail by chance.
    pub ignore_gfp_reclaim: AtomicU32,
    /// 1 if allocations with `__GFP_HIGHMEM` never fail by chance.
    pub ignore_gfp_highmem: AtomicU32,
    /// Only allocations with all of these flags fail by chance.
    pub gfp: AtomicU32,
    /// Where the random numbers are.
    pub random: AtomicU64,
    /// Allocations counted for the interval.
    pub count: AtomicU64,
    /// How many allocations until the one that fails; 0 for none.
    pub nth: AtomicU64,
    /// Only this CPU's count for [`Self::nth`]; all for `u32::MAX`.
    pub nth_cpu: AtomicU32,
    /// Orders below it do not count for [`Self::nth`].
    pub nth_min_order: AtomicU32,
    /// Only allocations with all of these flags count for [`Self::nth`].
    pub nth_gfp: AtomicU32,
    /// 1 if only objects of caches with [`crate::slab::SlabFlags::FAILSLAB`] fail (`cache-filter`).
    pub cache_filter: AtomicU32,
    /// Allocations looked at since boot, while any could fail.
    pub looked_at: AtomicU64,
    /// Allocations that were made to fail since boot.
    pub failed: AtomicU64,
}
