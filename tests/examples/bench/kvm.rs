//! On /dev/kvm: memory and wall time.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pagevisor_tests::command::{Guest, pagevisor, run};
use pagevisor_tests::company::{Bench, Company, compare};
use pagevisor_tests::process::{guest_memory, resident_outside_guest};

use crate::table::{Row, Table};

/// Runs of each contestant; they take turns.
const RUNS: usize = 5;

/// Whether /dev/kvm can be opened.
pub fn usable() -> bool {
    std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// What the VMM itself keeps resident.
pub fn memory() -> Result<Table, String> {
    let mut rows = Vec::new();
    for (name, args, bound) in [
        ("default topology: RSS beyond guest memory", &[] as &[&str], 8.0),
        ("eight nodes: RSS beyond guest memory", &["vmm/topologies/eight-node-three-levels.toml"], 8.0),
    ] {
        let guest = Guest::keep("bench", args);
        let bytes = resident_outside_guest(guest.id());
        rows.push(Row { bound: Some(bound), ..Row::new(name, mib(bytes)) });
        guest.stop();
    }
    let guest = Guest::keep("bench", &["--node", "mem=1T,cpus=1"]);
    let total = resident_outside_guest(guest.id()) + guest_memory(guest.id());
    rows.push(Row { bound: Some(200.0), ..Row::new("1 TiB node: RSS and touched guest memory", mib(total)) });
    guest.stop();
    Ok(Table { title: "Memory of the VMM".to_owned(), unit: "MiB", reference: "", rows })
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// What clients cost a guest.
pub fn clients() -> Result<Table, String> {
    const WORKLOAD: &str = "random:ops=100,seed=7";
    const MOST: Duration = Duration::from_secs(60);
    let bench = Bench::new(WORKLOAD);
    let mut rows = Vec::new();
    for (company, name) in [
        (Company::Visitor, "after a client has attached, taken a snapshot, detached"),
        (Company::Reader, "while a client reads its views every 5 ms"),
    ] {
        let fewest = compare(&bench, company, (20, 100), MOST);
        let [value, alone, bound] = [fewest.company, fewest.best(), fewest.best() + fewest.noise()];
        let [value, alone, bound] = [value, alone, bound].map(|ticks| bench.millis(ticks));
        rows.push(Row { reference: Some(alone), bound: Some(bound), ..Row::new(name, value) });
    }
    let snapshots = (0..RUNS).map(|_| bench.snapshot()).collect();
    rows.push(Row::new("a snapshot of 128 MiB holds the guest for (median)", median(snapshots)));
    bench.stop();
    let title = format!("A workload in the guest ({WORKLOAD}), fewest of 20 runs or more");
    Ok(Table { title, unit: "ms", reference: "alone", rows })
}

/// From exec to a guest that is ready.
pub fn time(elf: &Path) -> Result<Table, String> {
    let mut ours = Vec::new();
    let mut plain = Vec::new();
    let mut theirs = Vec::new();
    let mut eight = Vec::new();
    for _ in 0..RUNS {
        ours.push(run_pagevisor(&[])?);
        plain.push(run_pagevisor(&["--node", "mem=256M,cpus=2"])?);
        eight.push(run_pagevisor(&["vmm/topologies/eight-node-three-levels.toml"])?);
        theirs.push(run_qemu(elf)?);
    }
    let qemu = median(theirs);
    let default = median(ours);
    let rows = vec![
        Row { bound: Some(3000.0), ..Row::new("default topology (2 nodes, 2 CPUs)", default) },
        Row { bound: Some(default * 4.0), ..Row::new("eight-node-three-levels.toml (8 CPUs)", median(eight)) },
        Row { reference: Some(qemu), ..Row::new("1 node, 256 MiB, 2 CPUs; against QEMU microvm", median(plain)) },
    ];
    let title = format!("Wall time from exec to ready on /dev/kvm, median of {RUNS}");
    Ok(Table { title, unit: "ms", reference: "QEMU microvm", rows })
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

/// The whole command, shutdown and all: an upper bound.
fn run_pagevisor(args: &[&str]) -> Result<Duration, String> {
    let output = run(&mut pagevisor(["run"].into_iter().chain(args.iter().copied())));
    match output.code() {
        0 => Ok(output.took),
        code => Err(format!("pagevisor run ended with {code}: {}", output.stderr)),
    }
}

/// Until the first line of a table, which the guest prints when it is ready.
fn run_qemu(elf: &Path) -> Result<Duration, String> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args("-M microvm -accel kvm -cpu host -m 256M -smp 2 -nodefaults -no-user-config".split(' '))
        .args("-display none -no-reboot -serial stdio -append dump=buddyinfo -kernel".split(' '))
        .arg(elf)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let start = Instant::now();
    let mut child = qemu.spawn().map_err(|e| format!("QEMU: {e}"))?;
    let ready = child.stdout.take().and_then(|out| {
        BufReader::new(out)
            .lines()
            .map_while(Result::ok)
            .find(|line| line.contains("Node 0, zone"))
            .map(|_| start.elapsed())
    });
    drop(child.kill());
    drop(child.wait());
    ready.ok_or("QEMU ended before the guest was ready".to_owned())
}
