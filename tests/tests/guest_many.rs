//! Several guests at once, very large ones, and ones in the background.

use std::fs;

use pagevisor_tests::command::{Guest, pagevisor, run, unique};
use pagevisor_tests::process;

#[test]
fn two_guests_do_not_meet() {
    let one = Guest::keep("one", &[]);
    let two = Guest::keep("two", &["--node", "mem=64M,cpus=1"]);
    assert_ne!(one.show(&["meminfo"]), two.show(&["meminfo"]));
    assert_eq!(two.show(&["node/0/cpulist"]).trim(), "0");
    two.stop();
    assert_eq!(one.show(&["node/1/distance"]), "20 10\n");
    one.stop();
}

#[test]
fn a_name_is_taken_once() {
    let guest = Guest::keep("taken", &[]);
    let output = run(&mut guest.command(&["run", "--keep", "--name", guest.name()]));
    assert_eq!(output.code(), 8, "{}", output.stderr);
    assert!(output.stderr.contains(guest.name()), "{}", output.stderr);
    guest.show(&["buddyinfo"]);
    guest.stop();
}

#[test]
fn a_guest_in_the_background() {
    let folder = std::env::temp_dir().join(unique("pagevisor-background"));
    fs::create_dir_all(&folder).expect("a directory");
    let name = unique("back");
    let command = |args: &[&str]| {
        let mut command = pagevisor(args.iter().copied());
        command.env("PAGEVISOR_RUNTIME_DIR", &folder);
        command
    };
    run(&mut command(&["run", "--detach", "--name", &name])).success();
    assert_eq!(process::named(&name).len(), 1, "one process in the background");
    let list = run(&mut command(&["list"])).success();
    assert!(list.contains(&name), "{list}");
    let kmem = run(&mut command(&["show", &name, "kmem", "-f"])).success();
    assert!(kmem.trim_end().ends_with("(verified)"), "{kmem}");
    let log = run(&mut command(&["log", &name])).success();
    assert!(log.lines().next().is_some_and(|line| line.starts_with('[')), "{log}");
    run(&mut command(&["stop", &name])).success();
    assert_eq!(process::named(&name), [0_u32; 0]);
    assert_eq!(run(&mut command(&["show", &name, "buddyinfo"])).code(), 8);
    fs::remove_dir_all(&folder).expect("the directory");
}

#[test]
fn a_tebibyte_costs_the_host_little() {
    const LIMIT: u64 = 200 << 20;
    // The lab's processor has 40 address bits, and some of those are for the device hole.
    let size = if process::address_bits() > 40 { "mem=1T,cpus=1" } else { "mem=1000G,cpus=1" };
    let guest = Guest::keep("large", &["--node", size]);
    let resident = process::resident_outside_guest(guest.id()) + process::guest_memory(guest.id());
    assert!(resident < LIMIT, "{} MiB resident", resident >> 20);
    let kmem = guest.show(&["kmem", "-f"]);
    assert!(kmem.trim_end().ends_with("(verified)"), "{kmem}");
    guest.stop();
}

#[test]
fn the_vmm_itself_is_small() {
    const LIMIT: u64 = 8 << 20;
    let guest = Guest::keep("small", &[]);
    let resident = process::resident_outside_guest(guest.id());
    assert!(resident <= LIMIT, "{} KiB beyond guest memory", resident >> 10);
    guest.stop();
}
