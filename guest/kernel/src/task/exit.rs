//! How tasks end (`kernel/exit.c`).

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::sched::{TaskState, TaskStruct};

use super::object::current;
use super::{sched, table};

/// Ends the current task, a thread of the kernel, whose `code` nobody asks for (`kthread_exit`).
pub fn exit_thread(code: i32) -> ! {
    let task = current();
    task.record.flags.fetch_or(TaskStruct::EXITING, Relaxed);
    task.record.exit_code.store(code as u32, Relaxed);
    // The last reference is the task's own, which goes when its CPU has left it.
    drop(table::lock().remove(&task));
    sched::set_state(TaskState::Dead);
    sched::schedule();
    unreachable!("a dead task runs")
}
