//! The order in which allocations try nodes and zones, worked out anew from the distances (`build_all_zonelists`).

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::MAX_NUMNODES;
use pagevisor_shared::region::records::{MAX_ZONELISTS, NodeState, ZONELIST_NOFALLBACK};
use pagevisor_shared::units::NodeMask;
use pagevisor_shared::units::{CpuId, NodeId};
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneIndex, ZoneRef, ZoneType};

use super::Verifier;
use super::report::Place;
use super::rule::Rule;

/// `MAX_NUMNODES` of the kernel that is followed: what a node's load is scaled against.
const LINUX_MAX_NUMNODES: u64 = 1024;
/// `LOCAL_DISTANCE`
const LOCAL_DISTANCE: u64 = 10;

impl Verifier<'_> {
    /// Checks distances, fallback orders and zonelists.
    pub(super) fn check_order(&mut self) {
        self.check_distances();
        let memory = self.nodes_with_memory();
        let mut load = [0u64; MAX_NUMNODES];
        for (index, record) in self.region.nodes().iter().enumerate() {
            let Some(node) = NodeId::new(index) else { continue };
            let order = self.fallback_order(node, memory, &mut load);
            let told: Vec<usize> = record.fallback_order.iter().map(|slot| slot.load(Relaxed).into()).collect();
            let count = record.nr_fallback.load(Relaxed) as usize;
            let expected: Vec<usize> = order.iter().map(|node| node.index()).collect();
            if told.get(..count) != Some(&expected) {
                let told = told.get(..count.min(MAX_NUMNODES)).unwrap_or(&[]);
                let evidence = format_args!("the fallback order is {told:?}, not {expected:?}");
                self.findings.add(Rule::NodeFallbackOrder, Place::Node(index), evidence);
            }
            for list in 0..MAX_ZONELISTS {
                let members = if list == ZONELIST_NOFALLBACK { vec![node] } else { order.clone() };
                self.check_zonelist(node, record, list, &members);
            }
            self.check_mem_nodes(node, &order);
        }
    }

    fn check_distances(&mut self) {
        let nodes = self.region.nr_nodes();
        for index in 0..nodes * nodes {
            let (from, to) = (index / nodes, index % nodes);
            let distance = self.distance(from, to);
            if (from == to) != (distance == LOCAL_DISTANCE) || distance < LOCAL_DISTANCE {
                let evidence = format_args!("the distance to node {to} is {distance}");
                self.findings.add(Rule::NodeDistance, Place::Node(from), evidence);
            }
        }
    }

    fn distance(&self, from: usize, to: usize) -> u64 {
        let slot = self.region.distances().get(from * self.region.nr_nodes() + to);
        slot.map_or(u64::from(u8::MAX), |slot| slot.load(Relaxed).into())
    }

    fn nodes_with_memory(&self) -> NodeMask {
        let nodes = self.memory.parts.iter().filter_map(|part| NodeId::new(part.zone.index() / MAX_NR_ZONES));
        nodes.fold(NodeMask::default(), NodeMask::with)
    }

    fn has_cpus(&self, node: NodeId) -> bool {
        self.region.cpus().iter().any(|cpu| cpu.node.load(Relaxed) as usize == node.index())
    }

    /// `build_zonelists`: the node itself, then the nearest; among equals higher numbers first, nodes without CPUs first,
    /// those that came first less often first (`find_next_best_node`).
    fn fallback_order(&self, node: NodeId, memory: NodeMask, load: &mut [u64; MAX_NUMNODES]) -> Vec<NodeId> {
        let mut order = vec![node];
        let mut previous = node;
        loop {
            let rest = memory.iter().filter(|candidate| !order.contains(candidate));
            let value = |candidate: &NodeId| {
                let distance = self.distance(node.index(), candidate.index());
                let penalty = u64::from(*candidate < node) + u64::from(self.has_cpus(*candidate));
                (distance + penalty) * LINUX_MAX_NUMNODES + load.get(candidate.index()).copied().unwrap_or(0)
            };
            let Some(next) = rest.min_by_key(value) else { return order };
            // Not always the same one of a group of equal distance.
            if self.distance(node.index(), next.index()) != self.distance(node.index(), previous.index())
                && let Some(load) = load.get_mut(next.index())
            {
                *load += 1;
            }
            order.push(next);
            previous = next;
        }
    }

    /// The populated zones of `members`, highest first.
    fn zone_refs(&self, members: &[NodeId]) -> Vec<ZoneRef> {
        let zones = members.iter().flat_map(|node| ZoneType::ALL.into_iter().rev().map(|kind| (*node, kind)));
        let zones = zones.map(|(node, kind)| (ZoneIndex::of(node, kind), kind));
        let populated = zones.filter(|(zone, _)| self.memory.parts.iter().any(|part| part.zone == *zone));
        populated.map(|(zone, kind)| ZoneRef::new(zone, kind)).collect()
    }

    fn check_zonelist(&mut self, node: NodeId, record: &NodeState, list: usize, members: &[NodeId]) {
        let place = Place::Node(node.index());
        let mut expected = self.zone_refs(members);
        let len = expected.len();
        let starts: Vec<usize> = (0..MAX_NR_ZONES)
            .map(|kind| expected.iter().position(|entry| entry.zone_idx() <= kind).unwrap_or(len))
            .collect();
        expected.push(ZoneRef::END);
        let told = record.node_zonelists.get(list).map_or(&[][..], |list| list);
        for (position, (entry, expected)) in told.iter().zip(&expected).enumerate() {
            let entry = entry.load(Relaxed);
            if entry != expected.0 {
                let evidence = format_args!("entry {position} of zonelist {list} is {entry:#x}, not {:#x}", expected.0);
                self.findings.add(Rule::NodeZonelist, place, evidence);
            }
        }
        let told = record.first_zone.get(list).map_or(&[][..], |starts| starts);
        for (kind, (told, expected)) in told.iter().zip(starts).enumerate() {
            let told = usize::from(told.load(Relaxed));
            if told != expected {
                let evidence = format_args!("zonelist {list} starts at {told} for zone type {kind}, not {expected}");
                self.findings.add(Rule::NodeFirstZone, place, evidence);
            }
        }
    }

    /// `local_memory_node`: the first zone on the list that ordinary allocations can use.
    fn check_mem_nodes(&mut self, node: NodeId, order: &[NodeId]) {
        let refs = self.zone_refs(order);
        let first = refs.iter().find(|entry| entry.zone_idx() <= ZoneType::Normal.index());
        let zone = first.and_then(|entry| entry.zone());
        let expected = zone.map_or(node.index(), |zone| zone.index() / MAX_NR_ZONES);
        for (cpu, record) in self.region.cpus().iter().enumerate() {
            let told = record.mem_node.load(Relaxed) as usize;
            let mine = CpuId::new(cpu).is_some() && record.node.load(Relaxed) as usize == node.index();
            if mine && told != expected {
                let evidence = format_args!("allocations start from node {told}, not {expected}");
                self.findings.add(Rule::CpuMemNode, Place::Cpu(cpu), evidence);
            }
        }
    }
}
