//! `/proc/PID/status` and `statm` (`proc_pid_status`, `task_mem`, `proc_pid_statm`).

use pagevisor_shared::mm_types::MmCounter;
use pagevisor_shared::units::PAGE_SIZE;
use serde_json::{Map, Value, json};

use super::{Process, Shown};
use crate::report::error::ReportError;
use crate::state::{Patience, SpaceInfo};

/// kB of pages.
const fn kib(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_SIZE >> 10)
}

/// Bytes of the program's text, in whole pages.
fn text_bytes(space: &SpaceInfo) -> u64 {
    let end = space.end_code.checked_next_multiple_of(PAGE_SIZE).unwrap_or(space.end_code);
    end.saturating_sub(space.start_code & !(PAGE_SIZE - 1))
}

/// The lines of `task_mem`, in kB.
fn memory(space: &SpaceInfo) -> Vec<(&'static str, u64)> {
    let rss = space.rss();
    let text = (text_bytes(space) >> 10).min(kib(space.exec_vm));
    vec![
        ("VmPeak", kib(space.hiwater_vm.max(space.total_vm))),
        ("VmSize", kib(space.total_vm)),
        ("VmLck", kib(space.locked_vm)),
        ("VmPin", kib(space.pinned_vm)),
        ("VmHWM", kib(space.hiwater_rss.max(rss))),
        ("VmRSS", kib(rss)),
        ("RssAnon", kib(space.counter(MmCounter::Anon))),
        ("RssFile", kib(space.counter(MmCounter::File))),
        ("RssShmem", kib(space.counter(MmCounter::Shmem))),
        ("VmData", kib(space.data_vm)),
        ("VmStk", kib(space.stack_vm)),
        ("VmExe", text),
        ("VmLib", kib(space.exec_vm) - text),
        ("VmPTE", space.pgtables_bytes >> 10),
        ("VmSwap", kib(space.counter(MmCounter::Swap))),
    ]
}

/// CPUs of a mask as Linux lists them.
fn cpu_list(mask: u64) -> String {
    let (mut text, mut cpu) = (String::new(), 0);
    while cpu < 64 {
        let run = (mask >> cpu).trailing_ones();
        if run == 0 {
            cpu += 1;
            continue;
        }
        if !text.is_empty() {
            text.push(',');
        }
        text += &match run {
            1 => cpu.to_string(),
            _ => format!("{cpu}-{}", cpu + run - 1),
        };
        cpu += run;
    }
    text
}

/// `status`, as far as the task's record goes: it has no users, signals or file tables.
pub(super) fn status(process: &Process<'_>) -> Result<Shown, ReportError> {
    let task = &process.task;
    let tasks = process.state.tasks(Patience::default())?;
    let threads = tasks.list.iter().filter(|other| other.tgid == task.tgid).count();
    let mut rows = vec![
        ("Name", task.comm.clone()),
        ("State", format!("{} ({})", task.state.letter(), task.state.word())),
        ("Tgid", task.tgid.to_string()),
        ("Pid", task.pid.to_string()),
        ("PPid", task.ppid.to_string()),
    ];
    if let Some(space) = &process.space {
        rows.extend(memory(space).into_iter().map(|(name, kib)| (name, format!("{kib:>8} kB"))));
    }
    let low = task.cpus_mask & u64::from(u32::MAX);
    let mask = match task.cpus_mask >> 32 {
        0 => format!("{low:x}"),
        high => format!("{high:x},{low:08x}"),
    };
    rows.extend([
        ("Threads", threads.to_string()),
        ("Cpus_allowed", mask),
        ("Cpus_allowed_list", cpu_list(task.cpus_mask)),
        ("voluntary_ctxt_switches", task.nvcsw.to_string()),
        ("nonvoluntary_ctxt_switches", task.nivcsw.to_string()),
    ]);
    let value: Map<String, Value> =
        rows.iter().map(|(name, text)| ((*name).to_owned(), text.trim_start().into())).collect();
    let text = rows.into_iter().map(|(name, text)| format!("{name}:\t{text}\n")).collect();
    Ok(Shown { text, value: value.into(), damage: process.areas.damage.or(tasks.damage) })
}

/// `statm`, in pages.
pub(super) fn statm(process: &Process<'_>) -> Shown {
    let [size, resident, shared, text, data] = process.space.as_ref().map_or([0; 5], |space| {
        let shared = space.counter(MmCounter::File).saturating_add(space.counter(MmCounter::Shmem));
        let data = space.data_vm.saturating_add(space.stack_vm);
        [space.total_vm, space.rss(), shared, text_bytes(space) / PAGE_SIZE, data]
    });
    Shown {
        text: format!("{size} {resident} {shared} {text} 0 {data} 0\n"),
        value: json!({ "size": size, "resident": resident, "shared": shared, "text": text, "data": data }),
        damage: None,
    }
}
