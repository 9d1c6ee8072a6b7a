//! What a CPU does when nobody wants it: its idle task frees what interrupt handlers could not, balances per-CPU memory,
//! gives its pending counts to the global counters, and halts. There is no tick; what ends the halt is an interrupt.

use crate::arch::{cpu, percpu};
use crate::{command, platform, task};

/// Idles for ever, taking interrupts, and leaves the CPU to whoever becomes runnable.
pub fn run() -> ! {
    loop {
        // Before `mm` runs on this CPU there is nothing to give.
        let mm = platform::mm().filter(|_| !percpu::local().is_null());
        if let Some(mm) = mm {
            mm.vfree_deferred();
            mm.percpu_balance();
        }
        task::let_go();
        cpu::irq_disable();
        if task::need_resched() {
            cpu::irq_enable();
            task::schedule();
            continue;
        }
        if let Some(mm) = mm {
            mm.quiet_vmstat();
        }
        task::begin_idle();
        command::halt();
        task::end_idle();
    }
}
