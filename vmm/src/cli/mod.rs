//! The `pagevisor` command.

mod args;
mod confine;
mod detach;
mod dump;
mod events;
mod experiment;
mod failure;
mod faults;
mod grace;
mod init;
mod kernel;
mod look;
mod process;
mod progress;
mod remote;
mod run;
mod serial;
mod session;
mod signals;
mod slabtop;
mod target;
mod terminal;
mod text;
mod verify;
mod write;

use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::error::exit_status;
use crate::machine::kernel_elf;
use args::{Cli, Command};
pub use failure::Failure;

/// Runs the command with the arguments of this process.
pub fn main() -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let result = parse(std::env::args_os()).and_then(|command| match command {
        Some(command) => execute(command, &mut out),
        None => Ok(exit_status::OK),
    });
    // Text that is still in the buffer belongs before a message on stderr.
    let result = match (out.flush(), result) {
        (Err(error), Ok(_)) => Err(Failure::stdout(error)),
        (_, result) => result,
    };
    match result {
        Ok(status) => status.into(),
        Err(failure) => {
            if let Some(message) = failure.message() {
                // A stderr that takes nothing leaves the exit status to tell.
                let _ = write!(io::stderr().lock(), "pagevisor: error: {message}\n{}", failure.details());
            }
            failure.status().into()
        }
    }
}

/// Says something on stderr that is no error.
fn notice(text: impl std::fmt::Display) {
    // There is no other place to say it.
    let _ = writeln!(io::stderr(), "pagevisor: {text}");
}

fn execute(command: Command, out: &mut impl Write) -> Result<u8, Failure> {
    match command {
        Command::Run(args) => return run::run(&args, out),
        Command::Experiment(args) => return experiment::experiment(&args, out),
        Command::List(args) => remote::list(&args, out)?,
        Command::Show(args) => remote::show(&args, out)?,
        Command::Ps(args) => process::ps(&args, out)?,
        Command::Vm(args) => process::vm(&args, out)?,
        Command::Vtop(args) => process::vtop(&args, out)?,
        Command::Write(args) => write::write(&args)?,
        Command::Stop(args) => remote::stop(&args)?,
        Command::Log(args) => remote::log(&args, out)?,
        Command::Dump(args) => dump::dump(&args, out)?,
        Command::Events(args) => return events::events(&args, out),
        Command::Faults(args) => return faults::faults(&args, out),
        Command::Slabtop(args) => return slabtop::slabtop(&args, out),
        Command::Verify(args) => return verify::verify(&args, out),
        Command::Kernel(args) => kernel::kernel(&args, kernel_elf(), out)?,
    }
    Ok(exit_status::OK)
}

/// What was typed; `None` when that was a question (`--help`) and has been answered.
fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Command>, Failure> {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            error.print().map_err(Failure::stdout)?;
            return Ok(None);
        }
        Err(error) => return Err(usage(&error)),
    };
    Ok(Some(cli.command.unwrap_or_else(|| Command::Run(Box::default()))))
}

/// The first paragraph of clap's message, which says what is wrong, as one line.
fn usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let first = text.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
    let line = first.split('\n').map(str::trim).collect::<Vec<_>>().join(" ");
    Failure::new(exit_status::USAGE, format!("{line} (try `pagevisor --help`)"))
}
