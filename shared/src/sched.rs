//! Tasks as they lie in guest memory (`linux/sched.h`).
//!
//! All tasks but the CPUs' idle ones are on one list, from [`crate::region::Roots::tasks`] on, in order of creation, each thread an
//! entry. Links are the guest's virtual addresses; 0 ends the list.

use core::fmt;
use core::mem::size_of;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

/// Bytes of a task's name, the final zero included (`TASK_COMM_LEN`).
pub const TASK_COMM_LEN: usize = 16;
/// Resources that can be limited (`RLIM_NLIMITS`).
pub const RLIM_NLIMITS: usize = 16;
/// The number of signals that wait, as such a resource (`RLIMIT_SIGPENDING`).
pub const RLIMIT_SIGPENDING: usize = 11;
/// Bytes of a task's kernel stack (`THREAD_SIZE`).
pub const THREAD_SIZE: u64 = 16 << 10;

/// What a task is doing, with Linux's numbers (`__state`, `exit_state`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum TaskState {
    /// Runs or waits for a CPU (`TASK_RUNNING`).
    Running = 0,
    /// Sleeps until an event or a signal (`TASK_INTERRUPTIBLE`).
    Interruptible = 1,
    /// Sleeps until an event (`TASK_UNINTERRUPTIBLE`).
    Uninterruptible = 2,
    /// Stopped by a signal (`__TASK_STOPPED`).
    Stopped = 4,
    /// Gone (`EXIT_DEAD`).
    Dead = 16,
    /// Ended, and nobody has asked for its exit code (`EXIT_ZOMBIE`).
    Zombie = 32,
    /// Sleeps until there is work, and is no load meanwhile (`TASK_IDLE`): a thread of the kernel's.
    Idle = 0x402,
}

impl TaskState {
    /// The state numbered `raw`.
    pub const fn new(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::Running,
            1 => Self::Interruptible,
            2 => Self::Uninterruptible,
            4 => Self::Stopped,
            16 => Self::Dead,
            32 => Self::Zombie,
            0x402 => Self::Idle,
            _ => return None,
        })
    }

    /// The letter that `ps` shows.
    pub const fn letter(self) -> char {
        match self {
            Self::Running => 'R',
            Self::Interruptible => 'S',
            Self::Uninterruptible => 'D',
            Self::Stopped => 'T',
            Self::Dead => 'X',
            Self::Zombie => 'Z',
            Self::Idle => 'I',
        }
    }

    /// The word behind the letter in `/proc/PID/status`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Interruptible => "sleeping",
            Self::Uninterruptible => "disk sleep",
            Self::Stopped => "stopped",
            Self::Dead => "dead",
            Self::Zombie => "zombie",
            Self::Idle => "idle",
        }
    }
}

/// A task (`struct task_struct`), as far as somebody outside may look. The kernel's own part lies behind it in the same object.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct TaskStruct {
    /// The next task.
    pub next: AtomicU64,
    /// The one before.
    pub prev: AtomicU64,
    /// Number of the thread.
    pub pid: AtomicU32,
    /// Number of the process.
    pub tgid: AtomicU32,
    /// Number of the parent process.
    pub ppid: AtomicU32,
    /// [`TaskState`].
    pub state: AtomicU32,
    /// [`Self::KTHREAD`] and so on (`PF_*`).
    pub flags: AtomicU32,
    /// What it ended with, as `wait` gives it.
    pub exit_code: AtomicU32,
    /// CPU that it runs or last ran on.
    pub cpu: AtomicU32,
    /// 1 while a CPU executes it.
    pub on_cpu: AtomicU32,
    /// Name, filled up with zeros.
    pub comm: [AtomicU64; TASK_COMM_LEN / 8],
    /// The [`crate::mm_types::MmStruct`]; 0 for kernel threads.
    pub mm: AtomicU64,
    /// The one whose page tables it uses.
    pub active_mm: AtomicU64,
    /// CPUs it may run on, a bit each.
    pub cpus_mask: AtomicU64,
    /// Lowest address of the kernel stack, of [`THREAD_SIZE`] bytes.
    pub stack: AtomicU64,
    /// Stack pointer in the kernel while it does not run.
    pub sp: AtomicU64,
    /// Registers of user mode, on the kernel stack; 0 for kernel threads.
    pub user_regs: AtomicU64,
    /// Nanoseconds in user mode.
    pub utime: AtomicU64,
    /// Nanoseconds in the kernel.
    pub stime: AtomicU64,
    /// Nanoseconds since boot when it was made.
    pub start_time: AtomicU64,
    /// Faults that needed no waiting.
    pub min_flt: AtomicU64,
    /// Faults that had to wait for data.
    pub maj_flt: AtomicU64,
    /// Times that it gave up its CPU.
    pub nvcsw: AtomicU64,
    /// Times that its CPU was taken from it.
    pub nivcsw: AtomicU64,
    /// System calls.
    pub syscalls: AtomicU64,
    /// The [`SignalStruct`]; 0 for threads of the kernel.
    pub signal: AtomicU64,
    /// The [`SighandStruct`]; like the next two 0 for threads of the kernel, and for tasks that have ended.
    pub sighand: AtomicU64,
    /// The [`FsStruct`].
    pub fs: AtomicU64,
    /// The [`FilesStruct`].
    pub files: AtomicU64,
    /// Signals that wait for the thread, a bit each.
    pub pending: AtomicU64,
    /// Signals that it blocks.
    pub blocked: AtomicU64,
    /// Padding.
    pub reserved: [AtomicU64; 2],
}

const _: () = assert!(size_of::<TaskStruct>() == 256);

/// What the threads of a process have in common (`struct signal_struct`), as far as somebody outside may look.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SignalStruct {
    /// Process group.
    pub pgrp: AtomicU32,
    /// Session.
    pub session: AtomicU32,
    /// Signals that wait for any of the threads, a bit each.
    pub shared_pending: AtomicU64,
    /// Soft and hard limit of each resource.
    pub rlim: [[AtomicU64; 2]; RLIM_NLIMITS],
}

/// What signals do (`struct sighand_struct`), as far as somebody outside may look.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SighandStruct {
    /// Those that are ignored, a bit each.
    pub ignored: AtomicU64,
    /// Those that a handler is there for.
    pub caught: AtomicU64,
}

/// Where a process is among the files (`struct fs_struct`), as far as somebody outside may look.
#[repr(C)]
#[derive(Debug, Default)]
pub struct FsStruct {
    /// Rights that new files do not get.
    pub umask: AtomicU32,
}

/// Open files (`struct files_struct`), as far as somebody outside may look.
#[repr(C)]
#[derive(Debug, Default)]
pub struct FilesStruct {
    /// Numbers that there is room for.
    pub max_fds: AtomicU32,
}

impl TaskStruct {
    /// It is ending (`PF_EXITING`).
    pub const EXITING: u32 = 0x4;
    /// A thread of the kernel (`PF_KTHREAD`).
    pub const KTHREAD: u32 = 0x20_0000;
    /// Forked, but has not called `execve` (`PF_FORKNOEXEC`).
    pub const FORKNOEXEC: u32 = 0x40;
}

/// A task's name.
#[derive(Clone, Copy, Default)]
pub struct Comm {
    bytes: [u8; TASK_COMM_LEN],
    len: usize,
}

impl Comm {
    /// The name of the task whose record this is.
    pub fn of(record: &TaskStruct) -> Self {
        let mut name = Self::default();
        for (bytes, word) in name.bytes.chunks_exact_mut(8).zip(&record.comm) {
            bytes.copy_from_slice(&word.load(Relaxed).to_le_bytes());
        }
        name.len = name.bytes.iter().position(|byte| *byte == 0).unwrap_or(TASK_COMM_LEN - 1);
        name
    }

    /// Makes it the name of the task whose record this is.
    pub fn store(&self, record: &TaskStruct) {
        for (word, bytes) in record.comm.iter().zip(self.bytes.chunks_exact(8)) {
            word.store(bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)), Relaxed);
        }
    }
}

impl fmt::Write for Comm {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // The last byte stays zero.
            if self.len + 1 < TASK_COMM_LEN {
                self.bytes[self.len] = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("?"))
    }
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}
