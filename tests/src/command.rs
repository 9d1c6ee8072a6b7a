//! Runs the real `pagevisor` command, with a time limit on everything.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// No command here may take longer: a hang is a failure with a message.
const LIMIT: Duration = Duration::from_secs(120);

/// The binary under test: `PAGEVISOR_BIN`, or the one cargo left beside this test.
///
/// # Panics
/// If there is none: a test of nothing must not pass.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("PAGEVISOR_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("this test has a path");
    let path = test.parent().and_then(Path::parent).map(|dir| dir.join("pagevisor"));
    match path {
        Some(path) if path.exists() => path,
        _ => panic!("no pagevisor binary beside {}: build it (cargo build) or set PAGEVISOR_BIN", test.display()),
    }
}

/// `pagevisor` with these arguments. It starts with SIGHUP as usual, also where the tests run under `nohup`, whose
/// children ignore that signal.
pub fn pagevisor<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(binary());
    command.args(args);
    // SAFETY: between fork and exec only async-signal-safe functions may be called; `signal` is one.
    unsafe {
        command.pre_exec(|| match libc::signal(libc::SIGHUP, libc::SIG_DFL) {
            libc::SIG_ERR => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    command
}

/// What a finished command left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Output {
    /// The exit status, or 128 + the signal's number.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Standard output of a command that succeeded.
    ///
    /// # Panics
    /// With everything it printed, if it did not.
    #[track_caller]
    pub fn success(self) -> String {
        assert_eq!(self.code(), 0, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// A command that runs while the test does something else. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    started: Instant,
    readers: Option<[thread::JoinHandle<String>; 2]>,
}

/// Starts a command and collects its output in the background.
pub fn start(command: &mut Command) -> Running {
    start_with(command, Stdio::null())
}

/// As [`start`], with this standard input.
pub fn start_with(command: &mut Command, stdin: impl Into<Stdio>) -> Running {
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    Running { child, started, readers: Some([stdout, stderr]) }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still evidence.
            drop(pipe.read_to_end(&mut bytes));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Running {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub fn ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill takes no pointers; the child is ours and not reaped, so the id names it and nothing else.
        let result = unsafe { libc::kill(self.child.id().cast_signed(), signal) };
        assert_eq!(result, 0, "kill: {}", std::io::Error::last_os_error());
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// If it takes too long; the command is killed then.
    #[track_caller]
    pub fn finish(mut self) -> Output {
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break Some(status);
            }
            if Instant::now() > deadline {
                drop(self.child.kill());
                drop(self.child.wait());
                break None;
            }
            thread::sleep(Duration::from_millis(5));
        };
        let took = self.started.elapsed();
        let [stdout, stderr] = self.readers.take().expect("finished once").map(|r| r.join().expect("reader"));
        let Some(status) = status else { panic!("still running after {took:?}; stdout:\n{stdout}\nstderr:\n{stderr}") };
        Output { status, stdout, stderr, took }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended and reaped after `finish`: then neither does anything.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs a command to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    start(command).finish()
}

/// Path of the kernel ELF, as `pagevisor kernel --path` prints it.
pub fn kernel_elf() -> PathBuf {
    PathBuf::from(run(&mut pagevisor(["kernel", "--path"])).success().trim_end())
}

/// A guest of a name of its own that stays up until it is stopped, in a runtime directory of its own.
#[derive(Debug)]
pub struct Guest {
    name: String,
    directory: PathBuf,
    running: Running,
}

impl Guest {
    /// Starts `pagevisor run ARGS --keep` and waits until the guest is ready.
    ///
    /// # Panics
    /// If it does not get there.
    #[track_caller]
    pub fn keep(name: &str, args: &[&str]) -> Self {
        let name = unique(name);
        let directory = std::env::temp_dir().join(format!("pagevisor-test-{name}"));
        fs::create_dir_all(&directory).expect("a directory for the guest");
        let mut command = pagevisor(["run", "--keep", "--name", name.as_str()].into_iter().chain(args.iter().copied()));
        command.env("PAGEVISOR_RUNTIME_DIR", &directory);
        let mut guest = Self { running: start(&mut command), name, directory };
        let deadline = Instant::now() + LIMIT;
        while guest.try_show(&["buddyinfo"]).code() != 0 {
            if guest.running.ended() || Instant::now() > deadline {
                let output = guest.running.finish();
                panic!("not ready: status {}\n{}\n{}", output.code(), output.stdout, output.stderr);
            }
            thread::sleep(Duration::from_millis(20));
        }
        guest
    }

    /// Process id of the VMM.
    pub fn id(&self) -> u32 {
        self.running.id()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The runtime directory it is in.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Another `pagevisor` command that sees this guest.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = pagevisor(args.iter().copied());
        command.env("PAGEVISOR_RUNTIME_DIR", &self.directory);
        command
    }

    /// `pagevisor show NAME VIEW`, however it ends.
    pub fn try_show(&self, view: &[&str]) -> Output {
        let mut command = self.command(&["show", &self.name]);
        run(command.args(view))
    }

    /// `pagevisor show NAME VIEW`.
    #[track_caller]
    pub fn show(&self, view: &[&str]) -> String {
        self.try_show(view).success()
    }

    /// Sends the VMM a signal and waits for its end.
    #[track_caller]
    pub fn end_by(self, signal: i32) -> Output {
        self.running.signal(signal);
        self.running.finish()
    }

    /// Stops it by `pagevisor stop`.
    #[track_caller]
    pub fn stop(self) -> Output {
        run(&mut self.command(&["stop", &self.name])).success();
        let output = self.running.finish();
        assert_eq!(output.code(), 0, "{}", output.stderr);
        output
    }
}

/// A name that no other guest has, in this process or another.
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed))
}
