//! Every example machine and a few odd ones boot, and every view of them is right.

use std::fs;
use std::path::{Path, PathBuf};

use pagevisor::config::{TopologyArgs, resolve};
use pagevisor::topology::Topology;
use pagevisor_tests::check::{self, Source};
use pagevisor_tests::command::{Guest, pagevisor, run};

struct Live<'a>(&'a Guest);

impl Source for Live<'_> {
    fn view(&self, view: &str) -> String {
        self.0.show(&view.split(' ').collect::<Vec<_>>())
    }
}

/// Boots the machine of these arguments of `pagevisor run` and checks all its views.
fn boots(args: &[&str]) {
    let topology = topology(args);
    let guest = Guest::keep("views", args);
    check::all(&Live(&guest), &topology);
    let output = guest.stop();
    check::fallback_orders(&output.stdout, &topology);
}

fn topology(args: &[&str]) -> Topology {
    let mut parsed = TopologyArgs::default();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let mut value = || (*words.next().expect("a value")).to_owned();
        match *word {
            "--node" => parsed.nodes.push(value()),
            "--distance" => parsed.distances.push(value()),
            file => parsed.file = Some(PathBuf::from(file)),
        }
    }
    resolve(&parsed).expect("a topology")
}

#[test]
fn the_default_machine() {
    boots(&[]);
}

#[test]
fn every_example() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmm/topologies");
    let mut files: Vec<_> = fs::read_dir(&folder).expect("examples").map(|e| e.expect("an entry").path()).collect();
    files.sort();
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        eprintln!("{}", file.display());
        boots(&[file.to_str().expect("a path of text")]);
    }
}

#[test]
fn a_node_without_memory() {
    boots(&["--node", "dma=16M,dma32=112M,cpus=1", "--node", "cpus=1", "--node", "normal=64M,cpus=1"]);
}

/// The firmware's table names processors first; nodes keep the numbers their user gave them all the same.
#[test]
fn a_first_node_without_cpus_keeps_its_number() {
    boots(&["--node", "dma32=64M", "--node", "cpus=2"]);
}

#[test]
fn a_node_without_cpus() {
    boots(&["--node", "dma=16M,dma32=64M,cpus=2", "--node", "normal=256M,cpus=0", "--distance", "0:1=40"]);
}

#[test]
fn interleaved_nodes() {
    boots(&[
        "--node",
        "range=0-64M,range=128M-192M,range=4G-4160M,cpus=1",
        "--node",
        "range=64M-128M,range=4160M-4224M,cpus=1",
    ]);
}

#[test]
fn holes_inside_a_node() {
    boots(&["--node", "range=0-64M,range=512M-600M,range=5G-5200M,range=9G+1M,cpus=1"]);
}

#[test]
fn borders_inside_page_blocks() {
    boots(&[
        "--node",
        "range=0-0x4001000,cpus=1",
        "--node",
        "range=0x4001000-0x6003000,range=0x6004000-0x8000000,cpus=1",
    ]);
}

#[test]
fn asymmetric_distances() {
    boots(&[
        "--node",
        "dma=16M,dma32=48M,cpus=1",
        "--node",
        "normal=64M,cpus=1",
        "--node",
        "normal=64M,cpus=0",
        "--distance",
        "0:1=20",
        "--distance",
        "1:0=30",
        "--distance",
        "0:2=25",
        "--distance",
        "1:2=15",
    ]);
}

#[test]
fn no_zone_dma() {
    boots(&["--node", "dma32=128M,cpus=1"]);
}

#[test]
fn the_views_of_run_are_those_of_show() {
    let output = run(&mut pagevisor(["run", "--show", "buddyinfo,zoneinfo,kmem-f"])).success();
    let topology = topology(&[]);
    check::fallback_orders(&output, &topology);
    assert!(output.contains(" (verified)"), "{output}");
    let (start, _) = output.match_indices("Node 0, zone").next().expect("a table");
    let table: String =
        output[start..].lines().take_while(|l| l.starts_with("Node ")).map(|l| format!("{l}\n")).collect();
    let (start, _) = output.match_indices("Node 0, zone      DMA\n").next().expect("zoneinfo");
    let zoneinfo: String = output[start..]
        .lines()
        .take_while(|l| l.starts_with("Node ") || l.starts_with(' '))
        .map(|l| format!("{l}\n"))
        .collect();
    check::Machine::new(&zoneinfo, &topology).buddyinfo(&table);
}

#[test]
fn every_view_has_a_json_form() {
    let guest = Guest::keep("json", &[]);
    for view in [
        "buddyinfo",
        "pagetypeinfo",
        "zoneinfo",
        "meminfo",
        "vmstat",
        "iomem",
        "node/0/meminfo",
        "node/0/numastat",
        "node/1/vmstat",
        "node/1/distance",
        "node/1/cpulist",
        "kmem -f",
        "kmem -n",
        "kmem -V",
        "kmem -z",
        "kmem -g",
        "numa",
        "zeroed",
    ] {
        let args: Vec<&str> = view.split(' ').chain(["--json"]).collect();
        let text = guest.show(&args);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{view}: {e}\n{text}"));
        assert!(
            value.as_object().is_some_and(|o| !o.is_empty()) || value.as_array().is_some_and(|a| !a.is_empty()),
            "{view}"
        );
    }
    guest.stop();
}

#[test]
fn a_proc_directory_holds_the_same_views() {
    let folder = std::env::temp_dir().join(pagevisor_tests::command::unique("pagevisor-proc"));
    fs::create_dir_all(&folder).expect("a directory");
    let path = folder.to_str().expect("a path of text");
    let guest = Guest::keep("proc", &["--proc-dir", path]);
    for (file, view) in [
        ("proc/buddyinfo", "buddyinfo"),
        ("proc/zoneinfo", "zoneinfo"),
        ("proc/meminfo", "meminfo"),
        ("sys/devices/system/node/node1/distance", "node/1/distance"),
        ("sys/devices/system/node/node0/meminfo", "node/0/meminfo"),
    ] {
        let text = fs::read_to_string(folder.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert_eq!(text, guest.show(&[view]), "{file}");
    }
    guest.stop();
    assert_eq!(fs::read_dir(&folder).expect("the directory").count(), 0, "what was made goes away with the guest");
    fs::remove_dir(&folder).expect("an empty directory");
}
