//! crash's `ps`.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::region::records::NodeState;
use pagevisor_shared::sched::TaskState;
use pagevisor_shared::units::PAGE_SIZE;
use serde_json::{Value, json};

use super::Shown;
use crate::report::error::ReportError;
use crate::report::kmem::hex;
use crate::report::kmem::just::{Just, just};
use crate::state::{Patience, StateError, StateView, TaskInfo};

/// crash's two letters for a state (`task_state_string`).
const fn state_name(state: TaskState) -> &'static str {
    match state {
        TaskState::Running => "RU",
        TaskState::Interruptible => "IN",
        TaskState::Uninterruptible => "UN",
        TaskState::Stopped => "ST",
        TaskState::Dead => "DE",
        TaskState::Zombie => "ZO",
        TaskState::Idle => "ID",
    }
}

/// Pages of the machine's memory.
fn total_pages(state: &StateView) -> u64 {
    let pages = |node: &NodeState| node.node_present_pages.load(Relaxed);
    state.region().nodes().iter().map(pages).fold(0, u64::saturating_add)
}

/// The row of a task (`show_ps_data`).
fn row(task: &TaskInfo, total_vm: u64, rss: u64, total: u64) -> String {
    let mark = if task.on_cpu { '>' } else { ' ' };
    let (pid, ppid, cpu, state) = (task.pid, task.ppid, task.cpu, state_name(task.state));
    let address = just(&format!("{:x}", task.address), 16, Just::Center);
    let share = if total == 0 { 0.0 } else { rss as f64 * 100.0 / total as f64 };
    let share = format!("{share:.1}");
    let (vsz, rss) = (total_vm.saturating_mul(PAGE_SIZE >> 10), rss.saturating_mul(PAGE_SIZE >> 10));
    let name = if task.is_kernel() { format!("[{}]", task.comm) } else { task.comm.clone() };
    format!("{mark} {pid:>7} {ppid:>7} {cpu:>3}  {address} {state:>3}  {share:>4} {vsz:>8} {rss:>8}  {name}\n")
}

/// `ps`: all tasks. The CPUs' idle tasks are on no list and left out.
pub(super) fn ps(state: &StateView) -> Result<Shown, ReportError> {
    let tasks = state.tasks(Patience::default())?;
    let total = total_pages(state);
    let mut text =
        format!("      PID    PPID  CPU {}  ST  %MEM      VSZ      RSS  COMM\n", just("TASK", 16, Just::Center));
    let mut values: Vec<Value> = Vec::new();
    let mut damage = tasks.damage;
    for task in &tasks.list {
        let (total_vm, rss) = match task.mm {
            0 => (0, 0),
            mm => match state.space(mm) {
                Ok(space) => (space.total_vm, space.rss()),
                // It may have ended since the list was read.
                Err(StateError::Corrupt(_)) if state.is_running() => (0, 0),
                Err(StateError::Corrupt(found)) => {
                    damage = damage.or(Some(found));
                    (0, 0)
                }
                Err(error) => return Err(error.into()),
            },
        };
        text += &row(task, total_vm, rss, total);
        values.push(json!({
            "pid": task.pid,
            "tgid": task.tgid,
            "ppid": task.ppid,
            "cpu": task.cpu,
            "on_cpu": task.on_cpu,
            "task": hex(task.address),
            "state": state_name(task.state),
            "vsz_kib": total_vm.saturating_mul(PAGE_SIZE >> 10),
            "rss_kib": rss.saturating_mul(PAGE_SIZE >> 10),
            "kernel": task.is_kernel(),
            "min_flt": task.min_flt,
            "maj_flt": task.maj_flt,
            "name": task.comm,
        }));
    }
    Ok(Shown { text, value: values.into(), damage })
}
