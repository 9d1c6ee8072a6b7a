//! What can be typed.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::failure::STATUS_HELP;
use super::faults::FaultsArgs;
use super::process::{PsArgs, VmArgs, VtopArgs};
use crate::config::TopologyArgs;
use crate::events::Kinds;
use crate::report::{SlabSort, View};
use crate::runtime::GuestName;
use crate::workload::Workload;

/// Boots a small NUMA guest on KVM and shows what its Linux-like memory management does.
///
/// Without a command it does what `pagevisor run` does: boot a machine of two nodes, print its summary, end.
#[derive(Parser, Debug)]
#[command(name = "pagevisor", version, after_help = STATUS_HELP, max_term_width = 120)]
#[command(disable_help_subcommand = true)]
pub struct Cli {
    /// The command; `run` when there is none.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Boot a guest and show its memory
    Run(Box<RunArgs>),
    /// Run workloads over machines and settings, and make tables of what they measure
    Experiment(ExperimentArgs),
    /// List the running guests
    List(ListArgs),
    /// Show a view of a running guest, or of a dump
    Show(ShowArgs),
    /// List the tasks of a running guest or of a dump, as crash's ps does
    Ps(PsArgs),
    /// Show the areas of a program's memory, as crash's vm does
    Vm(VmArgs),
    /// Walk through a program's page tables, as crash's vtop does
    Vtop(VtopArgs),
    /// Write to a file of a running guest's /proc, as `echo TEXT > FILE` does
    Write(WriteArgs),
    /// End a running guest
    Stop(NameArgs),
    /// Print the kernel log of a running guest, as dmesg does
    Log(LogArgs),
    /// Print what the allocator of a running guest does, as trace_pipe does
    Events(EventsArgs),
    /// Print the page faults of a running guest's programs
    Faults(FaultsArgs),
    /// Show the slab caches of a running guest and keep them up to date, as slabtop does
    Slabtop(SlabtopArgs),
    /// Pause a running guest and prove that its allocator's structures are sound; or those in a dump
    Verify(VerifyArgs),
    /// Pause a running guest and write its memory and registers to an ELF core file
    Dump(DumpArgs),
    /// Tell where the built-in guest kernel is, for use with another VMM
    Kernel(KernelArgs),
}

/// `pagevisor run`
#[derive(Args, Debug, Default)]
#[command(after_help = STATUS_HELP)]
pub struct RunArgs {
    /// The machine.
    #[command(flatten)]
    pub topology: TopologyArgs,

    /// Name of the guest, for `pagevisor show NAME` and its like [default with --keep or --detach: pv-PID]
    #[arg(long, value_name = "NAME")]
    pub name: Option<GuestName>,

    /// Keep the guest up until Ctrl-C (exit status 130) or `pagevisor stop NAME` (exit status 0)
    #[arg(long)]
    pub keep: bool,

    /// Keep the guest up in the background: return when it is ready, having printed its name
    #[arg(long)]
    pub detach: bool,

    /// Views to print when the guest is ready, such as buddyinfo,zoneinfo,kmem-f
    #[arg(long, value_name = "VIEW,...", value_delimiter = ',')]
    pub show: Vec<View>,

    /// Have the guest do a workload when it is ready, such as fragment:order=9,seed=1 (repeatable, in this order)
    ///
    /// The report comes with the summary, and --show shows the state afterwards.
    #[arg(long, value_name = "NAME:KEY=VAL,...")]
    pub workload: Vec<Workload>,

    /// Print the summary and the views as JSON
    #[arg(long)]
    pub json: bool,

    /// Keep DIR/proc and DIR/sys like the guest's /proc and /sys
    ///
    /// Files are renewed each second while they change. What was made in DIR goes away when the guest ends; only a
    /// run without --keep and --detach leaves the files as they were in the end. What is written to proc/slabinfo and to
    /// files in proc/sys/vm changes the guest's settings; what it does not take is told on stderr. A file that cannot be written (no
    /// space is left) ends that run with exit status 1; a guest that stays goes on, with a warning.
    #[arg(long, value_name = "DIR")]
    pub proc_dir: Option<PathBuf>,

    /// Print the guest's kernel log and serial output on stderr as they come
    #[arg(long)]
    pub console: bool,

    /// Tell on stderr how the process was confined
    #[arg(long, short)]
    pub verbose: bool,

    /// Do not confine the process: no filter for system calls, no rules for files
    #[arg(long)]
    pub no_sandbox: bool,

    /// Let the kernel log the system calls that the filters would forbid, instead of ending the process
    #[arg(long, hide = true, conflicts_with = "no_sandbox")]
    pub sandbox_log: bool,

    /// End the run after so many seconds (exit status 7)
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub timeout: Option<Duration>,

    /// Boot this PVH kernel (an ELF file) instead of the built-in one
    #[arg(long, value_name = "ELF")]
    pub kernel: Option<PathBuf>,

    /// Give the kernel this file as its initrd
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Run this program in the guest: a static executable of x86-64 Linux
    ///
    /// Found as a shell finds it; the guest has it as /bin/PROGRAM, or it is a path in the --initrd. What it prints goes to
    /// stdout, what it reads comes from stdin. When it ends, so does the guest, with its exit status (128 and the signal's number if a signal ended it).
    #[arg(long, value_name = "PROGRAM", conflicts_with = "kernel")]
    pub init: Option<PathBuf>,

    /// Arguments of the program
    #[arg(last = true, value_name = "ARGS", requires = "init")]
    pub arguments: Vec<OsString>,

    /// Append to the kernel's command line
    #[arg(long, value_name = "STRING", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub append: String,
}

impl RunArgs {
    /// Whether the guest is to stay up once it is ready.
    pub fn stays(&self) -> bool {
        self.keep || self.detach
    }

    /// The guest's name; a guest that does not stay needs none.
    pub fn guest_name(&self) -> Option<GuestName> {
        self.name.clone().or_else(|| self.stays().then(|| GuestName::of_process(std::process::id())))
    }
}

/// `pagevisor experiment`
///
/// Each run is a guest of its own. A finished run is kept for good in DIR/runs.jsonl: the same command does only what is
/// missing, such as after Ctrl-C, or when the file has grown. A run that failed has its reason as its result.
#[derive(Args, Debug)]
#[command(after_help = STATUS_HELP)]
pub struct ExperimentArgs {
    /// File that describes the experiment, such as vmm/experiments/fallback.toml
    #[arg(value_name = "EXPERIMENT")]
    pub file: PathBuf,

    /// Runs at a time; side by side they disturb each other's times, but not their placements
    #[arg(long, short, value_name = "N", default_value = "1")]
    pub jobs: NonZeroUsize,

    /// Put the results there [default: NAME-results for an experiment in NAME.toml]
    #[arg(long, short, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Do the runs again that failed
    #[arg(long)]
    pub retry_failed: bool,

    /// Only list the runs
    #[arg(long)]
    pub dry_run: bool,

    /// Do not tell how far the experiment is
    #[arg(long)]
    pub no_progress: bool,
}

/// `pagevisor list`
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// `pagevisor show`
#[derive(Args, Debug)]
#[command(override_usage = "pagevisor show <NAME|FILE> <VIEW> [VIEW'S OPTIONS] [--json]")]
pub struct ShowArgs {
    /// The guest, or a file that `pagevisor dump` wrote
    #[arg(value_name = "NAME|FILE")]
    pub target: String,

    /// The view and its options: buddyinfo, zoneinfo, node/0/meminfo, numa, kmem -f, kmem -p 0x1000, ...
    #[arg(required = true, num_args = 1.., allow_hyphen_values = true, trailing_var_arg = true, value_name = "VIEW")]
    pub view: Vec<String>,
}

/// `pagevisor write`
#[derive(Args, Debug)]
pub struct WriteArgs {
    /// The guest
    pub name: GuestName,

    /// The file below /proc: slabinfo, or sys/vm/min_free_kbytes and others of sys/vm (also vm.min_free_kbytes); or fail_page_alloc
    /// or failslab
    pub file: PathBuf,

    /// What to write: `NAME LIMIT BATCHCOUNT SHARED` to slabinfo, a number to settings, `FILE=VALUE` ... to the last two
    #[arg(required = true, num_args = 1.., allow_hyphen_values = true, trailing_var_arg = true)]
    pub text: Vec<String>,
}

/// A command that needs nothing but a guest's name.
#[derive(Args, Debug)]
pub struct NameArgs {
    /// The guest
    pub name: GuestName,
}

/// `pagevisor log`
#[derive(Args, Debug)]
pub struct LogArgs {
    /// The guest
    pub name: GuestName,

    /// Go on printing new messages until the guest ends
    #[arg(long, short)]
    pub follow: bool,
}

/// `pagevisor events`
#[derive(Args, Debug)]
pub struct EventsArgs {
    /// The guest
    pub name: GuestName,

    /// Events to record, such as mm_page_alloc,mm_page_free [default: those that the guest records already]
    #[arg(long, value_name = "KIND,...")]
    pub kinds: Option<Kinds>,

    /// Go on until the guest ends, or until Ctrl-C
    #[arg(long, short)]
    pub follow: bool,

    /// Go on for so long, such as 5s or 200ms
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub duration: Option<Duration>,

    /// Print an object of JSON a line
    #[arg(long, conflicts_with = "perfetto")]
    pub json: bool,

    /// Write a trace for ui.perfetto.dev to a file instead
    #[arg(long, value_name = "FILE")]
    pub perfetto: Option<PathBuf>,
}

/// `pagevisor slabtop`
#[derive(Args, Debug)]
#[command(after_help = SLABTOP_HELP)]
pub struct SlabtopArgs {
    /// The guest, or a file that `pagevisor dump` wrote, which is shown once
    #[arg(value_name = "NAME|FILE")]
    pub target: String,

    /// Sort by this
    #[arg(long, short, value_name = "LETTER", default_value = "o", value_parser = sort)]
    pub sort: SlabSort,

    /// Seconds from one look to the next
    #[arg(long, short, value_name = "SECS", default_value = "3", value_parser = seconds)]
    pub delay: Duration,

    /// Print everything once, instead of drawing on the terminal
    #[arg(long, short, conflicts_with = "delay")]
    pub once: bool,
}

const SLABTOP_HELP: &str = "\
Sort by, from the command line or by a key:
  a  active objects    b  objects per slab    c  cache size      l  slabs    v  active slabs
  n  name              o  objects             p  pages per slab  s  object size    u  use
Other keys: space to look again, q to quit.";

fn sort(text: &str) -> Result<SlabSort, String> {
    let mut letters = text.chars();
    let sort = letters.next().and_then(SlabSort::of).filter(|_| letters.next().is_none());
    sort.ok_or_else(|| "not one of a, b, c, l, v, n, o, p, s, u".to_owned())
}

/// `pagevisor verify`
#[derive(Args, Debug)]
#[command(after_help = "Exit status: 0 if everything holds; 9 if not, with one finding per line.")]
pub struct VerifyArgs {
    /// The guest, or a file that `pagevisor dump` wrote
    #[arg(value_name = "NAME|FILE")]
    pub target: String,

    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

/// `pagevisor dump`
#[derive(Args, Debug)]
pub struct DumpArgs {
    /// The guest
    pub name: GuestName,

    /// The file, for readelf, gdb, `pagevisor verify FILE` and `pagevisor show FILE VIEW`
    pub file: PathBuf,
}

/// `pagevisor kernel`
#[derive(Args, Debug)]
pub struct KernelArgs {
    /// Print only the path of the kernel's ELF file
    #[arg(long)]
    pub path: bool,
}

/// `5s`, `200ms`, or seconds without a unit.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    match text.strip_suffix("ms") {
        Some(millis) => {
            let millis: f64 = millis.parse().map_err(|_| "not a time, such as 5s or 200ms".to_owned())?;
            seconds(&(millis / 1e3).to_string())
        }
        None => seconds(text.strip_suffix('s').unwrap_or(text)),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err("must be more than 0 seconds".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_positive_seconds() {
        assert_eq!(seconds("2.5"), Ok(Duration::from_millis(2500)));
        for bad in ["0", "-1", "nan", "1e300", "", "5s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
