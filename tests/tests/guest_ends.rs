//! However a guest ends, the command says how, ends with the status for it, and leaves nothing behind.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::time::Duration;

use pagevisor_tests::command::{Guest, Output, pagevisor, run, start, unique};
use pagevisor_tests::process;

/// A directory of this test's own in which guests register. Gone when dropped; by then it has to be empty.
struct Sandbox(PathBuf);

impl Sandbox {
    fn new() -> Self {
        let path = std::env::temp_dir().join(unique("pagevisor-ends"));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    /// `pagevisor run ARGS`, checked to leave nothing.
    fn run(&self, args: &[&str]) -> Output {
        let shared_memory = entries("/dev/shm");
        // A name by which the processes of this run are found.
        let name = unique("ends");
        let mut command = pagevisor(["run", "--name", name.as_str()].into_iter().chain(args.iter().copied()));
        let output = run(command.env("PAGEVISOR_RUNTIME_DIR", &self.0));
        self.is_clean(&name);
        assert_eq!(entries("/dev/shm"), shared_memory);
        output
    }

    fn is_clean(&self, name: &str) {
        assert_eq!(process::named(name), [0_u32; 0], "processes of {name}");
        // The directory itself and its lock may stay; a guest's socket and files may not.
        let left: Vec<_> = walk(&self.0).into_iter().filter(|path| path.contains(name)).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn entries(folder: &str) -> Vec<PathBuf> {
    let Ok(folder) = fs::read_dir(folder) else { return Vec::new() };
    let mut entries: Vec<_> = folder.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

fn walk(folder: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the runtime directory").flatten() {
        found.push(entry.path().display().to_string());
        if entry.path().is_dir() {
            found.extend(walk(&entry.path()));
        }
    }
    found
}

/// Checks the status, and that stderr has all of `words`.
#[track_caller]
fn ended(output: &Output, status: i32, words: &[&str]) {
    assert_eq!(output.code(), status, "stdout:\n{}\nstderr:\n{}", output.stdout, output.stderr);
    for word in words {
        assert!(output.stderr.contains(word), "no '{word}' in:\n{}", output.stderr);
    }
}

#[test]
fn a_run_that_goes_well() {
    ended(&Sandbox::new().run(&[]), 0, &[]);
}

#[test]
fn a_file_that_is_no_kernel() {
    let sandbox = Sandbox::new();
    let path = sandbox.0.join("garbage");
    fs::write(&path, b"this is no ELF").expect("a file");
    let path = path.to_str().expect("a path of text").to_owned();
    ended(&sandbox.run(&["--kernel", &path]), 2, &[&path, "not an ELF"]);
}

#[test]
fn an_elf_that_is_damaged() {
    let sandbox = Sandbox::new();
    let whole = fs::read(pagevisor_tests::command::kernel_elf()).expect("the kernel");
    let path = sandbox.0.join("half");
    let text = path.to_str().expect("a path of text").to_owned();
    // Cut anywhere in what is loaded, it must not be more than a message.
    for length in [3, 20, 64, 200, 5000] {
        fs::write(&path, &whole[..length]).expect("a file");
        ended(&sandbox.run(&["--kernel", &text]), 2, &[&text]);
    }
}

#[test]
fn a_machine_without_boot_memory() {
    ended(&Sandbox::new().run(&["--node", "normal=1G,cpus=1"]), 2, &["no boot memory"]);
}

#[test]
fn a_host_without_room_for_the_guest() {
    let sandbox = Sandbox::new();
    let name = unique("room");
    let mut command = pagevisor(["run", "--name", name.as_str(), "--node", "mem=64G,cpus=1"]);
    command.env("PAGEVISOR_RUNTIME_DIR", &sandbox.0);
    // SAFETY: setrlimit is safe to call between fork and exec; it touches nothing but the process's own limit.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 1 << 30, rlim_max: 1 << 30 };
            match libc::setrlimit(libc::RLIMIT_AS, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    ended(&run(&mut command), 1, &["guest memory", "Cannot allocate memory"]);
    sandbox.is_clean(&name);
}

/// Ends that the guest brings about itself: `pagevisor.test=`, the status, what is said.
const SELF_MADE: &[(&str, i32, &[&str])] = &[
    ("panic", 4, &["panicked", "requested on the command line", "RIP", "Call Trace:"]),
    ("heap-exhausted", 4, &["panicked", "memory allocation of 8589934592 bytes failed", "Call Trace:"]),
    ("page-fault", 4, &["panicked", "exception 14", "ffffc900deadb000", "RIP", "Call Trace:"]),
    ("text-write", 4, &["panicked", "exception 14", "RIP", "Call Trace:"]),
    ("divide", 4, &["panicked", "exception 0", "RIP", "Call Trace:"]),
    ("undefined", 4, &["panicked", "exception 6", "RIP", "Call Trace:"]),
    ("stack-overflow", 4, &["panicked", "RIP"]),
    ("triple-fault", 5, &["triple fault"]),
];

#[test]
fn ends_of_the_guests_own_making() {
    let sandbox = Sandbox::new();
    for (test, status, words) in SELF_MADE {
        eprintln!("{test}");
        let output = sandbox.run(&["--append", &format!("pagevisor.test={test}")]);
        ended(&output, *status, words);
    }
}

/// Only a KVM that emulates ring 0 meets instructions it does not know; hardware executes this one.
#[test]
fn an_unsupported_instruction() {
    let output = Sandbox::new().run(&["--append", "pagevisor.test=bad-instruction"]);
    if hardware_virtualization() {
        ended(&output, 0, &[]);
    } else {
        ended(&output, 6, &["internal error", "RIP", "Code:", "emms"]);
    }
}

#[test]
fn a_guest_that_hangs() {
    let output = Sandbox::new().run(&["--append", "pagevisor.test=hang", "--timeout", "3"]);
    ended(&output, 7, &["3.0 s"]);
}

fn hardware_virtualization() -> bool {
    let text = fs::read_to_string("/proc/cpuinfo").expect("/proc/cpuinfo");
    text.split_whitespace().any(|word| word == "vmx" || word == "svm")
}

#[test]
fn signals() {
    for (signal, status) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let guest = Guest::keep("signal", &[]);
        let (name, directory) = (guest.name().to_owned(), guest.directory().to_owned());
        let output = guest.end_by(signal);
        ended(&output, status, &[]);
        Sandbox(directory).is_clean(&name);
    }
}

#[test]
fn a_signal_while_it_boots() {
    let sandbox = Sandbox::new();
    for delay in [1, 5, 20, 60, 150] {
        let name = unique("early");
        let mut command = pagevisor(["run", "--keep", "--name", name.as_str()]);
        let running = start(command.env("PAGEVISOR_RUNTIME_DIR", &sandbox.0));
        std::thread::sleep(Duration::from_millis(delay));
        running.signal(libc::SIGINT);
        let output = running.finish();
        // Before the command has installed its handler the signal itself ends it: 128 + 2 as well.
        ended(&output, 130, &[]);
        sandbox.is_clean(&name);
    }
}

#[test]
fn a_time_limit() {
    let output = Sandbox::new().run(&["--keep", "--timeout", "1.5"]);
    ended(&output, 7, &["1.5 s"]);
    assert!(output.took < Duration::from_secs(10), "{:?}", output.took);
}

#[test]
fn a_stopped_guest_leaves_nothing() {
    let guest = Guest::keep("stopped", &[]);
    let (name, directory) = (guest.name().to_owned(), guest.directory().to_owned());
    guest.stop();
    Sandbox(directory).is_clean(&name);
}

#[test]
fn a_killed_guest_is_cleaned_up_after() {
    let guest = Guest::keep("killed", &[]);
    let (name, directory) = (guest.name().to_owned(), guest.directory().to_owned());
    assert_eq!(guest.end_by(libc::SIGKILL).code(), 128 + libc::SIGKILL);
    // Nobody could clean up; the next command that looks does.
    let mut list = pagevisor(["list"]);
    let output = run(list.env("PAGEVISOR_RUNTIME_DIR", &directory)).success();
    assert!(!output.contains(&name), "{output}");
    Sandbox(directory).is_clean(&name);
}
