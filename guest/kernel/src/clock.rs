//! Time since the kernel's first instruction, from the time stamp counter.
//!
//! The counter's frequency comes from CPUID: the leaf that hypervisors use for it (0x40000010, set by our own VMM and
//! by QEMU on KVM), then the architectural ones (0x15, 0x16). Where nobody tells (QEMU's software emulation), boot
//! assumes 1 GHz, which is right when instructions are counted, and [`calibrate`] measures it against the ACPI timer
//! over the time since boot. So booting never waits for a clock.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::arch::{cpu, port};
use crate::sync::SeqLock;

/// Ticks of the ACPI power-management timer per second.
const PM_TIMER_HZ: u64 = 3_579_545;
/// The bits that every implementation of that timer has.
const PM_TIMER_MASK: u32 = 0xff_ffff;
/// What is assumed when nobody tells.
const ASSUMED_KHZ: u64 = 1_000_000;

/// What turns ticks into nanoseconds: `base_nanos + (tsc - base_tsc) * mult >> 32`.
#[derive(Debug)]
struct Scale {
    base_tsc: AtomicU64,
    base_nanos: AtomicU64,
    mult: AtomicU64,
}

static SCALE: SeqLock<Scale> =
    SeqLock::new(Scale { base_tsc: AtomicU64::new(0), base_nanos: AtomicU64::new(0), mult: AtomicU64::new(1 << 32) });
static TSC_KHZ: AtomicU64 = AtomicU64::new(0);
static LAPIC_KHZ: AtomicU64 = AtomicU64::new(0);

const fn mult(khz: u64) -> u64 {
    (1_000_000 << 32) / khz
}

const fn scaled(ticks: u64, mult: u64) -> u64 {
    ((ticks as u128 * mult as u128) >> 32) as u64
}

static TSC_ENTRY: AtomicU64 = AtomicU64::new(0);

/// The counter at the kernel's first instruction.
pub fn tsc_entry() -> u64 {
    TSC_ENTRY.load(Relaxed)
}

/// Starts the clock; `tsc_entry` is the counter at the first instruction.
pub fn init(tsc_entry: u64) {
    let hypervisor = cpu::cpuid(0x4000_0010, 0);
    let crystal = cpu::cpuid(0x15, 0);
    let khz = if hypervisor.eax != 0 {
        LAPIC_KHZ.store(hypervisor.ebx as u64, Relaxed);
        hypervisor.eax as u64
    } else if crystal.eax != 0 && crystal.ebx != 0 && crystal.ecx != 0 {
        crystal.ecx as u64 * crystal.ebx as u64 / crystal.eax as u64 / 1000
    } else {
        cpu::cpuid(0x16, 0).eax as u64 * 1000
    };
    TSC_KHZ.store(khz, Relaxed);
    TSC_ENTRY.store(tsc_entry, Relaxed);
    SCALE.write(|scale| {
        scale.base_tsc.store(tsc_entry, Relaxed);
        scale.mult.store(mult(if khz == 0 { ASSUMED_KHZ } else { khz }), Relaxed);
    });
}

/// Frequency of the counter in kHz, 0 when nobody told and nobody measured.
pub fn tsc_khz() -> u64 {
    TSC_KHZ.load(Relaxed)
}

/// Frequency of the local APIC timer in kHz, 0 when nobody told.
pub fn lapic_khz() -> u64 {
    LAPIC_KHZ.load(Relaxed)
}

/// Nanoseconds since the kernel's first instruction.
#[inline]
pub fn nanos() -> u64 {
    SCALE.read(|scale| {
        let ticks = cpu::rdtsc().wrapping_sub(scale.base_tsc.load(Relaxed));
        scale.base_nanos.load(Relaxed) + scaled(ticks, scale.mult.load(Relaxed))
    })
}

/// Nanoseconds that `ticks` of the counter are.
pub fn nanos_of(ticks: u64) -> u64 {
    SCALE.read(|scale| scaled(ticks, scale.mult.load(Relaxed)))
}

/// Measures the counter against the ACPI timer at `pm_timer` for a millisecond, unless its frequency is known.
pub fn calibrate(pm_timer: u16) {
    if tsc_khz() != 0 || pm_timer == 0 {
        return;
    }
    let ticks = |start: u32| port::read::<u32>(pm_timer).wrapping_sub(start) & PM_TIMER_MASK;
    let start = ticks(0);
    let tsc = cpu::rdtsc();
    // A timer that stands still must not stop the kernel: the counter bounds the wait.
    let mut elapsed = 0;
    while (elapsed as u64) < PM_TIMER_HZ / 1000 && cpu::rdtsc().wrapping_sub(tsc) < 1 << 32 {
        elapsed = ticks(start);
    }
    let khz = cpu::rdtsc().wrapping_sub(tsc) * PM_TIMER_HZ / (elapsed as u64).max(1) / 1000;
    if elapsed == 0 || khz == 0 {
        return;
    }
    TSC_KHZ.store(khz, Relaxed);
    let now = nanos();
    SCALE.write(|scale| {
        scale.base_tsc.store(cpu::rdtsc(), Relaxed);
        scale.base_nanos.store(now, Relaxed);
        scale.mult.store(mult(khz), Relaxed);
    });
}
