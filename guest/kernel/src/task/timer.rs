//! Timers: each CPU has its own, by the time at which they are due, and its local APIC's one-shot timer set to the first
//! of them or to the end of the running task's slice (`kernel/time/hrtimer.c`, `kernel/time/clockevents.c`).
//!
//! There is no periodic tick: a CPU that idles with no timer is left alone. What a timer does it does in the interrupt,
//! with the lock of its CPU's timers held.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::NR_CPUS;

use super::heap::{Arena, Heap, Links};
use super::sched;
use crate::arch::this_cpu::percpu;
use crate::arch::{apic, cpu, percpu};
use crate::clock;
use crate::sync::IrqSpinLock;

/// A point in time that does not come.
const NEVER: u64 = u64::MAX;

percpu! {
    /// What the local APIC's timer is set to; [`NEVER`] for nothing.
    PROGRAMMED: u64 = u64::MAX;
    /// When the running task's slice ends; [`NEVER`] for not at all.
    SLICE_END: u64 = u64::MAX;
    /// When this CPU's first timer is due.
    FIRST_DUE: u64 = u64::MAX;
}

/// What a timer does when it is due: gets the timer's argument, gives when it is due again. It must not touch timers.
pub type Action = fn(u64) -> Option<u64>;

/// A timer. Zero is one that is not set. Its memory must stay while it is set.
#[derive(Debug, Default)]
pub struct Timer {
    links: Links,
    /// An [`Action`].
    action: AtomicU64,
    argument: AtomicU64,
    /// The CPU whose timer it is, plus 1; 0 while it is not set. Written under that CPU's lock.
    cpu: AtomicU32,
}

/// Timers, as entries of a heap.
#[derive(Debug)]
struct Timers;

impl Timers {
    /// The timer at `entry`.
    fn at(entry: u64) -> &'static Timer {
        // SAFETY: only `Timer::set` makes entries, of timers that stay while they are set; the lock of the heap is held.
        unsafe { &*core::ptr::with_exposed_provenance(entry as usize) }
    }
}

impl Arena for Timers {
    fn links(&self, entry: u64) -> &Links {
        &Self::at(entry).links
    }
}

static TIMERS: [IrqSpinLock<Heap<Timers>>; NR_CPUS] = [const { IrqSpinLock::new(Heap::new(Timers)) }; NR_CPUS];

fn here() -> usize {
    percpu::cpu_number() as usize % NR_CPUS
}

impl Timer {
    /// Sets the timer, which is not set, on this CPU: `action` is called with `argument` when [`clock::nanos`] has
    /// reached `due`.
    ///
    /// # Safety
    /// The timer stays where it is until it is no longer set: until its action has given `None`, or [`Self::cancel`].
    pub unsafe fn set(&self, due: u64, action: Action, argument: u64) {
        let flags = cpu::irq_save();
        let cpu = here();
        let mut timers = TIMERS[cpu].lock();
        self.links.set_key(due);
        self.action.store(action as usize as u64, Relaxed);
        self.argument.store(argument, Relaxed);
        self.cpu.store(cpu as u32 + 1, Release);
        timers.insert(core::ptr::from_ref(self).expose_provenance() as u64);
        FIRST_DUE.write(timers.first_key().unwrap_or(NEVER));
        drop(timers);
        program();
        cpu::irq_restore(flags);
    }

    /// Takes the timer back; whether it was set. Afterwards its action does not run.
    pub fn cancel(&self) -> bool {
        loop {
            let Some(cpu) = self.cpu.load(Acquire).checked_sub(1) else { return false };
            let mut timers = TIMERS[cpu as usize % NR_CPUS].lock();
            if self.cpu.load(Acquire) != cpu + 1 {
                continue;
            }
            timers.remove(core::ptr::from_ref(self).addr() as u64);
            self.cpu.store(0, Release);
            if cpu as usize == here() {
                // The hardware may come too early now; it is set anew then.
                FIRST_DUE.write(timers.first_key().unwrap_or(NEVER));
            }
            return true;
        }
    }

    /// Does what it is for; when it is due again.
    fn run(&self) -> Option<u64> {
        let action = self.action.load(Relaxed) as usize;
        // SAFETY: `set` stored a function of this type.
        let action: Action = unsafe { core::mem::transmute(action) };
        action(self.argument.load(Relaxed))
    }
}

/// The slice of the task that runs on this CPU ends in `nanos`, or does not. Interrupts are off.
pub(super) fn end_slice_in(nanos: Option<u64>) {
    match nanos {
        // The hardware is left alone: it comes too early at most once.
        None => SLICE_END.write(NEVER),
        Some(nanos) => {
            SLICE_END.write(clock::nanos() + nanos);
            program();
        }
    }
}

/// Whether the slice of the task that runs on this CPU ends at all.
pub(super) fn slice_ends() -> bool {
    SLICE_END.read() != NEVER
}

/// Sets the hardware to what comes first, if it would come too late. Interrupts are off.
fn program() {
    let due = FIRST_DUE.read().min(SLICE_END.read());
    if due < PROGRAMMED.read() {
        PROGRAMMED.write(due);
        apic::arm_timer(due.saturating_sub(clock::nanos()));
    }
}

/// The local APIC's timer has interrupted. Interrupts are off.
pub fn interrupt() {
    PROGRAMMED.write(NEVER);
    if FIRST_DUE.read() != NEVER {
        run_due();
    }
    if SLICE_END.read() <= clock::nanos() {
        SLICE_END.write(NEVER);
        sched::slice_is_over();
    }
    program();
}

/// Runs this CPU's timers that are due.
fn run_due() {
    let mut timers = TIMERS[here()].lock();
    while let Some(first) = timers.first()
        && Timers::at(first).links.key() <= clock::nanos()
    {
        let timer = Timers::at(first);
        timers.pop();
        match timer.run() {
            Some(due) => {
                timer.links.set_key(due);
                timers.insert(first);
            }
            // From here on it may be gone.
            None => timer.cpu.store(0, Release),
        }
    }
    FIRST_DUE.write(timers.first_key().unwrap_or(NEVER));
}
