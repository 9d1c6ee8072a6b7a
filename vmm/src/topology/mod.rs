//! A machine as its user means it: nodes with memory and CPUs, and the distances between them.
//!
//! A [`Topology`] comes from a file, from flags, or from [`Topology::default`]; [`crate::config`] has the vocabulary.
//! It says how much memory a node has and, where the user cares, in which zone or at which address; where that is
//! in the guest-physical address space follows from [`crate::layout::Layout::place`].

mod check;
mod cost;
mod fault;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::Size;

pub(crate) use check::check_node_count;
pub use cost::{
    LOCAL_BANDWIDTH_MBPS, LOCAL_LATENCY_NS, MAX_BANDWIDTH_MBPS, MAX_LATENCY_NS, PairKind, modelled_bandwidth,
    modelled_latency,
};
pub use fault::{Fault, Subject, TopologyError};

/// Distance of a node to itself (`LOCAL_DISTANCE`).
pub const LOCAL_DISTANCE: u8 = 10;
/// Distance between nodes when nothing is said about any (`REMOTE_DISTANCE`).
pub const REMOTE_DISTANCE: u8 = 20;
/// Most memory in a node.
pub const MAX_NODE_MEMORY: u64 = 1 << 40;

/// A part of the guest-physical address space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct AddrRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl AddrRange {
    /// The range from `start` up to, not including, `end`; empty when `end` is not above `start`.
    pub const fn between(start: u64, end: u64) -> Self {
        Self { start, size: end.saturating_sub(start) }
    }

    /// First address above the range.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }

    /// Whether the two have an address in common.
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.size > 0 && other.size > 0 && self.start < other.end() && other.start < self.end()
    }

    /// Whether all of `other` is inside.
    pub const fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end() <= self.end()
    }
}

/// `START-END` with the unit that fits, END being the first address above.
impl fmt::Display for AddrRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", Size(self.start), Size(self.end()))
    }
}

/// Bytes of a node by the zone they are to be in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ZoneAmounts {
    /// Below 16 MiB. Counts addresses: the 384 KiB at 640 KiB that a PC leaves to devices are inside the amount of
    /// the node that has them, and are not RAM.
    pub dma: u64,
    /// From 16 MiB to the device hole at 3 GiB.
    pub dma32: u64,
    /// From 4 GiB.
    pub normal: u64,
}

/// A node's memory, in one of the forms in which it can be given.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// None.
    #[default]
    None,
    /// So many bytes, behind those of the nodes before it, around the device hole, as in a PC.
    Plain(u64),
    /// So many bytes in each zone.
    Zones(ZoneAmounts),
    /// At these addresses.
    Ranges(Vec<AddrRange>),
}

impl Memory {
    /// The amounts in it, each with the key it is given by and its number among equal keys.
    pub(crate) fn amounts(&self) -> Vec<(MemoryKey, usize, u64)> {
        match self {
            Self::None => Vec::new(),
            Self::Plain(bytes) => vec![(MemoryKey::Mem, 0, *bytes)],
            Self::Zones(zones) => MemoryKey::ZONES
                .into_iter()
                .map(|key| (key, 0, zones.get(key)))
                .filter(|&(_, _, bytes)| bytes != 0)
                .collect(),
            Self::Ranges(ranges) => {
                ranges.iter().enumerate().map(|(index, range)| (MemoryKey::Range, index, range.size)).collect()
            }
        }
    }

    /// Bytes in all, the [legacy hole](crate::layout::LEGACY_HOLE) not taken off.
    pub fn bytes(&self) -> u64 {
        self.amounts().iter().fold(0, |sum, &(_, _, bytes)| sum.saturating_add(bytes))
    }
}

impl ZoneAmounts {
    /// The amount that `key` names; 0 for a key that names no zone.
    pub(crate) fn get(&self, key: MemoryKey) -> u64 {
        match key {
            MemoryKey::Dma => self.dma,
            MemoryKey::Dma32 => self.dma32,
            MemoryKey::Normal => self.normal,
            MemoryKey::Mem | MemoryKey::Range => 0,
        }
    }
}

/// The word by which an amount of memory is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryKey {
    /// `mem`
    Mem,
    /// `dma`
    Dma,
    /// `dma32`
    Dma32,
    /// `normal`
    Normal,
    /// `range`
    Range,
}

impl MemoryKey {
    /// The keys that name a zone, lowest first.
    pub const ZONES: [Self; 3] = [Self::Dma, Self::Dma32, Self::Normal];

    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mem => "mem",
            Self::Dma => "dma",
            Self::Dma32 => "dma32",
            Self::Normal => "normal",
            Self::Range => "range",
        }
    }
}

/// A NUMA node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its memory.
    #[serde(default)]
    pub memory: Memory,
    /// Numbers of its CPUs, ascending. A CPU's number is its APIC id.
    #[serde(default)]
    pub cpus: Vec<u32>,
}

/// A machine that can be built: [`Topology::validate`] has passed wherever this crate hands one out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Topology {
    /// The nodes; a node's id (and its ACPI proximity domain) is its place here.
    pub nodes: Vec<Node>,
    /// Distance by row (from), then column (to), as SLIT and `node_distance` have it. Need not be symmetric.
    pub distances: Vec<Vec<u8>>,
    /// Nanoseconds that an access takes, by node of the CPU, then of the memory, if the machine says so in its HMAT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latencies: Option<Vec<Vec<u32>>>,
    /// MB/s (10^6 bytes) that accesses reach, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidths: Option<Vec<Vec<u32>>>,
}

/// A topology from elsewhere, such as a runtime manifest, before it has been checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    nodes: Vec<Node>,
    distances: Vec<Vec<u8>>,
    #[serde(default)]
    latencies: Option<Vec<Vec<u32>>>,
    #[serde(default)]
    bandwidths: Option<Vec<Vec<u32>>>,
}

impl TryFrom<Unchecked> for Topology {
    type Error = TopologyError;

    fn try_from(raw: Unchecked) -> Result<Self, TopologyError> {
        Self::new(raw.nodes, raw.distances)?.with_costs(raw.latencies, raw.bandwidths)
    }
}

/// Two nodes with a CPU each, 256 MiB each, all three zones present.
impl Default for Topology {
    fn default() -> Self {
        let mib = |dma: u64, dma32: u64, normal: u64| {
            Memory::Zones(ZoneAmounts { dma: dma << 20, dma32: dma32 << 20, normal: normal << 20 })
        };
        let nodes =
            vec![Node { memory: mib(16, 112, 128), cpus: vec![0] }, Node { memory: mib(0, 0, 256), cpus: vec![1] }];
        Self { nodes, distances: uniform_distances(2), latencies: None, bandwidths: None }
    }
}

/// The matrix of a machine about whose distances nothing is said: 10 to itself, 20 to any other.
pub fn uniform_distances(nodes: usize) -> Vec<Vec<u8>> {
    (0..nodes)
        .map(|from| (0..nodes).map(|to| if from == to { LOCAL_DISTANCE } else { REMOTE_DISTANCE }).collect())
        .collect()
}

impl Topology {
    /// A checked topology.
    pub fn new(nodes: Vec<Node>, distances: Vec<Vec<u8>>) -> Result<Self, TopologyError> {
        let topology = Self { nodes, distances, latencies: None, bandwidths: None };
        topology.validate()?;
        Ok(topology)
    }

    /// The same machine with these latencies and bandwidths, checked.
    pub fn with_costs(
        self,
        latencies: Option<Vec<Vec<u32>>>,
        bandwidths: Option<Vec<Vec<u32>>>,
    ) -> Result<Self, TopologyError> {
        let topology = Self { latencies, bandwidths, ..self };
        topology.validate()?;
        Ok(topology)
    }

    /// Number of nodes.
    pub fn nr_nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Number of CPUs.
    pub fn nr_cpus(&self) -> usize {
        self.nodes.iter().map(|node| node.cpus.len()).sum()
    }

    /// The node that `cpu` is in.
    pub fn node_of_cpu(&self, cpu: u32) -> Option<usize> {
        self.nodes.iter().position(|node| node.cpus.contains(&cpu))
    }
}
