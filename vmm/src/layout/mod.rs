//! The guest-physical address space: every fixed address of the machine, and where a topology's memory goes.
//!
//! ```text
//! 0            RAM, or reserved where no node has it; the boot data below 640 KiB
//! 0xa0000      legacy hole: no RAM; ACPI tables in its upper third
//! 0x100000     RAM; the kernel image at 16 MiB
//! 0xc0000000   device hole: no RAM; monitor device, state region, interrupt controllers
//! 0x100000000  RAM, up to 16 TiB
//! ```

mod place;
#[cfg(test)]
mod tests;

use pagevisor_shared::device::monitor;
use pagevisor_shared::region::RegionLayout;
use pagevisor_shared::units::{MAX_PHYSMEM_BITS, PAGE_SIZE};
use pagevisor_shared::zone::{MAX_DMA_PFN, MAX_DMA32_PFN};
use serde::{Deserialize, Serialize};

use crate::topology::{AddrRange, Topology, TopologyError};

pub use pagevisor_shared::layout::KERNEL_PHYS;

/// End of zone DMA: 16 MiB.
pub const DMA_END: u64 = MAX_DMA_PFN * PAGE_SIZE;
/// End of zone DMA32: 4 GiB.
pub const DMA32_END: u64 = MAX_DMA32_PFN * PAGE_SIZE;
/// First address beyond what a machine may have: 16 TiB.
pub const PHYS_END: u64 = 1 << MAX_PHYSMEM_BITS;

/// Where a PC has video memory and ROMs instead of RAM: 640 KiB to 1 MiB.
pub const LEGACY_HOLE: AddrRange = AddrRange::between(0xa_0000, 0x10_0000);
/// Where devices are instead of RAM: 3 GiB to 4 GiB.
pub const DEVICE_HOLE: AddrRange = AddrRange::between(0xc000_0000, DMA32_END);

/// The PVH start-info structure and what it points to next to it, except as named below: one page.
pub const PVH_START_INFO: u64 = 0x6000;
/// The PVH memory map: one page, see [`MAX_MAP_ENTRIES`].
pub const PVH_MEMORY_MAP: u64 = 0x7000;
/// Bytes of an entry of the PVH memory map (`struct hvm_memmap_table_entry`).
pub const PVH_MAP_ENTRY_SIZE: u64 = 24;
/// Most entries of the memory map: what fits between [`PVH_MEMORY_MAP`] and [`AP_TRAMPOLINE`].
pub const MAX_MAP_ENTRIES: usize = ((AP_TRAMPOLINE - PVH_MEMORY_MAP) / PVH_MAP_ENTRY_SIZE) as usize;
/// The page from which the guest starts its other CPUs. The VMM leaves it alone; the guest reserves it.
pub const AP_TRAMPOLINE: u64 = 0x8000;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Most bytes of the command line with its terminating zero.
pub const CMDLINE_MAX: u64 = 0x1_0000;

/// The ACPI tables: the upper 128 KiB of the legacy hole, which is where a BIOS leaves the RSDP for a search.
pub const ACPI_TABLES: AddrRange = AddrRange::between(0xe_0000, 0x10_0000);

/// RAM there must be for a kernel to boot: 16 MiB from where it is linked to run, enough for its image, its first
/// page tables and the memory map of a small machine.
pub const BOOT_MEMORY: AddrRange = AddrRange { start: KERNEL_PHYS, size: 16 << 20 };

/// The registers of the monitor device (virtio-mmio).
pub const MONITOR: AddrRange = AddrRange { start: 0xd000_0000, size: monitor::MMIO_SIZE };
/// Start of the state region, the monitor device's shared memory.
pub const STATE_REGION: u64 = 0xe000_0000;
/// A huge page. The size of the state region is a multiple of it, so that the guest may map it with such pages.
pub const HUGE_PAGE: u64 = 2 << 20;
/// The I/O APIC's registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Every CPU's local APIC.
pub const LAPIC: u64 = 0xfee0_0000;

/// Most pieces that RAM may be in. It bounds the SRAT, the memory slots, and the guest's own tables
/// ([`RegionLayout::MAX_RANGES`] records, of which it also needs some for what lies inside RAM).
pub const MAX_RAM_RANGES: usize = 512;

const _: () = assert!(MAX_RAM_RANGES <= RegionLayout::MAX_RANGES as usize / 2);
const _: () = assert!(CMDLINE + CMDLINE_MAX <= LEGACY_HOLE.start);
const _: () = assert!(LEGACY_HOLE.contains(&ACPI_TABLES) && DEVICE_HOLE.contains(&MONITOR));

/// A piece of RAM: one memory slot, backed by a part of its node's memory file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RamRange {
    /// The node it belongs to.
    pub node: usize,
    /// First guest-physical address.
    pub start: u64,
    /// Bytes, a multiple of a page.
    pub size: u64,
    /// Where it starts in the node's memory file. Equal to `start` modulo 2 MiB, so that the host may back it with
    /// huge pages; what is skipped for that is a hole in the file.
    pub backing_offset: u64,
}

impl RamRange {
    /// The addresses.
    pub const fn range(&self) -> AddrRange {
        AddrRange { start: self.start, size: self.size }
    }

    /// First address above.
    pub const fn end(&self) -> u64 {
        self.range().end()
    }
}

/// What the memory map says about a range, with the numbers of E820 and PVH.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[repr(u32)]
pub enum E820Kind {
    /// RAM the guest may use.
    Ram = 1,
    /// Not for use.
    Reserved = 2,
}

/// An entry of the memory map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct E820 {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What is there.
    pub kind: E820Kind,
}

/// A topology's place in the guest-physical address space.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Layout {
    /// RAM in order of address. Neighbours differ in node or have a gap between them.
    pub ram: Vec<RamRange>,
    /// The memory map in order of address: RAM without regard to nodes, and what is reserved.
    pub e820: Vec<E820>,
    /// Memory that is in no node but must be there for the VMM's own data, in order of address: what of the first
    /// 640 KiB is not RAM (boot data), and [`ACPI_TABLES`]. The memory map has it as reserved.
    pub firmware: Vec<AddrRange>,
    /// The state region.
    pub state: AddrRange,
}

impl Layout {
    /// Places the memory of `topology`.
    ///
    /// Nodes that name addresses get these. Nodes that name amounts per zone get them in the order of their ids
    /// from the start of each zone: 0, 16 MiB, 4 GiB. Plain nodes come last, in the order of their ids from address
    /// 0. Whoever comes later goes around what is there and around the device hole, in several pieces if need be.
    /// The legacy hole counts as part of an amount that is placed over it, but is not RAM.
    pub fn place(topology: &Topology) -> Result<Self, TopologyError> {
        let ram = place::ram(topology)?;
        let firmware = place::firmware(&ram);
        // Validated machines have 1 to 64 of each; an unvalidated one must not get past the region's arithmetic.
        let nodes = topology.nr_nodes().clamp(1, pagevisor_shared::MAX_NUMNODES) as u32;
        let cpus = topology.nr_cpus().clamp(1, pagevisor_shared::NR_CPUS) as u32;
        let size = RegionLayout::new(nodes, cpus).size.next_multiple_of(HUGE_PAGE);
        let state = AddrRange { start: STATE_REGION, size };
        let e820 = place::memory_map(&ram, state)?;
        Ok(Self { ram, e820, firmware, state })
    }

    /// The RAM of `node`, in order of address.
    pub fn ram_of(&self, node: usize) -> impl Iterator<Item = &RamRange> {
        self.ram.iter().filter(move |range| range.node == node)
    }

    /// Size of the memory file of `node`; 0 when it has no RAM.
    pub fn backing_size(&self, node: usize) -> u64 {
        self.ram_of(node).map(|range| range.backing_offset + range.size).max().unwrap_or(0)
    }

    /// Bytes of RAM that `node` has in zones DMA, DMA32 and Normal.
    pub fn zone_bytes(&self, node: usize) -> [u64; 3] {
        let zones = [(0, DMA_END), (DMA_END, DMA32_END), (DMA32_END, PHYS_END)];
        zones.map(|(start, end)| {
            self.ram_of(node).map(|ram| AddrRange::between(ram.start.max(start), ram.end().min(end)).size).sum()
        })
    }

    /// Bytes of RAM in all.
    pub fn ram_bytes(&self) -> u64 {
        self.ram.iter().map(|ram| ram.size).sum()
    }

    /// The node that holds the kernel image.
    pub fn boot_node(&self) -> Option<usize> {
        self.ram.iter().find(|ram| ram.start <= KERNEL_PHYS && KERNEL_PHYS < ram.end()).map(|ram| ram.node)
    }

    /// Where an initial RAM disk of `size` bytes goes: as high as it can be in the boot node below 4 GiB, above
    /// [`BOOT_MEMORY`], at a page. `None` if it does not fit.
    pub fn initrd(&self, size: u64) -> Option<AddrRange> {
        let node = self.boot_node()?;
        let pages = size.checked_next_multiple_of(PAGE_SIZE)?;
        self.ram_of(node)
            .map(|ram| AddrRange::between(ram.start.max(BOOT_MEMORY.end()), ram.end().min(DMA32_END)))
            .filter(|room| room.size >= pages)
            .map(|room| AddrRange { start: room.end() - pages, size })
            .last()
    }
}
