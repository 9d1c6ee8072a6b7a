//! What makes a topology one that can be built and booted.

use pagevisor_shared::{MAX_NUMNODES, NR_CPUS, units::PAGE_SIZE};

use super::{
    Fault, LOCAL_DISTANCE, MAX_BANDWIDTH_MBPS, MAX_LATENCY_NS, MAX_NODE_MEMORY, Memory, MemoryKey, PairKind, Subject,
    Topology, TopologyError,
};
use crate::layout::{DEVICE_HOLE, Layout, PHYS_END};

impl Topology {
    /// Checks that the machine can be built and booted. The first thing that is wrong is reported, with what it
    /// is about, so that [`crate::config`] can say where the user wrote it.
    pub fn validate(&self) -> Result<(), TopologyError> {
        check_node_count(self.nodes.len())?;
        for (id, node) in self.nodes.iter().enumerate() {
            check_memory(id, &node.memory)?;
        }
        self.check_cpus()?;
        for (id, node) in self.nodes.iter().enumerate() {
            if node.cpus.is_empty() && node.memory.bytes() == 0 {
                return Err(Fault::EmptyNode.about(Subject::Node(id)));
            }
        }
        self.check_pairs(PairKind::Distance, &self.distances)?;
        if let Some(latencies) = &self.latencies {
            self.check_pairs(PairKind::Latency, latencies)?;
        }
        if let Some(bandwidths) = &self.bandwidths {
            self.check_pairs(PairKind::Bandwidth, bandwidths)?;
        }
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

    fn check_pairs<T: Copy + Into<i64>>(&self, kind: PairKind, matrix: &[Vec<T>]) -> Result<(), TopologyError> {
        let nodes = self.nodes.len();
        for from in 0..nodes.max(matrix.len()) {
            let row = matrix.get(from).map_or(&[][..], Vec::as_slice);
            for to in 0..nodes.max(row.len()) {
                let subject = Subject::Pair { kind, from, to };
                let fault = match row.get(to) {
                    None => kind.missing(),
                    Some(_) if from >= nodes || to >= nodes => Fault::NoSuchNode { id: from.max(to), nodes },
                    Some(&value) => match kind.check(from, to, value.into()) {
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

/// Checks how many nodes there are.
pub(crate) fn check_node_count(nodes: usize) -> Result<(), TopologyError> {
    match nodes {
        0 => Err(Fault::NoNodes.about(Subject::Machine)),
        1..=MAX_NUMNODES => Ok(()),
        _ => Err(Fault::TooManyNodes(nodes).about(Subject::Node(MAX_NUMNODES))),
    }
}

impl PairKind {
    /// Checks one figure.
    ///
    /// Linux refuses a table in which another node is as near as the node itself (`slit_valid`), and would then go on
    /// with 10 and 20; so does this. A remote latency may be below the local one: memory next to another node's CPUs
    /// may be of a faster kind.
    pub(crate) fn check(self, from: usize, to: usize, value: i64) -> Result<u32, Fault> {
        let within = |max: u32| u32::try_from(value).ok().filter(|value| (1..=max).contains(value));
        let local = i64::from(LOCAL_DISTANCE);
        match self {
            Self::Distance if from == to && value != local => Err(Fault::DistanceLocal(value)),
            Self::Distance if from != to && value <= local => Err(Fault::DistanceOutOfRange(value)),
            Self::Distance => within(u8::MAX.into()).ok_or(Fault::DistanceOutOfRange(value)),
            Self::Latency => within(MAX_LATENCY_NS).ok_or(Fault::LatencyOutOfRange(value)),
            Self::Bandwidth => within(MAX_BANDWIDTH_MBPS).ok_or(Fault::BandwidthOutOfRange(value)),
        }
    }

    /// What is wrong where there is no figure.
    pub(crate) const fn missing(self) -> Fault {
        match self {
            Self::Distance => Fault::DistanceMissing,
            Self::Latency | Self::Bandwidth => Fault::EntryMissing,
        }
    }
}

fn check_memory(node: usize, memory: &Memory) -> Result<(), TopologyError> {
    for (key, index, bytes) in memory.amounts() {
        let fault = if bytes == 0 {
            Fault::ZeroSize
        } else if bytes % PAGE_SIZE != 0 && key != MemoryKey::Range {
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
            let fault = if let Some(odd) = [range.start, range.end()].into_iter().find(|at| at % PAGE_SIZE != 0) {
                Fault::Unaligned(odd)
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
