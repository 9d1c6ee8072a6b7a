//! Per-CPU memory on a live guest: every CPU works on its own instances, by single instructions.

use std::time::{Duration, Instant};

use pagevisor_tests::command::{Guest, run};

/// Boots with `args`, has all CPUs try their variables, and gives the line in which the guest tells.
fn tried(args: &[&str]) -> (Guest, String) {
    let guest = Guest::keep("percpu", &[args, &["--append", "pagevisor.test=percpu"]].concat());
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let log = run(&mut guest.command(&["log", guest.name()])).success();
        if let Some(line) = log.lines().find(|line| line.contains("selftest: percpu ")) {
            return (guest, line.to_owned());
        }
        assert!(Instant::now() < deadline, "{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn check(args: &[&str], cpus: u64) {
    let (guest, line) = tried(args);
    assert!(line.ends_with(&format!("selftest: percpu ok on {cpus} CPUs")), "{line}");
    let verdict = run(&mut guest.command(&["verify", guest.name()])).success();
    assert!(verdict.starts_with("sound: "), "{verdict}");
    // Ten pages for each CPU, as nothing but the first chunk was needed.
    let meminfo = guest.show(&["meminfo"]);
    let percpu = meminfo.lines().find_map(|line| line.strip_prefix("Percpu:")).expect("the line is there");
    assert_eq!(percpu.trim(), format!("{} kB", 40 * cpus));
    assert_eq!(guest.stop().code(), 0);
}

#[test]
fn one_cpu() {
    check(&["--node", "dma32=64M,cpus=1"], 1);
}

#[test]
fn all_cpus_of_four_nodes() {
    let node = ["--node", "normal=64M,cpus=1"];
    check(&[node, node, ["--node", "normal=64M,cpus=2"], ["--node", "dma32=64M,cpus=0"]].concat(), 4);
}

#[test]
fn every_cpu_of_two_nodes() {
    check(&[], 2);
}
