//! Settings of a live guest, written as Linux's are: by `pagevisor write`, and to the files of `--proc-dir`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use pagevisor_tests::command::{Guest, Output, run, unique};

/// The tunables of a cache, as `slabinfo` has them.
fn tunables(slabinfo: &str, cache: &str) -> Vec<u64> {
    let line = slabinfo.lines().find(|line| line.split_whitespace().next() == Some(cache));
    let line = line.unwrap_or_else(|| panic!("{cache} in {slabinfo}"));
    let (_, rest) = line.split_once(": tunables").expect(line);
    let numbers = rest.split_whitespace().take_while(|word| *word != ":");
    numbers.map(|word| word.parse().expect(line)).collect()
}

fn sysctl(guest: &Guest, name: &str) -> String {
    let text = guest.show(&["sysctl"]);
    let line = text.lines().find_map(|line| line.strip_prefix("vm.")?.strip_prefix(name)?.strip_prefix(" = "));
    line.unwrap_or_else(|| panic!("{name} in {text}")).to_owned()
}

#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} does not come");
        thread::sleep(Duration::from_millis(10));
    }
}

/// What each refused write is told as.
const REFUSED: [(&str, &str, &str); 8] = [
    ("slabinfo", "nobody 20 10 0", "Invalid argument: there is no slab cache 'nobody'"),
    ("slabinfo", "kmalloc-256 10 20 0", "Invalid argument: slab cache kmalloc-256 does not take '10 20 0'"),
    ("slabinfo", "kmalloc-256 0 0 0", "Invalid argument: slab cache kmalloc-256 does not take '0 0 0'"),
    ("slabinfo", "kmalloc-256 20 10", "Invalid argument: 'kmalloc-256 20 10' is not 'NAME LIMIT BATCHCOUNT SHARED'"),
    ("sys/vm/watermark_scale_factor", "5000", "Invalid argument: vm.watermark_scale_factor does not take '5000'"),
    ("sys/vm/overcommit_memory", "3", "Invalid argument: vm.overcommit_memory does not take '3'"),
    ("sys/vm/min_free_kbytes", "many", "Invalid argument: 'many' is not one number"),
    ("meminfo", "1", "no file of the guest's that can be written; those are slabinfo, sys/vm/min_free_kbytes, "),
];

/// As [`REFUSED`], of what is no file of the directory that a guest's `/proc` is kept in.
const NOT_FILES: [(&str, &str, &str); 2] = [
    ("fail_page_alloc", "min-order=12", "Invalid argument: fail_page_alloc does not take 'min-order=12'"),
    (
        "failslab",
        "probability",
        "Invalid argument: 'probability' is not FILE=VALUE, of probability, interval, times, space, ",
    ),
];

#[test]
fn the_command_writes_as_echo_does() {
    let guest = Guest::keep("write", &[]);
    let write = |file: &str, text: &[&str]| -> Output { run(guest.command(&["write", guest.name(), file]).args(text)) };
    write("slabinfo", &["kmalloc-256 20 10 4"]).success();
    assert_eq!(tunables(&guest.show(&["slabinfo"]), "kmalloc-256"), [20, 10, 4]);
    write("/proc/slabinfo", &["kmalloc-256", "30", "15", "0"]).success();
    write("vm.min_free_kbytes", &["4000"]).success();
    assert_eq!(sysctl(&guest, "min_free_kbytes"), "4000");
    write("sys/vm/lowmem_reserve_ratio", &["128 64"]).success();
    assert!(sysctl(&guest, "lowmem_reserve_ratio").starts_with("128\t64\t32\t"));
    write("vm.drop_caches", &["3"]).success();
    write("vm.overcommit_memory", &["2"]).success();
    write("vm.overcommit_kbytes", &["8589934592"]).success();
    let overcommit = ["memory", "kbytes", "ratio"].map(|name| sysctl(&guest, &format!("overcommit_{name}")));
    assert_eq!(overcommit, ["2", "8589934592", "0"]);
    write("failslab", &["probability=100", "ignore-gfp-wait=N", "cache-filter=Y"]).success();
    let found = guest.show(&["failslab"]);
    assert!(
        found.contains("cache-filter       Y\nignore-gfp-wait    N\n") && found.contains("probability        100\n")
    );
    write("/sys/kernel/debug/failslab", &["probability=0"]).success();
    assert!(guest.show(&["failslab"]).contains("probability        0\n"));
    for (file, text, message) in REFUSED.into_iter().chain(NOT_FILES) {
        let output = write(file, &[text]);
        assert_eq!(output.code(), 2, "{output:?}");
        assert!(output.stderr.starts_with(&format!("pagevisor: error: {file}: {message}")), "{output:?}");
        assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
    }
    assert_eq!(tunables(&guest.show(&["slabinfo"]), "kmalloc-256"), [30, 15, 0]);
    let nobody = run(&mut guest.command(&["write", "nobody", "slabinfo", "kmalloc-256 20 10 4"]));
    assert_eq!(nobody.code(), 8, "{nobody:?}");
    guest.stop();
}

/// `echo TEXT > FILE`, by a shell.
fn echo(text: &str, redirection: &str, file: &Path) {
    let command = format!("echo '{text}' {redirection} '{}'", file.display());
    run(Command::new("sh").args(["-c", &command])).success();
}

#[test]
fn files_of_the_proc_directory_take_what_is_written_to_them() {
    let folder = std::env::temp_dir().join(unique("pagevisor-write"));
    fs::create_dir_all(&folder).expect("a directory");
    let guest = Guest::keep("write-files", &["--proc-dir", folder.to_str().expect("a path of text")]);
    let file = |name: &str| -> PathBuf { folder.join("proc").join(name) };
    let text = |name: &str| fs::read_to_string(file(name)).unwrap_or_default();
    echo("kmalloc-256 20 10 4", ">", &file("slabinfo"));
    eventually("the cache's new tunables", || tunables(&guest.show(&["slabinfo"]), "kmalloc-256") == [20, 10, 4]);
    eventually("the file", || text("slabinfo") == guest.show(&["slabinfo"]));
    echo("kmalloc-256 30 15 0", ">>", &file("slabinfo"));
    eventually("what is appended", || tunables(&guest.show(&["slabinfo"]), "kmalloc-256") == [30, 15, 0]);
    echo("4000", ">", &file("sys/vm/min_free_kbytes"));
    eventually("the setting", || sysctl(&guest, "min_free_kbytes") == "4000");
    echo("128 64", ">", &file("sys/vm/lowmem_reserve_ratio"));
    eventually("the ratios", || sysctl(&guest, "lowmem_reserve_ratio").starts_with("128\t64\t32\t"));
    echo("2", ">", &file("sys/vm/drop_caches"));
    let log = || run(&mut guest.command(&["log", guest.name()])).success();
    eventually("the caches' drop", || log().contains("drop_caches: 2"));
    eventually("the empty file", || text("sys/vm/drop_caches").is_empty());
    for (name, line, _) in REFUSED {
        echo(line, ">", &file(name));
        eventually("the file as it was", || !text(name).is_empty() && text(name) != format!("{line}\n"));
    }
    eventually("the setting's file", || text("sys/vm/min_free_kbytes") == "4000\n");
    assert_eq!(tunables(&guest.show(&["slabinfo"]), "kmalloc-256"), [30, 15, 0]);
    let output = guest.stop();
    let told: Vec<&str> = output.stderr.lines().filter(|line| line.contains(" warning: ")).collect();
    assert_eq!(told.len(), REFUSED.len(), "{told:#?}");
    for ((name, _, message), line) in REFUSED.iter().zip(told) {
        assert!(line.starts_with(&format!("pagevisor: warning: proc/{name}: {message}")), "{line}");
    }
    fs::remove_dir(&folder).expect("an empty directory");
}
