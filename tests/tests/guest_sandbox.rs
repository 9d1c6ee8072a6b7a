//! `pagevisor run` confines itself, and can be told not to.

use std::fs;

use pagevisor_tests::command::{Guest, pagevisor, run, unique};

/// The field `name` of each thread of process `id`, with the thread's name.
fn of_threads(id: u32, name: &str) -> Vec<(String, u32)> {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).expect("threads").flatten();
    tasks
        .map(|task| {
            let status = fs::read_to_string(task.path().join("status")).expect("a status");
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).expect("a field").trim();
            (field("Name:").to_owned(), field(name).parse().expect("a number"))
        })
        .collect()
}

#[test]
fn every_thread_is_confined() {
    let guest = Guest::keep("confined", &[]);
    let threads = of_threads(guest.id(), "Seccomp:");
    // main, control, monitor, two vCPUs.
    assert!(threads.len() >= 5 && threads.iter().all(|(_, mode)| *mode == 2), "{threads:?}");
    let filters = of_threads(guest.id(), "Seccomp_filters:");
    for (thread, count) in &filters {
        let expected = if thread == "pagevisor" { 1 } else { 2 };
        assert_eq!(*count, expected, "{filters:?}");
    }
    assert!(of_threads(guest.id(), "NoNewPrivs:").iter().all(|(_, set)| *set == 1));
    guest.stop();
}

#[test]
fn it_can_be_switched_off_and_says_what_it_does() {
    let guest = Guest::keep("unconfined", &["--no-sandbox", "--verbose"]);
    let threads = of_threads(guest.id(), "Seccomp:");
    assert!(threads.iter().all(|(_, mode)| *mode == 0), "{threads:?}");
    assert!(guest.stop().stderr.contains("sandbox: off"));

    let output = run(&mut pagevisor(["run", "--verbose"]));
    let known = ["confined by Landlock", "no Landlock"].iter().any(|words| output.stderr.contains(words));
    assert!(known && output.stderr.contains("sandbox: system calls are filtered"), "{output:?}");
    assert_eq!(run(&mut pagevisor(["run", "--sandbox-log"])).code(), 0);
    assert_eq!(run(&mut pagevisor(["run", "--sandbox-log", "--no-sandbox"])).code(), 2);
}

/// All that opens, makes or removes files, at once.
#[test]
fn a_confined_guest_does_all_it_is_asked_to() {
    let place = std::env::temp_dir().join(unique("pagevisor-sandbox"));
    fs::create_dir_all(&place).expect("a directory");
    let path = |name: &str| place.join(name).to_str().expect("a path of text").to_owned();
    fs::copy(pagevisor_tests::command::kernel_elf(), path("kernel")).expect("a kernel");
    fs::write(path("initrd"), "0707").expect("a file");
    let (kernel, initrd, files) = (path("kernel"), path("initrd"), path("new/files"));
    let args = ["--kernel", &kernel, "--initrd", &initrd, "--proc-dir", &files, "--console", "--show", "kmem-f"];
    let guest = Guest::keep("asked", &args);
    assert!(fs::read_to_string(path("new/files/proc/meminfo")).expect("a file").starts_with("MemTotal:"));
    let output = guest.stop();
    assert!(output.stdout.contains("(verified)"), "{output:?}");
    assert!(!place.join("new").exists(), "directories that were made go away");
    // A guest that dies tells its symbols from its kernel's file.
    let panic = ["--append", "pagevisor.test=panic", "--kernel", &kernel];
    let output = run(&mut pagevisor(["run"].into_iter().chain(panic)));
    assert_eq!(output.code(), 4, "{output:?}");
    assert!(output.stderr.contains("pagevisor_kernel::selftest"), "{output:?}");
    fs::remove_dir_all(&place).expect("the directory");
}
