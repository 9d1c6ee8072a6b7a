//! Every kind of bad input, with the whole message.

use super::*;

/// A node that boots.
const BOOT: &str = "[[node]]\nmem = \"64M\"\ncpus = 1\n";

#[track_caller]
fn file(text: &str, message: &str) {
    let error = Topology::from_toml(text, "m.toml").unwrap_err();
    assert_eq!(error.to_string(), message);
}

/// Like [`file`], behind a node that boots: the text begins in line 4.
#[track_caller]
fn more(text: &str, message: &str) {
    file(&format!("{BOOT}{text}"), message);
}

#[track_caller]
fn line(nodes: &[&str], distances: &[&str], message: &str) {
    assert_eq!(resolve(&flags(nodes, distances)).unwrap_err().to_string(), message);
}

#[test]
fn unknown_keys() {
    file("nodes = 2\n", "m.toml:1: unknown key \"nodes\"; the keys are node, distance, latency, bandwidth");
    more(
        "[[node]]\ncpus = 1\nmemory = \"1G\"\n",
        "m.toml:6: unknown key \"memory\"; the keys are mem, dma, dma32, normal, range, cpus",
    );
    line(
        &["memory=1G,cpus=1"],
        &[],
        "--node memory=1G,cpus=1: unknown key \"memory\"; the keys are mem, dma, dma32, normal, range, cpus",
    );
    line(&["1G"], &[], "--node 1G: \"1G\" is not KEY=VALUE; the keys are mem, dma, dma32, normal, range, cpus");
    line(&[""], &[], "--node : \"\" is not KEY=VALUE; the keys are mem, dma, dma32, normal, range, cpus");
}

#[test]
fn syntax() {
    file("[[node]\n", "m.toml:1: unclosed array table, expected `]`");
    more("[[node]]\nmem = \"1G\"\nmem = \"2G\"\n", "m.toml:6: duplicate key");
    file("node = 3\n", "m.toml:1: node: it is not a table; a node begins with [[node]]");
    file("\nnode = [1]\n", "m.toml:2: node: it is not a table; a node begins with [[node]]");
    more("[[node]]\nmem = true\n", "m.toml:5: node 1, mem: true is not a size, such as \"512M\"");
    more("[[node]]\nrange = [3]\n", "m.toml:5: node 1, range: 3 is not a range, such as \"4G-6G\"");
    let not_cpus =
        "m.toml:5: node 1, cpus: the string \"two\" is neither a number of CPUs nor a list such as [0, \"2-5\"]";
    more("[[node]]\ncpus = \"two\"\n", not_cpus);
    let not_cpu = "m.toml:5: node 1, cpus: a list is not a CPU or a range of CPUs, such as 3 or 0-3";
    more("[[node]]\ncpus = [[1]]\n", not_cpu);
    file("distance = 20\n", "m.toml:1: distance: 20 is neither a matrix nor a table of pairs");
    file("distance = [10]\n", "m.toml:1: distance: row 0 is not a list");
    file("distance = [[\"x\"]]\n", "m.toml:1: distance 0:0: the string \"x\" is not a distance");
    file("[distance]\n\"0-1\" = 20\n", "m.toml:2: distance: \"0-1\" is not a pair of nodes, such as 0:1");
    line(&[], &["0-1=20"], "--distance 0-1=20: \"0-1\" is not a pair of nodes, such as 0:1");
    line(&[], &["0:1"], "--distance 0:1: \"0:1\" is not a distance: FROM:TO=DISTANCE, such as 0:1=20");
    line(&[], &["0:1=near"], "--distance 0:1=near: \"0:1=near\" is not a distance: FROM:TO=DISTANCE, such as 0:1=20");
    line(&["mem=1G,mem=2G"], &[], "--node mem=1G,mem=2G: node 0, mem: it is given twice");
    line(&["cpus=1,cpus=2"], &[], "--node cpus=1,cpus=2: node 0, cpus: it is given twice");
    line(&["mem=1G,cpus=[0"], &[], {
        "--node mem=1G,cpus=[0: node 0, cpus: \"[0\" is neither a number of CPUs nor a list such as [0-3,5]"
    });
    line(&[], &["0:1=20", "0:1=30"], "--distance 0:1=30: distance 0:1: it is given twice");
}

#[test]
fn files_that_cannot_be_read() {
    let args = TopologyArgs { file: Some("/nowhere/m.toml".into()), ..TopologyArgs::default() };
    let message = "/nowhere/m.toml: cannot be read: No such file or directory (os error 2)";
    assert_eq!(resolve(&args).unwrap_err().to_string(), message);
}

#[test]
fn sizes() {
    let not_size = |text: &str| format!("{text:?} is not a size: a number, then K, M, G or T, such as \"512M\"");
    for text in ["", "M", "-1M", "+1M", "1.5G", "1GiB", "0xM", "12 M", "ü"] {
        let said = format!("--node mem={text}: node 0, mem: {}", not_size(text));
        line(&[&format!("mem={text}")], &[], &said);
    }
    more("[[node]]\nmem = -5\n", &format!("m.toml:5: node 1, mem: {}", not_size("-5")));
    line(&["mem=20000000T"], &[], "--node mem=20000000T: node 0, mem: 20000000T is more than 64 bits can hold");
    let zero = "the size is zero; leave the key out where there is no memory";
    line(&["mem=0"], &[], &format!("--node mem=0: node 0, mem: {zero}"));
    line(&["dma=16M,dma32=0K"], &[], &format!("--node dma=16M,dma32=0K: node 0, dma32: {zero}"));
    more("[[node]]\nnormal = 0\n", &format!("m.toml:5: node 1, normal: {zero}"));
    more("[[node]]\nrange = \"4G+0\"\n", &format!("m.toml:5: node 1, range: {zero}"));
    line(&["mem=512"], &[], "--node mem=512: node 0, mem: 512 is not a multiple of a page, 4K");
    more("[[node]]\ndma32 = \"6K\"\n", "m.toml:5: node 1, dma32: 6144 is not a multiple of a page, 4K");
    more(
        "[[node]]\nrange = [\n  \"4G-5G\",\n  \"0x180000800-7G\",\n]\n",
        "m.toml:7: node 1, range: 6442452992 is not a multiple of a page, 4K",
    );
}

#[test]
fn ranges() {
    more(
        "[[node]]\nrange = \"4G\"\n",
        "m.toml:5: node 1, range: \"4G\" is not a range: START-END or START+SIZE, such as \"4G-6G\"",
    );
    more("[[node]]\nrange = \"4G+3K\"\n", "m.toml:5: node 1, range: 4294970368 is not a multiple of a page, 4K");
    more("[[node]]\nrange = \"5G-4G\"\n", "m.toml:5: node 1, range: 5G-4G ends before it has begun");
    line(
        &["range=1+0xffffffffffffffff"],
        &[],
        "--node range=1+0xffffffffffffffff: node 0, range: 1+0xffffffffffffffff is more than 64 bits can hold",
    );
    more("[[node]]\nrange = \"2G-5G\"\n", "m.toml:5: node 1, range: 2G-5G reaches into 3G-4G, where the devices are");
    more(
        "[[node]]\nrange = \"16383G+2G\"\n",
        "m.toml:5: node 1, range: 16383G-16385G ends above 16T, where the address space ends",
    );
    more(
        "[[node]]\nrange = \"700K-800K\"\n",
        "m.toml:5: node 1, range: 700K-800K lies in 640K-1M, where a PC has no RAM",
    );
}

#[test]
fn overlaps() {
    more(
        "[[node]]\nrange = [\"4G-5G\", \"8G-9G\"]\n[[node]]\nrange = [\n\"6G-7G\",\n\"0x110000000+1G\"\n]\n",
        "m.toml:9: node 2, range: 4352M-5376M overlaps 4G-5G of node 1",
    );
    line(
        &["range=0-64M,range=32M-96M,cpus=1"],
        &[],
        "--node range=0-64M,range=32M-96M,cpus=1: node 0, range: 32M-96M overlaps 0-64M of node 0",
    );
}

#[test]
fn forms_of_memory_do_not_mix() {
    line(
        &["mem=1G,dma=16M"],
        &[],
        "--node mem=1G,dma=16M: node 0, dma: it cannot stand beside mem: memory is given as mem, by zone, or by range",
    );
    more(
        "[[node]]\nnormal = \"1G\"\nrange = \"9G-10G\"\n",
        "m.toml:6: node 1, range: it cannot stand beside normal: memory is given as mem, by zone, or by range",
    );
}

#[test]
fn empty_machines() {
    file("", "m.toml: machine: it has no nodes");
    file("node = []\n", "m.toml: machine: it has no nodes");
    more("\n[[node]]\n", "m.toml:5: node 1: it has neither memory nor CPUs");
    line(&["mem=64M,cpus=1", "cpus=0"], &[], "--node cpus=0: node 1: it has neither memory nor CPUs");
    line(&["mem=64M,cpus=0"], &[], "--node: machine: no node has a CPU");
}

#[test]
fn no_boot_memory() {
    let none = "machine: no boot memory below 4 GiB: the kernel needs RAM at 16M-32M";
    line(&["cpus=1"], &[], &format!("--node: {none}"));
    line(&["normal=1G,cpus=1"], &[], &format!("--node: {none}"));
    line(&["mem=31M,cpus=1"], &[], &format!("--node: {none}"));
    line(&["range=0-24M,range=25M-64M,cpus=1"], &[], &format!("--node: {none}"));
    file("[[node]]\nrange = \"4G-5G\"\ncpus = 1\n", &format!("m.toml: {none}"));
    assert!(resolve(&flags(&["mem=32M,cpus=1"], &[])).is_ok());
    assert!(resolve(&flags(&["range=16M-24M,cpus=1", "range=24M-32M"], &[])).is_ok());
}

#[test]
fn more_memory_than_there_is_room() {
    line(
        &["dma=20M,cpus=1"],
        &[],
        "--node dma=20M,cpus=1: node 0, dma: 20M does not fit into zone DMA: 16M of its 16M is left",
    );
    line(
        &["dma=12M,dma32=64M,cpus=1", "dma=8M"],
        &[],
        "--node dma=8M: node 1, dma: 8M does not fit into zone DMA: 4M of its 16M is left",
    );
    more(
        "[[node]]\ndma32 = \"3G\"\n",
        "m.toml:5: node 1, dma32: 3G does not fit into zone DMA32: 3056M of its 3056M is left",
    );
    more(
        "[[node]]\ndma = \"640K\"\n[[node]]\ndma = \"384K\"\n",
        "m.toml:7: node 2, dma: 640K-1M lies in 640K-1M, where a PC has no RAM",
    );
    more("[[node]]\nnormal = \"2T\"\n", "m.toml:5: node 1, normal: 2T in one node is more than the 1T possible");
    more(
        "[[node]]\ndma32 = \"1G\"\nnormal = \"1T\"\n",
        "m.toml:6: node 1, normal: 1025G in one node is more than the 1T possible",
    );
    let full = ["mem=1T,cpus=1"; 17];
    line(&full, &[], "--node mem=1T,cpus=1: node 15, mem: 1T does not fit: 1023G is left below 16T");
    let full = ["normal=1T,cpus=1"; 17];
    line(&full, &[], {
        "--node normal=1T,cpus=1: node 15, normal: 1T does not fit into zone Normal: 1020G of its 16380G is left"
    });
}

#[test]
fn too_many_pieces() {
    let ranges = |count: u64, step: u64| -> Vec<String> {
        (0..count).map(|piece| format!("\"{}M+1M\"", 4096 + piece * step)).collect()
    };
    let nodes = |even: &[String], odd: &[String]| {
        format!("{BOOT}[[node]]\nrange = [{}]\n[[node]]\nrange = [{}]\n", even.join(","), odd.join(","))
    };
    let all = ranges(600, 1);
    let (even, odd): (Vec<_>, Vec<_>) = all.into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
    let strip = |list: Vec<(usize, String)>| list.into_iter().map(|(_, range)| range).collect::<Vec<_>>();
    file(&nodes(&strip(even), &strip(odd)), "m.toml: machine: its memory is in 602 pieces, more than the 512 possible");
    file(
        &nodes(&ranges(200, 2), &["\"2T+1M\"".to_owned()]),
        "m.toml: machine: its memory map has 205 entries, more than the 170 possible",
    );
}

#[test]
fn cpus() {
    more("[[node]]\ncpus = [0]\n[[node]]\ncpus = [0]\n", "m.toml:7: node 2, cpus: CPU 0 is already in node 1");
    line(&["mem=64M,cpus=[0-2]", "cpus=[2-3]"], &[], "--node cpus=[2-3]: node 1, cpus: CPU 2 is already in node 0");
    line(&["mem=1G,cpus=[0-2,1]"], &[], "--node mem=1G,cpus=[0-2,1]: node 0, cpus: CPU 1 is in the list twice");
    line(&["mem=64M,cpus=[0,2]"], &[], {
        "--node mem=64M,cpus=[0,2]: node 0, cpus: there is a CPU 2 but no CPU 1: numbers start at 0 and leave no gap"
    });
    line(&["mem=64M,cpus=[64]"], &[], {
        "--node mem=64M,cpus=[64]: node 0, cpus: there is no CPU 64: numbers go from 0 to 63"
    });
    more(
        "[[node]]\ncpus = [\"0-99999999999999999999\"]\n",
        "m.toml:5: node 1, cpus: there is no CPU 18446744073709551615: numbers go from 0 to 63",
    );
    line(&["mem=64M,cpus=[3-1]"], &[], {
        "--node mem=64M,cpus=[3-1]: node 0, cpus: \"3-1\" is not a CPU or a range of CPUs, such as 3 or 0-3"
    });
    line(&["mem=64M,cpus=65"], &[], {
        "--node mem=64M,cpus=65: node 0, cpus: 65 CPUs in all are more than the 64 possible"
    });
    line(&["mem=64M,cpus=[0-62]", "cpus=2"], &[], {
        "--node cpus=2: node 1, cpus: 65 CPUs in all are more than the 64 possible"
    });
}

#[test]
fn nodes() {
    let mut many = vec!["mem=64M,cpus=1"; 64];
    assert!(resolve(&flags(&many, &[])).is_ok());
    many.push("mem=65M");
    line(&many, &[], "--node mem=65M: node 64: 65 nodes are more than the 64 possible");
    file(&BOOT.repeat(65), "m.toml:193: node 64: 65 nodes are more than the 64 possible");
}

#[test]
fn distances() {
    let three = format!("{BOOT}{BOOT}{BOOT}");
    let matrix = |matrix: &str, message: &str| file(&format!("distance = [\n{matrix}\n]\n{three}"), message);
    matrix(
        "[10, 20, 20],\n[20, 12, 20],\n[20, 20, 10]",
        "m.toml:3: distance 1:1: 12 is not a node's distance to itself, which is always 10",
    );
    matrix(
        "[10, 20, 20],\n[20, 10, 20],\n[20, 9, 10]",
        "m.toml:4: distance 2:1: 9 is not a distance to another node: that is 11 to 255",
    );
    let missing = "it is missing; where one distance is given, all must be";
    matrix("[10, 20, 20],\n[20, 10],\n[20, 20, 10]", &format!("m.toml:3: distance 1:2: {missing}"));
    matrix("[10, 20, 20],\n[20, 10, 20]", &format!("m.toml:1: distance 2:0: {missing}"));
    matrix("[10, 20, 20],\n[],\n[20, 20, 10]", &format!("m.toml:1: distance 1:0: {missing}"));
    matrix("[]", &format!("m.toml:1: distance 0:0: {missing}"));
    matrix(
        "[10, 20, 20, 20],\n[20, 10, 20],\n[20, 20, 10]",
        "m.toml:2: distance 0:3: there is no node 3: the machine has 3",
    );
    file(&format!("{three}[distance]\n\"0:1\" = 20\n"), &format!("m.toml:11: distance 0:2: {missing}"));
    file(&format!("{three}[distance]\n\"0:1\" = 20\n\"0:2\" = 20\n"), &format!("m.toml:10: distance 1:2: {missing}"));

    let range = "is not a distance to another node: that is 11 to 255";
    line(&[], &["0:1=9"], &format!("--distance 0:1=9: distance 0:1: 9 {range}"));
    line(&[], &["0:1=10"], &format!("--distance 0:1=10: distance 0:1: 10 {range}"));
    line(&[], &["1:0=256"], &format!("--distance 1:0=256: distance 1:0: 256 {range}"));
    line(&[], &["0:1=-20"], &format!("--distance 0:1=-20: distance 0:1: -20 {range}"));
    line(&[], &["0:0=11"], {
        "--distance 0:0=11: distance 0:0: 11 is not a node's distance to itself, which is always 10"
    });
    line(&[], &["0:2=20"], "--distance 0:2=20: distance 0:2: there is no node 2: the machine has 2");
    let nodes = ["mem=64M"; 3];
    line(&nodes, &["0:1=20"], &format!("--distance 0:1=20: distance 0:2: {missing}"));
    line(&nodes, &["0:1=20", "0:2=20"], &format!("--distance 0:2=20: distance 1:2: {missing}"));
}

#[test]
fn costs() {
    let two = format!("{BOOT}{BOOT}");
    let missing = "it is missing; a matrix must be complete";
    file(&format!("latency = [[80, 140],\n[140]]\n{two}"), &format!("m.toml:2: latency 1:1: {missing}"));
    file(&format!("bandwidth = [[1, 2]]\n{two}"), &format!("m.toml:1: bandwidth 1:0: {missing}"));
    file(
        &format!("{two}[latency]\n\"0:0\" = 80\n\"0:2\" = 80\n"),
        "m.toml:9: latency 0:2: there is no node 2: the machine has 2",
    );
    file(&format!("{two}[bandwidth]\n\"0:1\" = 1.5\n"), "m.toml:8: bandwidth 0:1: 1.5 is not a bandwidth");
    file("latency = 3\n", "m.toml:1: latency: 3 is neither a matrix nor a table of pairs");
    let flag = |latency: &str, bandwidth: &str| {
        let own = |value: &str| Vec::from_iter((!value.is_empty()).then(|| value.to_owned()));
        let args = TopologyArgs { latencies: own(latency), bandwidths: own(bandwidth), ..TopologyArgs::default() };
        resolve(&args).unwrap_err().to_string()
    };
    let range = "is not a latency: that is 1 to 65534 ns";
    assert_eq!(flag("0:0=0", ""), format!("--latency 0:0=0: latency 0:0: 0 {range}"));
    assert_eq!(flag("0:1=65535", ""), format!("--latency 0:1=65535: latency 0:1: 65535 {range}"));
    let range = "is not a bandwidth: that is 1 to 10000000 MB/s";
    assert_eq!(flag("", "1:0=-1"), format!("--bandwidth 1:0=-1: bandwidth 1:0: -1 {range}"));
    assert_eq!(flag("0:1", ""), "--latency 0:1: \"0:1\" is not a latency: FROM:TO=NANOSECONDS, such as 0:1=140");
    assert_eq!(
        flag("", "0:1=fast"),
        "--bandwidth 0:1=fast: \"0:1=fast\" is not a bandwidth: FROM:TO=MB/S, such as 0:1=40000"
    );
}

#[test]
fn a_file_that_is_read_is_named_with_the_line_that_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.toml");
    let error = || Topology::from_toml_file(&path).unwrap_err().to_string();
    assert!(error().starts_with(&format!("{}: cannot be read: No such file", path.display())), "{}", error());
    std::fs::write(&path, "[[node]]\nmem = \"64M\"\ncpus = \"x\"\n").unwrap();
    assert!(error().starts_with(&format!("{}:3: node 0, cpus: ", path.display())), "{}", error());
    std::fs::write(&path, "[[node]]\nmem = \"64M\"\n").unwrap();
    assert_eq!(Topology::from_toml_file(&path), Topology::from_toml("[[node]]\nmem = \"64M\"\n", "m.toml"));
}
