//! Page faults as the guest records them and `pagevisor faults` tells of them, and programs' faults as a workload.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use pagevisor_tests::command::{Guest, pagevisor, run};
use serde_json::Value;

/// Records faults from boot.
const RECORDING: [&str; 2] = ["--append", "trace_event=page_fault_user,page_fault_kernel"];

/// What `pagevisor faults --json` tells, as soon as it is `enough`.
fn faults(guest: &Guest, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let begin = Instant::now();
    loop {
        let output = run(&mut guest.command(&["faults", guest.name(), "--json"])).success();
        let faults: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        if enough(&faults) || begin.elapsed() > Duration::from_secs(60) {
            return faults;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn are(fault: &Value, kind: &str, code: u64, from: &str) -> bool {
    fault["kind"] == kind && fault["error_code"] == code && fault["from"] == from
}

#[test]
fn each_fault_of_a_workload_is_told_with_its_kind_and_its_cost() {
    let guest = Guest::keep("faults-cow", &[&RECORDING[..], &["--workload", "fault:kind=cow,pages=24"]].concat());
    let count = |faults: &[Value], kind, code| faults.iter().filter(|fault| are(fault, kind, code, "user")).count();
    let told = faults(&guest, |faults| count(faults, "cow", 7) == 24);
    assert_eq!((count(&told, "anon", 6), count(&told, "cow", 7), told.len()), (24, 24, 48), "{told:?}");
    let threads: BTreeSet<u64> = told.iter().filter_map(|fault| fault["pid"].as_u64()).collect();
    assert_eq!(threads.len(), 2, "a parent and a child: {threads:?}");
    assert!(told.iter().all(|fault| fault["cycles"].as_u64() > Some(0) && fault["major"] == false), "{told:?}");
    let table = run(&mut guest.command(&["faults", guest.name()])).success();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 49, "{table}");
    assert!(lines[0].contains("ERROR") && lines[1].contains(" W|U ") && lines[48].contains(" P|W|U "), "{table}");
    guest.stop();
}

#[test]
fn every_error_code_is_told_and_decoded() {
    let path = std::env::temp_dir().join(format!("pagevisor-errors-{}", std::process::id()));
    fs::write(&path, include_bytes!(concat!(env!("OUT_DIR"), "/errors"))).expect("a program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
    let init = ["--init", path.to_str().expect("a path")];
    let guest = Guest::keep("faults-errors", &[&RECORDING[..], &init].concat());
    let wanted = [
        ("bad", 4, "user"),
        ("bad", 6, "user"),
        ("bad", 0x14, "user"),
        ("bad", 7, "user"),
        ("bad", 0x15, "user"),
        ("bad", 5, "user"),
        ("bad", 0, "kernel"),
        ("bad", 2, "kernel"),
        ("bad", 3, "kernel"),
        ("zero", 0, "kernel"),
        ("anon", 2, "kernel"),
        ("anon", 6, "user"),
    ];
    let missing = |told: &[Value]| -> Vec<_> {
        wanted
            .into_iter()
            .filter(|(kind, code, from)| !told.iter().any(|fault| are(fault, kind, *code, from)))
            .collect()
    };
    let told = faults(&guest, |told| missing(told).is_empty());
    assert_eq!(missing(&told), [], "{told:?}");
    let letters = |code: u64| told.iter().find(|fault| fault["error_code"] == code).map(|fault| fault["error"].clone());
    assert_eq!(letters(0x15), Some(serde_json::json!(["P", "U", "I"])));
    assert_eq!(letters(3), Some(serde_json::json!(["P", "W"])));
    guest.stop();
    let _ = fs::remove_file(path);
}

#[test]
fn workloads_of_faults_have_exactly_the_faults_they_ask_for() {
    let kinds = [
        ("anon", 40),
        ("zero", 40),
        ("cow", 80),
        ("cow-reuse", 80),
        ("file", 40),
        ("stack", 40),
        ("mprotect", 40),
        // 16 pages are brought in at a time.
        ("file-read", 3),
        ("file-write", 40),
        ("private-read", 3),
        ("private-write", 40),
    ];
    for (kind, faults) in kinds {
        let workload = format!("fault:kind={kind},pages=40");
        let output = run(&mut pagevisor(["run", "--workload", workload.as_str(), "--show", "vmstat"]));
        let (stdout, told) = (output.stdout.clone(), output.stderr.clone() + &output.stdout);
        output.success();
        assert!(told.contains(&format!(" {faults} page faults")), "{kind}: {told}");
        let counted = stdout.lines().find_map(|line| line.strip_prefix("pgfault ")?.parse::<u64>().ok());
        assert!(counted >= Some(faults) && counted <= Some(faults + 4), "{kind}: {counted:?}");
    }
}

#[test]
fn pages_of_another_node_are_touched_from_there() {
    let nodes = ["--node", "mem=128M,cpus=1", "--node", "mem=128M,cpus=1"];
    for (kind, crossing) in [("node-local", false), ("node-remote", true)] {
        let workload = format!("fault:kind={kind},pages=20,cpus=0");
        let guest = Guest::keep(kind, &[&RECORDING[..], &nodes, &["--workload", &workload]].concat());
        let told = faults(&guest, |told| told.len() >= 40);
        let cpus: Vec<u64> = told.iter().filter_map(|fault| fault["cpu"].as_u64()).collect();
        let expected: Vec<u64> = (0..40).map(|fault| u64::from(crossing && fault >= 20)).collect();
        assert_eq!(cpus, expected, "{kind}: {told:?}");
        assert!(told.iter().all(|fault| fault["kind"] == "file"), "{kind}: {told:?}");
        guest.stop();
    }
    let alone = ["--node", "mem=128M,cpus=1", "--workload", "fault:kind=node-remote,pages=20"];
    let output = run(&mut pagevisor(["run"].into_iter().chain(alone)));
    let told = output.stderr.clone() + &output.stdout;
    output.success();
    assert!(told.contains("1 failed") && !told.contains("page faults"), "{told}");
}
