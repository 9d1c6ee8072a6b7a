//! `pagevisor faults`: the page faults of a guest's programs, and those of its kernel at their addresses.

use std::io::Write;
use std::time::Duration;

use clap::Args;

use super::args::time;
use super::events::{follow, host};
use super::failure::Failure;
use super::signals::Signals;
use super::target::Target;
use crate::events::{EventReader, FaultRenderer, Kinds, Renderer};
use crate::runtime::GuestName;

/// `pagevisor faults`
#[derive(Args, Debug)]
#[command(after_help = FAULTS_HELP)]
pub struct FaultsArgs {
    /// The guest
    pub name: GuestName,

    /// Record faults from now on, and print them until the guest ends or Ctrl-C
    #[arg(long, short)]
    pub follow: bool,

    /// The same for so long, such as 5s or 200ms
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub duration: Option<Duration>,

    /// Only those of this thread
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,

    /// Print an object of JSON a line
    #[arg(long)]
    pub json: bool,
}

const FAULTS_HELP: &str = "\
Without --follow and --duration: the faults that the guest has recorded last. It does so when booted with
`--append trace_event=page_fault_user,page_fault_kernel`.

ERROR is the processor's error code:
  P  a page was there that did not allow the access   W     a write           U  from user mode
  I  the fetch of an instruction                      RSVD  a damaged table
KIND is what became of it:
  anon  a new page     cow        a copy of a page that others see, too     file      a page of a file
  zero  the zero page  cow-reuse  a page nobody else sees, made writable    spurious  nothing was missing
  bad   a signal, an error of a system call, or the end of the kernel
CYCLES are the time stamp counter's, from the begin of the kernel's handler.";

/// `pagevisor faults`; gives the exit status.
pub(super) fn faults(args: &FaultsArgs, out: &mut impl Write) -> Result<u8, Failure> {
    let signals = Signals::block().map_err(host("cannot wait for signals"))?;
    let (connection, view) = Target::guest(&args.name)?;
    let region = view.region();
    let renderer = FaultRenderer::new(Renderer::new(&region, None), args.pid);
    let waits = args.follow || args.duration.is_some();
    let mut reader = if waits {
        let reader = EventReader::from_now(&region, Kinds::FAULTS);
        connection.record_events(Kinds::FAULTS.0)?;
        reader
    } else {
        EventReader::from_oldest(&region, Kinds::FAULTS)
    };
    if !args.json {
        out.write_all(FaultRenderer::HEADER.as_bytes()).map_err(Failure::stdout)?;
    }
    let mut drain = || {
        let items = reader.read(&view.region());
        out.write_all(renderer.lines(&items, args.json).as_bytes()).map_err(Failure::stdout)?;
        out.flush().map_err(Failure::stdout)
    };
    let status = if waits { follow(args.duration, &connection, &signals, &mut drain)? } else { 0 };
    // The mapping outlives the guest: these are its last faults.
    drain()?;
    Ok(status)
}
