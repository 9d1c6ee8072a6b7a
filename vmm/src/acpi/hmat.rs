//! HMAT: what accesses cost between nodes, for machines that say so.
//!
//! It is put together here, like SRAT and SLIT: `acpi_tables` writes revision 1, in which no base unit makes a
//! nanosecond a nanosecond, and misplaces the entries of a matrix that is not square, as a machine with nodes without
//! CPUs has it.

use acpi_tables::sdt::Sdt;

use super::table;
use crate::topology::{PairKind, Topology};

/// Revision in which latencies are in picoseconds.
const HMAT_REVISION: u8 = 2;
/// Type of a Memory Proximity Domain Attributes Structure.
const MEMORY_ATTRIBUTES: u16 = 0;
/// Type of a System Locality Latency and Bandwidth Information Structure.
const SYSTEM_LOCALITY: u16 = 1;
/// Length of a Memory Proximity Domain Attributes Structure.
const MEMORY_ATTRIBUTES_LEN: u32 = 40;
/// Length of a System Locality structure without its lists.
const SYSTEM_LOCALITY_LEN: usize = 32;
/// Its data type for latencies of reads and writes alike.
const ACCESS_LATENCY: u8 = 0;
/// Its data type for bandwidths of reads and writes alike.
const ACCESS_BANDWIDTH: u8 = 3;
/// Its hierarchy level for memory, as opposed to caches before it.
const LEVEL_MEMORY: u8 = 0;
/// Flag of a Memory Proximity Domain Attributes Structure: the initiator is valid.
const INITIATOR_VALID: u16 = 1;
/// Picoseconds in a nanosecond: the base unit of latencies.
const PICOSECONDS: u64 = 1000;
/// Largest entry of a matrix; the one above it says that there is no way.
const MAX_ENTRY: u32 = 0xfffe;

/// The HMAT; `None` where the topology gives neither latencies nor bandwidths.
///
/// Reading costs as much as writing, so there is one matrix for both, of "access" latency or bandwidth: its rows are
/// the nodes with CPUs, its columns those with memory.
pub(super) fn hmat(topology: &Topology) -> Option<Sdt> {
    if topology.latencies.is_none() && topology.bandwidths.is_none() {
        return None;
    }
    let nodes = || topology.nodes.iter().enumerate();
    let initiators: Vec<usize> = nodes().filter(|(_, node)| !node.cpus.is_empty()).map(|(id, _)| id).collect();
    let targets: Vec<usize> = nodes().filter(|(_, node)| node.memory.bytes() != 0).map(|(id, _)| id).collect();
    let mut body = vec![0; 4];
    for &target in &targets {
        memory_attributes(topology, target, &initiators, &mut body);
    }
    if topology.latencies.is_some() {
        locality(topology, PairKind::Latency, &initiators, &targets, &mut body);
    }
    if topology.bandwidths.is_some() {
        locality(topology, PairKind::Bandwidth, &initiators, &targets, &mut body);
    }
    Some(table(*b"HMAT", HMAT_REVISION, &body))
}

/// Memory of `target` and the node it is attached to: its own CPUs, or those that reach it soonest.
fn memory_attributes(topology: &Topology, target: usize, initiators: &[usize], body: &mut Vec<u8>) {
    let nearest = initiators.iter().min_by_key(|&&from| (from != target, topology.latency_ns(from, target), from));
    body.extend_from_slice(&MEMORY_ATTRIBUTES.to_le_bytes());
    body.extend_from_slice(&0u16.to_le_bytes());
    body.extend_from_slice(&MEMORY_ATTRIBUTES_LEN.to_le_bytes());
    body.extend_from_slice(&nearest.map_or(0, |_| INITIATOR_VALID).to_le_bytes());
    body.extend_from_slice(&0u16.to_le_bytes());
    body.extend_from_slice(&nearest.map_or(0, |&from| from as u32).to_le_bytes());
    body.extend_from_slice(&(target as u32).to_le_bytes());
    body.extend_from_slice(&[0; 20]);
}

fn locality(topology: &Topology, kind: PairKind, initiators: &[usize], targets: &[usize], body: &mut Vec<u8>) {
    let value = |from: usize, to: usize| match kind {
        PairKind::Bandwidth => topology.bandwidth_mbps(from, to),
        _ => topology.latency_ns(from, to),
    };
    let values: Vec<u32> =
        initiators.iter().flat_map(|&from| targets.iter().map(move |&to| value(from, to).unwrap_or(0))).collect();
    let unit = unit(values.iter().copied().max().unwrap_or(0));
    let (data_type, base) = match kind {
        PairKind::Bandwidth => (ACCESS_BANDWIDTH, u64::from(unit)),
        _ => (ACCESS_LATENCY, PICOSECONDS * u64::from(unit)),
    };
    let length = SYSTEM_LOCALITY_LEN + 4 * (initiators.len() + targets.len()) + 2 * values.len();
    body.extend_from_slice(&SYSTEM_LOCALITY.to_le_bytes());
    body.extend_from_slice(&0u16.to_le_bytes());
    body.extend_from_slice(&(length as u32).to_le_bytes());
    // Hierarchy level, data type, minimum transfer size (none), reserved.
    body.extend_from_slice(&[LEVEL_MEMORY, data_type, 0, 0]);
    body.extend_from_slice(&(initiators.len() as u32).to_le_bytes());
    body.extend_from_slice(&(targets.len() as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    body.extend_from_slice(&base.to_le_bytes());
    for &domain in initiators.iter().chain(targets) {
        body.extend_from_slice(&(domain as u32).to_le_bytes());
    }
    for value in values {
        // Rounded to the unit; 0 would say that nothing is known.
        let entry = (value.saturating_add(unit / 2) / unit).clamp(1, MAX_ENTRY);
        body.extend_from_slice(&(entry as u16).to_le_bytes());
    }
}

/// The unit in which `max` fits into an entry: a power of ten.
fn unit(max: u32) -> u32 {
    let mut unit = 1;
    while max / unit > MAX_ENTRY {
        unit *= 10;
    }
    unit
}
