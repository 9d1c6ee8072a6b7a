//! Ending the machine.

use core::sync::atomic::Ordering;

use pagevisor_shared::device::{SHUTDOWN_MAGIC, SHUTDOWN_PORT, shutdown};
use pagevisor_shared::region::GuestState;
use pagevisor_shared::units::PhysAddr;

use crate::acpi::Power;
use crate::arch::{cpu, paging, port};
use crate::sync::Once;
use crate::{console, region};

/// PM1 control: enter the sleep state. Type 0 is S5 on QEMU's machines; what AML says about it is not read.
const PM1_SLEEP_S5: u16 = 1 << 13;
/// Sleep control register of machines without PM1: enter, with type 5.
const SLEEP_CONTROL_S5: u8 = 1 << 5 | 5 << 2;
/// PM1a control where QEMU has it, for the case that ACPI said nothing.
const QEMU_PM1A: u16 = 0x604;
/// QEMU's `isa-debug-exit`.
const QEMU_DEBUG_EXIT: u16 = 0xf4;

static POWER: Once<Power> = Once::new();

/// Notes the registers that ACPI names.
pub fn init(power: Power) {
    POWER.set(power);
}

/// Port of the power-management timer, 0 for none.
pub fn timer_port() -> u16 {
    POWER.get().map_or(0, |power| power.timer)
}

/// Ends the machine with a [`shutdown`] code.
pub fn off(code: u16) -> ! {
    console::flush();
    cpu::irq_disable();
    if let Some(region) = region::get()
        && code == shutdown::OK
    {
        region.header().state.store(GuestState::Off as u32, Ordering::Release);
    }
    port::write(SHUTDOWN_PORT, SHUTDOWN_MAGIC | code as u32);
    // Still here: it is QEMU. A failure should show in its exit status, if it was given the device for that.
    if code != shutdown::OK {
        port::write(QEMU_DEBUG_EXIT, code as u8);
    }
    let power = POWER.get().copied().unwrap_or_default();
    if power.sleep_control != 0 {
        let register = paging::map_device(paging::DeviceSlot::Sleep, PhysAddr::new(power.sleep_control));
        // SAFETY: the page of the register that ACPI names has just been mapped; entering S5 ends everything.
        unsafe { core::ptr::with_exposed_provenance_mut::<u8>(register).write_volatile(SLEEP_CONTROL_S5) };
    }
    port::write(if power.pm1a_control != 0 { power.pm1a_control } else { QEMU_PM1A }, PM1_SLEEP_S5);
    port::write(QEMU_DEBUG_EXIT, 0u8);
    cpu::triple_fault()
}
