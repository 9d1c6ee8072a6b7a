//! The order in which nodes are tried.

use pagevisor_mm::zone::zonelist::{NodeLoad, NodeMap};
use pagevisor_shared::units::{NodeId, NodeMask};
use proptest::prelude::*;

use crate::{MACHINES, Numa, numbers, read};

fn mask(nodes: impl IntoIterator<Item = bool>) -> NodeMask {
    let members = nodes.into_iter().enumerate().filter(|(_, member)| *member);
    members.fold(NodeMask::default(), |mask, (node, _)| mask.with(NodeId::new(node).unwrap()))
}

/// The fallback order of every node.
fn fallback_orders(distance: &[Vec<u8>], memory: NodeMask, cpus: NodeMask) -> Vec<Vec<usize>> {
    let between = |from: NodeId, to: NodeId| distance[from.index()][to.index()];
    let map = NodeMap { memory, cpus, distance: between };
    let mut load = NodeLoad::new();
    let nodes = (0..distance.len()).filter_map(NodeId::new);
    nodes.map(|node| map.fallback_order(node, &mut load).nodes().iter().map(|n| n.index()).collect()).collect()
}

#[test]
fn fallback_orders_of_linux() {
    for machine in MACHINES {
        let numa = Numa::load(machine);
        let memory = mask(numa.distance.iter().map(|_| true));
        let cpus = mask(numa.cpus.iter().map(|count| *count > 0));
        let log = read(machine, "dmesg");
        let lines = log.lines().filter_map(|line| line.strip_prefix("Fallback order for Node "));
        let want: Vec<Vec<u64>> = lines.map(|line| numbers(line)[1..].to_vec()).collect();
        let got = fallback_orders(&numa.distance, memory, cpus);
        let got: Vec<Vec<u64>> = got.iter().map(|order| order.iter().map(|node| *node as u64).collect()).collect();
        assert_eq!(got, want, "{machine}");
    }
}

/// Cases worked out by hand from `find_next_best_node`.
mod by_hand {
    use super::*;

    fn orders(distance: &[&[u8]], memory: u64, cpus: u64) -> Vec<Vec<usize>> {
        let distance: Vec<_> = distance.iter().map(|row| row.to_vec()).collect();
        fallback_orders(&distance, NodeMask(memory), NodeMask(cpus))
    }

    #[test]
    fn equal_distances_go_round() {
        // "Next node" penalty: from node 1 on, higher numbers come first, and the first of each list differs.
        let flat: [&[u8]; 4] = [&[10, 20, 20, 20], &[20, 10, 20, 20], &[20, 20, 10, 20], &[20, 20, 20, 10]];
        let want = [vec![0, 1, 2, 3], vec![1, 2, 3, 0], vec![2, 3, 0, 1], vec![3, 0, 1, 2]];
        assert_eq!(orders(&flat, 0b1111, 0b1111), want);
    }

    #[test]
    fn a_node_without_cpus_is_preferred() {
        let flat: [&[u8]; 3] = [&[10, 20, 20], &[20, 10, 20], &[20, 20, 10]];
        // Node 2 has no CPU: it wins among equals. For node 2 itself both others have CPUs and lower numbers.
        assert_eq!(orders(&flat, 0b111, 0b011), [vec![0, 2, 1], vec![1, 2, 0], vec![2, 0, 1]]);
    }

    #[test]
    fn nearer_wins_over_penalties() {
        let rows: [&[u8]; 3] = [&[10, 30, 25], &[30, 10, 21], &[25, 21, 10]];
        assert_eq!(orders(&rows, 0b111, 0b111), [vec![0, 2, 1], vec![1, 2, 0], vec![2, 1, 0]]);
    }

    #[test]
    fn a_node_without_memory_heads_its_own_list_only() {
        let rows: [&[u8]; 3] = [&[10, 20, 30], &[20, 10, 20], &[30, 20, 10]];
        assert_eq!(orders(&rows, 0b101, 0b111), [vec![0, 2], vec![1, 2, 0], vec![2, 0]]);
    }

    #[test]
    fn distances_may_be_asymmetric() {
        let rows: [&[u8]; 3] = [&[10, 40, 20], &[20, 10, 40], &[40, 20, 10]];
        assert_eq!(orders(&rows, 0b111, 0b111), [vec![0, 2, 1], vec![1, 0, 2], vec![2, 1, 0]]);
    }
}

/// The rule in other words: nearest first, where a lower number than one's own and having CPUs count as one step
/// further; among equals the one that was least often first of its distance, then the lower number.
fn model(distance: &[Vec<u8>], memory: &[bool], cpus: &[bool]) -> Vec<Vec<usize>> {
    let mut firsts = vec![0; distance.len()];
    let mut orders = Vec::new();
    for (own, row) in distance.iter().enumerate() {
        let mut order = vec![own];
        let mut left: Vec<usize> = (0..row.len()).filter(|node| memory[*node] && *node != own).collect();
        while !left.is_empty() {
            left.sort_by_key(|&n| (u32::from(row[n]) + u32::from(n < own) + u32::from(cpus[n]), firsts[n], n));
            let next = left.remove(0);
            if row[next] != row[order[order.len() - 1]] {
                firsts[next] += 1;
            }
            order.push(next);
        }
        orders.push(order);
    }
    orders
}

fn machines() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<bool>, Vec<bool>)> {
    use proptest::collection::vec;
    // Few different distances, so that groups of equals are large; up to as many nodes as there can be.
    prop_oneof![12 => 1..9_usize, 1 => 60..65_usize].prop_flat_map(|nodes| {
        let remote = prop_oneof![Just(11_u8), Just(12), Just(20), Just(21), Just(22), Just(255)];
        let square = vec(vec(remote, nodes), nodes).prop_map(|mut rows| {
            rows.iter_mut().enumerate().for_each(|(node, row)| row[node] = 10);
            rows
        });
        (square, vec(proptest::bool::weighted(0.8), nodes), vec(proptest::bool::weighted(0.7), nodes))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fallback_orders_of_any_machine((distance, memory, cpus) in machines()) {
        let got = fallback_orders(&distance, mask(memory.iter().copied()), mask(cpus.iter().copied()));
        prop_assert_eq!(got, model(&distance, &memory, &cpus));
    }
}
