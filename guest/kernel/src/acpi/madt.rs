//! The MADT: which CPUs and interrupt controllers there are.

use super::{HEADER, Machine, entries};
use crate::boot::low::Fields;

const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const LOCAL_APIC_OVERRIDE: u8 = 5;
const LOCAL_X2APIC: u8 = 9;
/// The processor may be used.
const ENABLED: u32 = 1;

impl Machine {
    pub(super) fn read_madt(&mut self, madt: Fields) {
        self.lapic = madt.u32(HEADER) as u64;
        for entry in entries(madt, HEADER + 8) {
            match entry.u8(0) {
                LOCAL_APIC if entry.u32(4) & ENABLED != 0 => self.add_cpu(entry.u8(3) as u32),
                LOCAL_X2APIC if entry.u32(8) & ENABLED != 0 => self.add_cpu(entry.u32(4)),
                IO_APIC if self.ioapic == 0 => self.ioapic = entry.u32(4) as u64,
                LOCAL_APIC_OVERRIDE => self.lapic = entry.u64(4),
                _ => {}
            }
        }
    }
}
