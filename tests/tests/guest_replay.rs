//! Replays of recorded traces, from the file to the guest's CPUs.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use pagevisor::guest::{ErrorKind, Guest};
use pagevisor::workload::{Workload, WorkloadReport};
use pagevisor_shared::random::SplitMix64;
use pagevisor_tests::command::{pagevisor, run, unique};
use pagevisor_tests::guest::{Outcome, guest, sound};

const FOUR_CPUS: &str = "[[node]]\nmem = \"64M\"\ncpus = 2\n[[node]]\nmem = \"64M\"\ncpus = 2\n";
const ONE_CPU: &str = "[[node]]\nmem = \"64M\"\n";

/// Events of a trace: fewer where ring 0 is emulated, but still more than a message holds.
fn amount() -> usize {
    if std::env::var_os("PAGEVISOR_LAB").is_some() { 50_000 } else { 9_000 }
}

/// A file that goes when this is dropped.
struct TraceFile(PathBuf);

impl TraceFile {
    fn new(text: &str) -> Self {
        let path = std::env::temp_dir().join(unique("pagevisor-trace"));
        fs::write(&path, text).expect("a file");
        Self(path)
    }

    fn workload(&self, params: &str) -> Workload {
        let text = format!("replay:file={}{params}", self.path().display());
        text.parse().expect("a workload")
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TraceFile {
    fn drop(&mut self) {
        // Nothing is lost if it stays.
        let _ = fs::remove_file(&self.0);
    }
}

fn alloc(text: &mut String, cpu: u64, pfn: u64, order: u64) {
    writeln!(
        text,
        "   <...>-812   [{cpu:03}] d..1.  93.214581: mm_page_alloc: page=0 pfn={pfn:#x} order={order} migratetype=0 \
         gfp_flags=GFP_KERNEL"
    )
    .expect("text");
}

fn free(text: &mut String, cpu: u64, pfn: u64, order: u64) {
    writeln!(text, "   <...>-812   [{cpu:03}] d..1.  93.214977: mm_page_free: page=0 pfn={pfn:#x} order={order}")
        .expect("text");
}

/// A made-up trace of `len` events or a few more, on `cpus` CPUs, that frees all it allocates but `left` blocks; a
/// quarter of the frees are on another CPU than the allocation.
fn made_up(seed: u64, len: usize, cpus: u64, left: usize) -> String {
    const MOST: usize = 600;
    let mut random = SplitMix64::new(seed);
    let (mut text, mut live) = (String::from("# tracer: nop\n"), Vec::new());
    let (mut events, mut next) = (0, 16);
    while events < len || live.len() > left {
        let grow = events < len && (live.len() <= left || live.len() < MOST && random.below(2) == 0);
        if grow {
            let (cpu, order) = (random.below(cpus), random.below(16).saturating_sub(12));
            alloc(&mut text, cpu, next, order);
            live.push((cpu, next, order));
            next += 16;
        } else {
            let (cpu, pfn, order) = live.swap_remove(random.below(live.len() as u64) as usize);
            let cpu = if random.below(4) == 0 { random.below(cpus) } else { cpu };
            free(&mut text, cpu, pfn, order);
        }
        events += 1;
    }
    text
}

/// Free pages, when none is in a pageset.
fn free_pages(guest: &Guest) -> Result<u64, Box<dyn std::error::Error>> {
    guest.drain_pages()?;
    Ok(guest.state().free_pages())
}

#[test]
fn a_long_trace_of_four_cpus_leaves_nothing() {
    let len = amount();
    let trace = TraceFile::new(&made_up(1, len, 4, 0));
    let workload = trace.workload("");
    let messages = workload.encode().expect("a trace").payloads().len();
    assert!(messages > 1);
    guest(FOUR_CPUS, |guest| {
        let before = free_pages(guest)?;
        let report = guest.run(&workload)?;
        println!("{messages} messages: {report}");
        assert_eq!((report.failed, report.kept), (0, 0));
        assert!(report.allocs == report.freed && report.allocs + report.freed >= len as u64, "{report}");
        // Each CPU's memory is its own node's.
        assert!(report.placement.iter().all(|zones| zones.iter().sum::<u64>() > report.allocs / 4), "{report:?}");
        assert_eq!(free_pages(guest)?, before);
        sound(guest)?;
        Ok(())
    });
}

#[test]
fn one_cpu_and_the_same_trace_leave_the_same() {
    let trace = TraceFile::new(&made_up(2, amount() / 6, 4, 50));
    let mut results: Vec<(WorkloadReport, String, String)> = Vec::new();
    for _ in 0..2 {
        guest(ONE_CPU, |guest| {
            let report = guest.run(&trace.workload(",cpus=0,keep=yes"))?;
            assert_eq!(report.kept, 50);
            let report = WorkloadReport { ticks: 0, ..report };
            results.push((report, guest.show("buddyinfo")?, guest.show("kmem -f")?));
            Ok(())
        });
    }
    assert_eq!(results[0], results[1]);
}

/// Why the guest does not do a workload.
fn refused(guest: &Guest, workload: &Workload) -> String {
    match guest.run(workload) {
        Ok(report) => panic!("{workload}: {report}"),
        Err(error) => match error.kind() {
            ErrorKind::Workload { reason, .. } => reason.clone(),
            kind => panic!("{kind}"),
        },
    }
}

#[test]
fn what_cannot_be_replayed_is_named_with_its_line() {
    let mut text = String::new();
    alloc(&mut text, 0, 16, 3);
    alloc(&mut text, 7, 32, 0);
    let far = TraceFile::new(&text);
    let large = TraceFile::new(&text.replace("order=3", "order=11"));
    guest(ONE_CPU, |guest| -> Outcome {
        let reason = "line 2 of the trace: the machine has 1 CPUs and no CPU 7; cpus= says which stand in";
        assert_eq!(refused(guest, &far.workload("")), reason);
        assert_eq!(guest.run(&far.workload(",cpus=0"))?.allocs, 2);
        let reason = format!("file: {}: line 1: \"11\" is not an order: that is 0 to 10", large.path().display());
        assert_eq!(refused(guest, &large.workload("")), reason);
        Ok(())
    });
}

#[test]
fn the_command_line_replays_a_trace() {
    let mut text = made_up(3, 300, 2, 0);
    let trace = TraceFile::new(&text);
    let machine = ["run", "--node", "mem=64M,cpus=2", "--timeout", "60", "--workload"];
    let workload = trace.workload("").to_string();
    let output = run(&mut pagevisor(machine.into_iter().chain([workload.as_str()]))).success();
    assert!(output.contains("0 failed") && output.contains("0 kept"), "{output}");
    alloc(&mut text, 2, 0x10_0000, 0);
    let far = TraceFile::new(&text);
    let workload = far.workload("").to_string();
    let output = run(&mut pagevisor(machine.into_iter().chain([workload.as_str()])));
    let line = text.lines().count();
    let reason = format!("workload {workload}: line {line} of the trace: the machine has 2 CPUs and no CPU 2");
    assert!(output.code() == 1 && output.stderr.contains(&reason), "{}", output.stderr);
    assert_eq!(output.stderr.matches(&workload).count(), 1, "{}", output.stderr);
}
