//! vmalloc on a live guest: real translations, remembered by real processors, and the monitor device behind one.

use std::time::{Duration, Instant};

use pagevisor::workload::Workload;
use pagevisor_tests::command::{Guest, run};
use pagevisor_tests::guest::{guest, left, sound};

/// Boots with `args`, has the guest try itself, and gives the line in which it tells.
fn tried(args: &[&str]) -> (Guest, String) {
    let guest = Guest::keep("vmalloc", &[args, &["--append", "pagevisor.test=vmalloc"]].concat());
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        // That it answers is by a device that is mapped by `ioremap`.
        let log = run(&mut guest.command(&["log", guest.name()])).success();
        if let Some(line) = log.lines().find(|line| line.contains("selftest: vmalloc ")) {
            return (guest, line.to_owned());
        }
        assert!(Instant::now() < deadline, "{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

/// All CPUs see what one writes, and what is there after the addresses were used again; nothing is left behind.
fn check(args: &[&str]) {
    let (guest, line) = tried(args);
    assert!(line.ends_with("selftest: vmalloc ok"), "{line}");
    let verdict = run(&mut guest.command(&["verify", guest.name()])).success();
    assert!(verdict.starts_with("sound: "), "{verdict}");
    let meminfo = guest.show(&["meminfo"]);
    // Nothing but kernel stacks: those in use, and at most two that each CPU keeps.
    let kept = field(&meminfo, "VmallocUsed:") - field(&meminfo, "KernelStack:");
    assert!(kept <= 4 * 2 * 16 && kept.is_multiple_of(16), "{meminfo}");
    // The top's tables, one for each of 64 entries, and directories and page tables for the monitor device and stacks.
    assert!((264..=288).contains(&field(&meminfo, "PageTables:")), "{meminfo}");
    assert_eq!(guest.stop().code(), 0);
}

#[test]
fn two_cpus_see_the_same() {
    check(&[]);
}

#[test]
fn so_do_four_on_four_nodes() {
    check(&[
        "--node",
        "normal=64M,cpus=1",
        "--node",
        "normal=64M,cpus=1",
        "--node",
        "normal=64M,cpus=1",
        "--node",
        "dma32=64M,cpus=1",
    ]);
}

/// Four CPUs of two nodes at once, each with areas of its own and those of others to free.
#[test]
fn four_cpus_of_two_nodes_leave_nothing() {
    const NODES: &str = "[[node]]\nmem = \"128M\"\ncpus = 2\n[[node]]\nmem = \"128M\"\ncpus = 2\n";
    let operations = if std::env::var_os("PAGEVISOR_LAB").is_some() { 100_000 } else { 1_200 };
    guest(NODES, |guest| {
        let run = |ops: u64, seed: u64| -> Result<(), Box<dyn std::error::Error>> {
            let workload: Workload = format!("vmalloc-mix:ops={ops},seed={seed},cpus=0-3,hold=100").parse()?;
            let report = guest.run(&workload)?;
            assert_eq!((report.allocs, report.mismatches), (report.freed, 0), "{report}");
            // Now and then a lane has nothing to free, or too much.
            assert!(report.allocs > ops / 4 && report.failed < ops / 20, "{report}");
            Ok(())
        };
        run(operations / 10, 1)?;
        let before = left(guest)?;
        run(operations, 2)?;
        sound(guest)?;
        assert_eq!(left(guest)?, before);
        Ok(sound(guest)?)
    });
}
