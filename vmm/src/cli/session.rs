//! A guest that this process runs, and all that goes with it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use pagevisor_shared::command::{ANY_CPU, CommandHeader, Op};
use pagevisor_shared::region::GuestState;

use super::args::RunArgs;
use super::confine::confine;
use super::failure::Failure;
use super::run::host;
use super::serial::SerialLog;
use super::signals::{self, Signals};
use super::{grace, init, look, notice, write};
use crate::config::ConfigError;
use crate::error::exit_status;
use crate::guest::{ErrorKind, PreparedWorkload};
use crate::layout::Layout;
use crate::log::{LogError, LogReader};
use crate::machine::{Deadline, End, KernelImage, Machine, MachineConfig, StopEvent, StopReason};
use crate::procdir::ProcDir;
use crate::report::WRITTEN_DIRS;
use crate::runtime::{
    Claim, ControlServer, Endpoint, Guest, GuestName, GuestNode, GuestRange, Phase, RegionMap, RuntimeDir,
};
use crate::topology::{Node, Topology};
use crate::workload::WorkloadReport;

/// How often the log is looked at for `--console`.
const CONSOLE_INTERVAL: Duration = Duration::from_millis(50);
/// How often the files of `--proc-dir` are renewed.
const PROC_INTERVAL: Duration = Duration::from_secs(1);

/// How long the guest may take to power off before others are looked at again.
const POWER_OFF: Duration = Duration::from_secs(5);

/// What a session waits for.
#[derive(Debug)]
pub(super) enum Happening {
    /// The guest is ready; told once.
    Ready,
    /// The guest has ended.
    Ended(End),
    /// Someone asked for the end over the control socket.
    StopRequest,
    /// A signal asked for it.
    Signal(Signal),
    /// `--timeout` is over.
    Timeout,
}

/// The guest and what belongs to it. Dropping it ends all of that, in the order of the fields: when the last one,
/// the control socket, is gone, nothing else is left.
pub(super) struct Session<'a> {
    pub machine: Machine,
    pub serial: SerialLog,
    /// Workloads that were done, and what they report.
    pub reports: Vec<(String, WorkloadReport)>,
    work: Vec<PreparedWorkload>,
    console: Option<LogReader>,
    region: Arc<RegionMap>,
    proc_dir: Option<ProcDir>,
    next_proc: Instant,
    proc_warned: bool,
    stop: StopEvent,
    /// Exit status that goes with the request to stop.
    status: Arc<AtomicU8>,
    signals: &'a Signals,
    deadline: Option<Instant>,
    ready: bool,
    /// What clients are told; after the files of `--proc-dir` are there.
    announced: Arc<AtomicBool>,
    name: Option<GuestName>,
    _server: Option<ControlServer>,
}

impl<'a> Session<'a> {
    /// Starts the guest that `args` ask for.
    pub fn start(args: &RunArgs, topology: Topology, signals: &'a Signals) -> Result<Self, Failure> {
        let started = Instant::now();
        // Before the process is confined: traces are files.
        let work = args.workload.iter().map(PreparedWorkload::new).collect::<Result<Vec<_>, _>>();
        let work = work.map_err(|error| Failure::new(exit_status::USAGE, error))?;
        let init = init::resolve(args)?;
        let layout = Layout::place(&topology).map_err(ConfigError::from)?;
        let name = args.guest_name();
        // Before the machine: a name or directory in use must cost nothing.
        let claim = name.as_ref().map(|name| RuntimeDir::create(&RuntimeDir::locate())?.claim(name)).transpose()?;
        let mut proc_dir = args.proc_dir.as_deref().map(ProcDir::open).transpose()?;
        if let Some(dir) = &mut proc_dir {
            dir.listen(&WRITTEN_DIRS).map_err(host("cannot watch the files of --proc-dir"))?;
        }
        confine(args, claim.as_ref().map(Claim::directory), proc_dir.as_ref())?;
        let serial = SerialLog::new(args.console);
        let (tty, input) = (tty(args)?, input(args)?);
        let stop = StopEvent::new().map_err(host("cannot make an eventfd"))?;
        let status = Arc::new(AtomicU8::new(0));
        grace::watch(signals, &stop, status.clone(), args.sandbox()).map_err(host("cannot start a thread"))?;
        let machine = Machine::start(MachineConfig {
            kernel: args.kernel.clone().map_or(KernelImage::Embedded, KernelImage::File),
            initrd: args.initrd.clone(),
            append: args.append.clone(),
            exit_when_ready: !args.stays() && work.is_empty() && init.is_none(),
            init,
            tty,
            input,
            console: Box::new(serial.clone()),
            notice: Arc::new(|line| notice(format_args!("warning: {line}"))),
            layout: layout.clone(),
            sandbox: args.sandbox(),
            ..MachineConfig::new(topology.clone()).map_err(ConfigError::from)?
        })?;
        let region = machine.memory().state().read_only().and_then(|file| RegionMap::new(file.into()));
        let region = Arc::new(region.map_err(host("cannot map the state region"))?);
        let announced = Arc::new(AtomicBool::new(false));
        let server = claim.map(|claim| {
            let (region, announced, stop) = (region.clone(), announced.clone(), stop.clone());
            let endpoint = Endpoint {
                guest: describe(args, &topology, &layout, claim.name()),
                memory: read_only_memory(&machine)?,
                phase: Box::new(move || phase(&region, &announced)),
                stop: Box::new(move || stop.stop(StopReason::Request)),
                pauser: Some(machine.pauser()),
                commander: Some(machine.commander()),
                sandbox: args.sandbox(),
            };
            ControlServer::start(claim, endpoint)
        });
        let server = server.transpose().map_err(host("cannot serve the control socket"))?;
        Ok(Self {
            machine,
            serial,
            reports: Vec::new(),
            work,
            console: args.console.then(LogReader::default),
            region,
            proc_dir,
            next_proc: started,
            proc_warned: false,
            stop,
            status,
            signals,
            deadline: args.timeout.and_then(|timeout| started.checked_add(timeout)),
            ready: false,
            announced,
            name,
            _server: server,
        })
    }

    /// The guest's name, if it has one.
    pub fn name(&self) -> Option<&GuestName> {
        self.name.as_ref()
    }

    /// Whether the guest has become ready.
    pub fn was_ready(&self) -> bool {
        self.machine.times().start_to_ready.is_some()
    }

    /// Has the guest do its workloads. Without a failure it may be that something else has happened meanwhile, which
    /// [`Self::next`] tells.
    pub fn work(&mut self) -> Result<(), Failure> {
        let work = std::mem::take(&mut self.work);
        let deadline = self.deadline.map_or(Deadline::NEVER, Deadline::at);
        let interrupted = || {
            let mut fds = [self.signals.as_fd(), self.stop.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        };
        let mut reports = Vec::new();
        let mut outcome = Ok(());
        for work in &work {
            match work.run(&self.machine, deadline, Some(&interrupted)) {
                Ok(report) => reports.push((work.name().to_owned(), report)),
                Err(ErrorKind::Stopped | ErrorKind::TimedOut { .. } | ErrorKind::Ended(_)) => break,
                Err(error) => {
                    let error = match error {
                        // It says so itself.
                        ErrorKind::Workload { .. } => error.to_string(),
                        error => format!("workload {}: {error}", work.name()),
                    };
                    outcome = Err(Failure::new(exit_status::FAILURE, error));
                    break;
                }
            }
        }
        self.reports = reports;
        outcome
    }

    /// Waits until all that programs printed is on its way, or a signal comes.
    pub fn settle_tty(&self) {
        let signalled = || {
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        };
        self.machine.settle_tty(&signalled);
    }

    /// Asks the guest to power off.
    pub fn power_off(&self) {
        let header = CommandHeader { cpu: ANY_CPU, ..CommandHeader::default() };
        match self.machine.submit(header, &[Op::Shutdown { code: 0 }.encode()], &[]) {
            // The machine's end is the reply.
            Ok(waiting) => drop(waiting.poll(POWER_OFF)),
            Err(error) => notice(format_args!("warning: the guest cannot be told to power off: {error}")),
        }
    }

    /// Waits for the next thing to happen, and meanwhile keeps console and files up to date.
    pub fn next(&mut self) -> Happening {
        loop {
            self.print_console();
            self.take_written();
            self.update_files();
            let (signalled, ended) = self.wait();
            // A guest that powers off as soon as it is ready was ready, and one that has ended by itself was not
            // ended by what came after.
            if !self.ready && self.was_ready() {
                self.ready = true;
                self.update_files();
                // Release pairs with the acquire loads of the control socket's thread.
                self.announced.store(true, Ordering::Release);
                return Happening::Ready;
            }
            if ended && let Some(end) = self.machine.end() {
                return Happening::Ended(end);
            }
            if signalled && let Some(signal) = self.signals.take() {
                self.status.store(signals::exit_status(signal), Ordering::Release);
                self.stop.stop(StopReason::Terminate);
                return Happening::Signal(signal);
            }
            if self.stop.reason().is_some() {
                return Happening::StopRequest;
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Happening::Timeout;
            }
        }
    }

    /// Sleeps until there is something to look at; whether a signal and the end are among it.
    fn wait(&self) -> (bool, bool) {
        let mut fds = vec![self.signals.as_fd(), self.machine.ended_fd(), self.stop.as_fd()];
        if !self.ready {
            fds.push(self.machine.ready_fd());
        }
        fds.extend(self.proc_dir.as_ref().and_then(ProcDir::written_fd));
        let mut fds: Vec<_> = fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let now = Instant::now();
        let console = self.console.as_ref().map(|_| now + CONSOLE_INTERVAL);
        let files = self.proc_dir.as_ref().filter(|_| self.ready).map(|_| self.next_proc);
        let wake = [self.deadline, console, files].into_iter().flatten().min();
        let timeout = wake.map_or(PollTimeout::NONE, |wake| {
            let millis = wake.saturating_duration_since(now).as_millis() + 1;
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            // ENOMEM, perhaps for a moment: try again, but not at full speed.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
        let readable = |index: usize| fds.get(index).is_some_and(|fd: &PollFd<'_>| fd.any() == Some(true));
        (readable(0), readable(1))
    }

    /// Prints what is new in the guest's log, if that was asked for.
    pub fn print_console(&mut self) {
        let Some(reader) = &mut self.console else { return };
        match reader.drain(&self.region.log(), &mut io::stderr().lock()) {
            Ok(()) => return,
            Err(LogError::Io(_)) => {}
            Err(error) => notice(format_args!("warning: {error}")),
        }
        self.console = None;
    }

    /// Does what was written to files of `--proc-dir`; these are to be renewed then.
    fn take_written(&mut self) {
        let written = self.proc_dir.as_mut().map(ProcDir::take_written).unwrap_or_default();
        if !written.is_empty() {
            write::pass_on(&self.machine, &written);
            self.next_proc = Instant::now();
        }
    }

    /// Renews the files of `--proc-dir`, if it is time. What goes wrong there is said once, until it goes well again,
    /// and does no other harm.
    fn update_files(&mut self) {
        let Some(dir) = self.proc_dir.as_mut().filter(|_| self.ready && Instant::now() >= self.next_proc) else {
            return;
        };
        self.next_proc = Instant::now() + PROC_INTERVAL;
        match write_files(dir, &self.machine) {
            Ok(()) => self.proc_warned = false,
            Err(failure) if !self.proc_warned => {
                self.proc_warned = true;
                notice(format_args!(
                    "warning: --proc-dir is not up to date: {}",
                    failure.message().unwrap_or_default()
                ));
            }
            Err(_) => {}
        }
    }

    /// Brings the files of `--proc-dir` up to date a last time and leaves them there. If that cannot be done, none
    /// is left.
    pub fn leave_files(&mut self) -> Result<(), Failure> {
        let Some(mut dir) = self.proc_dir.take() else { return Ok(()) };
        write_files(&mut dir, &self.machine)?;
        dir.leave();
        Ok(())
    }
}

fn write_files(dir: &mut ProcDir, machine: &Machine) -> Result<(), Failure> {
    Ok(dir.update(look::proc_files(machine)?)?)
}

/// Where what programs print goes. A guest in the background has nobody who would read it.
fn tty(args: &RunArgs) -> Result<Box<dyn Write + Send>, Failure> {
    if args.detach {
        return Ok(Box::new(io::sink()));
    }
    // Neither buffered nor locked: both are the main thread's.
    let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(host("cannot duplicate standard output"))?;
    Ok(Box::new(File::from(stdout)))
}

/// What programs read: our standard input. A guest in the background has nobody who would type.
fn input(args: &RunArgs) -> Result<Option<OwnedFd>, Failure> {
    if args.detach {
        return Ok(None);
    }
    // The main thread reads nothing from it.
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    Ok(Some(stdin.map_err(host("cannot duplicate standard input"))?))
}

/// The guest's description, for who attaches to it.
fn describe(args: &RunArgs, topology: &Topology, layout: &Layout, name: &GuestName) -> Guest {
    let node = |(number, node): (usize, &Node)| {
        let ranges = layout.ram_of(number);
        let ranges = ranges.map(|ram| GuestRange { base: ram.start, size: ram.size, offset: ram.backing_offset });
        GuestNode { cpus: node.cpus.clone(), ranges: ranges.collect() }
    };
    Guest {
        abi: pagevisor_shared::ABI_VERSION,
        name: name.to_string(),
        pid: std::process::id(),
        started_unix_ms: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis() as u64),
        kernel: args.kernel.as_ref().map_or("embedded".to_owned(), |path| path.display().to_string()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        append: args.append.clone(),
        state: Phase::Booting,
        region_bytes: layout.state.size,
        cpus: topology.nr_cpus(),
        nodes: topology.nodes.iter().enumerate().map(node).collect(),
        distances: topology.distances.clone(),
    }
}

/// Descriptors of the guest's memory that cannot be written through, in the order of the protocol.
fn read_only_memory(machine: &Machine) -> io::Result<Vec<OwnedFd>> {
    let memory = machine.memory();
    let mut fds = vec![memory.state().read_only()?.into()];
    fds.extend(memory.read_only_nodes()?.into_iter().map(|(_, file)| OwnedFd::from(file)));
    Ok(fds)
}

/// What clients are told. `announced` is set when the guest is ready and all is there that goes with it.
fn phase(region: &RegionMap, announced: &AtomicBool) -> Phase {
    match region.state() {
        Some(GuestState::Ready) if announced.load(Ordering::Acquire) => Phase::Ready,
        Some(GuestState::Empty | GuestState::Early | GuestState::Tables | GuestState::Ready) => Phase::Booting,
        Some(GuestState::Off) => Phase::Off,
        Some(GuestState::Panicked) => Phase::Panicked,
        None => Phase::Corrupt,
    }
}
