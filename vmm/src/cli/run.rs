//! `pagevisor run`

use std::io::{self, Write};
use std::time::Duration;

use nix::sys::signal::Signal;

use super::args::RunArgs;
use super::detach::{self, Parent, Side};
use super::failure::{Context, Failure};
use super::session::{Happening, Session};
use super::signals::{self, Signals};
use super::text::duration;
use super::{look, notice};
use crate::config;
use crate::error::exit_status;
use crate::machine::End;

/// Boots a guest and stays with it to its end, or to its being ready in the background.
pub(super) fn run(args: &RunArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let topology = config::resolve(&args.topology)?;
    let signals = Signals::block().map_err(host("cannot take signals"))?;
    let mut parent = None;
    if args.detach {
        match detach::split(&signals).map_err(host("cannot go into the background"))? {
            Side::Child(word) => parent = Some(word),
            Side::Parent(status) => return Ok(status),
        }
    }
    let mut session = Session::start(args, topology, &signals)?;
    let result = match args.stays() {
        true => keep(&mut session, args, parent, out),
        false => once(&mut session, args, out),
    };
    session.print_console();
    result
}

/// An error of the host's, with what was tried.
pub(super) fn host(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::new(exit_status::FAILURE, Context(what, error))
}

/// Lets the guest boot and power off, then shows what it was.
fn once(session: &mut Session<'_>, args: &RunArgs, out: &mut impl Write) -> Result<u8, Failure> {
    loop {
        match session.next() {
            Happening::Ready if args.workload.is_empty() => {}
            Happening::Ready if args.init.is_some() => session.work()?,
            Happening::Ready => {
                session.work()?;
                if session.reports.len() == args.workload.len() {
                    session.power_off();
                }
            }
            Happening::Ended(End::Shutdown { code: 0 }) => break,
            Happening::Ended(End::Exited { status }) => return exited(session, args, status, out),
            other => return unexpected(session, args, other),
        }
    }
    if session.was_ready() {
        // Its memory outlives the guest, and nothing changes in it any more.
        look::report(session, args, out)?;
        session.leave_files()?;
    } else if args.show.is_empty() {
        notice("the guest powered off without becoming ready: there is no state to show");
    } else {
        return Err(Failure::new(exit_status::CORRUPT, "the guest powered off without becoming ready"));
    }
    Ok(exit_status::OK)
}

/// The program has ended, and the guest with it: shows what is left of them, if that was asked for.
fn exited(session: &mut Session<'_>, args: &RunArgs, status: u8, out: &mut impl Write) -> Result<u8, Failure> {
    session.settle_tty();
    if args.json || !args.show.is_empty() || !args.workload.is_empty() {
        look::report(session, args, out)?;
    }
    session.leave_files()?;
    Ok(status)
}

/// Stays with the guest until something ends it.
fn keep(
    session: &mut Session<'_>,
    args: &RunArgs,
    mut parent: Option<Parent>,
    out: &mut impl Write,
) -> Result<u8, Failure> {
    loop {
        match session.next() {
            Happening::Ready => {
                session.work()?;
                match greet(session, args, out) {
                    // Nobody reads: no reason not to run.
                    Err(failure) if failure.status() == exit_status::OK => {}
                    other => other?,
                }
                if let Some(parent) = parent.take() {
                    parent.release().map_err(host("cannot go into the background"))?;
                }
            }
            Happening::Ended(End::Shutdown { code: 0 }) if parent.is_some() => {
                let error = "the guest powered off before it was ready";
                return Err(with_serial(session, args, Failure::new(exit_status::FAILURE, error)));
            }
            Happening::Ended(End::Exited { status }) => {
                session.settle_tty();
                return Ok(status);
            }
            Happening::Ended(End::Shutdown { code: 0 }) => {
                notice("the guest powered off");
                return Ok(exit_status::OK);
            }
            Happening::StopRequest if parent.is_some() => {
                return Err(Failure::new(exit_status::FAILURE, "the guest was stopped before it was ready"));
            }
            Happening::StopRequest => {
                notice("stopped by request");
                return Ok(exit_status::OK);
            }
            other => return unexpected(session, args, other),
        }
    }
}

/// What a kept guest says when it is ready: in the background its name, which scripts read, and what was asked for.
fn greet(session: &Session<'_>, args: &RunArgs, out: &mut impl Write) -> Result<(), Failure> {
    let name = session.name().map(ToString::to_string).unwrap_or_default();
    if !args.json && args.detach {
        writeln!(out, "{name}").map_err(Failure::stdout)?;
    }
    if args.json || !args.detach || !args.show.is_empty() {
        look::report(session, args, out)?;
    }
    out.flush().map_err(Failure::stdout)?;
    if !args.detach {
        notice(format_args!("guest '{name}' is up; Ctrl-C or `pagevisor stop {name}` ends it"));
    }
    Ok(())
}

/// An end that is not the usual one.
fn unexpected(session: &Session<'_>, args: &RunArgs, happening: Happening) -> Result<u8, Failure> {
    let failure = match happening {
        Happening::Ready => return Ok(exit_status::OK),
        Happening::StopRequest => return Ok(exit_status::OK),
        Happening::Signal(signal) => {
            let how = if signal == Signal::SIGINT { "Ctrl-C" } else { signal.as_str() };
            notice(format_args!("ended by {how}"));
            return Err(Failure::quiet(signals::exit_status(signal)));
        }
        Happening::Timeout => {
            let limit = duration(args.timeout.unwrap_or(Duration::ZERO));
            let error = match session.was_ready() {
                true => format!("the guest was still running after {limit} (--timeout)"),
                false => format!("the guest was not ready after {limit} (--timeout)"),
            };
            Failure::new(exit_status::TIMED_OUT, error)
        }
        Happening::Ended(end) => Failure::of_guest(&end),
    };
    Err(with_serial(session, args, failure))
}

/// Adds what a guest that never became ready said over its serial line: often that is all there is.
fn with_serial(session: &Session<'_>, args: &RunArgs, failure: Failure) -> Failure {
    let serial = session.serial.kept();
    if session.was_ready() || args.console || serial.is_empty() {
        return failure;
    }
    failure.with_details(&format!("Serial output of the guest:\n{serial}"))
}
