//! Interrupts: their vectors and what they do.

use core::sync::atomic::{AtomicBool, Ordering};

use pagevisor_shared::device;
use pagevisor_shared::units::CpuId;

use super::{apic, cpu, percpu};
use crate::task::todo;

/// Sources of interrupts. The discriminant indexes [`percpu::PerCpu::interrupts`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Irq {
    /// The monitor device has put a buffer into a queue.
    Monitor = 0,
    /// The local APIC's timer ran out.
    Timer = 1,
    /// Another CPU asks to run a function.
    CallFunction = 2,
    /// Another CPU has put a task into this one's run queue, or the host wants this one at a safe point.
    Reschedule = 3,
    /// Another CPU has panicked.
    Stop = 4,
    /// The APIC changed its mind.
    Spurious = 5,
}

/// Number of [`Irq`]s.
pub const IRQS: usize = 6;

impl Irq {
    /// All sources.
    pub const ALL: [Self; IRQS] =
        [Self::Monitor, Self::Timer, Self::CallFunction, Self::Reschedule, Self::Stop, Self::Spurious];

    /// The vector. Linux's numbers where it has the same interrupt (`asm/irq_vectors.h`).
    pub const fn vector(self) -> u8 {
        match self {
            Self::Monitor => 0x30,
            Self::Timer => 0xec,
            Self::CallFunction => 0xfb,
            Self::Reschedule => device::PARK_VECTOR,
            Self::Stop => 0xf8,
            Self::Spurious => 0xff,
        }
    }

    /// How often it came on the current CPU.
    pub fn count(self) -> u64 {
        percpu::this().interrupts[self as usize].load(Ordering::Relaxed)
    }

    /// How often it came on any CPU.
    pub fn total(self) -> u64 {
        let records = (0..pagevisor_shared::NR_CPUS).filter_map(CpuId::new).filter_map(percpu::of);
        records.map(|record| record.interrupts[self as usize].load(Ordering::Relaxed)).sum()
    }
}

/// The kernel is dying: a CPU that finds out stops.
pub static STOPPING: AtomicBool = AtomicBool::new(false);

/// Handles the interrupt with `vector`, interrupts being off.
pub fn handle(vector: u64) {
    let Some(irq) = Irq::ALL.into_iter().find(|irq| irq.vector() as u64 == vector) else { return };
    let count = &percpu::this().interrupts[irq as usize];
    // Only this CPU writes its counts, so a load and a store are enough.
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    if irq == Irq::Spurious {
        return; // is not acknowledged
    }
    apic::eoi();
    match irq {
        Irq::Monitor => {
            crate::command::receive();
            crate::console::receive();
        }
        Irq::CallFunction => crate::smp::run_called_functions(),
        Irq::Timer => crate::task::timer_interrupt(),
        Irq::Reschedule => {
            if crate::command::is_asked_to_stay() {
                // Looks when it is about to leave the kernel.
                crate::task::current().todo.fetch_or(todo::RESCHED, Ordering::Relaxed);
            }
            crate::task::reschedule_interrupt();
        }
        Irq::Stop if STOPPING.load(Ordering::Relaxed) => cpu::stop(),
        // Counting is all there is to the others.
        _ => {}
    }
}
