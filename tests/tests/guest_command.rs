//! The command around a guest: background, control socket, log, files, output, and what is left of all that.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pagevisor_tests::command::{Guest, Output, pagevisor, run, start, unique};
use pagevisor_tests::process;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// A directory with a runtime directory in it, both gone with the test.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let path = std::env::temp_dir().join(unique("pagevisor-command"));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn runtime(&self) -> PathBuf {
        self.0.join("runtime")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = pagevisor(args.iter().copied());
        command.env("PAGEVISOR_RUNTIME_DIR", self.runtime());
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Output {
        run(&mut self.command(args))
    }

    /// Entries of the runtime directory.
    fn sockets(&self) -> usize {
        fs::read_dir(self.runtime()).map_or(0, Iterator::count)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Waits until `done`, or fails saying `what` did not happen.
#[track_caller]
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not happen");
        thread::sleep(Duration::from_millis(20));
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

/// A guest in the background, and the process that runs it.
fn detached(place: &Place, name: &str, args: &[&str]) -> u32 {
    let args: Vec<&str> = ["run", "--detach", "--name", name].iter().chain(args).copied().collect();
    let output = place.run(&args);
    assert_eq!(output.stderr, "");
    assert_eq!(output.success(), format!("{name}\n"));
    let list = json(&place.run(&["list", "--json"]).success());
    let guest = list.as_array().expect("a list").iter().find(|guest| guest["name"] == name).expect("the guest");
    assert_eq!(guest["state"], "ready");
    u32::try_from(guest["pid"].as_u64().expect("a pid")).expect("a pid")
}

#[test]
fn the_default_run_prints_a_summary() {
    let place = Place::new();
    let bare = place.run(&[]);
    assert_eq!(bare.stderr, "");
    let bare = bare.success();
    for words in ["DMA ", "DMA32", "Normal", "Fallback order for Node 0: 0 1", "Boot: "] {
        assert!(bare.contains(words), "no {words:?} in:\n{bare}");
    }
    // The same but for times.
    let lines = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with("Boot: ")).map(str::to_owned).collect()
    };
    assert_eq!(lines(&bare), lines(&place.run(&["run"]).success()));
    assert!(!place.runtime().exists(), "a guest without a name needs no socket");
}

#[test]
fn a_run_as_json_is_one_document() {
    let place = Place::new();
    let document = json(&place.run(&["run", "--json", "--show", "kmem-f,node/1/meminfo"]).success());
    assert_eq!(document["summary"]["nodes"].as_array().expect("nodes").len(), 2);
    assert!(document["boot"]["start_to_ready_ms"].as_f64().expect("a time") > 0.0);
    assert_eq!(document["boot"]["guest_instructions"], Value::Null);
    let views: Vec<&String> = document["views"].as_object().expect("views").keys().collect();
    assert_eq!(views, ["kmem -f", "node/1/meminfo"]);
}

#[test]
fn the_console_goes_to_stderr() {
    let output = Place::new().run(&["run", "--console"]);
    let log: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with('[')).collect();
    assert!(log.iter().any(|line| line.contains("Command line:")), "{output:?}");
    let stamp = |line: &str| line.get(1..13).and_then(|stamp| stamp.trim().parse::<f64>().ok());
    assert!(log.iter().all(|line| stamp(line).is_some() && line[13..].starts_with("] ")), "{log:?}");
    assert!(!output.stdout.contains("Command line:"));
}

#[test]
fn in_the_background_it_is_nobodys_child() {
    let place = Place::new();
    let name = unique("daemon");
    let pid = detached(&place, &name, &[]);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("its stat");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a name").1.split(' ').collect();
    let (session, terminal) = (fields[3], fields[4]);
    assert_eq!(session, pid.to_string(), "it leads a session of its own");
    assert_eq!(terminal, "0", "it has no terminal");
    for fd in 0..3 {
        assert_eq!(fs::read_link(format!("/proc/{pid}/fd/{fd}")).expect("stdio"), Path::new("/dev/null"));
    }
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).expect("its directory"), Path::new("/"));
    let began = Instant::now();
    place.run(&["stop", &name]).success();
    assert!(began.elapsed() < Duration::from_secs(5), "stopping took {:?}", began.elapsed());
    assert_eq!(process::named(&name), [0_u32; 0]);
    assert_eq!(place.sockets(), 0);
}

#[test]
fn a_background_guest_that_fails_says_why() {
    let place = Place::new();
    let detach = |args: &[&str]| place.run(&[&["run", "--detach", "--name", "fails"], args].concat());
    let never_ready = ["--append", "pagevisor.test=never-ready"];
    for (args, status, words) in [
        (&[&["--timeout", "0.2"], &never_ready[..]].concat()[..], 7, "not ready after 200 ms"),
        (&["--kernel", "/bin/sh"], 2, "/bin/sh"),
    ] {
        let output = detach(args);
        assert_eq!(output.code(), status, "{output:?}");
        assert!(output.stderr.contains(words), "{output:?}");
        assert_eq!(output.stdout, "");
        assert_eq!((place.sockets(), process::named("fails").len()), (0, 0));
    }
    // A signal to the command while the guest boots ends both.
    let booting = start(place.command(&["run", "--detach", "--name", "fails"]).args(never_ready));
    eventually("the socket", || place.sockets() == 1);
    booting.signal(libc::SIGTERM);
    let output = booting.finish();
    assert_eq!(output.code(), 143, "{output:?}");
    assert_eq!((place.sockets(), process::named("fails").len()), (0, 0));
}

#[test]
fn a_signal_ends_a_background_guest_cleanly() {
    let place = Place::new();
    let name = unique("hangup");
    let files = place.0.join("files");
    let pid = detached(&place, &name, &["--proc-dir", files.to_str().expect("a path of text")]);
    assert!(files.join("proc/meminfo").exists(), "files are there when the command returns");
    // SAFETY: kill takes no pointers; the process is a guest of this test's, seen alive a moment ago.
    assert_eq!(unsafe { libc::kill(pid.cast_signed(), libc::SIGHUP) }, 0);
    eventually("the end", || process::named(&name).is_empty());
    assert_eq!(place.sockets(), 0);
    assert!(!files.exists(), "the directory was made by the command, and goes");
}

#[test]
fn a_followed_log_ends_with_the_guest() {
    let guest = Guest::keep("log", &[]);
    let once = run(&mut guest.command(&["log", guest.name()])).success();
    let mut follow = guest.command(&["log", guest.name(), "--follow"]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().expect("a follower");
    let mut lines = BufReader::new(follow.stdout.take().expect("its output"));
    let mut first = String::new();
    lines.read_line(&mut first).expect("a line");
    assert_eq!(once.lines().next(), first.lines().next());
    assert!(follow.try_wait().expect("its state").is_none(), "it must go on while the guest does");
    guest.stop();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).expect("the rest");
    assert!((first + &rest).starts_with(&once));
    assert!(follow.wait().expect("its end").success());
}

#[test]
fn looking_does_not_disturb_the_guest() {
    let guest = Guest::keep("looked-at", &["--node", "mem=64M,cpus=1"]);
    let before = guest.show(&["vmstat"]);
    let resident = process::resident(guest.id());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let mut command = guest.command(&["show", guest.name(), "kmem", "-f"]);
            thread::spawn(move || run(&mut command).success())
        })
        .collect();
    let seen: Vec<String> = threads.into_iter().map(|thread| thread.join().expect("a reader")).collect();
    assert!(seen.iter().all(|text| *text == seen[0] && text.trim_end().ends_with("(verified)")));
    assert_eq!(guest.show(&["vmstat"]), before);
    let grown = process::resident(guest.id()).saturating_sub(resident);
    assert!(grown < 1 << 20, "looking cost the guest's process {} KiB", grown >> 10);
    guest.stop();
}

#[test]
fn of_many_that_want_a_name_one_gets_it() {
    let place = Place::new();
    let name = unique("race");
    let racers: Vec<_> =
        (0..4).map(|_| start(&mut place.command(&["run", "--keep", "--name", &name, "--node", "mem=64M"]))).collect();
    eventually("a guest", || place.run(&["show", &name, "meminfo"]).code() == 0);
    // The losers need not wait for anything.
    let mut racers: Vec<_> = racers.into_iter().map(Some).collect();
    eventually("the end of the losers", || {
        racers.iter_mut().flatten().filter_map(|racer| (!racer.ended()).then_some(())).count() == 1
    });
    place.run(&["stop", &name]).success();
    let mut codes: Vec<i32> = racers.iter_mut().filter_map(Option::take).map(|racer| racer.finish().code()).collect();
    codes.sort_unstable();
    assert_eq!(codes, [0, 8, 8, 8]);
    assert_eq!(place.sockets(), 0);
}

#[test]
fn a_one_shot_run_leaves_its_files_and_a_kept_one_renews_them() {
    let place = Place::new();
    let files = place.0.join("files");
    let path = files.to_str().expect("a path of text");
    let output = place.run(&["run", "--proc-dir", path, "--show", "meminfo"]).success();
    let meminfo = fs::read_to_string(files.join("proc/meminfo")).expect("the snapshot");
    assert!(output.ends_with(&meminfo), "{output}\nis not\n{meminfo}");

    let guest = Guest::keep("files", &["--proc-dir", path]);
    // Two guests must not write into the same files.
    let other = place.run(&["run", "--proc-dir", path]);
    assert_eq!(other.code(), 2, "{other:?}");
    assert!(other.stderr.contains("another guest"), "{other:?}");
    // What does not change is not written again.
    let inode = |file: &str| fs::metadata(files.join(file)).expect("a file").ino();
    let before = inode("proc/iomem");
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(inode("proc/iomem"), before);
    guest.stop();
    assert!(!files.join("proc/iomem").exists());
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let place = Place::new();
    let file = place.0.join("file");
    fs::write(&file, "").expect("a file");
    for path in ["/", "/proc/x", file.to_str().expect("a path of text")] {
        let output = place.run(&["run", "--proc-dir", path]);
        assert!([1, 2].contains(&output.code()), "{path}: {output:?}");
        assert!(output.stderr.starts_with("pagevisor: error: ") && output.stderr.lines().count() == 1, "{output:?}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let place = Place::new();
    for args in [&["run", "--show", "zoneinfo,kmem-f"][..], &["run", "--json"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = place.command(args).stdout(writer).output().expect("a run");
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
    // A guest that is kept does not need a reader.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = place.command(&["run", "--keep", "--name", "unread"]);
    let mut kept = command.stdout(writer).stderr(Stdio::null()).spawn().expect("a run");
    eventually("a view", || place.run(&["show", "unread", "buddyinfo"]).code() == 0);
    place.run(&["stop", "unread"]).success();
    assert_eq!(kept.wait().expect("its end").code(), Some(0));
}

#[test]
fn what_is_not_there_cannot_be_shown() {
    let guest = Guest::keep("absent", &["--node", "mem=64M,cpus=1"]);
    for (view, word) in [("node/7/meminfo", "node 7"), ("nonsense", "nonsense"), ("node/x/meminfo", "node/x")] {
        let output = guest.try_show(&[view]);
        assert_eq!(output.code(), 2, "{output:?}");
        assert!(output.stderr.contains(word), "{output:?}");
    }
    assert_eq!(guest.try_show(&["kmem", "-p", "0xffffffff"]).code(), 2);
    let page = guest.show(&["kmem", "-p", "0x2000", "--json"]);
    assert!(!json(&page).as_array().map_or(page.is_empty(), Vec::is_empty), "{page}");
    guest.stop();
}
