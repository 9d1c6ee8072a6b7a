//! What a task has of user mode beside its registers on the kernel stack: the segment bases, the floating-point state, and
//! the address space; and how they follow the task from CPU to CPU.

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU64, fence};

use pagevisor_mm::mmap::Space;
use pagevisor_shared::sched::TaskStruct;

use super::object::{Task, current};
use crate::arch::cpu::msr;
use crate::arch::this_cpu::percpu;
use crate::arch::{cpu, fpu, tlb};
use crate::platform;

percpu! {
    /// What the CPU has in its FS base.
    FS_LOADED: u64 = 0;
    /// What `swapgs` gives it for its GS base on the way to user mode.
    GS_LOADED: u64 = 0;
    /// The [`pagevisor_shared::mm_types::MmStruct`] that the CPU keeps a reference to because it uses its tables lazily; 0
    /// for none.
    KEPT: u64 = 0;
}

/// A task's part.
#[derive(Debug, Default)]
pub struct UserState {
    /// FS base. Written by the task itself, or before it runs.
    fs: AtomicU64,
    /// GS base.
    gs: AtomicU64,
    /// Address of the floating-point state ([`fpu`]); 0 for threads of the kernel.
    fpu: AtomicU64,
}

impl UserState {
    /// FS base and GS base.
    pub fn bases(&self) -> [u64; 2] {
        [self.fs.load(Relaxed), self.gs.load(Relaxed)]
    }

    /// The bases of a task that does not run.
    pub(super) fn set_bases(&self, [fs, gs]: [u64; 2]) {
        self.fs.store(fs, Relaxed);
        self.gs.store(gs, Relaxed);
    }

    /// Gives a task that does not run its floating-point state, that of `from` or a new one; whether there was memory.
    pub(super) fn copy_fpu(&self, from: Option<&Self>) -> bool {
        let Some(state) = fpu::alloc() else { return false };
        if let Some(from) = from.map(|from| from.fpu.load(Relaxed)).filter(|from| *from != 0) {
            // SAFETY: `from` is the current task's, whose registers are this CPU's; nobody knows the new one.
            unsafe {
                fpu::save(from);
                fpu::copy(state, from);
            }
        }
        self.fpu.store(state, Relaxed);
        true
    }

    /// The task has ended.
    pub(super) fn free(&self) {
        let state = self.fpu.swap(0, Relaxed);
        if state != 0 {
            fpu::free(state);
        }
    }
}

/// Changes the current task's FS base and GS base (`arch_prctl`), which are addresses of user mode.
pub fn set_bases(bases: [u64; 2]) {
    let flags = cpu::irq_save();
    let task = current();
    task.user.set_bases(bases);
    load_bases(&task);
    cpu::irq_restore(flags);
}

/// The current task becomes another program: bases of 0, and the floating-point state that a program begins with
/// (`flush_thread`). Whether there was memory.
pub fn renew() -> bool {
    set_bases([0; 2]);
    let task = current();
    task.record.flags.fetch_and(!(TaskStruct::KTHREAD | TaskStruct::FORKNOEXEC), Relaxed);
    let flags = cpu::irq_save();
    let mut state = task.user.fpu.load(Relaxed);
    if state == 0 {
        state = fpu::alloc().unwrap_or_default();
    }
    if state != 0 {
        // SAFETY: it is the current task's, which does not need what is there.
        unsafe {
            fpu::reset(state);
            fpu::restore(state);
        }
        task.user.fpu.store(state, Relaxed);
    }
    cpu::irq_restore(flags);
    state != 0
}

/// Calls `work` with the floating-point state that the current task has now, for a signal frame.
pub fn with_saved_fpu<R>(work: impl FnOnce(&[u8]) -> R) -> R {
    let state = current().user.fpu.load(Relaxed);
    if state == 0 {
        return work(&[]);
    }
    // Copied: the task may be switched away from, which saves its state again, while this one is used.
    let mut copy = alloc::vec![0; fpu::frame_bytes()];
    let flags = cpu::irq_save();
    // SAFETY: the registers are the current task's, and so is the state.
    unsafe {
        fpu::save(state);
        copy[..fpu::bytes()].copy_from_slice(fpu::bytes_of(state));
    }
    cpu::irq_restore(flags);
    fpu::describe(&mut copy);
    work(&copy)
}

/// Gives the current task the floating-point state `state`, as a signal handler leaves it.
pub fn replace_fpu(bytes: &[u8]) {
    let state = current().user.fpu.load(Relaxed);
    if state != 0 {
        let flags = cpu::irq_save();
        // SAFETY: the state is the current task's, and so are the registers.
        unsafe {
            fpu::set_user(state, bytes);
            fpu::restore(state);
        }
        cpu::irq_restore(flags);
    }
}

fn load_bases(task: &Task) {
    let [fs, gs] = task.user.bases();
    // SAFETY: the kernel does not use FS, and what is behind `swapgs` is user mode's.
    unsafe {
        if FS_LOADED.read() != fs {
            FS_LOADED.write(fs);
            cpu::wrmsr(msr::FS_BASE, fs);
        }
        if GS_LOADED.read() != gs {
            GS_LOADED.write(gs);
            cpu::wrmsr(msr::KERNEL_GS_BASE, gs);
        }
    }
}

/// This CPU leaves `prev` for `next`. Interrupts are off. Gives the space that the CPU no longer keeps, if there is one: its
/// reference is to be dropped once the switch is over.
#[inline]
pub(super) fn switch(prev: &Task, next: &Task) -> u64 {
    let state = prev.user.fpu.load(Relaxed);
    if state != 0 {
        // SAFETY: the registers are those of `prev`, and so is the state.
        unsafe { fpu::save(state) };
    }
    let space = next.record.mm.load(Relaxed);
    if space == 0 {
        keep(prev.record.mm.load(Relaxed));
        next.record.active_mm.store(prev.record.active_mm.load(Relaxed), Relaxed);
        return 0;
    }
    // SAFETY: a task keeps its space.
    tlb::switch_to(unsafe { &*core::ptr::with_exposed_provenance(space as usize) });
    load_bases(next);
    let state = next.user.fpu.load(Relaxed);
    if state != 0 {
        // SAFETY: it was saved when `next` was left, or made when `next` was.
        unsafe { fpu::restore(state) };
    }
    let kept = KEPT.read();
    if kept != 0 {
        KEPT.write(0);
    }
    kept
}

/// This CPU goes on with the tables of `space`, which it uses, for nobody who runs: it keeps the record for that. 0 stands
/// for one that it keeps already, or none. Interrupts are off.
fn keep(space: u64) {
    if space != 0 {
        // SAFETY: the task that is left, or that gives it up, has it still.
        let record: &pagevisor_shared::mm_types::MmStruct =
            unsafe { &*core::ptr::with_exposed_provenance(space as usize) };
        record.mm_count.fetch_add(1, Relaxed);
        KEPT.write(space);
        tlb::enter_lazy();
    }
}

/// The current task takes `space`, 0 for none, in place of the one it has, whose use passes to the caller with the result
/// (`exec_mmap`, `exit_mm`).
pub(super) fn exchange_space(space: u64) -> u64 {
    let flags = cpu::irq_save();
    let task = current();
    let old = task.record.mm.swap(space, Relaxed);
    let dropped = if space == 0 {
        keep(old);
        0
    } else {
        task.record.active_mm.store(space, Relaxed);
        // SAFETY: the caller gives the task its use of the space.
        tlb::switch_to(unsafe { &*core::ptr::with_exposed_provenance(space as usize) });
        let kept = KEPT.read();
        KEPT.write(0);
        kept
    };
    fence(core::sync::atomic::Ordering::SeqCst);
    cpu::irq_restore(flags);
    drop_kept(dropped);
    old
}

/// The CPU idles: it lets go of the space it keeps if it has left its tables since, or if nobody runs in it any more.
/// Interrupts are on.
pub fn let_go() {
    if KEPT.read() == 0 {
        return;
    }
    let flags = cpu::irq_save();
    if tlb::loaded().is_some_and(|space| space.mm_users.load(Relaxed) == 0) {
        tlb::leave();
    }
    let kept = if tlb::loaded().is_none() { KEPT.read() } else { 0 };
    if kept != 0 {
        KEPT.write(0);
    }
    cpu::irq_restore(flags);
    drop_kept(kept);
}

/// Drops the reference to a space that a CPU has kept.
pub(super) fn drop_kept(space: u64) {
    if space != 0 {
        // SAFETY: `keep` stored the address of a space's record, and took a reference.
        if let (Some(mm), Some(space)) = (platform::mm(), unsafe { Space::at(space) }) {
            mm.mmdrop(space);
        }
    }
}
