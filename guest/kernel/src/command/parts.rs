//! Running the parts of one thing on several CPUs at the same time.
//!
//! One such thing runs at a time. A CPU that waits for its turn, or for other CPUs, takes part meanwhile if it is
//! asked to, so nobody waits for somebody who waits for him.

use core::hint::spin_loop;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use pagevisor_mm::command::Services;
use pagevisor_mm::sync;
use pagevisor_shared::units::CpuMask;

use super::Worker;
use crate::arch::percpu;

/// What is run.
type Part<'a> = &'a (dyn Fn(usize) + Sync);

/// Held by the CPU that uses the rest.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// Address of a [`Part`].
static PART: AtomicUsize = AtomicUsize::new(0);
/// CPUs that take part, those that have not begun, and those that have not ended.
static CPUS: AtomicU64 = AtomicU64::new(0);
static ASKED: AtomicU64 = AtomicU64::new(0);
static BUSY: AtomicU64 = AtomicU64::new(0);

fn my_bit() -> u64 {
    1 << percpu::cpu_number()
}

/// This CPU's number among `cpus`.
fn rank(cpus: u64) -> usize {
    (cpus & (my_bit() - 1)).count_ones() as usize
}

/// Whether this CPU is asked to take part.
pub fn waiting() -> bool {
    ASKED.load(Ordering::Relaxed) & my_bit() != 0
}

/// Takes part, if this CPU is asked to.
pub fn serve() {
    // Acquire pairs with the release in `run_on`: who sees its bit sees what to run.
    if ASKED.load(Ordering::Acquire) & my_bit() == 0 {
        return;
    }
    ASKED.fetch_and(!my_bit(), Ordering::Relaxed);
    // It may take long.
    super::tell();
    let part: *const Part<'static> = core::ptr::with_exposed_provenance(PART.load(Ordering::Relaxed));
    // SAFETY: `run_on` stored the address of one of these on its stack before it set this CPU's bit, and stays until
    // this CPU's bit in `BUSY` is cleared.
    unsafe { (*part)(rank(CPUS.load(Ordering::Relaxed))) };
    BUSY.fetch_and(!my_bit(), Ordering::Release);
}

/// Runs `part` on each of `cpus`, which are online, and waits for all.
pub fn run_on(cpus: CpuMask, part: Part<'_>) {
    while !sync::try_lock(&OWNER) {
        Worker.relax();
        spin_loop();
    }
    let others = CpuMask(cpus.0 & !my_bit());
    PART.store((&raw const part).expose_provenance(), Ordering::Relaxed);
    CPUS.store(cpus.0, Ordering::Relaxed);
    BUSY.store(others.0, Ordering::Relaxed);
    ASKED.store(others.0, Ordering::Release);
    others.iter().for_each(super::call_worker);
    if cpus.0 & my_bit() != 0 {
        part(rank(cpus.0));
    }
    // Acquire pairs with the release in `serve`: what the parts did is visible.
    while BUSY.load(Ordering::Acquire) != 0 {
        Worker.relax();
    }
    sync::unlock(&OWNER);
}
