//! How a command ends when it does not end well: a line on stderr and an exit status.

use std::error::Error;
use std::fmt::Write;
use std::io;

use crate::config::ConfigError;
use crate::dump::DumpError;
use crate::error::{StartError, exit_status};
use crate::log::LogError;
use crate::machine::End;
use crate::procdir::ProcDirError;
use crate::report::ReportError;
use crate::runtime::{ClientError, RuntimeDirError};
use crate::state::StateError;

/// What `--help` says about [`exit_status`].
pub(super) const STATUS_HELP: &str = "\
Exit status:
  0    success; the guest shut down with code 0 or was stopped by `pagevisor stop`
  1    internal or I/O error
  2    bad usage, topology or file
  3    /dev/kvm is missing or cannot be used
  4    the guest panicked
  5    the guest triple-faulted
  6    KVM could not go on (such as an instruction it cannot emulate)
  7    --timeout is over
  8    no guest has this name, or a running guest has it already
  9    the guest's state is corrupt, or its free lists and counters disagree
  10   the guest shut down with a code other than 0, or could not start its program
  any  with --init, that of the program
  130  ended by Ctrl-C (143: by SIGTERM, 129: by SIGHUP); all has been cleaned up
  159  the sandbox ended the process, which did what it is not meant to";

/// The end of a command that failed.
#[derive(Debug)]
pub struct Failure {
    status: u8,
    error: Option<Box<dyn Error + Send + Sync>>,
    details: Option<String>,
}

impl Failure {
    /// A failure with a message.
    pub fn new(status: u8, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { status, error: Some(error.into()), details: None }
    }

    /// An end that needs no message: the reader of our output has gone, or all has been said.
    pub const fn quiet(status: u8) -> Self {
        Self { status, error: None, details: None }
    }

    /// The exit status.
    pub const fn status(&self) -> u8 {
        self.status
    }

    /// The message in one line: the error and what caused it, without `pagevisor: error: `.
    pub fn message(&self) -> Option<String> {
        self.error.as_ref().map(|error| one_line(error.as_ref()))
    }

    /// A guest that ended otherwise than it should have. The first line of its report is the message.
    pub fn of_guest(end: &End) -> Self {
        let text = end.to_string();
        let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
        Self::new(end.exit_status(), first).with_details(rest)
    }

    /// Adds lines to print below the message.
    #[must_use]
    pub fn with_details(mut self, lines: &str) -> Self {
        if !lines.trim().is_empty() {
            let details = self.details.get_or_insert_default();
            details.push_str(lines.trim_end());
            details.push('\n');
        }
        self
    }

    /// The lines to print below the message, each with its newline.
    pub fn details(&self) -> &str {
        self.details.as_deref().unwrap_or_default()
    }

    /// Writing to stdout failed. A reader that has seen enough (`| head`) is no error.
    pub fn stdout(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::quiet(exit_status::OK),
            _ => Self::new(exit_status::FAILURE, Context("cannot write to standard output", error)),
        }
    }
}

/// An error and what it is about.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Context<E: Error + 'static>(pub &'static str, #[source] pub E);

/// `error` and its causes in one line, joined by colons.
pub(super) fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        // Some errors already say what caused them.
        if !line.ends_with(&text) {
            let separator = if line.is_empty() { "" } else { ": " };
            // Writing to a string cannot fail.
            let _ = write!(line, "{separator}{text}");
        }
        cause = error.source();
    }
    line.split(|c: char| c.is_control()).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(exit_status::USAGE, error)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::new(error.exit_status(), error)
    }
}

impl From<RuntimeDirError> for Failure {
    fn from(error: RuntimeDirError) -> Self {
        let status = match error {
            RuntimeDirError::NameInUse(_) | RuntimeDirError::NoSuchGuest(_) => exit_status::NAME,
            _ => exit_status::FAILURE,
        };
        Self::new(status, error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Directory(error) => error.into(),
            other => Self::new(exit_status::FAILURE, other),
        }
    }
}

impl From<ProcDirError> for Failure {
    fn from(error: ProcDirError) -> Self {
        let status = match error {
            ProcDirError::Real { .. } | ProcDirError::Busy { .. } => exit_status::USAGE,
            ProcDirError::Open { .. } | ProcDirError::Write { .. } => exit_status::FAILURE,
        };
        Self::new(status, error)
    }
}

impl From<ReportError> for Failure {
    fn from(error: ReportError) -> Self {
        match error {
            ReportError::Write(error) => Self::stdout(error),
            corrupt if corrupt.is_corrupt() => Self::new(exit_status::CORRUPT, corrupt),
            usage if usage.is_usage() => Self::new(exit_status::USAGE, usage),
            other => Self::new(exit_status::FAILURE, other),
        }
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        ReportError::from(error).into()
    }
}

impl From<DumpError> for Failure {
    fn from(error: DumpError) -> Self {
        let status = if error.is_corrupt() { exit_status::CORRUPT } else { exit_status::FAILURE };
        Self::new(status, error)
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Corrupt(_) => Self::new(exit_status::CORRUPT, error),
            LogError::Io(error) => Self::stdout(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_with_their_causes() {
        let error = RuntimeDirError::Io { path: "/x".into(), source: io::Error::from_raw_os_error(libc::EACCES) };
        let failure = Failure::from(error);
        assert_eq!(failure.message().unwrap(), "runtime directory /x: Permission denied (os error 13)");
        assert_eq!(failure.status(), exit_status::FAILURE);
        let odd = Failure::new(exit_status::USAGE, "two\nlines\u{1b}[2J");
        assert_eq!(odd.message().unwrap(), "two lines [2J");
    }

    #[test]
    fn a_reader_that_left_is_no_error_and_a_full_disk_is() {
        let gone = Failure::stdout(io::ErrorKind::BrokenPipe.into());
        assert_eq!((gone.status(), gone.message()), (exit_status::OK, None));
        let full = Failure::stdout(io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(full.status(), exit_status::FAILURE);
        assert!(full.message().unwrap().starts_with("cannot write to standard output: No space left"));
    }
}
