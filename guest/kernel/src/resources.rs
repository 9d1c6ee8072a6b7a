//! Who owns which physical addresses: the tree of `/proc/iomem`, in the region's resource table.

use core::ops::Range;
use core::sync::atomic::Ordering;

use pagevisor_shared::device::monitor::MMIO_SIZE;
use pagevisor_shared::layout::START_KERNEL_MAP;
use pagevisor_shared::region::RegionRef;
use pagevisor_shared::region::records::ResourceKind;
use pagevisor_shared::units::PAGE_SIZE;

use crate::acpi::Machine;
use crate::arch::paging;
use crate::boot::cmdline::Options;
use crate::boot::start_info::{MemoryKind, StartInfo};
use crate::monitor;

/// Bytes of an I/O APIC's registers, as Linux shows them.
const IOAPIC_SIZE: u64 = 0x400;
/// The area between 640 KiB and 1 MiB, which is no RAM whatever the memory map says.
const LEGACY_HOLE: Range<u64> = 0xa_0000..0x10_0000;

/// The table being filled.
struct Tree<'a> {
    region: &'a RegionRef<'static>,
    len: usize,
}

impl Tree<'_> {
    /// Appends a resource; what does not fit in the table is left out.
    fn push(&mut self, range: Range<u64>, kind: ResourceKind, depth: u32) {
        if range.is_empty() {
            return;
        }
        let Some(slot) = self.region.resource_slots().get(self.len) else { return };
        slot.start.store(range.start, Ordering::Relaxed);
        slot.end.store(range.end - 1, Ordering::Relaxed);
        slot.kind.store(kind as u32, Ordering::Relaxed);
        slot.depth.store(depth, Ordering::Relaxed);
        self.len += 1;
    }

    /// RAM, with the kernel inside it.
    fn push_ram(&mut self, range: Range<u64>) {
        let image = paging::image();
        let kernel = [
            (image.text..image.rodata, ResourceKind::KernelCode),
            (image.rodata..image.data, ResourceKind::KernelRodata),
            (image.data..image.bss, ResourceKind::KernelData),
            (image.bss..image.end, ResourceKind::KernelBss),
        ];
        self.push(range.clone(), ResourceKind::SystemRam, 0);
        for (part, kind) in kernel {
            let part = part.start - START_KERNEL_MAP..part.end - START_KERNEL_MAP;
            if range.contains(&part.start) {
                self.push(part, kind, 1);
            }
        }
    }

    /// An entry of the memory map, as Linux trims it (`trim_bios_range`): page 0 is reserved, the legacy hole is no
    /// RAM, a page that is RAM only in part is none.
    fn push_memory(&mut self, range: Range<u64>, kind: MemoryKind) {
        match kind {
            MemoryKind::Ram => {
                if range.start == 0 {
                    self.push(0..PAGE_SIZE, ResourceKind::Reserved, 0);
                }
                let low = range.start.max(PAGE_SIZE)..range.end.min(LEGACY_HOLE.start);
                self.push(low, ResourceKind::SystemRam, 0);
                let high = range.start.max(LEGACY_HOLE.end)..range.end;
                if !high.is_empty() {
                    self.push_ram(high);
                }
            }
            MemoryKind::Acpi => self.push(range, ResourceKind::AcpiTables, 0),
            MemoryKind::Nvs => self.push(range, ResourceKind::AcpiNvs, 0),
            MemoryKind::Reserved => self.push(range, ResourceKind::Reserved, 0),
        }
    }
}

/// Fills the table: the memory map and the devices, merged in order of address.
pub fn publish(region: &RegionRef<'static>, start_info: StartInfo, options: &Options, machine: &Machine) {
    let mut devices = [
        (0..0, ResourceKind::Monitor),
        (0..0, ResourceKind::StateRegion),
        (machine.ioapic..machine.ioapic + if machine.ioapic == 0 { 0 } else { IOAPIC_SIZE }, ResourceKind::IoApic),
        (machine.lapic..machine.lapic + PAGE_SIZE, ResourceKind::LocalApic),
    ];
    if let (Some(device), Some(base)) = (monitor::get(), options.monitor) {
        devices[0].0 = base.raw()..base.raw() + MMIO_SIZE;
        let (base, len) = device.shm();
        devices[1].0 = base.raw()..base.raw() + len;
    }
    // Four entries; sorting by hand keeps the library's sort out of the kernel.
    for end in (1..devices.len()).rev() {
        for index in 0..end {
            if devices[index].0.start > devices[index + 1].0.start {
                devices.swap(index, index + 1);
            }
        }
    }
    let mut tree = Tree { region, len: 0 };
    let mut devices = devices.into_iter().peekable();
    for (range, kind) in start_info.memory_map() {
        while let Some((device, kind)) = devices.next_if(|(device, _)| device.start < range.start) {
            tree.push(device, kind, 0);
        }
        tree.push_memory(range.clone(), kind);
        // Devices inside an area that the firmware reserves belong to it.
        while let Some((device, kind)) = devices.next_if(|(device, _)| device.start < range.end) {
            tree.push(device, kind, 1);
        }
    }
    for (device, kind) in devices {
        tree.push(device, kind, 0);
    }
    region.header().nr_resources.store(tree.len as u32, Ordering::Release);
}
