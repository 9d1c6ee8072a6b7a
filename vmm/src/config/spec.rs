//! A machine as it was written, value by value with the place where each stands, and how it becomes a topology.

use std::collections::BTreeSet;

use pagevisor_shared::NR_CPUS;

use super::error::ConfigError;
use super::value::Cpus;
use crate::topology::{
    AddrRange, Fault, LOCAL_DISTANCE, Memory, MemoryKey, Node, PairKind, Subject, Topology, TopologyError, ZoneAmounts,
    check_node_count, modelled_bandwidth, modelled_latency, uniform_distances,
};

/// A machine as it was written.
#[derive(Debug, Default)]
pub(super) struct Spec {
    /// Where it stands: a file, a flag.
    pub origin: String,
    /// Its nodes.
    pub nodes: Vec<NodeSpec>,
    /// Its distances, latencies and bandwidths, each layer overriding those of its kind before it.
    pub layers: Vec<PairLayer>,
}

/// A node as it was written.
#[derive(Debug)]
pub(super) struct NodeSpec {
    id: usize,
    origin: String,
    amounts: Vec<Amount>,
    cpus: Option<(Cpus, String)>,
}

/// An amount of memory as it was written.
#[derive(Debug)]
struct Amount {
    key: MemoryKey,
    /// Where it is to be; only the size counts unless the key is [`MemoryKey::Range`].
    range: AddrRange,
    origin: String,
}

/// Distances (or latencies, or bandwidths) that were given together.
#[derive(Debug)]
pub(super) struct PairLayer {
    /// What they are.
    pub kind: PairKind,
    /// Where they stand.
    pub origin: String,
    /// Whether they are a matrix, which has to be complete in itself; of pairs, each one stands for both directions
    /// unless the other direction is given as well.
    pub matrix: bool,
    /// The figures.
    pub entries: Vec<PairSpec>,
}

/// A figure of a pair of nodes as it was written.
#[derive(Debug)]
pub(super) struct PairSpec {
    /// Row.
    pub from: usize,
    /// Column.
    pub to: usize,
    /// The value, unchecked.
    pub value: i64,
    /// Where it stands.
    pub origin: String,
}

impl NodeSpec {
    /// A node that is yet without anything.
    pub fn new(id: usize, origin: impl Into<String>) -> Self {
        Self { id, origin: origin.into(), amounts: Vec::new(), cpus: None }
    }

    /// What an error about `key` of this node is about.
    pub fn about(&self, key: &str) -> String {
        format!("{}, {key}", Subject::Node(self.id))
    }

    /// Adds an amount of memory.
    pub fn add_amount(&mut self, key: MemoryKey, range: AddrRange, origin: &str) -> Result<(), ConfigError> {
        let group = |key| MemoryKey::ZONES.contains(&key);
        if let Some(other) = self.amounts.iter().find(|amount| match (amount.key, key) {
            (MemoryKey::Range, MemoryKey::Range) => false,
            (old, new) => old == new || !(group(old) && group(new)),
        }) {
            let reason = if other.key == key {
                "it is given twice".to_owned()
            } else {
                format!("it cannot stand beside {}: memory is given as mem, by zone, or by range", other.key.name())
            };
            return Err(ConfigError::new(origin, self.about(key.name()), reason));
        }
        self.amounts.push(Amount { key, range, origin: origin.to_owned() });
        Ok(())
    }

    /// Sets the CPUs.
    pub fn set_cpus(&mut self, cpus: Cpus, origin: &str) -> Result<(), ConfigError> {
        match self.cpus.replace((cpus, origin.to_owned())) {
            None => Ok(()),
            Some(_) => Err(ConfigError::new(origin, self.about("cpus"), "it is given twice")),
        }
    }

    fn memory(&self) -> Memory {
        let size = |key| self.amounts.iter().find(|amount| amount.key == key).map_or(0, |amount| amount.range.size);
        match self.amounts.first().map(|amount| amount.key) {
            None => Memory::None,
            Some(MemoryKey::Mem) => Memory::Plain(size(MemoryKey::Mem)),
            Some(MemoryKey::Range) => Memory::Ranges(self.amounts.iter().map(|amount| amount.range).collect()),
            Some(MemoryKey::Dma | MemoryKey::Dma32 | MemoryKey::Normal) => Memory::Zones(ZoneAmounts {
                dma: size(MemoryKey::Dma),
                dma32: size(MemoryKey::Dma32),
                normal: size(MemoryKey::Normal),
            }),
        }
    }
}

impl Spec {
    /// The topology that is meant.
    pub fn topology(&self) -> Result<Topology, ConfigError> {
        self.resolve().map_err(|error| ConfigError::new(self.origin_of(error.subject), error.subject, error.fault))
    }

    fn resolve(&self) -> Result<Topology, TopologyError> {
        // First of all, since what follows makes a matrix of the nodes.
        check_node_count(self.nodes.len())?;
        let cpus = self.assign_cpus()?;
        let nodes = self.nodes.iter().zip(cpus).map(|(node, cpus)| Node { memory: node.memory(), cpus }).collect();
        let distances = self.distances(self.nodes.len())?;
        let latencies = self.costs(PairKind::Latency, &distances, modelled_latency)?;
        let bandwidths = self.costs(PairKind::Bandwidth, &distances, modelled_bandwidth)?;
        Topology::new(nodes, distances)?.with_costs(latencies, bandwidths)
    }

    /// The CPU numbers of each node. Nodes that give a count get the lowest numbers that no list has, in the order of
    /// their ids. If no node says anything about CPUs, each gets one.
    fn assign_cpus(&self) -> Result<Vec<Vec<u32>>, TopologyError> {
        let unsaid = if self.nodes.iter().any(|node| node.cpus.is_some()) { 0 } else { 1 };
        let count = |node: &NodeSpec| match &node.cpus {
            None => unsaid,
            Some((Cpus::Count(count), _)) => *count,
            Some((Cpus::List(list), _)) => list.len(),
        };
        let mut total = 0usize;
        for node in self.nodes.iter().filter(|node| node.cpus.is_some()) {
            total = total.saturating_add(count(node));
            if total > NR_CPUS {
                let all = self.nodes.iter().map(count).fold(0, usize::saturating_add);
                return Err(Fault::TooManyCpus(all).about(Subject::Cpus(node.id)));
            }
        }
        let listed: BTreeSet<u32> = self
            .nodes
            .iter()
            .filter_map(|node| match &node.cpus {
                Some((Cpus::List(list), _)) => Some(list),
                _ => None,
            })
            .flatten()
            .copied()
            .collect();
        let mut unlisted = (0..).filter(|cpu| !listed.contains(cpu));
        let assign = |node: &NodeSpec| match &node.cpus {
            Some((Cpus::List(list), _)) => list.clone(),
            _ => unlisted.by_ref().take(count(node)).collect(),
        };
        Ok(self.nodes.iter().map(assign).collect())
    }

    fn layers(&self, kind: PairKind) -> impl DoubleEndedIterator<Item = &PairLayer> {
        self.layers.iter().filter(move |layer| layer.kind == kind)
    }

    fn distances(&self, nodes: usize) -> Result<Vec<Vec<u8>>, TopologyError> {
        if self.layers(PairKind::Distance).next().is_none() {
            return Ok(uniform_distances(nodes));
        }
        let unsaid = |from, to| (from == to).then_some(LOCAL_DISTANCE.into());
        let matrix = self.matrix(PairKind::Distance, nodes, unsaid)?;
        // The check of each has let nothing pass that is larger.
        let narrow = |value: u32| u8::try_from(value).unwrap_or(u8::MAX);
        Ok(matrix.into_iter().map(|row| row.into_iter().map(narrow).collect()).collect())
    }

    /// Latencies or bandwidths, if any is given. Those that pairs leave open follow from the distances.
    fn costs(
        &self,
        kind: PairKind,
        distances: &[Vec<u8>],
        model: fn(u8) -> u32,
    ) -> Result<Option<Vec<Vec<u32>>>, TopologyError> {
        if self.layers(kind).next().is_none() {
            return Ok(None);
        }
        let unsaid = |from: usize, to: usize| distances.get(from)?.get(to).copied().map(model);
        self.matrix(kind, distances.len(), unsaid).map(Some)
    }

    /// The layers of `kind`, one over the other, over what `unsaid` gives; that counts only where all are pairs.
    fn matrix(
        &self,
        kind: PairKind,
        nodes: usize,
        unsaid: impl Fn(usize, usize) -> Option<u32>,
    ) -> Result<Vec<Vec<u32>>, TopologyError> {
        let mut matrix = vec![vec![None; nodes]; nodes];
        if !self.layers(kind).any(|layer| layer.matrix) {
            for (from, row) in matrix.iter_mut().enumerate() {
                for (to, entry) in row.iter_mut().enumerate() {
                    *entry = unsaid(from, to);
                }
            }
        }
        for layer in self.layers(kind) {
            layer.apply(&mut matrix)?;
        }
        let entry = |(from, to): (usize, usize), value: Option<u32>| {
            value.ok_or_else(|| kind.missing().about(Subject::Pair { kind, from, to }))
        };
        let row = |(from, row): (usize, Vec<Option<u32>>)| {
            row.into_iter().enumerate().map(|(to, value)| entry((from, to), value)).collect()
        };
        matrix.into_iter().enumerate().map(row).collect()
    }

    /// Where the user wrote what an error is about.
    fn origin_of(&self, subject: Subject) -> &str {
        let node_origin = |node: usize| self.nodes.get(node).map(|node| node.origin.as_str());
        let origin = match subject {
            Subject::Machine => None,
            Subject::Node(node) => node_origin(node),
            Subject::Memory { node, key, index } => self
                .nodes
                .get(node)
                .and_then(|node| node.amounts.iter().filter(|amount| amount.key == key).nth(index))
                .map(|amount| amount.origin.as_str()),
            Subject::Cpus(node) => self
                .nodes
                .get(node)
                .and_then(|node| node.cpus.as_ref())
                .map(|(_, origin)| origin.as_str())
                .or_else(|| node_origin(node)),
            Subject::Pair { kind, from, to } => self.pair_origin(kind, from, to),
        };
        origin.unwrap_or(&self.origin)
    }

    /// Where the figure stands, or where it would have to.
    fn pair_origin(&self, kind: PairKind, from: usize, to: usize) -> Option<&str> {
        let entries = || self.layers(kind).flat_map(|layer| &layer.entries).rev();
        let exact = entries().find(|entry| (entry.from, entry.to) == (from, to));
        let matrix = || self.layers(kind).find(|layer| layer.matrix).map(|layer| layer.origin.as_str());
        let row = || entries().find(|entry| entry.from == from).map(|entry| entry.origin.as_str());
        let any = || self.layers(kind).next_back().map(|layer| layer.origin.as_str());
        exact.map(|entry| entry.origin.as_str()).or_else(row).or_else(matrix).or_else(any)
    }
}

impl PairLayer {
    /// Writes the layer over what is in `matrix`.
    fn apply(&self, matrix: &mut [Vec<Option<u32>>]) -> Result<(), TopologyError> {
        let nodes = matrix.len();
        let given: BTreeSet<_> = self.entries.iter().map(|entry| (entry.from, entry.to)).collect();
        for &PairSpec { from, to, value, .. } in &self.entries {
            let checked = match from.max(to) {
                id if id >= nodes => Err(Fault::NoSuchNode { id, nodes }),
                _ => self.kind.check(from, to, value),
            };
            let value = checked.map_err(|fault| fault.about(Subject::Pair { kind: self.kind, from, to }))?;
            matrix[from][to] = Some(value);
            if !self.matrix && !given.contains(&(to, from)) {
                matrix[to][from] = Some(value);
            }
        }
        Ok(())
    }
}
