//! What a CPU does when nothing else: it executes the commands that are aimed at it, frees what interrupt handlers
//! could not, and balances per-CPU memory. When there is nothing left it gives its pending counts to the global counters
//! and halts.

use crate::arch::{cpu, percpu};
use crate::{command, platform};

/// Works and idles for ever, taking interrupts.
pub fn run() -> ! {
    loop {
        command::work();
        // Before `mm` runs on this CPU there is nothing to give.
        let mm = platform::mm().filter(|_| !percpu::local().is_null());
        if let Some(mm) = mm {
            mm.vfree_deferred();
            mm.percpu_balance();
        }
        cpu::irq_disable();
        if let Some(mm) = mm {
            mm.quiet_vmstat();
        }
        command::wait();
    }
}
