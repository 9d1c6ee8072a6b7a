//! What a CPU does when nobody wants it: its idle task frees what interrupt handlers could not, balances per-CPU memory,
//! gives back objects that nobody used of late, clears free memory if it is to (`pagevisor.idle_clear`), gives its pending counts
//! to the global counters, and halts.
//! There is no tick; what ends the halt is an interrupt.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::Mm;

use crate::arch::{cpu, percpu};
use crate::platform::Kernel;
use crate::{command, platform, task};

/// Pages that a CPU clears before it halts, at most.
static CLEAR: AtomicU32 = AtomicU32::new(0);

/// From now on a CPU that has nothing to do clears that many pages of free memory before it halts.
pub fn set_clear(pages: u32) {
    CLEAR.store(pages, Relaxed);
}

/// Clears free memory, until there is something to do. Interrupts are on.
fn clear(mm: &Mm<Kernel>) {
    let mut left = CLEAR.load(Relaxed);
    while left != 0 && !task::need_resched() {
        left = match mm.clear_idle() {
            0 => 0,
            pages => left.saturating_sub(pages),
        };
    }
}

/// Idles for ever, taking interrupts, and leaves the CPU to whoever becomes runnable.
pub fn run() -> ! {
    loop {
        // Before `mm` runs on this CPU there is nothing to give.
        let mm = platform::mm().filter(|_| !percpu::local().is_null());
        if let Some(mm) = mm {
            mm.vfree_deferred();
            mm.percpu_balance();
            mm.cache_reap();
        }
        task::let_go();
        if let Some(mm) = mm {
            clear(mm);
        }
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
