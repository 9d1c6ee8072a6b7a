//! What a CPU does when there is nothing to do: it gives its pending counts to the global counters and halts.

use crate::arch::{cpu, percpu};
use crate::platform;

/// Idles for ever, taking interrupts.
pub fn run() -> ! {
    loop {
        cpu::irq_disable();
        // Before `mm` runs on this CPU there is nothing to give.
        if let Some(mm) = platform::mm()
            && !percpu::local().is_null()
        {
            mm.quiet_vmstat();
        }
        cpu::halt_with_irqs();
    }
}
