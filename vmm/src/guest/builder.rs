//! From a description to a guest that is ready.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::error::{Error, ErrorKind};
use super::session::Guest;
use super::text::{Tail, last_words};
use crate::boot::Init;
use crate::machine::{Deadline, KernelImage, Machine, MachineConfig, StopEvent};
use crate::sandbox::Mode;
use crate::topology::Topology;

/// How long a command may take, unless the builder is told otherwise.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a workload may take.
const RUN_TIMEOUT: Duration = Duration::from_secs(600);
/// How long booting may take.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);

/// What a guest is to be. [`Machine::builder`] makes one: two nodes with a CPU and 256 MiB each, the embedded kernel,
/// confined threads.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    topology: Topology,
    kernel: KernelImage,
    initrd: Option<PathBuf>,
    init: Option<(Init, Arc<UnixStream>)>,
    append: Vec<String>,
    sandbox: Mode,
    boot_timeout: Duration,
    command_timeout: Duration,
    run_timeout: Duration,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            topology: Topology::default(),
            kernel: KernelImage::Embedded,
            initrd: None,
            init: None,
            append: Vec::new(),
            sandbox: Mode::Enforce,
            boot_timeout: BOOT_TIMEOUT,
            command_timeout: COMMAND_TIMEOUT,
            run_timeout: RUN_TIMEOUT,
        }
    }
}

impl Builder {
    /// Nodes, CPUs, memory, distances.
    pub fn topology(mut self, topology: Topology) -> Self {
        self.topology = topology;
        self
    }

    /// Words for the kernel's command line, behind those that are there.
    pub fn append(mut self, words: impl Into<String>) -> Self {
        self.append.push(words.into());
        self
    }

    /// The kernel: an ELF with a PVH entry.
    pub fn kernel(mut self, kernel: KernelImage) -> Self {
        self.kernel = kernel;
        self
    }

    /// A file that the kernel finds in memory.
    pub fn initrd(mut self, path: impl Into<PathBuf>) -> Self {
        self.initrd = Some(path.into());
        self
    }

    /// The program that the guest is started for: the guest ends with it. What programs read comes from `console`, and what
    /// they print goes there.
    pub fn init(mut self, init: Init, console: UnixStream) -> Self {
        self.init = Some((init, Arc::new(console)));
        self
    }

    /// Leaves the machine's threads without their sandbox.
    pub fn no_sandbox(mut self) -> Self {
        self.sandbox = Mode::Off;
        self
    }

    /// How long booting may take (60 s).
    pub fn boot_timeout(mut self, timeout: Duration) -> Self {
        self.boot_timeout = timeout;
        self
    }

    /// How long a command may take (10 s).
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.command_timeout = timeout;
        self
    }

    /// How long a workload may take (10 min).
    pub fn run_timeout(mut self, timeout: Duration) -> Self {
        self.run_timeout = timeout;
        self
    }

    /// Starts the machine and waits until its guest is ready.
    ///
    /// # Errors
    /// [`ErrorKind::Topology`], [`ErrorKind::Start`] or [`ErrorKind::NotReady`]; nothing of the machine is left then.
    pub fn boot(self) -> Result<Guest, Error> {
        let console = Tail::default();
        let notices = console.clone();
        let host = |what| move |source| ErrorKind::Host { what, source };
        let mut config = MachineConfig {
            kernel: self.kernel,
            initrd: self.initrd,
            append: self.append.join(" "),
            console: Box::new(console.clone()),
            notice: Arc::new(move |line| notices.push(format!("{line}\n").as_bytes())),
            sandbox: self.sandbox,
            ..MachineConfig::new(self.topology.clone())?
        };
        if let Some((init, console)) = self.init {
            let copy = || console.try_clone().map(OwnedFd::from).map_err(host("duplicate the programs' console"));
            config.init = Some(init);
            config.input = Some(copy()?);
            // As a file: a stream would send, which the machine's threads may not.
            config.tty = Box::new(File::from(copy()?));
        }
        let stop = StopEvent::new().map_err(host("make an eventfd"))?;
        let machine = Machine::start(config)?;
        if let Err(end) = machine.wait_ready(Deadline::after(self.boot_timeout), &stop) {
            let said = last_words(Some(&machine), &console);
            return Err(Error::new(ErrorKind::NotReady(Box::new(end)), said));
        }
        Guest::new(machine, self.topology, console, self.command_timeout, self.run_timeout)
    }
}

impl Machine {
    /// Describes a guest that is to be driven from this program.
    pub fn builder() -> Builder {
        Builder::default()
    }
}
