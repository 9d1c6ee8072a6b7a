//! `pagevisor verify` and `pagevisor dump`, as a user types them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use pagevisor_tests::command::{Guest, kernel_elf, run, unique};

/// A directory for dumps, gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(unique("pagevisor-dump"));
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a path of letters").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// The lab has nothing but what is linked statically.
fn in_lab() -> bool {
    std::env::var_os("PAGEVISOR_LAB").is_some()
}

#[test]
fn a_dump_is_a_guest_that_stands_still() {
    let (folder, guest) = (Folder::new(), Guest::keep("dumped", &[]));
    let core = folder.file("out.core");
    let live = guest.show(&["kmem", "-f"]);
    let said = run(&mut guest.command(&["dump", guest.name(), &core])).success();
    assert!(said.starts_with(&format!("{core}: 51")), "{said}");
    let verified = run(&mut guest.command(&["verify", guest.name()])).success();
    assert!(verified.starts_with("sound: "), "{verified}");
    guest.stop();

    let pagevisor = |args: &[&str]| run(&mut pagevisor_tests::command::pagevisor(args.iter().copied())).success();
    assert!(pagevisor(&["verify", &core]).starts_with("sound: "));
    let json = pagevisor(&["verify", &core, "--json"]);
    assert!(json.contains("\"sound\": true") && json.contains("\"pages\": 130"), "{json}");
    assert_eq!(pagevisor(&["show", &core, "kmem", "-f"]), live);
    assert!(pagevisor(&["show", &core, "buddyinfo"]).starts_with("Node 0, zone      DMA "));

    let data = fs::metadata(&core).expect("the dump");
    assert!(data.len() > 511 << 20, "all of 512 MiB but a hole: {}", data.len());
    assert!(data.blocks() * 512 < 32 << 20, "{} of it not holes", data.blocks() * 512);
    assert_eq!(fs::read_dir(&folder.0).expect("the directory").count(), 1);
    if !in_lab() {
        readelf_and_gdb(Path::new(&core));
    }
}

fn readelf_and_gdb(core: &Path) {
    let elf = run(Command::new("readelf").args(["--all", "--wide"]).arg(core));
    assert!(elf.stdout.contains("CORE (Core file)") && elf.stdout.contains("NT_PRSTATUS"), "{elf:?}");
    assert_eq!((elf.code(), elf.stderr.as_str()), (0, ""), "{elf:?}");
    // The kernel's first words, through the direct map and at their own address.
    let words = ["-ex", "x/1gx 0xffff888001000000", "-ex", "x/1gx 0xffffffff81000000"];
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-ex", "info threads", "-ex", "thread apply all bt"])
        .args(words)
        .arg(kernel_elf())
        .arg(core);
    let output = run(&mut gdb);
    assert_eq!(output.code(), 0, "{output:?}");
    // Two CPUs, and both wait for work in the kernel's idle loop, by its symbols.
    let lines = |mention: &str| output.stdout.lines().filter(|line| line.contains(mention)).count();
    assert!(lines("  LWP ") + lines("Thread ") >= 2 && lines("guest/kernel/src/idle.rs") >= 2, "{output:?}");
    let words: Vec<_> = output.stdout.lines().filter_map(|line| line.split_once(":\t")).map(|(_, word)| word).collect();
    assert!(matches!(words[..], [one, other] if one == other && one.starts_with("0x")), "{output:?}");
}

#[test]
fn what_cannot_be_written_is_one_error_and_leaves_nothing() {
    let (folder, guest) = (Folder::new(), Guest::keep("dumped", &[]));
    let core = folder.file("out.core");
    // No file of the command may be larger than 64 KiB.
    let mut shell = Command::new("sh");
    let script = "trap '' XFSZ; ulimit -f 128; exec \"$0\" dump \"$1\" \"$2\"";
    let program = pagevisor_tests::command::binary();
    shell.arg("-c").arg(script).arg(program).arg(guest.name()).arg(&core);
    let output = run(shell.env("PAGEVISOR_RUNTIME_DIR", guest.directory()));
    assert_eq!(output.code(), 1, "{output:?}");
    assert_eq!(output.stderr, format!("pagevisor: error: cannot write {core}: File too large (os error 27)\n"));
    assert_eq!(fs::read_dir(&folder.0).expect("the directory").count(), 0, "something was left");
    let output = run(&mut guest.command(&["dump", guest.name(), "/nowhere/out.core"]));
    assert_eq!(output.code(), 1, "{output:?}");
    guest.show(&["buddyinfo"]);
    guest.stop();
}

#[test]
fn what_is_no_dump_is_told() {
    let folder = Folder::new();
    let core = folder.file("no.core");
    fs::write(&core, "not an ELF").expect("a file");
    for (target, code, text) in
        [(core.as_str(), 9, "cut off"), ("/dev/null", 1, "no regular file"), ("nobody", 8, "nobody")]
    {
        let output = run(&mut pagevisor_tests::command::pagevisor(["verify", target]));
        assert_eq!(output.code(), code, "{output:?}");
        assert!(output.stderr.contains(text), "{output:?}");
    }
}

#[test]
fn a_large_sparse_guest_is_verified_in_two_seconds() {
    let guest = Guest::keep("large", &["--node", "mem=32G,cpus=0", "--node", "mem=32G,cpus=1"]);
    let output = run(&mut guest.command(&["verify", guest.name()]));
    let took = output.took;
    let said = output.success();
    assert!(said.starts_with("sound: 16777"), "{said}");
    assert!(took.as_secs_f64() < if in_lab() { 60.0 } else { 2.0 }, "{took:?}");
    guest.stop();
}
