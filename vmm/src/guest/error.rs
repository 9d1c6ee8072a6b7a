//! What can go wrong with a guest.

use std::fmt;
use std::time::Duration;

use pagevisor_shared::command::{Op, OpError, Status};

use crate::config::ConfigError;
use crate::devices::monitor::NoReply;
use crate::dump::DumpError;
use crate::error::StartError;
use crate::machine::{End, PauseError};
use crate::report::ReportError;
use crate::state::StateError;
use crate::topology::TopologyError;
use crate::workload::BadReport;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The machine's description.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine's memory cannot be placed.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The machine did not start.
    #[error("the machine did not start: {0}")]
    Start(#[from] StartError),
    /// The guest ended, or did not become ready in time.
    #[error("the guest did not become ready: {0}")]
    NotReady(Box<End>),
    /// The guest has ended.
    #[error("the guest has ended: {0}")]
    Ended(Box<End>),
    /// There is no such CPU.
    #[error("there is no CPU {cpu}; the machine has {cpus}")]
    NoSuchCpu {
        /// The one asked for.
        cpu: u32,
        /// CPUs of the machine.
        cpus: usize,
    },
    /// A CPU did not answer.
    #[error("{} did not reply within {after:?}", name(*.cpu))]
    TimedOut {
        /// The CPU.
        cpu: u32,
        /// The time it had.
        after: Duration,
    },
    /// No reply for another reason.
    #[error("{}: {why}", name(*.cpu))]
    NoReply {
        /// The CPU.
        cpu: u32,
        /// Why.
        why: NoReply,
    },
    /// The guest did not take the command.
    #[error("{}: {status}", name(*.cpu))]
    Refused {
        /// The CPU.
        cpu: u32,
        /// Why.
        status: Status,
    },
    /// An operation failed.
    #[error("{} on {}: {error}", .op, name(*.cpu))]
    Op {
        /// The operation.
        op: &'static str,
        /// The CPU.
        cpu: u32,
        /// Why.
        error: OpError,
        /// What the operation says besides; with [`OpError::Mismatch`] the byte offset.
        value: u64,
    },
    /// The reply does not fit the command.
    #[error("the reply of {} does not fit the command: {what}", name(*.cpu))]
    BadReply {
        /// The CPU.
        cpu: u32,
        /// What does not fit.
        what: &'static str,
    },
    /// A workload that is none.
    #[error("workload {workload}: {reason}")]
    Workload {
        /// As it was given.
        workload: String,
        /// Why not.
        reason: String,
    },
    /// A workload's report that is none.
    #[error(transparent)]
    Report(#[from] BadReport),
    /// All handles are in use.
    #[error("there are no {0} handles left")]
    NoHandles(u32),
    /// An argument makes no sense.
    #[error("{0}")]
    Argument(&'static str),
    /// The machine cannot be paused.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// The guest's state cannot be read.
    #[error("the guest's state: {0}")]
    State(#[from] StateError),
    /// The guest's state cannot be printed.
    #[error(transparent)]
    View(#[from] ReportError),
    /// The guest's state cannot be copied.
    #[error(transparent)]
    Copy(#[from] DumpError),
    /// Who waited was asked to stop.
    #[error("stopped")]
    Stopped,
    /// The host is out of something.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// What was waited for did not happen.
    #[error("what was waited for did not happen within {0:?}")]
    NotHappened(Duration),
}

fn name(cpu: u32) -> String {
    match cpu {
        pagevisor_shared::command::ANY_CPU => "the guest".to_owned(),
        cpu => format!("CPU {cpu}"),
    }
}

/// Something went wrong with a guest: what, and what the guest said last.
pub struct Error {
    kind: Box<ErrorKind>,
    log: Vec<String>,
}

impl Error {
    pub(super) fn new(kind: impl Into<ErrorKind>, log: Vec<String>) -> Self {
        Self { kind: Box::new(kind.into()), log }
    }

    /// What went wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// The guest's last lines: of its log, or of its console if it has no log.
    pub fn log(&self) -> &[String] {
        &self.log
    }

    /// Why the operation failed, if one did.
    pub fn op(&self) -> Option<OpError> {
        match &*self.kind {
            ErrorKind::Op { error, .. } => Some(*error),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        if !self.log.is_empty() {
            write!(f, "\nthe guest said last:")?;
        }
        self.log.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.kind.source()
    }
}

/// Before there is a guest.
macro_rules! from {
    ($($kind:ty),*) => {
        $(impl From<$kind> for Error {
            fn from(kind: $kind) -> Self {
                Self::new(kind, Vec::new())
            }
        })*
    };
}

from!(ErrorKind, ConfigError, TopologyError, StartError);

/// What an error calls an operation.
pub(super) fn op_name(op: &Op) -> &'static str {
    match op {
        Op::Nop => "nop",
        Op::AllocPages { .. } => "alloc_pages",
        Op::FreePages { .. } => "free_pages",
        Op::SplitPage { .. } => "split_page",
        Op::ReadPage { .. } => "reading",
        Op::WritePage { .. } => "writing",
        Op::FillPattern { .. } => "filling",
        Op::CheckPattern { .. } => "checking",
        Op::DrainPages { .. } => "drain_pages",
        Op::Set { setting, .. } => setting.name(),
        Op::Isolate { .. } => "isolating",
        Op::AllocContigRange { .. } => "alloc_contig_range",
        Op::ReserveCma { .. } => "reserving CMA",
        Op::CmaAlloc { .. } => "cma_alloc",
        Op::Run { .. } => "the workload",
        Op::ReleaseWorkload => "releasing the workload's pages",
        Op::SetEvents { .. } => "setting events",
        Op::Barrier => "barrier",
        Op::FailPageAlloc(_) => "fail_page_alloc",
        Op::Failslab(_) => "failslab",
        Op::FailNth { .. } => "fail_nth",
        Op::Shutdown { .. } => "shutdown",
        Op::Object(object) => object.name(),
    }
}
