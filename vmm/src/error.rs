//! Why a machine did not start, and the exit statuses of everything.

use std::io;
use std::path::PathBuf;

use crate::acpi::TablesTooLarge;
use crate::boot::BootError;
use crate::kvm::{KvmError, VmError};
use crate::memory::MemoryError;

/// Exit statuses of `pagevisor`.
pub mod exit_status {
    /// All went well.
    pub const OK: u8 = 0;
    /// An input or output failed, or this program did.
    pub const FAILURE: u8 = 1;
    /// What was asked for makes no sense: flags, files, topology.
    pub const USAGE: u8 = 2;
    /// There is no KVM to use.
    pub const NO_KVM: u8 = 3;
    /// The guest panicked.
    pub const PANIC: u8 = 4;
    /// The guest died of a triple fault.
    pub const TRIPLE_FAULT: u8 = 5;
    /// KVM could not go on: an unsupported instruction, or another unexpected exit.
    pub const INTERNAL_ERROR: u8 = 6;
    /// `--timeout` was reached.
    pub const TIMED_OUT: u8 = 7;
    /// There is no guest of that name, or the name is in use.
    pub const NAME: u8 = 8;
    /// The guest's state is corrupt, or its free lists do not agree with its counters.
    pub const CORRUPT: u8 = 9;
    /// The guest powered off with a code of its own, or reset the machine.
    pub const GUEST_CODE: u8 = 10;
    /// Ctrl-C.
    pub const INTERRUPTED: u8 = 128 + 2;
    /// SIGTERM.
    pub const TERMINATED: u8 = 128 + 15;
    /// The sandbox ended the process (128 + SIGSYS).
    pub const SANDBOX: u8 = 128 + 31;
}

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// KVM refused something.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel or what it is given.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The file of the kernel cannot be read.
    #[error("kernel {path}")]
    KernelFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The firmware tables do not fit.
    #[error(transparent)]
    Tables(#[from] TablesTooLarge),
    /// The host is out of something.
    #[error("cannot {what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl StartError {
    /// The exit status of a command that could not start its machine.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Kvm(_) => exit_status::NO_KVM,
            Self::Boot(_) | Self::KernelFile { .. } | Self::Tables(_) => exit_status::USAGE,
            Self::Vm(_) | Self::Memory(_) | Self::Host { .. } => exit_status::FAILURE,
        }
    }
}
