//! What a CPU does when there is nothing to do: it halts.

use crate::arch::cpu;

/// Idles for ever, taking interrupts.
pub fn run() -> ! {
    loop {
        cpu::irq_disable();
        cpu::halt_with_irqs();
    }
}
