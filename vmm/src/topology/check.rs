//! What makes a topology one that can be built and booted.

use pagevisor_shared::{MAX_NUMNODES, NR_CPUS, units::PAGE_SIZE};

use super::{Fault, LOCAL_DISTANCE, MAX_NODE_MEMORY, Memory, MemoryKey, Subject, Topology, TopologyError};
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

/// Checks how many nodes there are.
pub(crate) fn check_node_count(nodes: usize) -> Result<(), TopologyError> {
    match nodes {
        0 => Err(Fault::NoNodes.about(Subject::Machine)),
        1..=MAX_NUMNODES => Ok(()),
        _ => Err(Fault::TooManyNodes(nodes).about(Subject::Node(MAX_NUMNODES))),
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
