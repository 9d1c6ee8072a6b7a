//! How a machine ended, and what that means to whoever started it.

use std::fmt;
use std::time::Duration;

use super::report::{CpuReport, InternalErrorReport, PanicReport};
use super::wait::StopReason;
use crate::error::exit_status;

/// The end of a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// The guest powered off.
    Shutdown {
        /// With this code; 0 is success.
        code: u16,
    },
    /// The program that the guest was started for has ended, and the guest powered off.
    Exited {
        /// Its exit status; 128 and the signal's number if a signal ended it.
        status: u8,
    },
    /// The guest was given a program that it cannot start; its log says why.
    NoInit,
    /// The guest reset the machine, which ends it.
    Reset,
    /// The guest panicked.
    Panic(Box<PanicReport>),
    /// A fault while handling a double fault.
    TripleFault(Box<CpuReport>),
    /// KVM met an instruction it cannot emulate, or something else it cannot go on from.
    InternalError(Box<InternalErrorReport>),
    /// KVM gave a vCPU back for another reason.
    Unexpected {
        /// What it was.
        what: String,
        /// The vCPU.
        cpu: Box<CpuReport>,
    },
    /// The VMM itself failed.
    Host(String),
    /// Someone outside ended it.
    Stopped(StopReason),
    /// It had not ended, or not become ready, in the time it was given. It still runs.
    TimedOut {
        /// Since the start.
        after: Duration,
    },
}

impl End {
    /// The exit status of a command whose machine ended so.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Shutdown { code: 0 } => exit_status::OK,
            Self::Exited { status } => *status,
            Self::Shutdown { .. } | Self::Reset | Self::NoInit => exit_status::GUEST_CODE,
            Self::Panic(_) => exit_status::PANIC,
            Self::TripleFault(_) => exit_status::TRIPLE_FAULT,
            Self::InternalError(_) | Self::Unexpected { .. } => exit_status::INTERNAL_ERROR,
            Self::Host(_) => exit_status::FAILURE,
            Self::Stopped(StopReason::Request) => exit_status::OK,
            Self::Stopped(StopReason::Interrupt) => exit_status::INTERRUPTED,
            Self::Stopped(StopReason::Terminate) => exit_status::TERMINATED,
            Self::TimedOut { .. } => exit_status::TIMED_OUT,
        }
    }
}

/// One line, or for a guest that died a report of several, without a final newline.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown { code: 0 } => write!(f, "the guest powered off"),
            Self::Shutdown { code } => write!(f, "the guest powered off with code {code}"),
            Self::Exited { status } => write!(f, "the guest's program ended with exit status {status}"),
            Self::NoInit => write!(f, "the guest could not start the program it was given (see its log: --console)"),
            Self::Reset => write!(f, "the guest reset the machine"),
            Self::Panic(report) => report.fmt(f),
            Self::TripleFault(cpu) => write!(f, "the guest died of a triple fault on CPU {}\n{cpu}", cpu.cpu),
            Self::InternalError(report) => report.fmt(f),
            Self::Unexpected { what, cpu } => write!(f, "{what}, on CPU {}\n{cpu}", cpu.cpu),
            Self::Host(what) => f.write_str(what),
            Self::Stopped(StopReason::Request) => write!(f, "the guest was stopped"),
            Self::Stopped(StopReason::Interrupt) => write!(f, "interrupted"),
            Self::Stopped(StopReason::Terminate) => write!(f, "terminated"),
            Self::TimedOut { after } => write!(f, "the guest took longer than {:.1} s", after.as_secs_f64()),
        }
    }
}
