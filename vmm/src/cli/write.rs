//! `pagevisor write`, and what is written to the files of `--proc-dir`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pagevisor_shared::command::{ANY_CPU, CommandHeader, Op, OpError};

use super::args::WriteArgs;
use super::failure::Failure;
use super::notice;
use super::target::Target;
use crate::devices::monitor::{NoReply, Reply};
use crate::error::exit_status;
use crate::machine::Machine;
use crate::state::StateView;
use crate::tunable::{BadWrite, Tunable};

/// How long the guest may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The error of the operation that failed, if one did.
fn refusal(reply: &Reply) -> Option<OpError> {
    reply.results.iter().find_map(|result| result.error)
}

/// `pagevisor write`
pub(super) fn write(args: &WriteArgs) -> Result<(), Failure> {
    let usage = |error: BadWrite| Failure::new(exit_status::USAGE, format!("{}: {error}", args.file.display()));
    let write = Tunable::at(&args.file).and_then(|file| file.write(&args.text.join(" "))).map_err(usage)?;
    let (connection, state) = Target::guest(&args.name)?;
    let reply = connection.command(write.ops(), write.payload(), PATIENCE)?;
    match refusal(&reply) {
        Some(error) => Err(usage(write.refused(error, &state))),
        None => Ok(()),
    }
}

/// Why something that was written to a file did not reach the guest.
#[derive(Debug, thiserror::Error)]
enum NotWritten {
    #[error(transparent)]
    Bad(#[from] BadWrite),
    #[error("the guest: {0}")]
    NoReply(#[from] NoReply),
    #[error("the guest does not answer")]
    Silent,
    #[error("{0}")]
    State(String),
}

fn write_line(machine: &Machine, path: &Path, line: &str) -> Result<(), NotWritten> {
    let write = Tunable::at(path)?.write(line)?;
    let ops: Vec<_> = write.ops().iter().map(Op::encode).collect();
    let header = CommandHeader { cpu: ANY_CPU, ..CommandHeader::default() };
    let waiting = machine.submit(header, &ops, write.payload())?;
    match refusal(&waiting.poll(PATIENCE).ok_or(NotWritten::Silent)??) {
        Some(error) => {
            let state = StateView::of_machine(machine).map_err(|error| NotWritten::State(error.to_string()))?;
            Err(write.refused(error, &state).into())
        }
        None => Ok(()),
    }
}

/// Passes what was written to files of `--proc-dir` on to the guest, a line at a time; tells what it does not take.
pub(super) fn pass_on(machine: &Machine, written: &BTreeMap<PathBuf, String>) {
    for (path, text) in written {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Err(error) = write_line(machine, path, line) {
                notice(format_args!("warning: {}: {error}", path.display()));
            }
        }
    }
}
