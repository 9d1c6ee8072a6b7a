//! `/proc/PID/status` and `statm` (`proc_pid_status`, `proc_pid_statm`), by the code that the guest's own files are by.

use pagevisor_shared::report::counters;
use pagevisor_shared::report::process;
use serde_json::{Map, Value};

use super::{Process, Shown};
use crate::report::error::ReportError;
use crate::state::Patience;

/// `status`.
pub(super) fn status(process: &Process<'_>) -> Result<Shown, ReportError> {
    let task = &process.task;
    let tasks = process.state.tasks(Patience::default())?;
    let threads = tasks.list.iter().filter(|other| other.tgid == task.tgid).count();
    let shares = process.state.task_shares(task)?;
    let region = process.state.region();
    let shown = process::Process {
        name: &task.comm,
        state: task.state,
        pid: task.pid,
        tgid: task.tgid,
        ppid: task.ppid,
        pgrp: shares.pgrp,
        session: shares.session,
        umask: shares.umask,
        fd_size: shares.max_fds,
        signals: [task.pending, shares.shared_pending, task.blocked, shares.ignored, shares.caught],
        signal_limit: shares.signal_limit,
        threads: threads as u64,
        flags: task.flags,
        faults: [[task.min_flt, task.maj_flt], [0; 2]],
        time: [[task.utime, task.stime], [0; 2]],
        nice: 0,
        start_time: task.start_time,
        rss_limit: u64::MAX,
        exit_signal: 0,
        cpu: task.cpu,
        cpus: task.cpus_mask & counters::online_cpus(&region).0,
        nodes: counters::nodes_with_memory(&region).0,
        switches: [task.nvcsw, task.nivcsw],
        exit_code: 0,
    };
    let mut text = String::new();
    shown.status(process.memory.as_ref(), region.nr_cpus() as u32, &mut text)?;
    let rows = text.lines().filter_map(|line| line.split_once(':'));
    let value: Map<String, Value> = rows.map(|(name, text)| (name.to_owned(), text.trim().into())).collect();
    Ok(Shown { text, value: value.into(), damage: process.areas.damage.or(tasks.damage) })
}

/// `statm`, in pages.
pub(super) fn statm(process: &Process<'_>) -> Result<Shown, ReportError> {
    let memory = process.memory.unwrap_or_default();
    let mut text = String::new();
    memory.statm(&mut text)?;
    let value: Map<String, Value> =
        memory.statm_rows().into_iter().map(|(name, pages)| (name.to_owned(), pages.into())).collect();
    Ok(Shown { text, value: value.into(), damage: None })
}
