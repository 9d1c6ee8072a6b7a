//! Tasks, along the list of them.

use std::mem::offset_of;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::sched::{
    FilesStruct, FsStruct, RLIMIT_SIGPENDING, SighandStruct, SignalStruct, TASK_COMM_LEN, TaskState, TaskStruct,
};

use super::error::{Corrupt, StateError};
use super::slab::Record;
use super::{Patience, StateView};

/// A task as it was read. Fields as in [`TaskStruct`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named and documented in the contract")]
pub struct TaskInfo {
    /// Guest-virtual address of the record.
    pub address: u64,
    pub pid: u32,
    pub tgid: u32,
    pub ppid: u32,
    pub state: TaskState,
    pub flags: u32,
    pub cpu: u32,
    pub on_cpu: bool,
    pub comm: String,
    pub mm: u64,
    pub stack: u64,
    pub cpus_mask: u64,
    pub utime: u64,
    pub stime: u64,
    pub start_time: u64,
    pub min_flt: u64,
    pub maj_flt: u64,
    pub nvcsw: u64,
    pub nivcsw: u64,
    pub signal: u64,
    pub sighand: u64,
    pub fs: u64,
    pub files: u64,
    pub pending: u64,
    pub blocked: u64,
}

impl TaskInfo {
    /// Whether it is a thread of the kernel.
    pub const fn is_kernel(&self) -> bool {
        self.flags & TaskStruct::KTHREAD != 0
    }

    /// The record in `bytes`, which were at `address`.
    fn new(address: u64, bytes: &[u8]) -> Result<Self, Corrupt> {
        let record = Record(bytes);
        let raw = record.u32(offset_of!(TaskStruct, state));
        let state = TaskState::new(raw).ok_or(Corrupt { what: "state of a task", at: address, found: raw.into() })?;
        let comm = bytes.get(offset_of!(TaskStruct, comm)..).and_then(|rest| rest.get(..TASK_COMM_LEN));
        let comm: Vec<u8> = comm.unwrap_or_default().iter().copied().take_while(|byte| *byte != 0).collect();
        Ok(Self {
            address,
            pid: record.u32(offset_of!(TaskStruct, pid)),
            tgid: record.u32(offset_of!(TaskStruct, tgid)),
            ppid: record.u32(offset_of!(TaskStruct, ppid)),
            state,
            flags: record.u32(offset_of!(TaskStruct, flags)),
            cpu: record.u32(offset_of!(TaskStruct, cpu)),
            on_cpu: record.u32(offset_of!(TaskStruct, on_cpu)) != 0,
            comm: printable(&comm),
            mm: record.u64(offset_of!(TaskStruct, mm)),
            stack: record.u64(offset_of!(TaskStruct, stack)),
            cpus_mask: record.u64(offset_of!(TaskStruct, cpus_mask)),
            utime: record.u64(offset_of!(TaskStruct, utime)),
            stime: record.u64(offset_of!(TaskStruct, stime)),
            start_time: record.u64(offset_of!(TaskStruct, start_time)),
            min_flt: record.u64(offset_of!(TaskStruct, min_flt)),
            maj_flt: record.u64(offset_of!(TaskStruct, maj_flt)),
            nvcsw: record.u64(offset_of!(TaskStruct, nvcsw)),
            nivcsw: record.u64(offset_of!(TaskStruct, nivcsw)),
            signal: record.u64(offset_of!(TaskStruct, signal)),
            sighand: record.u64(offset_of!(TaskStruct, sighand)),
            fs: record.u64(offset_of!(TaskStruct, fs)),
            files: record.u64(offset_of!(TaskStruct, files)),
            pending: record.u64(offset_of!(TaskStruct, pending)),
            blocked: record.u64(offset_of!(TaskStruct, blocked)),
        })
    }
}

/// What a task has in common with others, as it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TaskShares {
    /// Process group.
    pub pgrp: u32,
    /// Session.
    pub session: u32,
    /// Signals that wait for any of the process's threads.
    pub shared_pending: u64,
    /// Signals that may wait.
    pub signal_limit: u64,
    /// Signals that are ignored.
    pub ignored: u64,
    /// Signals that a handler is there for.
    pub caught: u64,
    /// Rights that new files do not get.
    pub umask: u32,
    /// Numbers of files that there is room for.
    pub max_fds: u32,
}

/// A name that the guest made up, for a terminal: what is no printable ASCII, and the backslash, as Linux's
/// `string_escape_mem` writes it in octal.
pub(super) fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'\\' => text.push_str("\\134"),
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => text.push_str(&format!("\\{byte:03o}")),
        }
    }
    text
}

/// The tasks there are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tasks {
    /// In order of creation.
    pub list: Vec<TaskInfo>,
    /// What ended the walk early.
    pub damage: Option<Corrupt>,
}

impl StateView {
    /// Walks along the list of tasks, and again when a running guest changed it meanwhile.
    ///
    /// # Errors
    /// When the host cannot read the guest's memory.
    pub fn tasks(&self, patience: Patience) -> Result<Tasks, StateError> {
        self.patiently(
            patience,
            |tasks: &mut Tasks| self.walk_tasks(&mut tasks.list),
            |tasks, damage| {
                tasks.damage = damage;
            },
        )
    }

    /// Calls `walk` until it finds no damage; again only as long as the guest runs and `patience` lasts. `set` puts what
    /// it found wrong at last with what it gathered.
    pub(super) fn patiently<T: Default>(
        &self,
        patience: Patience,
        walk: impl Fn(&mut T) -> Result<(), StateError>,
        set: impl Fn(&mut T, Option<Corrupt>),
    ) -> Result<T, StateError> {
        let mut tries = 1;
        loop {
            let mut found = T::default();
            match walk(&mut found) {
                Ok(()) => return Ok(found),
                Err(StateError::Corrupt(damage)) if tries >= patience.tries || !self.is_running() => {
                    set(&mut found, Some(damage));
                    return Ok(found);
                }
                Err(StateError::Corrupt(_)) => {}
                Err(error) => return Err(error),
            }
            tries += 1;
            std::thread::sleep(patience.pause);
        }
    }

    /// Reads what `task` has in common with others: nothing if the kernel says that there is nothing, as of its own threads.
    ///
    /// # Errors
    /// When what the task's record says of it is no address of memory.
    pub fn task_shares(&self, task: &TaskInfo) -> Result<TaskShares, StateError> {
        let mut signal = [0; size_of::<SignalStruct>()];
        let mut sighand = [0; size_of::<SighandStruct>()];
        let (mut fs, mut files) = ([0; size_of::<FsStruct>()], [0; size_of::<FilesStruct>()]);
        let has_signal = self.read_share(task, task.signal, &mut signal)?;
        self.read_share(task, task.sighand, &mut sighand)?;
        self.read_share(task, task.fs, &mut fs)?;
        self.read_share(task, task.files, &mut files)?;
        let (signal, sighand) = (Record(&signal), Record(&sighand));
        let soft = offset_of!(SignalStruct, rlim) + RLIMIT_SIGPENDING * size_of::<[u64; 2]>();
        Ok(TaskShares {
            pgrp: signal.u32(offset_of!(SignalStruct, pgrp)),
            session: signal.u32(offset_of!(SignalStruct, session)),
            shared_pending: signal.u64(offset_of!(SignalStruct, shared_pending)),
            signal_limit: if has_signal { signal.u64(soft) } else { u64::MAX },
            ignored: sighand.u64(offset_of!(SighandStruct, ignored)),
            caught: sighand.u64(offset_of!(SighandStruct, caught)),
            umask: Record(&fs).u32(offset_of!(FsStruct, umask)),
            max_fds: Record(&files).u32(offset_of!(FilesStruct, max_fds)),
        })
    }

    /// Reads the record at `address`, which `task` names; whether there is one.
    fn read_share(&self, task: &TaskInfo, address: u64, bytes: &mut [u8]) -> Result<bool, StateError> {
        if address != 0 && !self.read_virtual(address, bytes)? {
            let damage = Corrupt { what: "address of what a task shares", at: task.address, found: address };
            return Err(damage.into());
        }
        Ok(address != 0)
    }

    /// Walks along the list. There can be no more tasks than memory for their records.
    fn walk_tasks(&self, found: &mut Vec<TaskInfo>) -> Result<(), StateError> {
        let most = self.memory().size() / size_of::<TaskStruct>() as u64;
        let region = self.region();
        let roots = &region.header().roots;
        let (mut next, mut before) = (roots.tasks.load(Relaxed), 0);
        while next != 0 {
            let mut bytes = [0; size_of::<TaskStruct>()];
            if !self.read_virtual(next, &mut bytes)? {
                return Err(Corrupt { what: "address of a task", at: before, found: next }.into());
            }
            let prev = Record(&bytes).u64(offset_of!(TaskStruct, prev));
            if prev != before || found.len() as u64 >= most {
                return Err(Corrupt { what: "backward link of a task", at: next, found: prev }.into());
            }
            found.push(TaskInfo::new(next, &bytes)?);
            (before, next) = (next, Record(&bytes).u64(offset_of!(TaskStruct, next)));
        }
        let counted = roots.nr_tasks.load(Relaxed);
        if counted != found.len() as u64 {
            return Err(Corrupt { what: "number of tasks", at: found.len() as u64, found: counted }.into());
        }
        Ok(())
    }
}
