//! The local APIC: acknowledging interrupts, interrupting other CPUs, and the one-shot timer.
//!
//! x2APIC where the processor offers it (its registers are model-specific registers, an eighth of the cost of a
//! memory-mapped access where ring 0 is emulated), xAPIC otherwise. The choice is made once and holds for all CPUs.

use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use pagevisor_shared::units::PhysAddr;

use super::cpu::{self, msr};
use super::irq::Irq;
use super::paging;
use crate::clock;

/// CPUID leaf 1 ECX: the processor has an x2APIC.
const HAS_X2APIC: u32 = 1 << 21;
/// In the APIC base register: the APIC is on; it is in x2APIC mode.
const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;

// Registers, by their offset in the xAPIC's page; the x2APIC numbers them by the same offset / 16.
const EOI: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const LVT_TIMER: u32 = 0x320;
const LVT_LINT0: u32 = 0x350;
const LVT_LINT1: u32 = 0x360;
const TIMER_INITIAL: u32 = 0x380;
const TIMER_DIVIDE: u32 = 0x3e0;

const SOFTWARE_ENABLE: u32 = 1 << 8;
const LVT_MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0b1011;
const ICR_PENDING: u32 = 1 << 12;
const ICR_ASSERT: u32 = 1 << 14;
const DELIVER_INIT: u32 = 5 << 8;
const DELIVER_STARTUP: u32 = 6 << 8;

static X2APIC: AtomicBool = AtomicBool::new(false);
/// Where the xAPIC's page is mapped.
static WINDOW: AtomicUsize = AtomicUsize::new(0);

/// Chooses the mode and turns on the boot processor's APIC. `base` is where the firmware says the page is.
pub fn init(base: PhysAddr) {
    // The two legacy interrupt controllers must not deliver anything.
    super::port::write(0x21, 0xffu8);
    super::port::write(0xa1, 0xffu8);
    if cpu::cpuid(1, 0).ecx & HAS_X2APIC != 0 {
        X2APIC.store(true, Relaxed);
    } else {
        WINDOW.store(paging::map_device(paging::DeviceSlot::LocalApic, base), Relaxed);
    }
    enable();
}

/// Whether [`init`] has run.
pub fn is_ready() -> bool {
    X2APIC.load(Relaxed) || WINDOW.load(Relaxed) != 0
}

/// Turns on this CPU's APIC.
pub fn enable() {
    let mode = if X2APIC.load(Relaxed) { BASE_ENABLE | BASE_X2APIC } else { BASE_ENABLE };
    // SAFETY: the page stays where the firmware put it; every vector the APIC can now deliver has a gate.
    unsafe { cpu::wrmsr(msr::APIC_BASE, cpu::rdmsr(msr::APIC_BASE) | mode) };
    write(SPURIOUS, SOFTWARE_ENABLE | Irq::Spurious.vector() as u32);
    write(LVT_LINT0, LVT_MASKED);
    write(LVT_LINT1, LVT_MASKED);
    write(LVT_TIMER, Irq::Timer.vector() as u32);
    write(TIMER_DIVIDE, DIVIDE_BY_1);
}

fn window(register: u32) -> *mut u32 {
    with_exposed_provenance_mut(WINDOW.load(Relaxed) + register as usize)
}

#[inline]
fn read(register: u32) -> u32 {
    if X2APIC.load(Relaxed) {
        cpu::rdmsr(msr::X2APIC + register / 16) as u32
    } else {
        // SAFETY: the window is the APIC's page, mapped by `init`; the register is inside and aligned.
        unsafe { window(register).read_volatile() }
    }
}

#[inline]
fn write(register: u32, value: u32) {
    if X2APIC.load(Relaxed) {
        // SAFETY: an APIC register changes no memory; the values here are the kernel's own.
        unsafe { cpu::wrmsr(msr::X2APIC + register / 16, value as u64) };
    } else {
        // SAFETY: the window is the APIC's page, mapped by `init`; the register is inside and aligned.
        unsafe { window(register).write_volatile(value) };
    }
}

/// Acknowledges the interrupt being handled.
#[inline]
pub fn eoi() {
    write(EOI, 0);
}

fn command(apic_id: u32, low: u32) {
    if X2APIC.load(Relaxed) {
        let value = (apic_id as u64) << 32 | low as u64;
        // SAFETY: as in `write`. The register takes both halves at once.
        unsafe { cpu::wrmsr(msr::X2APIC + ICR_LOW / 16, value) };
        return;
    }
    let flags = cpu::irq_save();
    write(ICR_HIGH, apic_id << 24);
    write(ICR_LOW, low);
    while read(ICR_LOW) & ICR_PENDING != 0 {
        core::hint::spin_loop();
    }
    cpu::irq_restore(flags);
}

/// Interrupts the CPU with `apic_id`. What was written before is visible to its handler.
pub fn send(apic_id: u32, irq: Irq) {
    // An x2APIC's registers are not ordered behind memory accesses by themselves, as device memory is.
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    command(apic_id, ICR_ASSERT | irq.vector() as u32);
}

/// Puts the CPU with `apic_id` into its wait for a start.
pub fn send_init(apic_id: u32) {
    command(apic_id, ICR_ASSERT | DELIVER_INIT);
}

/// Starts the CPU with `apic_id` in real mode at `page`, a page below 1 MiB.
pub fn send_startup(apic_id: u32, page: PhysAddr) {
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    command(apic_id, ICR_ASSERT | DELIVER_STARTUP | (page.raw() >> 12) as u32);
}

/// Lets the timer interrupt this CPU once, in `nanos` (at most four seconds or so ahead).
pub fn arm_timer(nanos: u64) {
    let ticks = nanos as u128 * timer_khz() as u128 / 1_000_000;
    write(TIMER_INITIAL, ticks.clamp(1, u32::MAX as u128) as u32);
}

/// Lets the timer interrupt this CPU once, in `ticks` of its own. For waits whose length does not matter, because
/// something else is to end them: the timer need not be measured.
pub fn arm_timer_ticks(ticks: u32) {
    write(TIMER_INITIAL, ticks);
}

/// Stops the timer.
pub fn disarm_timer() {
    write(TIMER_INITIAL, 0);
}

/// The timer's frequency. Where CPUID does not tell it is taken to be 1 GHz, as KVM and QEMU have it: who finds that his
/// timer came too early sets it again.
fn timer_khz() -> u64 {
    const ASSUMED: u64 = 1_000_000;
    match clock::lapic_khz() {
        0 => ASSUMED,
        known => known,
    }
}
