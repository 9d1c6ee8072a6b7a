//! The end of a program for want of memory (`mm/oom_kill.c`).
//!
//! The program that wanted memory ends, as with `vm.oom_kill_allocating_task`: nobody chooses among programs. It may have
//! what is left below the watermarks until it does.

use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use pagevisor_mm::platform::Platform;
use pagevisor_shared::mm_types::MmCounter;
use pagevisor_shared::units::PAGE_SHIFT;

use super::SIGKILL;
use crate::log::pr_err;
use crate::platform::KERNEL;
use crate::task::{self, Task, killed_by, todo};

/// The program for which the kernel is at work, if it is for one, is to end (`mark_oom_victim`). Takes no locks: whoever finds
/// no memory may hold any.
#[cold]
pub fn blame() {
    if !KERNEL.in_interrupt()
        && let Some(task) = task::try_current()
        && task.process().is_some()
    {
        task.todo.fetch_or(todo::MEMDIE, SeqCst);
    }
}

/// Ends the program of the current task, which is on its way to user mode (`__oom_kill_process`).
pub fn kill(task: &Task) {
    task.todo.fetch_and(!todo::MEMDIE, SeqCst);
    let Some(process) = task.process() else { return };
    if process.ends_with().is_none() {
        report(task);
    }
    process.end(killed_by(SIGKILL, false));
    task.todo.fetch_or(todo::SIGNAL, SeqCst);
}

/// Says what ends, and what it had.
fn report(task: &Task) {
    let Some(space) = task.space() else { return };
    let record = space.record();
    let kib = |pages: u64| pages << (PAGE_SHIFT - 10);
    let rss = |kind: MmCounter| kib(record.rss_stat[kind as usize].load(Relaxed).max(0).cast_unsigned());
    pr_err!(
        "Out of memory: Killed process {} ({}) total-vm:{}kB, anon-rss:{}kB, file-rss:{}kB, shmem-rss:{}kB, UID:0 \
         pgtables:{}kB oom_score_adj:0",
        task.tgid(),
        task.name(),
        kib(record.total_vm.load(Relaxed)),
        rss(MmCounter::Anon),
        rss(MmCounter::File),
        rss(MmCounter::Shmem),
        record.pgtables_bytes.load(Relaxed) >> 10
    );
}
