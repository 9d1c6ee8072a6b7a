//! What can be wrong with a topology, and what it is about.

use std::fmt;

use pagevisor_shared::{MAX_NUMNODES, NR_CPUS};

use super::{AddrRange, LOCAL_DISTANCE, MAX_BANDWIDTH_MBPS, MAX_LATENCY_NS, MAX_NODE_MEMORY, MemoryKey, PairKind};
use crate::config::Size;
use crate::layout::{DEVICE_HOLE, LEGACY_HOLE, MAX_MAP_ENTRIES, MAX_RAM_RANGES, PHYS_END};

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
    /// A figure between two nodes.
    Pair {
        /// Which figure.
        kind: PairKind,
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
            Self::Pair { kind, from, to } => write!(f, "{} {from}:{to}", kind.name()),
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
    #[error("{0} is not a multiple of a page, 4K")]
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
    /// More pieces of RAM than the tables hold.
    #[error("its memory is in {0} pieces, more than the {MAX_RAM_RANGES} possible")]
    TooManyPieces(usize),
    /// A longer memory map than there is room for.
    #[error("its memory map has {0} entries, more than the {MAX_MAP_ENTRIES} possible")]
    TooManyMapEntries(usize),
    /// Some distances are given, this one is not.
    #[error("it is missing; where one distance is given, all must be")]
    DistanceMissing,
    /// A matrix of latencies or bandwidths with a gap in it.
    #[error("it is missing; a matrix must be complete")]
    EntryMissing,
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
    /// A latency no table can hold.
    #[error("{0} is not a latency: that is 1 to {MAX_LATENCY_NS} ns")]
    LatencyOutOfRange(i64),
    /// A bandwidth no machine has.
    #[error("{0} is not a bandwidth: that is 1 to {MAX_BANDWIDTH_MBPS} MB/s")]
    BandwidthOutOfRange(i64),
}

impl Fault {
    /// The fault as an error about `subject`.
    pub fn about(self, subject: Subject) -> TopologyError {
        TopologyError { subject, fault: self }
    }
}
