//! What should not happen to a VMM and does: guests that do not cooperate, clients that go away, disks that are full,
//! output that nobody reads, processes that are killed.

use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use pagevisor::runtime::{Connection, GuestName, RuntimeDir};
use pagevisor_tests::command::{Guest, pagevisor, run, start, unique};

fn connect(guest: &Guest) -> Connection {
    let directory = RuntimeDir::open(guest.directory()).expect("a directory").expect("a directory");
    let name: GuestName = guest.name().parse().expect("a name");
    Connection::open(&directory, &name).expect("a connection")
}

#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        thread::sleep(Duration::from_millis(20));
    }
}

/// CPU 0 loops with interrupts off: nothing in the guest answers any more. Who needs an answer is told in time.
#[test]
fn a_guest_that_spins_with_interrupts_off_can_be_looked_at_and_stopped() {
    let guest = Guest::keep("spins", &["--append", "pagevisor.test=hang"]);
    let connection = connect(&guest);
    let began = Instant::now();
    let error = connection.pause().expect_err("no safe point").to_string();
    assert!(error.contains("CPU 0 did not come to a safe point"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10), "pausing took {:?}", began.elapsed());
    connection.status().expect("the connection is of use still");
    assert!(guest.show(&["kmem", "-f"]).contains("(verified)"));
    let began = Instant::now();
    guest.stop();
    assert!(began.elapsed() < Duration::from_secs(10), "stopping took {:?}", began.elapsed());
}

/// A connection without the courtesies of `Connection`.
fn raw(guest: &Guest) -> OwnedFd {
    let path = guest.directory().join(format!("{}.sock", guest.name()));
    // SAFETY: the address is plain data, filled up to its end; the socket is ours alone.
    unsafe {
        let fd = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        let bytes = path.as_os_str().as_bytes();
        assert!(bytes.len() < address.sun_path.len(), "{}", path.display());
        for (slot, byte) in address.sun_path.iter_mut().zip(bytes) {
            *slot = byte.cast_signed();
        }
        let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        let result = libc::connect(fd.as_raw_fd(), (&raw const address).cast(), len);
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        fd
    }
}

fn send(fd: &OwnedFd, packet: &[u8]) {
    // SAFETY: the buffer is valid for its length.
    let sent = unsafe { libc::send(fd.as_raw_fd(), packet.as_ptr().cast(), packet.len(), libc::MSG_NOSIGNAL) };
    assert_eq!(usize::try_from(sent).ok(), Some(packet.len()), "{}", std::io::Error::last_os_error());
}

fn descriptors(guest: &Guest) -> usize {
    fs::read_dir(format!("/proc/{}/fd", guest.id())).expect("descriptors").count()
}

#[test]
fn clients_that_vanish_leave_nothing_and_stop_nothing() {
    let guest = Guest::keep("vanish", &["--node", "mem=64M,cpus=2"]);
    let version = pagevisor::runtime::PROTOCOL_VERSION;
    eventually("an end of the first client", || connect(&guest).status().is_ok());
    let before = descriptors(&guest);
    for _ in 0..20 {
        // Before a request, in the middle of one, before the reply, with the reply unread, and with the guest paused.
        drop(raw(&guest));
        for request in ["", "{\"version\":", "\"attach\"", "\"status\"", "\"pause\""] {
            let client = raw(&guest);
            let whole = format!("{{\"version\":{version},\"request\":{request}}}");
            let packet = if request.starts_with('"') { whole.as_bytes() } else { request.as_bytes() };
            if !packet.is_empty() {
                send(&client, packet);
            }
        }
    }
    let connection = connect(&guest);
    drop(connection.pause().expect("a pause"));
    // One that died while it had the guest paused: the guest runs again, so another can pause it anew.
    let abandoned = connect(&guest);
    std::mem::forget(abandoned.pause().expect("a pause"));
    drop(abandoned);
    drop(connection.pause().expect("a pause after that"));
    drop(connection);
    eventually("an end of all clients", || descriptors(&guest) <= before);
    assert!(guest.show(&["kmem", "-f"]).contains("(verified)"));
    guest.stop();
}

/// A file system of some pages, gone with the test.
struct TinyDisk(PathBuf);

impl TinyDisk {
    /// `None` where we may not mount.
    fn mount(bytes: usize) -> Option<Self> {
        let path = std::env::temp_dir().join(unique("pagevisor-disk"));
        fs::create_dir(&path).expect("a directory");
        let disk = Self(path);
        let options = CString::new(format!("size={bytes},mode=0755")).expect("options");
        // SAFETY: all strings end in a zero and live through the call.
        let result = unsafe {
            let (fs, target) = (c"tmpfs".as_ptr(), disk.target());
            libc::mount(fs, target.as_ptr(), fs, 0, options.as_ptr().cast())
        };
        if result == 0 {
            return Some(disk);
        }
        let error = std::io::Error::last_os_error();
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{error}");
        // Past what is kept back from a test that passes.
        writeln!(std::io::stderr(), "guest_robust: full disks are not tried: only root can mount one").expect("stderr");
        None
    }

    fn target(&self) -> CString {
        CString::new(self.0.as_os_str().as_bytes()).expect("a path")
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path of text")
    }

    /// Takes the space there is.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("ballast");
        let mut file = fs::File::create(&path).expect("a file");
        while file.write_all(&[0; 4096]).is_ok() {}
        path
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        // SAFETY: the path ends in a zero and lives through the call.
        unsafe { libc::umount2(self.target().as_ptr(), libc::MNT_DETACH) };
        drop(fs::remove_dir(&self.0));
    }
}

fn lines_about(stderr: &str, word: &str) -> usize {
    stderr.lines().filter(|line| line.contains(word)).count()
}

#[test]
fn a_full_disk_under_the_files_is_one_warning_and_the_guest_goes_on() {
    let Some(disk) = TinyDisk::mount(32 << 10) else { return };
    let guest = Guest::keep("full", &["--proc-dir", disk.path()]);
    // Several rounds of writing.
    thread::sleep(Duration::from_millis(2300));
    assert!(guest.show(&["kmem", "-f"]).contains("(verified)"));
    let output = guest.stop();
    assert_eq!(lines_about(&output.stderr, "No space left"), 1, "{}", output.stderr);
    assert!(output.stderr.contains("pagevisor: warning: --proc-dir is not up to date: cannot write "), "{output:?}");
    let left: Vec<_> = fs::read_dir(&disk.0).expect("the disk").flatten().map(|entry| entry.path()).collect();
    assert_eq!(left, [""; 0].map(PathBuf::from), "what could be written goes away all the same");
}

#[test]
fn a_full_disk_is_an_error_where_the_files_are_what_was_wanted() {
    let Some(disk) = TinyDisk::mount(64 << 10) else { return };
    let ballast = disk.fill();
    let runs = || run(&mut pagevisor(["run", "--proc-dir", disk.path()]));
    let output = runs();
    assert_eq!(output.code(), 1, "{output:?}");
    assert_eq!(lines_about(&output.stderr, "pagevisor: error: "), 1, "{output:?}");
    assert_eq!(lines_about(&output.stderr, "No space left"), output.stderr.lines().count(), "{output:?}");
    assert_eq!(fs::read_dir(&disk.0).expect("the disk").count(), 1, "only the ballast is there");
    fs::remove_file(ballast).expect("the ballast");
    // With half the space it needs.
    assert_eq!(runs().code(), 1);
    assert_eq!(fs::read_dir(&disk.0).expect("the disk").count(), 0);
}

#[test]
fn a_full_disk_under_results_is_an_error_and_the_experiment_goes_on_when_there_is_room() {
    let Some(disk) = TinyDisk::mount(256 << 10) else { return };
    let folder = std::env::temp_dir().join(unique("pagevisor-results"));
    fs::create_dir_all(&folder).expect("a directory");
    fs::write(folder.join("small.toml"), "[[node]]\nmem = \"64M\"\ncpus = 1\n").expect("a topology");
    let file = folder.join("e.toml");
    fs::write(&file, "topologies = [\"small.toml\"]\n[[workload]]\nname = \"boot\"\n").expect("an experiment");
    let file = file.to_str().expect("a path of text");
    let experiment = || run(&mut pagevisor(["experiment", file, "--no-progress", "--out", disk.path()]));
    let ballast = disk.fill();
    let output = experiment();
    assert_eq!(output.code(), 1, "{output:?}");
    assert_eq!(lines_about(&output.stderr, "pagevisor: error: cannot write "), 1, "{output:?}");
    assert_eq!(lines_about(&output.stderr, "No space left"), 1, "{output:?}");
    fs::remove_file(ballast).expect("the ballast");
    let output = experiment();
    assert_eq!(output.code(), 0, "{output:?}");
    assert!(disk.0.join("e.csv").exists() && disk.0.join("e.parquet").exists());
    fs::remove_dir_all(&folder).expect("the directory");
}

#[test]
fn a_killed_guest_gives_its_name_and_its_files_to_the_next() {
    let guest = Guest::keep("again", &[]);
    let (name, directory) = (guest.name().to_owned(), guest.directory().to_owned());
    let files = directory.join("files");
    let again = |args: &[&str]| {
        let mut command = pagevisor(["run", "--name", &name].into_iter().chain(args.iter().copied()));
        command.env("PAGEVISOR_RUNTIME_DIR", &directory);
        command
    };
    let busy = run(&mut again(&[]));
    assert_eq!(busy.code(), 8, "{busy:?}");
    assert_eq!(guest.end_by(libc::SIGKILL).code(), 128 + libc::SIGKILL);
    let socket = directory.join(format!("{name}.sock"));
    assert!(socket.exists(), "a killed process cannot remove its socket");
    let path = files.to_str().expect("a path of text");
    run(&mut again(&["--proc-dir", path])).success();
    assert!(!socket.exists());
    // One that is killed while it keeps files leaves them, and the next keeps them instead.
    let keeper = start(&mut again(&["--keep", "--proc-dir", path]));
    let shown = |name: &str| {
        let mut show = pagevisor(["show", name, "buddyinfo"]);
        run(show.env("PAGEVISOR_RUNTIME_DIR", &directory)).code() == 0
    };
    eventually("a guest", || shown(&name));
    keeper.signal(libc::SIGKILL);
    assert_eq!(keeper.finish().code(), 128 + libc::SIGKILL);
    run(&mut again(&["--proc-dir", path])).success();
    assert!(!socket.exists() && Path::new(path).join("proc/meminfo").exists());
    fs::remove_dir_all(&directory).expect("the directory");
}

/// Standard error is a pipe that is full: the first word that the VMM says stops its main thread for good.
#[test]
fn output_that_nobody_reads_does_not_keep_a_guest_from_being_stopped() {
    let directory = std::env::temp_dir().join(unique("pagevisor-unread"));
    fs::create_dir_all(&directory).expect("a directory");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    // SAFETY: the descriptor is open, and the request takes a number.
    unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    (&writer).write_all(&[b'x'; 4096]).expect("room for a page");
    let mut command = pagevisor(["run", "--keep", "--name", "unread"]);
    command.env("PAGEVISOR_RUNTIME_DIR", &directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
    let mut guest = command.spawn().expect("a guest");
    let client = |args: &[&str]| run(pagevisor(args.iter().copied()).env("PAGEVISOR_RUNTIME_DIR", &directory));
    eventually("a guest", || client(&["show", "unread", "buddyinfo"]).code() == 0);
    let began = Instant::now();
    let stopped = client(&["stop", "unread"]);
    eventually("the end", || guest.try_wait().expect("its state").is_some());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(stopped.code(), 0, "{stopped:?}");
    assert_eq!(guest.wait().expect("its end").code(), Some(0));
    assert_eq!(client(&["list", "--json"]).success().trim(), "[]");
    drop(reader);
    fs::remove_dir_all(&directory).expect("the directory");
}
