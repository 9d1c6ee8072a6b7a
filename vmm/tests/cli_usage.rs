//! The command without a guest: what it says, and with which status it ends.

mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use common::Sandbox;

/// Runs `args` and checks that the command fails with `status` and one line on stderr that holds all of `words`.
#[track_caller]
fn fails(sandbox: &Sandbox, args: &[&str], status: i32, words: &[&str]) {
    let output = sandbox.run(args);
    assert_eq!(output.status, Some(status), "{args:?}: {output:?}");
    assert!(output.stderr.starts_with("pagevisor: error: "), "{args:?}: {output:?}");
    assert_eq!(output.stderr.lines().count(), 1, "{args:?}: {output:?}");
    assert_eq!(output.stdout, "", "{args:?}");
    for word in words {
        assert!(output.stderr.contains(word), "{args:?} does not say {word:?}: {output:?}");
    }
}

#[test]
fn help_lists_commands_and_statuses() {
    let sandbox = Sandbox::new();
    for args in [&["--help"][..], &["run", "--help"]] {
        let output = sandbox.run(args);
        assert_eq!((output.status, output.stderr.as_str()), (Some(0), ""));
        let (_, statuses) = output.stdout.split_once("Exit status:").expect("a section on statuses");
        let listed: Vec<&str> = statuses.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(listed, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "any", "130", "159"]);
    }
    let help = sandbox.run(&["--help"]).stdout;
    for command in ["run", "experiment", "list", "show", "stop", "log", "kernel"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command} is not in {help}");
    }
    let version = sandbox.run(&["--version"]);
    assert_eq!((version.status, version.stdout), (Some(0), format!("pagevisor {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn bad_usage_is_status_2() {
    let sandbox = Sandbox::new();
    fails(&sandbox, &["frobnicate"], 2, &["frobnicate"]);
    fails(&sandbox, &["run", "--frobnicate"], 2, &["--frobnicate"]);
    fails(&sandbox, &["show", "ring"], 2, &["<VIEW>"]);
    fails(&sandbox, &["stop"], 2, &["<NAME>"]);
    fails(&sandbox, &["stop", "a/b"], 2, &["a/b", "letters, digits"]);
    fails(&sandbox, &["run", "--name", ".."], 2, &["cannot start with '.'"]);
    fails(&sandbox, &["run", "--name", &"x".repeat(65)], 2, &["at most 64"]);
    fails(&sandbox, &["run", "--timeout", "0"], 2, &["--timeout", "more than 0"]);
    fails(&sandbox, &["run", "--timeout", "soon"], 2, &["--timeout", "not a number"]);
}

#[test]
fn bad_machines_and_files_are_status_2() {
    let sandbox = Sandbox::new();
    fails(&sandbox, &["run", "/nonexistent/machine.toml"], 2, &["/nonexistent/machine.toml", "No such file"]);
    fails(&sandbox, &["run", "--node", "mem=512M,colour=red"], 2, &["--node mem=512M,colour=red", "colour"]);
    fails(&sandbox, &["run", "--kernel", "/nonexistent/vmlinux"], 2, &["/nonexistent/vmlinux", "No such file"]);
    fails(&sandbox, &["run", "--initrd", "/nonexistent/initrd"], 2, &["/nonexistent/initrd", "No such file"]);
    fails(&sandbox, &["run", "--show", "nosuchview"], 2, &["nosuchview"]);
}

#[test]
fn without_guests_there_is_nothing_to_see() {
    let sandbox = Sandbox::new();
    let output = sandbox.run(&["list"]);
    assert_eq!((output.status, output.stdout.lines().count(), output.stderr.as_str()), (Some(0), 1, ""));
    assert!(output.stdout.starts_with("NAME"));
    assert_eq!(sandbox.run(&["list", "--json"]).stdout, "[]\n");
    for args in [&["show", "ring", "buddyinfo"][..], &["stop", "ring"], &["log", "ring"], &["log", "ring", "--follow"]]
    {
        fails(&sandbox, args, 8, &["no guest named 'ring'"]);
    }
    assert!(!sandbox.runtime().exists(), "looking must not make the runtime directory");
}

#[test]
fn what_a_killed_guest_left_is_cleaned() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.runtime()).unwrap();
    let socket = sandbox.runtime().join("ring.sock");
    drop(UnixListener::bind(&socket).unwrap());
    assert_eq!(sandbox.run(&["list", "--json"]).stdout, "[]\n");
    assert!(!socket.exists());
    drop(UnixListener::bind(&socket).unwrap());
    fails(&sandbox, &["stop", "ring"], 8, &["no guest named 'ring'"]);
    assert!(!socket.exists());
}

#[test]
fn a_runtime_directory_open_to_others_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.runtime()).unwrap();
    fs::set_permissions(sandbox.runtime(), fs::Permissions::from_mode(0o777)).unwrap();
    fails(&sandbox, &["list"], 1, &["can be written by others"]);
}

#[test]
fn the_kernel_is_put_into_the_cache_once() {
    let sandbox = Sandbox::new();
    let output = sandbox.run(&["kernel", "--path"]);
    assert_eq!((output.status, output.stderr.as_str()), (Some(0), ""));
    let path = output.stdout.trim_end();
    assert!(path.starts_with(sandbox.cache().to_str().unwrap()), "{path}");
    let mut magic = [0; 4];
    fs::File::open(path).unwrap().read_exact(&mut magic).unwrap();
    assert_eq!(&magic, b"\x7fELF");
    let inode = fs::metadata(path).unwrap().ino();
    assert_eq!(sandbox.run(&["kernel", "--path"]).stdout, output.stdout);
    assert_eq!(fs::metadata(path).unwrap().ino(), inode, "a good file must not be replaced");
}

#[test]
fn a_closed_or_full_stdout_is_no_panic() {
    let sandbox = Sandbox::new();
    for args in [&["--help"][..], &["list"], &["kernel"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = common::finish(sandbox.command(args).stdout(Stdio::from(writer)));
        assert_eq!((output.status, output.stderr.as_str()), (Some(0), ""), "{args:?}");
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = common::finish(sandbox.command(args).stdout(Stdio::from(full)));
        assert_eq!(output.status, Some(1), "{args:?}: {output:?}");
        assert!(output.stderr.contains("cannot write to standard output: No space left"), "{args:?}: {output:?}");
    }
}

#[test]
fn the_program_stands_alone() {
    // `cargo install` gives one file: nothing may be looked for beside it.
    let sandbox = Sandbox::new();
    let copy = sandbox.path().join("pagevisor");
    fs::copy(env!("CARGO_BIN_EXE_pagevisor"), &copy).unwrap();
    let mut command = Command::new(&copy);
    sandbox.isolate(&mut command).args(["kernel", "--path"]).current_dir("/");
    assert_eq!(common::finish(&mut command).status, Some(0));
}
