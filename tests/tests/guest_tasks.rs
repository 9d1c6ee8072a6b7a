//! Tasks on a live guest: what `pagevisor.test=tasks` does, on one processor and on several; and what it leaves behind.

use std::time::{Duration, Instant};

use pagevisor_tests::command::{Guest, pagevisor, run};

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

/// Boots with `args` and waits until the guest has done `test`; fails with what it says if that is not that all is well.
fn tried(args: &[&str], test: &str) -> Guest {
    let option = format!("pagevisor.test={test}");
    let guest = Guest::keep("tasks", &[args, &["--append", &option]].concat());
    let deadline = Instant::now() + Duration::from_secs(150);
    loop {
        let log = run(&mut guest.command(&["log", guest.name()])).success();
        if log.contains(&format!("selftest: {test} ok")) {
            return guest;
        }
        assert!(!log.contains(&format!("selftest: {test} failed")) && Instant::now() < deadline, "{log}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn check(args: &[&str], cpus: u64) {
    let guest = tried(args, "tasks");
    let verdict = run(&mut guest.command(&["verify", guest.name()])).success();
    assert!(verdict.starts_with("sound: "), "{verdict}");
    // `init`, `kthreadd`, and a thread for commands on each CPU.
    let stack = field(&guest.show(&["meminfo"]), "KernelStack:");
    assert_eq!(stack, 16 * (cpus + 2), "KiB of stacks");
    assert_eq!(guest.stop().code(), 0);
}

#[test]
fn on_one_processor() {
    check(&["--node", "mem=128M,cpus=1"], 1);
}

#[test]
fn on_two_of_two_nodes() {
    check(&[], 2);
}

#[test]
fn on_more_than_the_host_has() {
    check(&["--node", "mem=128M,cpus=2", "--node", "mem=128M,cpus=2"], 4);
}

/// What one CPU unmaps no other finds any more, and no space stays when its tasks have ended.
#[test]
fn spaces_change_under_the_cpus_that_use_them() {
    for args in [&[][..], &["--node", "mem=128M,cpus=1"]] {
        let guest = tried(args, "spaces");
        let verdict = run(&mut guest.command(&["verify", guest.name()])).success();
        assert!(verdict.starts_with("sound: "), "{verdict}");
        assert_eq!(guest.stop().code(), 0);
    }
}

/// The report of an overflow names whose stack it was.
#[test]
fn an_overflow_is_reported_with_the_tasks_name() {
    let ended = run(&mut pagevisor(["run", "--append", "pagevisor.test=stack-overflow"]));
    assert_eq!(ended.code(), 4, "{}", ended.stderr);
    assert!(ended.stderr.contains("kernel stack overflow at "), "{}", ended.stderr);
    assert!(ended.stderr.contains("in PID: 1 Comm: init"), "{}", ended.stderr);
}
