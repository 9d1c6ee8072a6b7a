//! `/proc/PID` (`fs/proc/base.c`, `fs/proc/array.c`, `fs/proc/fd.c`).

use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::mmap::Space;
use pagevisor_shared::errno::Errno;
use pagevisor_shared::report::counters;
use pagevisor_shared::report::process::{Memory, Process as Shown};
use pagevisor_shared::sched::{RLIM_NLIMITS, RLIMIT_SIGPENDING, TaskState, TaskStruct};
use pagevisor_shared::units::VirtAddr;

use super::text::Text;
use super::{Target, areas};
use crate::fs::file::zeros;
use crate::fs::table::{directories, files};
use crate::fs::{mode, path, root};
use crate::signal::actions_of;
use crate::task::{self, Task, TaskRef, Usage};
use crate::{platform, region, smp};

macro_rules! items {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $mode:expr;)*) => {
        /// A file of a process's directory.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Item { $($(#[$doc])* $name),* }

        impl Item {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// Type and rights.
            pub const fn mode(self) -> u32 {
                match self { $(Self::$name => $mode),* }
            }
        }
    };
}

const TEXT: u32 = mode::REGULAR | 0o444;
const SECRET: u32 = mode::REGULAR | 0o400;
const LINK: u32 = mode::LINK | 0o777;

items! {
    /// The arguments, each ended by a zero byte.
    Cmdline = "cmdline", TEXT;
    /// The name.
    Comm = "comm", mode::REGULAR | 0o644;
    /// The working directory.
    Cwd = "cwd", LINK;
    /// The environment.
    Environ = "environ", SECRET;
    /// The program.
    Exe = "exe", LINK;
    /// Open files.
    Files = "fd", mode::DIRECTORY | 0o500;
    /// Limits of resources.
    Limits = "limits", TEXT;
    /// Areas.
    Maps = "maps", TEXT;
    /// File systems.
    Mounts = "mounts", TEXT;
    /// Pages of areas by node.
    NumaMaps = "numa_maps", TEXT;
    /// Frames, a word for each page.
    Pagemap = "pagemap", SECRET;
    /// The root directory.
    Root = "root", LINK;
    /// Pages of areas by what they are.
    Smaps = "smaps", TEXT;
    /// The same for all areas together.
    SmapsRollup = "smaps_rollup", TEXT;
    /// Numbers in a line.
    Stat = "stat", TEXT;
    /// Sizes in pages.
    Statm = "statm", TEXT;
    /// Both for people.
    Status = "status", TEXT;
    /// Threads.
    Threads = "task", mode::DIRECTORY | 0o555;
}

/// `RLIMIT_RSS`.
const LIMIT_RSS: usize = 5;
/// Most bytes of arguments or environment that are shown.
const MAX_STRINGS: u64 = 1 << 20;
/// What is mounted.
const MOUNTS: &str = "rootfs / rootfs rw 0 0\n\
    proc /proc proc rw,relatime 0 0\n\
    tmpfs /tmp tmpfs rw,relatime 0 0\n\
    tmpfs /dev/shm tmpfs rw,relatime 0 0\n";
/// Names of limits, and their units.
const LIMITS: [(&str, &str); RLIM_NLIMITS] = [
    ("Max cpu time", "seconds"),
    ("Max file size", "bytes"),
    ("Max data size", "bytes"),
    ("Max stack size", "bytes"),
    ("Max core file size", "bytes"),
    ("Max resident set", "bytes"),
    ("Max processes", "processes"),
    ("Max open files", "files"),
    ("Max locked memory", "bytes"),
    ("Max address space", "bytes"),
    ("Max file locks", "locks"),
    ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"),
    ("Max nice priority", ""),
    ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
];

/// A space, used while it is looked at.
pub struct Use(pub Space);

impl Drop for Use {
    fn drop(&mut self) {
        if let Some(mm) = platform::mm() {
            mm.mmput(self.0);
        }
    }
}

/// The task of this number.
///
/// # Errors
/// ESRCH.
pub fn find(pid: u32) -> Result<TaskRef, Errno> {
    task::find(pid).ok_or(Errno::ESRCH)
}

/// Numbers of its open files.
pub fn open_files(pid: u32) -> Vec<u32> {
    find(pid).and_then(|task| files(&task)).map(|files| files.numbers()).unwrap_or_default()
}

/// Numbers of its threads.
pub fn threads(pid: u32) -> Vec<u32> {
    let mut threads = Vec::new();
    if let Ok(task) = find(pid) {
        match task.get_process() {
            Some(process) => process.for_each_thread(|thread| threads.push(thread.pid())),
            None => threads.push(pid),
        }
    }
    threads.sort_unstable();
    threads
}

/// Where `/proc/PID/fd/NUMBER` leads.
pub fn open_file(pid: u32, number: u32) -> Result<Target, Errno> {
    let file = files(&*find(pid)?)?.get(number.into()).map_err(|_| Errno::ENOENT)?;
    let (inode, name) = (Arc::clone(&file.inode), file.path());
    Ok(Target::File(inode, name))
}

/// Where `exe`, `cwd` and `root` lead.
pub fn target(pid: u32, item: Item) -> Result<Target, Errno> {
    let task = find(pid)?;
    let directory = match item {
        Item::Exe => {
            let process = task.get_process().ok_or(Errno::ENOENT)?;
            let (file, path) = process.program.lock().clone().ok_or(Errno::ENOENT)?;
            return Ok(Target::File(Arc::clone(&file), path));
        }
        Item::Cwd => directories(&task)?.work(),
        _ => Arc::clone(root()),
    };
    let path = path::path_of(&directory)?;
    Ok(Target::File(directory, path))
}

/// Changes the name (`comm_write`).
pub fn rename(pid: u32, from: &[u8]) -> Result<(), Errno> {
    let name = core::str::from_utf8(from).map_err(|_| Errno::EINVAL)?;
    find(pid)?.set_name(format_args!("{}", name.trim_end_matches('\n')));
    Ok(())
}

/// What a file says.
///
/// # Errors
/// ESRCH, ENOMEM.
pub fn text(pid: u32, item: Item) -> Result<Vec<u8>, Errno> {
    let task = find(pid)?;
    let space = task.get_space().map(Use);
    let memory = space.as_ref().map(|space| Memory::of(space.0.record()));
    let mut out = Text::default();
    let done = match item {
        Item::Cmdline => return strings(space.as_ref(), memory.map(|memory| memory.arguments)),
        Item::Environ => return strings(space.as_ref(), memory.map(|memory| memory.environment)),
        Item::Comm => writeln!(out, "{}", task.name()),
        Item::Statm => memory.unwrap_or_default().statm(&mut out),
        Item::Stat => shown(&task, |shown| shown.stat(memory.as_ref(), &mut out)),
        Item::Status => {
            let cpus = region::get().map_or(1, |region| region.nr_cpus() as u32);
            shown(&task, |shown| shown.status(memory.as_ref(), cpus, &mut out))
        }
        Item::Limits => limits(&task, &mut out),
        Item::Mounts => out.write_str(MOUNTS),
        Item::Maps | Item::Smaps | Item::SmapsRollup | Item::NumaMaps => match (&space, memory) {
            (Some(space), Some(memory)) => areas::text(item, space.0, &memory, &mut out),
            _ => Ok(()),
        },
        Item::Cwd | Item::Exe | Item::Files | Item::Pagemap | Item::Root | Item::Threads => return Err(Errno::EINVAL),
    };
    done.map_err(|_| Errno::ENOMEM)?;
    Ok(out.into_bytes())
}

/// The program's memory from and to.
fn strings(space: Option<&Use>, range: Option<[u64; 2]>) -> Result<Vec<u8>, Errno> {
    let (Some(space), Some([start, end]), Some(mm)) = (space, range, platform::mm()) else { return Ok(Vec::new()) };
    let mut bytes = zeros(end.saturating_sub(start).min(MAX_STRINGS) as usize)?;
    let len = mm.read_remote_vm(space.0, VirtAddr::new(start), &mut bytes);
    bytes.truncate(len);
    Ok(bytes)
}

/// `/proc/PID/limits` (`proc_pid_limits`).
fn limits(task: &Task, out: &mut dyn Write) -> fmt::Result {
    let Some(process) = task.get_process() else { return Ok(()) };
    writeln!(out, "{:<25} {:<20} {:<20} {:<10}", "Limit", "Soft Limit", "Hard Limit", "Units")?;
    for ((name, unit), limits) in LIMITS.iter().zip(&process.record.rlim) {
        write!(out, "{name:<25} ")?;
        for limit in limits.iter().map(|limit| limit.load(Relaxed)) {
            let text = if limit == task::NO_LIMIT { "unlimited".to_string() } else { limit.to_string() };
            write!(out, "{text:<20} ")?;
        }
        writeln!(out, "{unit:<10}")?;
    }
    Ok(())
}

/// Calls `show` with what is shown of `task`: times and faults are those of all its threads if it leads a process.
fn shown(task: &TaskRef, show: impl FnOnce(&Shown<'_>) -> fmt::Result) -> fmt::Result {
    let (record, process, name) = (&task.record, task.get_process(), task.name().to_string());
    let used = match &process {
        Some(process) if task.pid() == task.tgid() => process.usage(),
        _ => Usage::of(task),
    };
    let mut threads = u64::from(process.is_none());
    if let Some(process) = &process {
        process.for_each_thread(|_| threads += 1);
    }
    let none = Usage::default();
    let children = process.as_ref().map_or(&none, |process| &process.children);
    let pair = |first: &core::sync::atomic::AtomicU64, second: &core::sync::atomic::AtomicU64| {
        [first.load(Relaxed), second.load(Relaxed)]
    };
    let limit =
        |which: usize| process.as_ref().map_or(task::NO_LIMIT, |process| process.record.rlim[which][0].load(Relaxed));
    let of_process = |word: fn(&task::Process) -> u32| process.as_ref().map_or(0, |process| word(process));
    let shared = process.as_ref().map_or(0, |process| process.pending().bits());
    let [ignored, caught] = actions_of(task).map_or([0; 2], |actions| actions.masks());
    show(&Shown {
        name: &name,
        state: TaskState::new(record.state.load(Relaxed)).unwrap_or(TaskState::Dead),
        pid: task.pid(),
        tgid: task.tgid(),
        ppid: record.ppid.load(Relaxed),
        pgrp: of_process(|process| process.record.pgrp.load(Relaxed)),
        session: of_process(|process| process.record.session.load(Relaxed)),
        umask: directories(task).map_or(0, |own| own.record.umask.load(Relaxed)),
        fd_size: files(task).map_or(0, |files| files.room()),
        signals: [task.pending().bits(), shared, record.blocked.load(Relaxed), ignored, caught],
        signal_limit: limit(RLIMIT_SIGPENDING),
        threads,
        flags: record.flags.load(Relaxed),
        faults: [pair(&used.min_flt, &used.maj_flt), pair(&children.min_flt, &children.maj_flt)],
        time: [pair(&used.utime, &used.stime), pair(&children.utime, &children.stime)],
        nice: task::nice(task),
        start_time: record.start_time.load(Relaxed),
        rss_limit: limit(LIMIT_RSS),
        exit_signal: if record.flags.load(Relaxed) & TaskStruct::KTHREAD != 0 {
            0
        } else {
            of_process(|process| process.exit_signal.load(Relaxed))
        },
        cpu: record.cpu.load(Relaxed),
        cpus: task.cpus().0 & smp::online().0,
        nodes: region::get().map_or(1, |region| counters::nodes_with_memory(region).0),
        switches: pair(&record.nvcsw, &record.nivcsw),
        exit_code: record.exit_code.load(Relaxed),
    })
}
