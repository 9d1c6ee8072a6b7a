//! Workloads and commands from outside: `pagevisor run --workload`, experiments, the control socket.

use std::fs;
use std::time::Duration;

use pagevisor::runtime::{Connection, RuntimeDir};
use pagevisor_shared::command::{Op, OpResult, Setting};
use pagevisor_tests::command::{Guest, pagevisor, run, unique};
use serde_json::Value;

const SMALL: [&str; 4] = ["run", "--node", "mem=64M,cpus=1", "--timeout"];

#[test]
fn a_run_does_workloads_in_order_and_shows_what_they_leave() {
    let work = ["60", "--workload", "sequential:ops=64,keep=1", "--workload", "random:ops=200,seed=5"];
    let args = SMALL.into_iter().chain(work).chain(["--show", "buddyinfo"]);
    let text = run(&mut pagevisor(args)).success();
    let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part:?} in {text}"));
    assert!(
        at("Workload sequential:keep=1,ops=64: 64 allocations, 0 failed, 0 freed, 64 kept") < at("Workload random:")
    );
    assert!(at("Workload random:") < at("buddyinfo:"));
}

#[test]
fn a_workloads_report_is_in_the_json_document() {
    let args = SMALL.into_iter().chain(["60", "--json", "--workload", "sequential:ops=10,order=2"]);
    let text = run(&mut pagevisor(args)).success();
    let document: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let report = &document["workloads"][0];
    assert_eq!(report["workload"], "sequential:ops=10,order=2");
    assert_eq!(report["report"]["allocs"], 10);
    assert_eq!(report["report"]["placement"][0].as_array().map(Vec::len), Some(5));
}

#[test]
fn a_workload_that_is_none_is_bad_usage() {
    for bad in ["nonsense", "fragment:nonsense=1", "boot", "sequential:ops"] {
        let args = SMALL.into_iter().chain(["60", "--workload", bad]);
        let output = run(&mut pagevisor(args));
        assert_eq!((output.code(), output.stdout.as_str()), (2, ""), "{bad}: {}", output.stderr);
    }
}

#[test]
fn a_run_ends_in_time_though_its_workload_would_not() {
    let args = SMALL.into_iter().chain(["2", "--workload", "random:ops=4000000000"]);
    let output = run(&mut pagevisor(args));
    assert_eq!(output.code(), 7, "{}", output.stderr);
}

#[test]
fn an_experiment_does_its_workloads() {
    let folder = std::env::temp_dir().join(unique("pagevisor-workloads"));
    fs::create_dir_all(&folder).expect("a directory");
    let file = folder.join("small.toml");
    fs::write(
        &file,
        "topologies = [\"machine.toml\"]\nseeds = 2\ntimeout = 60\n[[workload]]\nname = \"random\"\nops = 100\n",
    )
    .expect("a file");
    fs::write(folder.join("machine.toml"), "[[node]]\nmem = \"64M\"\n").expect("a file");
    let out = folder.join("out");
    let [file, out] = [&file, &out].map(|path| path.to_string_lossy().into_owned());
    let output = run(&mut pagevisor(["experiment", &file, "--out", &out, "--no-progress"]));
    assert_eq!(output.code(), 0, "{}", output.stderr);
    let runs = fs::read_to_string(format!("{out}/runs.jsonl")).expect("results");
    assert_eq!(runs.lines().count(), 2);
    assert!(runs.lines().all(|run| run.contains("\"verified\":true")), "{runs}");
    fs::remove_dir_all(&folder).expect("the directory");
}

#[test]
fn a_guest_of_another_process_takes_commands() {
    const PATIENCE: Duration = Duration::from_secs(10);
    let guest = Guest::keep("commanded", &["--node", "mem=64M,cpus=1"]);
    let directory = RuntimeDir::open(guest.directory()).expect("a directory").expect("a directory");
    let name = guest.name().parse().expect("a name");
    let connection = Connection::open(&directory, &name).expect("a connection");
    let set = Op::Set { setting: Setting::MinFreeKbytes, index: 0, value: 2048 };
    let reply = connection.command(&[Op::Nop, set, Op::Barrier], &[], PATIENCE).expect("a reply");
    assert_eq!(reply.results.iter().map(|result| result.error).collect::<Vec<_>>(), [None; 3]);
    assert_eq!(reply.results[0], OpResult::ok(0));
    // What has a handle belongs to somebody.
    let error = connection.command(&[Op::FreePages { handle: 1, count: 1 }], &[], PATIENCE).unwrap_err();
    assert!(error.to_string().contains("not for other processes"), "{error}");
    // Others are served meanwhile, and after it.
    assert!(guest.show(&["buddyinfo"]).contains("DMA32"));
    connection.command(&[Op::DrainPages { all: true }], &[], PATIENCE).expect("a reply");
    guest.stop();
}
