//! A machine as its user means it: nodes with memory and CPUs, and the distances between them.
//!
//! A [`Topology`] comes from a file, from flags, or from [`Topology::default`]; [`crate::config`] has the vocabulary.
//! It says how much memory a node has and, where the user cares, in which zone or at which address; where that is
//! in the guest-physical address space follows from [`crate::layout::Layout::place`].

use std::fmt;

use pagevisor_shared::{MAX_NUMNODES, NR_CPUS, units::PAGE_SIZE};
use serde::{Deserialize, Serialize};

use crate::config::Size;
use crate::layout::{DEVICE_HOLE, LEGACY_HOLE, Layout, PHYS_END};

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

    /// Bytes in all, the [`LEGACY_HOLE`] not taken off.
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
}

/// A topology from elsewhere, such as a runtime manifest, before it has been checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    nodes: Vec<Node>,
    distances: Vec<Vec<u8>>,
}

impl TryFrom<Unchecked> for Topology {
    type Error = TopologyError;

    fn try_from(raw: Unchecked) -> Result<Self, TopologyError> {
        Self::new(raw.nodes, raw.distances)
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
        Self { nodes, distances: uniform_distances(2) }
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
        let topology = Self { nodes, distances };
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

    /// Checks that the machine can be built and booted. The first thing that is wrong is reported, with what it
    /// is about, so that [`crate::config`] can say where the user wrote it.
    pub fn validate(&self) -> Result<(), TopologyError> {
        if self.nodes.is_empty() {
            return Err(Fault::NoNodes.about(Subject::Machine));
        }
        if self.nodes.len() > MAX_NUMNODES {
            return Err(Fault::TooManyNodes(self.nodes.len()).about(Subject::Node(MAX_NUMNODES)));
        }
        for (id, node) in self.nodes.iter().enumerate() {
            check_memory(id, &node.memory)?;
        }
        self.check_cpus()?;
        for (id, node) in self.nodes.iter().enumerate() {
            if node.cpus.is_empty() && node.memory.bytes() == 0 {
                return Err(Fault::EmptyNode.about(Subject::Node(id)));
            }
        }
        self.check_distances()?;
        Layout::place(self).map(|_| ())
    }

    fn check_cpus(&self) -> Result<(), TopologyError> {
        let mut owner: [Option<usize>; NR_CPUS] = [None; NR_CPUS];
        let mut total = 0;
        for (id, node) in self.nodes.iter().enumerate() {
            total += node.cpus.len();
            if total > NR_CPUS {
                return Err(Fault::TooManyCpus(self.nr_cpus()).about(Subject::Cpus(id)));
            }
            for &cpu in &node.cpus {
                let Some(slot) = owner.get_mut(cpu as usize) else {
                    return Err(Fault::CpuNumber(cpu).about(Subject::Cpus(id)));
                };
                if let Some(first) = slot.replace(id) {
                    return Err(Fault::CpuTwice { cpu, first }.about(Subject::Cpus(id)));
                }
            }
            if !node.cpus.is_sorted() {
                return Err(Fault::CpusUnsorted.about(Subject::Cpus(id)));
            }
        }
        let Some((highest, Some(id))) = owner.iter().enumerate().rev().find(|(_, id)| id.is_some()) else {
            return Err(Fault::NoCpus.about(Subject::Machine));
        };
        match owner.iter().take(highest).position(Option::is_none) {
            Some(missing) => Err(Fault::CpuGap { missing, highest }.about(Subject::Cpus(*id))),
            None => Ok(()),
        }
    }

    fn check_distances(&self) -> Result<(), TopologyError> {
        let nodes = self.nodes.len();
        for from in 0..nodes.max(self.distances.len()) {
            let row = self.distances.get(from).map_or(&[][..], Vec::as_slice);
            for to in 0..nodes.max(row.len()) {
                let subject = Subject::Distance { from, to };
                let fault = match row.get(to) {
                    None => Fault::DistanceMissing,
                    Some(_) if from >= nodes || to >= nodes => Fault::NoSuchNode { id: from.max(to), nodes },
                    Some(&distance) => match check_distance(from, to, distance.into()) {
                        Ok(_) => continue,
                        Err(fault) => fault,
                    },
                };
                return Err(fault.about(subject));
            }
        }
        Ok(())
    }
}

/// Checks one distance.
///
/// Linux refuses a table in which another node is as near as the node itself (`slit_valid`), and would then go on
/// with 10 and 20; so does this.
pub(crate) fn check_distance(from: usize, to: usize, distance: i64) -> Result<u8, Fault> {
    match u8::try_from(distance) {
        Ok(LOCAL_DISTANCE) if from == to => Ok(LOCAL_DISTANCE),
        _ if from == to => Err(Fault::DistanceLocal(distance)),
        Ok(fine) if fine > LOCAL_DISTANCE => Ok(fine),
        _ => Err(Fault::DistanceOutOfRange(distance)),
    }
}

fn check_memory(node: usize, memory: &Memory) -> Result<(), TopologyError> {
    for (key, index, bytes) in memory.amounts() {
        let fault = if bytes == 0 {
            Fault::ZeroSize
        } else if bytes % PAGE_SIZE != 0 {
            Fault::Unaligned(bytes)
        } else if bytes > MAX_NODE_MEMORY {
            Fault::NodeTooLarge(bytes)
        } else {
            continue;
        };
        return Err(fault.about(Subject::Memory { node, key, index }));
    }
    if let Memory::Ranges(ranges) = memory {
        for (index, range) in ranges.iter().enumerate() {
            let fault = if range.start % PAGE_SIZE != 0 {
                Fault::Unaligned(range.start)
            } else if range.end() > PHYS_END {
                Fault::BeyondEnd(*range)
            } else if range.overlaps(&DEVICE_HOLE) {
                Fault::InDeviceHole(*range)
            } else {
                continue;
            };
            return Err(fault.about(Subject::Memory { node, key: MemoryKey::Range, index }));
        }
    }
    match memory.amounts().last() {
        Some(&(key, index, _)) if memory.bytes() > MAX_NODE_MEMORY => {
            Err(Fault::NodeTooLarge(memory.bytes()).about(Subject::Memory { node, key, index }))
        }
        _ => Ok(()),
    }
}

/// What an error is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Subject {
    /// The machine as a whole.
    Machine,
    /// A node.
    Node(usize),
    /// An amount of memory of a node.
    Memory {
        /// The node.
        node: usize,
        /// The key it is given by.
        key: MemoryKey,
        /// Which of the node's ranges, for [`MemoryKey::Range`]; otherwise 0.
        index: usize,
    },
    /// The CPUs of a node.
    Cpus(usize),
    /// A distance.
    Distance {
        /// Row.
        from: usize,
        /// Column.
        to: usize,
    },
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => write!(f, "machine"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::Memory { node, key, .. } => write!(f, "node {node}, {}", key.name()),
            Self::Cpus(node) => write!(f, "node {node}, cpus"),
            Self::Distance { from, to } => write!(f, "distance {from}:{to}"),
        }
    }
}

/// A topology that cannot be built, and why.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{subject}: {fault}")]
pub struct TopologyError {
    /// What it is about.
    pub subject: Subject,
    /// What is wrong.
    pub fault: Fault,
}

/// What can be wrong with a topology.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// No node at all.
    #[error("it has no nodes")]
    NoNodes,
    /// More nodes than the guest can number.
    #[error("{0} nodes are more than the {MAX_NUMNODES} possible")]
    TooManyNodes(usize),
    /// A node nobody could see.
    #[error("it has neither memory nor CPUs")]
    EmptyNode,
    /// No CPU at all.
    #[error("no node has a CPU")]
    NoCpus,
    /// More CPUs than the guest can number.
    #[error("{0} CPUs in all are more than the {NR_CPUS} possible")]
    TooManyCpus(usize),
    /// A CPU number that cannot be.
    #[error("there is no CPU {0}: numbers go from 0 to {max}", max = NR_CPUS - 1)]
    CpuNumber(u32),
    /// The same CPU in two nodes, or twice in one.
    #[error("CPU {cpu} is already in node {first}")]
    CpuTwice {
        /// The CPU.
        cpu: u32,
        /// The node that has it.
        first: usize,
    },
    /// CPU numbers out of order.
    #[error("the CPU numbers are not in ascending order")]
    CpusUnsorted,
    /// A number is left out.
    #[error("there is a CPU {highest} but no CPU {missing}: numbers start at 0 and leave no gap")]
    CpuGap {
        /// The first number left out.
        missing: usize,
        /// The highest number given.
        highest: usize,
    },
    /// An amount of nothing.
    #[error("the size is zero; leave the key out where there is no memory")]
    ZeroSize,
    /// Memory comes in pages.
    #[error("{0} bytes is not a multiple of a page, 4K")]
    Unaligned(u64),
    /// More memory than a node may have.
    #[error("{size} in one node is more than the {max} possible", size = Size(*.0), max = Size(MAX_NODE_MEMORY))]
    NodeTooLarge(u64),
    /// More memory than a zone can hold.
    #[error("{} does not fit into zone {zone}: {} of its {} is left", Size(*asked), Size(*left), Size(*capacity))]
    ZoneFull {
        /// Linux's name of the zone.
        zone: &'static str,
        /// Bytes wanted.
        asked: u64,
        /// Bytes free.
        left: u64,
        /// Bytes the zone can have in all.
        capacity: u64,
    },
    /// More memory than the address space can hold.
    #[error("{} does not fit: {} is left below {}", Size(*asked), Size(*left), Size(PHYS_END))]
    SpaceFull {
        /// Bytes wanted.
        asked: u64,
        /// Bytes free.
        left: u64,
    },
    /// A range above the end of the address space.
    #[error("{0} ends above {end}, where the address space ends", end = Size(PHYS_END))]
    BeyondEnd(AddrRange),
    /// A range where devices are.
    #[error("{0} reaches into {DEVICE_HOLE}, where the devices are")]
    InDeviceHole(AddrRange),
    /// A range or amount of which no RAM remains.
    #[error("{0} lies in {LEGACY_HOLE}, where a PC has no RAM")]
    InLegacyHole(AddrRange),
    /// Two ranges with an address in common.
    #[error("{range} overlaps {other} of node {node}")]
    Overlap {
        /// The later one.
        range: AddrRange,
        /// The earlier one.
        other: AddrRange,
        /// The node of the earlier one.
        node: usize,
    },
    /// Nowhere to put the kernel.
    #[error("no boot memory below 4 GiB: the kernel needs RAM at {0}")]
    NoBootMemory(AddrRange),
    /// More ranges than the tables hold.
    #[error("its memory is in {count} pieces, more than the {max} possible")]
    TooManyPieces {
        /// Pieces.
        count: usize,
        /// Most.
        max: usize,
    },
    /// Some distances are given, this one is not.
    #[error("it is missing; where one distance is given, all must be")]
    DistanceMissing,
    /// A node that is not there.
    #[error("there is no node {id}: the machine has {nodes}")]
    NoSuchNode {
        /// The node named.
        id: usize,
        /// Nodes there are.
        nodes: usize,
    },
    /// A node is at distance 10 of itself.
    #[error("{0} is not a node's distance to itself, which is always {LOCAL_DISTANCE}")]
    DistanceLocal(i64),
    /// A distance no table can hold or no kernel accepts.
    #[error("{0} is not a distance to another node: that is {min} to 255", min = LOCAL_DISTANCE + 1)]
    DistanceOutOfRange(i64),
}

impl Fault {
    /// The fault as an error about `subject`.
    pub fn about(self, subject: Subject) -> TopologyError {
        TopologyError { subject, fault: self }
    }
}
