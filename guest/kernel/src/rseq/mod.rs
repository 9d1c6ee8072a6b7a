//! Restartable sequences (`kernel/rseq.c`): a thread registers an area of its memory, in which the kernel keeps the number of
//! the CPU that the thread runs on, and the thread says which critical section it is in. If it leaves its CPU in there, or
//! gets a signal, it does not go on but where the section's descriptor says.
//!
//! The area is brought up to date on the way back to user mode, when the thread has left its CPU since ([`preempted`]):
//! then [`todo::RSEQ`] is set, and whoever has no area pays nothing.

mod section;

use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::errno::Errno;

use self::section::{AREA_SECTION, AREA_SIZE, Bad, Fixup};
use crate::arch::traps::TrapFrame;
use crate::arch::{percpu, uaccess};
use crate::log::pr_warn;
use crate::signal;
use crate::task::{self, Task, clone_flags, todo};

/// Registers no more (`RSEQ_FLAG_UNREGISTER`).
const UNREGISTER: u32 = 1;
/// What the area has for the two numbers of the CPU when it is registered no more: 0, and that it is not
/// (`RSEQ_CPU_ID_UNINITIALIZED`).
const NO_CPU: u64 = 0xffff_ffff << 32;

/// A thread's part. Written by the thread itself, or before it runs.
#[derive(Debug, Default)]
pub struct State {
    /// Address of the area; 0 for none.
    area: AtomicU64,
    /// What is before every address that a section aborts to.
    signature: AtomicU32,
}

impl State {
    fn get(&self) -> (u64, u32) {
        (self.area.load(Relaxed), self.signature.load(Relaxed))
    }

    fn set(&self, area: u64, signature: u32) {
        self.area.store(area, Relaxed);
        self.signature.store(signature, Relaxed);
    }
}

/// `rseq`.
///
/// # Errors
/// EINVAL for other flags, another length or alignment, or another area than is registered; EPERM for another signature;
/// EBUSY if it is registered already; EFAULT.
pub fn call(area: u64, len: u32, flags: u32, signature: u32) -> Result<u64, Errno> {
    let task = task::current();
    let (own, own_signature) = task.rseq.get();
    let fits = u64::from(len) == AREA_SIZE;
    if flags & !UNREGISTER != 0 {
        return Err(Errno::EINVAL);
    }
    if flags == UNREGISTER {
        if own == 0 || own != area || !fits {
            return Err(Errno::EINVAL);
        }
        if signature != own_signature {
            return Err(Errno::EPERM);
        }
        uaccess::write_u64(own, NO_CPU)?;
        task.rseq.set(0, 0);
        return Ok(0);
    }
    if own != 0 {
        return Err(match () {
            () if own != area || !fits => Errno::EINVAL,
            () if signature != own_signature => Errno::EPERM,
            () => Errno::EBUSY,
        });
    }
    if !area.is_multiple_of(AREA_SIZE) || !fits {
        return Err(Errno::EINVAL);
    }
    if !uaccess::is_user_range(area, AREA_SIZE) {
        return Err(Errno::EFAULT);
    }
    task.rseq.set(area, signature);
    preempted(&task);
    Ok(0)
}

/// `task` leaves its CPU, or has yet to be told of it: it is told before it goes on in user mode (`rseq_preempt`,
/// `rseq_migrate`).
#[inline(always)]
pub fn preempted(task: &Task) {
    if task.rseq.area.load(Relaxed) != 0 {
        task.todo.fetch_or(todo::RSEQ, Relaxed);
    }
}

/// `child`, made by `parent` with `flags` of `clone`, has the area at the same place of its copy of the memory; if it has the
/// same memory it has none.
pub fn fork(parent: &Task, child: &Task, flags: u64) {
    if flags & clone_flags::VM == 0 {
        let (area, signature) = parent.rseq.get();
        child.rseq.set(area, signature);
        preempted(child);
    }
}

/// `task` becomes another program (`rseq_execve`).
pub fn exec(task: &Task) {
    task.rseq.set(0, 0);
}

/// `task`, the current one, is on its way to user mode with `frame` and has left its CPU (`rseq_handle_notify_resume`).
pub fn resume(task: &Task, frame: &mut TrapFrame) {
    before_handler(task, frame, 0);
}

/// `task`, the current one, is about to handle signal `number`, which comes to what it does at `frame`
/// (`rseq_signal_deliver`).
pub fn before_handler(task: &Task, frame: &mut TrapFrame, number: u32) {
    if let Err(bad) = update(task, frame) {
        report(task, bad);
        signal::force_sigsegv(task, number);
    }
}

/// Ends the critical section at `frame`, if there is one, and writes down the CPU.
fn update(task: &Task, frame: &mut TrapFrame) -> Result<(), Bad> {
    // First: what follows may sleep, and the task go on on another CPU.
    task.todo.fetch_and(!todo::RSEQ, Relaxed);
    let (area, signature) = task.rseq.get();
    if area == 0 {
        return Ok(());
    }
    let write = |at, value| uaccess::write_u64(at, value).map_err(|_| Bad::Memory);
    match section::fixup(frame.rip, area, signature, uaccess::read)? {
        Fixup::Nothing => {}
        Fixup::Forget => write(area + AREA_SECTION, 0)?,
        Fixup::Abort(ip) => {
            write(area + AREA_SECTION, 0)?;
            frame.rip = ip;
            // It goes on behind no system call.
            frame.vector = 0;
        }
    }
    let cpu = u64::from(percpu::cpu_number());
    // `cpu_id_start` and `cpu_id`.
    write(area, cpu << 32 | cpu)
}

/// Says what is wrong where Linux does.
fn report(task: &Task, bad: Bad) {
    match bad {
        Bad::Memory | Bad::Section => {}
        Bad::Signature { found, at } => pr_warn!(
            "Possible attack attempt. Unexpected rseq signature {found:#x}, expecting {:#x} (pid={}, addr={at:x}).",
            task.rseq.get().1,
            task.pid()
        ),
        Bad::Flags(flags) => pr_warn!("Unknown flags ({flags}) in rseq ABI structure (pid={})", task.pid()),
    }
}
