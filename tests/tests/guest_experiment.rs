//! Experiments as a user does them: a file, a command, tables. The same twice gives the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pagevisor_tests::command::{Output, pagevisor, run, start, unique};
use serde_json::Value;

/// A folder with a topology, gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(unique(&format!("pagevisor-test-{name}")));
        fs::create_dir_all(&path).expect("a folder");
        let node = "[[node]]\nnormal = \"64M\"\ncpus = 1\n";
        let machine = format!("[[node]]\ndma = \"16M\"\ndma32 = \"48M\"\ncpus = 1\n{node}[latency]\n\"0:1\" = 170\n");
        fs::write(path.join("two.toml"), machine).expect("a topology");
        Self(path)
    }

    /// Writes the experiment `text` over that topology.
    fn describe(&self, text: &str) {
        let text = format!("topologies = [\"two.toml\"]\n{text}");
        fs::write(self.0.join("e.toml"), text).expect("an experiment");
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// `pagevisor experiment e.toml --out OUT ARGS`
    fn command(&self, out: &str, args: &[&str]) -> std::process::Command {
        let (file, out) = (self.path("e.toml"), self.path(out));
        pagevisor(["experiment", file.as_str(), "--out", out.as_str()].into_iter().chain(args.iter().copied()))
    }

    fn experiment(&self, out: &str, args: &[&str]) -> Output {
        run(&mut self.command(out, args))
    }

    /// The finished runs.
    fn records(&self, out: &str) -> Vec<Value> {
        records(&self.0.join(out).join("runs.jsonl"))
    }
}

fn records(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// What a run must have in common with its repetition: all but its times.
fn repeatable(record: &Value) -> Value {
    let mut record = record.clone();
    record["host_ms"] = Value::Null;
    let measures = &mut record["result"]["ok"];
    assert!(measures.is_object(), "{record}");
    measures["guest_cycles"] = Value::Null;
    measures["tsc_khz"] = Value::Null;
    record
}

/// The records by their keys' order, times taken off.
fn comparable(mut records: Vec<Value>) -> Vec<Value> {
    records.sort_by_key(|record| record["key"].as_str().map(str::to_owned));
    records.iter().map(repeatable).collect()
}

#[test]
fn the_same_twice_gives_the_same() {
    let folder = Folder::new("same-twice");
    folder.describe("[[workload]]\nname = \"boot\"\n[settings]\ncpus = 1\n\"vm.min_free_kbytes\" = [1024, 4096]\n");
    let first = folder.experiment("a", &["--jobs", "2"]).success();
    assert!(first.contains("vm.min_free_kbytes=4096"), "{first}");
    folder.experiment("b", &[]).success();
    let (a, b) = (comparable(folder.records("a")), comparable(folder.records("b")));
    assert_eq!((a.len(), &a), (2, &b));
    for record in &a {
        let measures = &record["result"]["ok"];
        assert_eq!(measures["verified"], true);
        assert_eq!(measures["free_list_digest"].as_str().map(str::len), Some(64));
    }
    for name in ["e.csv", "e.parquet", "e-zones.csv", "e-zones.parquet", "e-pairs.csv", "e-pairs.parquet"] {
        assert!(fs::metadata(folder.0.join("a").join(name)).is_ok_and(|file| file.len() > 0), "{name}");
    }
}

#[test]
fn a_run_that_fails_is_a_row_with_its_reason() {
    let folder = Folder::new("fails");
    let settings = "[settings]\n\"vm.percpu_pagelist_high_fraction\" = [7, 8]\n";
    folder.describe(&format!("[[workload]]\nname = \"boot\"\n{settings}"));
    let output = folder.experiment("out", &[]);
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(output.stderr.contains("1 of 2 runs failed; --retry-failed does them again"), "{output:?}");
    let reason = "the guest does not accept vm.percpu_pagelist_high_fraction=7";
    assert_eq!(folder.records("out")[0]["result"]["failed"], reason);
    let csv = fs::read_to_string(folder.0.join("out/e.csv")).expect("a table");
    assert!(csv.lines().nth(1).is_some_and(|row| row.contains(&format!("failed,{reason}"))), "{csv}");
    // Nothing is done again, and then only what failed.
    folder.experiment("out", &[]);
    assert_eq!(folder.records("out").len(), 2);
    folder.experiment("out", &["--retry-failed"]);
    let keys: Vec<_> = folder.records("out").iter().map(|record| record["key"].clone()).collect();
    assert_eq!((keys.len(), &keys[2]), (3, &keys[0]));
}

#[test]
fn ctrl_c_ends_it_and_the_same_command_goes_on() {
    let folder = Folder::new("ctrl-c");
    folder.describe("seeds = 12\n[[workload]]\nname = \"boot\"\n");
    let running = start(&mut folder.command("out", &["--jobs", "2"]));
    let deadline = Instant::now() + Duration::from_secs(60);
    while folder.records("out").is_empty() {
        assert!(Instant::now() < deadline, "no run finished");
        std::thread::sleep(Duration::from_millis(5));
    }
    running.signal(libc::SIGINT);
    let output = running.finish();
    assert_eq!(output.code(), 130, "{output:?}");
    assert!(output.stderr.contains("of 12 runs done; the same command goes on from there"), "{output:?}");
    let before = folder.records("out");
    assert!((1..12).contains(&before.len()), "{}", before.len());
    folder.experiment("out", &["--jobs", "2"]).success();
    let after = folder.records("out");
    assert_eq!((after.len(), &after[..before.len()]), (12, &before[..]), "what was there stays");
}

#[test]
fn a_dry_run_lists_the_runs_and_does_none() {
    let folder = Folder::new("dry");
    folder.describe("seeds = [7, 9]\ntimeout = 5\n[[workload]]\nname = \"boot\"\n[settings]\ncpus = [1, 2]\n");
    let text = folder.experiment("out", &["--dry-run"]).success();
    let expected = "two boot:seed=7 cpus=1\ntwo boot:seed=9 cpus=1\ntwo boot:seed=7 cpus=2\ntwo boot:seed=9 cpus=2\n\
                    4 runs, 1 at a time, at most 5 s each\n";
    assert_eq!(text, expected);
    assert!(!folder.0.join("out").exists());
}

#[test]
fn a_mistake_in_the_file_is_bad_usage() {
    let folder = Folder::new("mistake");
    folder.describe("[[workload]]\nname = \"boot\"\n[settings]\n\"vm.swappiness\" = 3\n");
    let output = folder.experiment("out", &[]);
    assert_eq!(output.code(), 2, "{output:?}");
    assert!(output.stderr.contains("e.toml:5: unknown setting \"vm.swappiness\""), "{output:?}");
    assert!(!folder.0.join("out").exists());
}
