//! The sandbox: what is forbidden ends the process with a line, and machines run within. Needs /dev/kvm.

mod tiny;

use std::net::TcpStream;
use std::process::{Command, Output};
use std::time::Duration;

use pagevisor::machine::{Deadline, End, MachineConfig};
use pagevisor::sandbox::{Access, FileRules, Landlock, Mode, Role, enter};
use tiny::{Code, PATIENCE, config, start, stop_event, tap};

/// Tells a child of this test process what to do.
const CHILD: &str = "SANDBOX_TEST_CHILD";

/// Runs the test `name` of this file once more, in a process of its own that may die, with `what` to do.
fn child(name: &str, what: &str) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(CHILD, what);
    command.output().unwrap()
}

fn forbidden(what: &str) {
    let _ = match what.split_once(' ').unwrap().1 {
        // A connection nobody can want: it must not get as far as being refused.
        "socket" => TcpStream::connect("127.0.0.1:9").map(drop),
        "openat" => std::fs::read("/etc/passwd").map(drop),
        "execve" => Err(std::os::unix::process::CommandExt::exec(&mut Command::new("/bin/true"))),
        "mmap" => {
            let protection = libc::PROT_READ | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new mapping of anonymous memory touches nothing that exists.
            unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
            Ok(())
        }
        "tgkill" => {
            // SAFETY: signal 0 only asks; the call takes no pointers.
            unsafe { libc::syscall(libc::SYS_tgkill, 1, 1, 0) };
            Ok(())
        }
        "ioctl" => {
            // SAFETY: the request (TIOCSTI) puts the byte, which is valid, into a terminal's input; there is none.
            unsafe { libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr()) };
            Ok(())
        }
        other => panic!("{other}"),
    };
}

#[test]
fn a_forbidden_call_ends_the_process_with_a_line() {
    let roles = [("vCPU", Role::Vcpu), ("monitor", Role::Monitor), ("control", Role::Control), ("main", Role::Main)];
    if let Ok(what) = std::env::var(CHILD) {
        let role = roles.iter().find(|(name, _)| what.starts_with(name)).unwrap().1;
        enter(role, Mode::Enforce).unwrap();
        forbidden(&what);
        return println!("survived");
    }
    for (name, role) in roles {
        for call in ["socket", "openat", "execve", "mmap", "tgkill", "ioctl"] {
            let output = child("a_forbidden_call_ends_the_process_with_a_line", &format!("{name} {call}"));
            let error = String::from_utf8_lossy(&output.stderr);
            if (role, call) == (Role::Main, "openat") {
                // Which files main may open is for Landlock to say.
                assert!(output.status.success(), "{output:?}");
                continue;
            }
            assert_eq!(output.status.code(), Some(159), "{name} {call}: {output:?}");
            let line =
                format!("pagevisor: error: the sandbox ends this process: its {name} thread made the system call ");
            assert!(error.contains(&line) && error.contains(&format!(" ({call}), ")), "{error}");
        }
    }
}

#[test]
fn a_filter_that_only_logs_forbids_nothing() {
    if std::env::var_os(CHILD).is_some() {
        enter(Role::Vcpu, Mode::Log).unwrap();
        assert!(!std::fs::read("/etc/passwd").is_ok_and(|text| text.is_empty()));
        return println!("survived");
    }
    let output = child("a_filter_that_only_logs_forbids_nothing", "all");
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("survived"), "{output:?}");
}

#[test]
fn only_the_files_among_the_rules_can_be_used() {
    if let Ok(inside) = std::env::var(CHILD) {
        let landlock = FileRules::default().allow(&inside, Access::All).restrict().unwrap();
        // Threads that are started later are confined as well.
        let outside = std::thread::spawn(|| std::fs::write(std::env::temp_dir().join("sandbox-escape"), "x"));
        let outside = outside.join().unwrap();
        std::fs::write(format!("{inside}/file"), "x").unwrap();
        match landlock {
            Landlock::Enforced(_) => assert_eq!(outside.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied),
            Landlock::Absent => {
                outside.unwrap();
                std::fs::remove_file(std::env::temp_dir().join("sandbox-escape")).unwrap();
            }
        }
        return;
    }
    let inside = std::env::temp_dir().join(format!("sandbox-{}", std::process::id()));
    std::fs::create_dir(&inside).unwrap();
    let output = child("only_the_files_among_the_rules_can_be_used", inside.to_str().unwrap());
    let made = inside.join("file").exists();
    std::fs::remove_dir_all(&inside).unwrap();
    assert!(output.status.success() && made, "{output:?}");
}

/// Threads of this process by name, with how many filters each has.
fn filters() -> Vec<(String, u32)> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok())
        .map(|status| {
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0").trim();
            (field("Name:").to_owned(), field("Seccomp_filters:").parse().unwrap())
        })
        .collect()
}

#[test]
fn a_machine_runs_with_its_threads_confined_and_the_programs_own_free() {
    let (console, output) = tap();
    let code = Code::default().out8(0x3f8, b'x').out8(0x3f8, b'\n');
    let confined = MachineConfig { console, sandbox: Mode::Enforce, ..config(code.halt()) };
    let machine = start(confined);
    assert_eq!(output.recv_timeout(PATIENCE), Ok(b'x'));
    let filters = filters();
    let (mut machines, mut programs) = (0, 0);
    // KVM's own thread (`kvm-nx-lpage-re`) is the kernel's.
    for (name, count) in filters.iter().filter(|(name, _)| !name.starts_with("kvm-")) {
        let confined = name.starts_with("vcpu") || name == "monitor" || name == "tty";
        assert_eq!(*count, u32::from(confined), "{filters:?}");
        *(if confined { &mut machines } else { &mut programs }) += 1;
    }
    assert!(machines >= 2 && programs >= 1, "{filters:?}");
    let paused = machine.pauser().pause().unwrap();
    drop(paused);
    let end = machine.wait(Deadline::after(Duration::from_millis(50)), &stop_event());
    assert!(matches!(end, End::TimedOut { .. }), "{end:?}");
    drop(machine);
    // Each kind of end reads something of the vCPU.
    for code in [Code::default().power_off(3), Code::default().bytes(&[0x0f, 0x0b]), Code::default().out8(0x64, 0xfe)] {
        let end = start(MachineConfig { sandbox: Mode::Enforce, ..config(code.halt()) })
            .wait(Deadline::after(PATIENCE), &stop_event());
        assert!(matches!(end, End::Shutdown { code: 3 } | End::TripleFault(_) | End::Reset), "{end:?}");
    }
}
