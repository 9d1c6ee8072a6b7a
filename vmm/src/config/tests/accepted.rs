//! What the vocabulary means.

use super::*;
use crate::layout::Layout;
use crate::topology::{AddrRange, Memory, Node, ZoneAmounts};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn resolved(nodes: &[&str], distances: &[&str]) -> Topology {
    resolve(&flags(nodes, distances)).unwrap_or_else(|error| panic!("{error}"))
}

fn parsed(text: &str) -> Topology {
    Topology::from_toml(text, "m.toml").unwrap_or_else(|error| panic!("{error}"))
}

fn cpus(topology: &Topology) -> Vec<Vec<u32>> {
    topology.nodes.iter().map(|node| node.cpus.clone()).collect()
}

#[test]
fn nothing_said_is_the_default() {
    let default = resolve(&TopologyArgs::default()).unwrap();
    assert_eq!(default, Topology::default());
    let flags = ["dma=16M,dma32=112M,normal=128M,cpus=1", "normal=256M,cpus=1"];
    assert_eq!(resolved(&flags, &["0:1=20"]), default);
    assert_eq!(resolved(&flags, &[]), default);
}

#[test]
fn file_and_flags_mean_the_same() {
    let text = r#"
        [[node]]
        mem = "1G"
        cpus = 2
        [[node]]
        range = ["8G-9G", "0x300000000+64M"]
        cpus = [5, "2-4"]
        [[node]]
        dma32 = 67108864
        normal = "4096k"
        [distance]
        "0:1" = 21
        "1:0" = 31
        "0:2" = 41
        "1:2" = 51
        "#;
    let nodes = ["mem=1G,cpus=2", "range=8G-9G,range=0x300000000+64M,cpus=[5,2-4]", "dma32=64M,normal=4M"];
    let flags = resolved(&nodes, &["0:1=21", "1:0=31", "2:0=41", "1:2=51"]);
    assert_eq!(parsed(text), flags);
    let expected = Topology {
        nodes: vec![
            Node { memory: Memory::Plain(GIB), cpus: vec![0, 1] },
            Node {
                memory: Memory::Ranges(vec![
                    AddrRange { start: 8 * GIB, size: GIB },
                    AddrRange { start: 12 * GIB, size: 64 * MIB },
                ]),
                cpus: vec![2, 3, 4, 5],
            },
            Node { memory: Memory::Zones(ZoneAmounts { dma: 0, dma32: 64 * MIB, normal: 4 * MIB }), cpus: vec![] },
        ],
        distances: vec![vec![10, 21, 41], vec![31, 10, 51], vec![41, 51, 10]],
        latencies: None,
        bandwidths: None,
    };
    assert_eq!(flags, expected);
}

#[test]
fn cpus_are_counted_around_the_lists() {
    assert_eq!(cpus(&resolved(&["mem=1G,cpus=2", "cpus=[1]", "cpus=1"], &[])), [vec![0, 2], vec![1], vec![3]]);
    assert_eq!(cpus(&resolved(&["mem=1G", "mem=1G"], &[])), [[0], [1]], "one each where nobody says any");
    assert_eq!(cpus(&resolved(&["mem=1G", "mem=1G,cpus=1"], &[])), [vec![], vec![0]], "none where others say");
    assert_eq!(cpus(&resolved(&["mem=1G,cpus=[]", "cpus=[0-1]"], &[])), [vec![], vec![0, 1]]);
    let all = resolved(&["mem=1G,cpus=64"], &[]);
    assert_eq!((all.nr_cpus(), all.node_of_cpu(63), all.node_of_cpu(64)), (64, Some(0), None));
}

#[test]
fn flags_override_the_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies");
    let with = |nodes: &[&str], distances: &[&str]| {
        resolve(&TopologyArgs { file: Some(folder.join("four-node-ring.toml")), ..flags(nodes, distances) })
    };
    let ring = with(&[], &[]).unwrap();
    assert_eq!(ring.distances[0], [10, 20, 30, 20]);

    let farther = with(&[], &["0:2=99"]).unwrap();
    assert_eq!((farther.distances[0][2], farther.distances[2][0], farther.distances[1][3]), (99, 99, 30));
    assert_eq!(farther.nodes, ring.nodes);
    let one_way = with(&[], &["0:2=99", "2:0=98"]).unwrap();
    assert_eq!((one_way.distances[0][2], one_way.distances[2][0]), (99, 98));

    let larger = with(&["mem=1G", "mem=1G", "mem=1G", "mem=1G"], &[]).unwrap();
    assert_eq!(larger.distances, ring.distances, "the file's distances stay");
    assert!(larger.nodes.iter().all(|node| node.memory == Memory::Plain(GIB)));
    let error = with(&["mem=1G"], &[]).unwrap_err().to_string();
    assert!(error.ends_with("four-node-ring.toml:10: distance 0:1: there is no node 1: the machine has 1"), "{error}");
}

/// `resolve` of nothing but two nodes and these costs.
fn costed(latencies: &[&str], bandwidths: &[&str]) -> Topology {
    let own = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
    let args = TopologyArgs { latencies: own(latencies), bandwidths: own(bandwidths), ..TopologyArgs::default() };
    resolve(&args).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn costs_are_symmetric_and_follow_the_distances_unless_said() {
    assert_eq!((costed(&[], &[]).latencies, costed(&[], &[]).bandwidths), (None, None));
    let machine = costed(&["0:1=140"], &[]);
    assert_eq!((machine.latencies, machine.bandwidths), (Some(vec![vec![80, 140], vec![140, 80]]), None));
    let machine = costed(&["0:1=140", "1:0=150", "1:1=90"], &["1:0=30000"]);
    assert_eq!(machine.latencies, Some(vec![vec![80, 140], vec![150, 90]]));
    assert_eq!(machine.bandwidths, Some(vec![vec![100_000, 30_000], vec![30_000, 100_000]]));

    let nodes = "[[node]]\nmem = \"1G\"\ncpus = 1\n[[node]]\nmem = \"1G\"\n";
    let pairs = parsed(&format!("{nodes}[latency]\n\"0:1\" = 140\n[bandwidth]\n\"0:0\" = 90000\n"));
    assert_eq!(pairs.latencies, Some(vec![vec![80, 140], vec![140, 80]]));
    assert_eq!(pairs.bandwidths, Some(vec![vec![90_000, 50_000], vec![50_000, 100_000]]));
    let matrix = parsed(&format!("latency = [[1, 2], [3, 4]]\nbandwidth = [[5, 6], [7, 8]]\n{nodes}"));
    assert_eq!(matrix.latencies, Some(vec![vec![1, 2], vec![3, 4]]));
    assert_eq!(matrix.bandwidths, Some(vec![vec![5, 6], vec![7, 8]]));
}

#[test]
fn shipped_topologies_are_what_they_say() {
    let shipped = shipped();
    let names: Vec<_> = shipped.iter().map(|(name, _)| name.trim_end_matches(".toml")).collect();
    let wanted = ["eight-node-three-levels", "four-node-ring", "memory-only-far-node", "two-socket", "uma-pc"];
    assert_eq!(names, wanted);
    let sizes: Vec<_> = shipped.iter().map(|(_, topology)| (topology.nr_nodes(), topology.nr_cpus())).collect();
    assert_eq!(sizes, [(8, 8), (4, 4), (3, 4), (2, 8), (1, 4)]);
    let zones = |of: usize| {
        let (_, topology) = &shipped[of];
        let layout = Layout::place(topology).unwrap();
        (0..topology.nr_nodes()).map(|node| layout.zone_bytes(node)).collect::<Vec<_>>()
    };
    let dma = 16 * MIB - (384 << 10);
    assert_eq!(zones(4), [[dma, 3 * GIB - 16 * MIB, 2 * GIB]], "uma-pc");
    assert_eq!(zones(3), [[dma, 3 * GIB - 16 * MIB, 61 * GIB], [0, 0, 64 * GIB]], "two-socket");
    assert_eq!(zones(2)[2], [0, 0, 16 * GIB], "the far node");
    assert_eq!(zones(0)[0], [dma, 112 * MIB, 128 * MIB], "eight nodes");
    let levels: std::collections::BTreeSet<u8> = shipped[0].1.distances.concat().into_iter().collect();
    assert_eq!(Vec::from_iter(levels), [10, 12, 20, 32]);
}

#[test]
fn written_topologies_read_back_equal() {
    let mut machines = shipped();
    machines.push(("default".into(), Topology::default()));
    machines.push(("no memory".into(), resolved(&["mem=1G,cpus=[0]", "cpus=[1-2]"], &["0:1=17", "1:0=18"])));
    machines.push(("costs".into(), costed(&["0:1=140", "1:0=150"], &["1:0=30000"])));
    for (name, topology) in machines {
        let text = topology.to_toml();
        assert_eq!(parsed(&text), topology, "{name}: {text}");
        let json = serde_json::to_string(&topology).unwrap();
        assert_eq!(serde_json::from_str::<Topology>(&json).unwrap(), topology, "{name}: {json}");
    }
}

#[test]
fn a_stored_topology_is_checked_when_it_is_read() {
    let mut broken = Topology::default();
    broken.distances[0][1] = 9;
    let json = serde_json::to_string(&broken).unwrap();
    let error = serde_json::from_str::<Topology>(&json).unwrap_err().to_string();
    assert!(error.starts_with("distance 0:1: 9 is not a distance to another node"), "{error}");
}

#[test]
fn the_command_line_knows_the_flags() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        topology: TopologyArgs,
    }
    let words = "run m.toml --node dma=16M,cpus=[0-3,5] --node mem=1G --distance 0:1=21".split(' ');
    let line = <Line as clap::Parser>::try_parse_from(words).unwrap();
    let file = Some("m.toml".into());
    assert_eq!(line.topology, TopologyArgs { file, ..flags(&["dma=16M,cpus=[0-3,5]", "mem=1G"], &["0:1=21"]) });
}
