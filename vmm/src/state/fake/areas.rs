//! Areas of the address space of the guest made by hand.

use std::mem::offset_of;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::layout::VMALLOC_START;
use pagevisor_shared::vmalloc::{VmFlags, VmStruct, VmapArea};

use super::slabs::direct;
use super::{FakeGuest, MIB, PGD, TABLES};

/// Where the records are, 128 bytes an area.
pub(crate) const AREAS: u64 = 53 * MIB;
/// Where the pages of the first area are.
pub(crate) const AREA_PAGES: u64 = 54 * MIB;

impl FakeGuest {
    /// Makes an area of two pages of its own, one of a device, a reservation, and one that was freed.
    pub fn map_areas(&self) {
        let index = |address: u64, shift: u32| (address >> shift & 0x1ff) * 8;
        let tables = [TABLES + 0x6000, TABLES + 0x7000, TABLES + 0x8000];
        self.memory.write_u64(PGD + index(VMALLOC_START, 39), tables[0] | 0x23);
        self.memory.write_u64(tables[0] + index(VMALLOC_START, 30), tables[1] | 0x23);
        self.memory.write_u64(tables[1] + index(VMALLOC_START, 21), tables[2] | 0x23);
        for page in 0..2 {
            self.memory.write_u64(tables[2] + page * 8, (AREA_PAGES + page * 4096) | 1 << 63 | 0x163);
        }
        self.memory.write_u64(tables[2] + 4 * 8, 0xd000_0000 | 1 << 63 | 0x173);
        let areas = [(0, 0x3000, VmFlags::ALLOC, 2, 0), (0x4000, 0x6000, VmFlags::IOREMAP, 1, 0xd000_0000)];
        for (number, (start, end, flags, pages, phys)) in (0u64..).zip(areas) {
            let next = direct(AREAS + (number + 1) * 128);
            self.area(number, [start, end, next, direct(AREAS + number * 128 + 64)]);
            let vm = AREAS + number * 128 + 64;
            self.memory.write_u64(vm + offset_of!(VmStruct, addr) as u64, VMALLOC_START + start);
            self.memory.write_u64(vm + offset_of!(VmStruct, size) as u64, end - start);
            self.memory.write_u32(vm + offset_of!(VmStruct, flags) as u64, flags.0);
            self.memory.write_u32(vm + offset_of!(VmStruct, nr_pages) as u64, pages);
            self.memory.write_u64(vm + offset_of!(VmStruct, phys_addr) as u64, phys);
            self.memory.write_u64(vm + offset_of!(VmStruct, caller) as u64, 0xffff_ffff_8100_0010);
        }
        self.area(2, [0x8000, 0x9000, 0, 0]);
        self.area(3, [0x6000, 0x8000, 0, 0]);
        let region = self.region();
        let roots = &region.header().roots.vmalloc;
        roots.busy.first.store(direct(AREAS), Relaxed);
        roots.purge.first.store(direct(AREAS + 3 * 128), Relaxed);
    }

    fn area(&self, number: u64, [start, end, next, vm]: [u64; 4]) {
        let fields = [
            (offset_of!(VmapArea, va_start), VMALLOC_START + start),
            (offset_of!(VmapArea, va_end), VMALLOC_START + end),
            (offset_of!(VmapArea, next), next),
            (offset_of!(VmapArea, max_or_vm), vm),
        ];
        fields.iter().for_each(|(offset, value)| self.memory.write_u64(AREAS + number * 128 + *offset as u64, *value));
    }
}
