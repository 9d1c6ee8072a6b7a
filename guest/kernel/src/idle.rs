//! What a CPU does when nothing else: it executes the commands that are aimed at it. When there are none it gives its
//! pending counts to the global counters and halts.

use crate::arch::{cpu, percpu};
use crate::{command, platform};

/// Works and idles for ever, taking interrupts.
pub fn run() -> ! {
    loop {
        command::work();
        cpu::irq_disable();
        // Before `mm` runs on this CPU there is nothing to give.
        if let Some(mm) = platform::mm()
            && !percpu::local().is_null()
        {
            mm.quiet_vmstat();
        }
        command::wait();
    }
}
