//! The FADT: registers of power management.

use crate::boot::low::Fields;

/// Generic address: the register is in memory.
const SPACE_MEMORY: u8 = 0;
/// Generic address: the register is an I/O port.
const SPACE_IO: u8 = 1;

/// Registers of power management, 0 where the machine has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Power {
    /// Port of PM1a control, where sleep states are entered.
    pub pm1a_control: u16,
    /// Port of the power-management timer.
    pub timer: u16,
    /// Memory address of the sleep control register of machines without PM1.
    pub sleep_control: u64,
}

impl Power {
    pub(super) fn read(fadt: Fields) -> Self {
        // The 64-bit forms come first; older firmware fills only the 32-bit ones.
        let extended = |offset, space| if fadt.u8(offset) == space { fadt.u64(offset + 4) } else { 0 };
        let port = |extended_at, plain_at| match extended(extended_at, SPACE_IO) {
            0 => fadt.u32(plain_at) as u16,
            port => port as u16,
        };
        Self { pm1a_control: port(172, 64), timer: port(208, 76), sleep_control: extended(244, SPACE_MEMORY) }
    }
}
