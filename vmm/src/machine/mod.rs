//! A machine, from start to end.
//!
//! ```no_run
//! use pagevisor::machine::{Deadline, Machine, MachineConfig, StopEvent};
//! use pagevisor::topology::Topology;
//!
//! let machine = Machine::start(MachineConfig::new(Topology::default())?)?;
//! let stop = StopEvent::new()?;
//! match machine.wait_ready(Deadline::NEVER, &stop) {
//!     Ok(time) => println!("ready after {time:?}"),
//!     Err(end) => println!("{end}"),
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A running machine has a thread per vCPU and one for the monitor device. All of them sleep unless the guest runs or
//! rings. Dropping the machine ends them and gives all memory back; only a thread that is stuck in the program's own code
//! (its console, its notices) for five seconds is left behind, with the memory.

mod end;
mod lifecycle;
mod pause;
mod report;
mod start;
mod wait;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::boot::Init;
use crate::devices::monitor::{Bequest, Monitor, MonitorWorker, NoReply, Notice, Signals, Traffic, Waiting};
use crate::devices::{Console, InputReader, PowerRequest, TtyWriter};
use crate::error::StartError;
use crate::kvm::{Cause, KVM_DEVICE};
use crate::layout::Layout;
use crate::memory::GuestMemory;
use crate::sandbox;
use crate::symbols::Symbols;
use crate::topology::{Topology, TopologyError};
use lifecycle::{Ending, Lifecycle};
use pagevisor_shared::command::{CommandHeader, RawOp};
use pagevisor_shared::device::shutdown;

pub use end::End;
pub use pause::{PauseError, Paused, Pauser};
pub use report::{CpuReport, Exception, InternalErrorReport, PanicReport};
pub use wait::{Deadline, StopEvent, StopReason};
use wait::{event_fd, wait_any};

/// The guest kernel that was built with this crate, as an ELF.
pub fn kernel_elf() -> &'static [u8] {
    include_bytes!(env!("PAGEVISOR_KERNEL_ELF"))
}

/// How long the threads of vCPUs may take to leave. They need microseconds, unless a device of the machine is stuck in
/// something of the program's, such as a console that takes no more.
const LEAVE: Duration = Duration::from_secs(5);

/// Which kernel to boot.
#[derive(Clone, Debug)]
pub enum KernelImage {
    /// The one that comes with this crate.
    Embedded,
    /// An ELF with a PVH entry.
    File(PathBuf),
    /// The bytes of one.
    Bytes(Arc<[u8]>),
}

/// What a machine is to be.
pub struct MachineConfig {
    /// Nodes, CPUs, distances.
    pub topology: Topology,
    /// Where the topology's memory is.
    pub layout: Layout,
    /// The kernel.
    pub kernel: KernelImage,
    /// A file that the kernel finds in memory.
    pub initrd: Option<PathBuf>,
    /// The program that the guest is started for; its end is the guest's.
    pub init: Option<Init>,
    /// Where what programs write to the console goes.
    pub tty: Box<dyn Write + Send>,
    /// What programs read from the console; without it they are at the end of file at once. It is read when a program
    /// asks for it, and no further.
    pub input: Option<OwnedFd>,
    /// Words for the kernel's command line.
    pub append: String,
    /// Ask the kernel to power off once it is ready.
    pub exit_when_ready: bool,
    /// Where the guest's serial output goes.
    pub console: Console,
    /// Where lines about the guest's misbehaviour go.
    pub notice: Notice,
    /// The KVM device.
    pub kvm_device: PathBuf,
    /// Whether the machine's threads are confined.
    pub sandbox: sandbox::Mode,
}

impl MachineConfig {
    /// A machine of this topology that boots the embedded kernel, stays up, and tells nobody anything.
    ///
    /// # Errors
    /// When the topology's memory cannot be placed.
    pub fn new(topology: Topology) -> Result<Self, TopologyError> {
        Ok(Self {
            layout: Layout::place(&topology)?,
            topology,
            kernel: KernelImage::Embedded,
            initrd: None,
            init: None,
            tty: Box::new(io::sink()),
            input: None,
            append: String::new(),
            exit_when_ready: false,
            console: Box::new(io::sink()),
            notice: Arc::new(|_| {}),
            kvm_device: KVM_DEVICE.into(),
            sandbox: sandbox::Mode::Off,
        })
    }
}

/// When things happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Times {
    /// From this process's exec to the start of the machine, to a clock tick (10 ms), if the host tells.
    pub exec_to_start: Option<Duration>,
    /// From the start of the machine, its first memory mapping included, to its guest being ready.
    pub start_to_ready: Option<Duration>,
}

/// A machine that was started.
#[derive(Debug)]
pub struct Machine {
    lifecycle: Arc<Lifecycle>,
    vcpus: Vec<JoinHandle<Option<()>>>,
    worker: Option<MonitorWorker>,
    tty: TtyWriter,
    _input: Option<InputReader>,
    monitor: Arc<Monitor>,
    memory: Arc<GuestMemory>,
    kernel: KernelSource,
    started: Instant,
    exec_to_start: Option<Duration>,
}

/// Sends commands to a machine. Clones are for the same machine, and outlive it.
#[derive(Clone, Debug)]
pub struct Commander(Arc<Monitor>);

impl Commander {
    /// Sends a command to the guest. It is executed once the guest is ready for it.
    ///
    /// # Errors
    /// When it is too long, or the machine has ended.
    pub fn submit(&self, header: CommandHeader, ops: &[RawOp], payload: &[u8]) -> Result<Waiting, NoReply> {
        self.0.submit(header, ops, payload)
    }
}

/// Where the kernel's symbols can be read again: only a guest that died needs them.
#[derive(Debug)]
enum KernelSource {
    Bytes(Cow<'static, [u8]>),
    Shared(Arc<[u8]>),
    File(File),
}

impl Machine {
    /// Starts a machine.
    ///
    /// # Errors
    /// [`StartError`] says in one sentence what is missing or wrong. Nothing of the machine is left then.
    pub fn start(config: MachineConfig) -> Result<Self, StartError> {
        start::start(config)
    }

    /// Waits for the guest to be ready and gives the time from the start to that moment.
    ///
    /// # Errors
    /// How it ended instead, or why the wait did. After [`End::TimedOut`], or an [`End::Stopped`] by `stop`, the
    /// machine still runs.
    pub fn wait_ready(&self, deadline: Deadline, stop: &StopEvent) -> Result<Duration, End> {
        let fds = [self.ready_fd(), self.ended_fd(), stop.as_fd()];
        let woken = wait_any(fds, deadline);
        // Readiness counts even if the guest has ended since.
        if let Some(ready) = self.times().start_to_ready {
            return Ok(ready);
        }
        Err(self.outcome(woken == Some(1), stop))
    }

    /// Waits for the machine to end.
    ///
    /// After [`End::TimedOut`], or an [`End::Stopped`] by `stop`, it still runs.
    pub fn wait(&self, deadline: Deadline, stop: &StopEvent) -> End {
        let woken = wait_any([self.ended_fd(), stop.as_fd()], deadline);
        self.outcome(woken == Some(0), stop)
    }

    fn outcome(&self, ended: bool, stop: &StopEvent) -> End {
        let end = if ended { self.end() } else { None };
        let stopped = || stop.reason().map(End::Stopped);
        end.or_else(stopped).unwrap_or_else(|| End::TimedOut { after: self.started.elapsed() })
    }

    /// Ends the machine. [`Self::wait`] then gives [`End::Stopped`], unless it had ended before.
    pub fn stop(&self, reason: StopReason) {
        self.lifecycle.end(Ending::Stopped(reason));
    }

    /// Takes all vCPUs out of the guest until the guard is dropped, at a point where the guest's tables are consistent.
    ///
    /// # Errors
    /// [`PauseError`] says which vCPU does not stop, or that there is none any more.
    pub fn pause(&self) -> Result<Paused, PauseError> {
        self.pauser().pause()
    }

    /// Pauses this machine, from wherever it is taken to.
    pub fn pauser(&self) -> Pauser {
        Pauser::new(self.lifecycle.clone(), self.memory.clone())
    }

    /// Sends a command to the guest. It is executed once the guest is ready for it.
    ///
    /// # Errors
    /// When it is too long, or the machine has ended.
    pub fn submit(&self, header: CommandHeader, ops: &[RawOp], payload: &[u8]) -> Result<Waiting, NoReply> {
        self.monitor.submit(header, ops, payload)
    }

    /// Sends a command whose reply nobody waits for.
    pub fn bequeath(&self, bequest: Bequest) {
        self.monitor.bequeath(bequest);
    }

    /// Sends commands to this machine, from wherever it is taken to.
    pub fn commander(&self) -> Commander {
        Commander(self.monitor.clone())
    }

    /// How many messages came and went.
    pub fn traffic(&self) -> Traffic {
        self.monitor.mailbox().traffic()
    }

    /// How often the guest's driver and the monitor device disturbed each other.
    pub fn signals(&self) -> Signals {
        self.monitor.signals()
    }

    /// How the machine ended, if it has.
    pub fn end(&self) -> Option<End> {
        let cause = match self.lifecycle.ending()? {
            Ending::Stopped(reason) => return Some(End::Stopped(*reason)),
            Ending::Vcpu(cause) => cause,
        };
        Some(match &**cause {
            Cause::Power(PowerRequest::Off(shutdown::PANIC)) => {
                let report = PanicReport::read(self.memory.state().header(), &self.symbols());
                End::Panic(Box::new(report))
            }
            Cause::Power(PowerRequest::Off(shutdown::NO_INIT)) => End::NoInit,
            Cause::Power(PowerRequest::Off(code)) if code & 0xff00 == shutdown::INIT_EXIT => {
                End::Exited { status: *code as u8 }
            }
            Cause::Power(PowerRequest::Off(code)) => End::Shutdown { code: *code },
            Cause::Power(PowerRequest::Reset) => End::Reset,
            Cause::TripleFault(cpu) => End::TripleFault(Box::new(CpuReport::new(cpu, &self.symbols()))),
            Cause::InternalError { cpu, suberror } => {
                let cpu = CpuReport::new(cpu, &self.symbols());
                End::InternalError(Box::new(InternalErrorReport { suberror: *suberror, cpu }))
            }
            Cause::Unexpected { cpu, what } => {
                End::Unexpected { what: what.clone(), cpu: Box::new(CpuReport::new(cpu, &self.symbols())) }
            }
            Cause::Host(what) => End::Host(what.clone()),
        })
    }

    /// Readable once the guest is ready.
    pub fn ready_fd(&self) -> BorrowedFd<'_> {
        event_fd(&self.lifecycle.ready)
    }

    /// Readable once the machine has ended and none of its vCPUs runs any more.
    pub fn ended_fd(&self) -> BorrowedFd<'_> {
        event_fd(&self.lifecycle.ended)
    }

    /// Waits until all is written that programs have written to the console, or until `interrupted` says so. It is asked a
    /// few times a second.
    pub fn settle_tty(&self, interrupted: &dyn Fn() -> bool) {
        self.tty.settle(interrupted);
    }

    /// The guest's memory, the state region included.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// When things happened.
    pub fn times(&self) -> Times {
        let ready = self.lifecycle.ready_at();
        Times {
            exec_to_start: self.exec_to_start,
            start_to_ready: ready.map(|ready| ready.saturating_duration_since(self.started)),
        }
    }

    /// Names for the guest's addresses, read from its kernel's ELF anew.
    pub fn symbols(&self) -> Symbols {
        match &self.kernel {
            KernelSource::Bytes(bytes) => Symbols::parse(bytes),
            KernelSource::Shared(bytes) => Symbols::parse(bytes),
            KernelSource::File(file) => {
                let mut file: &File = file;
                let mut bytes = Vec::new();
                let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
                // A file that is gone by now leaves addresses without names.
                if read.is_ok() { Symbols::parse(&bytes) } else { Symbols::default() }
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop(StopReason::Request);
        if wait_any([self.ended_fd()], Deadline::after(LEAVE)).is_none() {
            // Whoever holds them may let go one day; waiting for that would only stop one more thread.
            self.vcpus.clear();
        }
        for vcpu in self.vcpus.drain(..) {
            // A panic of the thread is in the machine's end already.
            let _ = vcpu.join();
        }
        self.worker = None;
    }
}
