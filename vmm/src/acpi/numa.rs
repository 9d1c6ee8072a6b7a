//! SRAT and SLIT: which memory and which CPU is in which node, and how far the nodes are from each other.
//!
//! Both are put together here: `acpi_tables` has no affinity structure for local APICs, and its SLIT is symmetric.

use acpi_tables::{Aml, sdt::Sdt, srat::MemoryAffinity};

use super::table;
use crate::layout::Layout;
use crate::topology::Topology;

/// SRAT revision with 32-bit proximity domains.
const SRAT_REVISION: u8 = 3;
/// SLIT revision.
const SLIT_REVISION: u8 = 1;
/// Type of a processor affinity structure for a local APIC.
const PROCESSOR_AFFINITY: u8 = 0;
/// Its length.
const PROCESSOR_AFFINITY_LEN: u8 = 16;
/// Its flag that says it is in use.
const ENABLED: u32 = 1;

/// The SRAT. A node's proximity domain is its id. Each piece of RAM has a structure of its own, as QEMU has it: what
/// lies between two pieces (the legacy hole, the device hole) belongs to no node.
pub(super) fn srat(topology: &Topology, layout: &Layout) -> Sdt {
    let mut body = Vec::new();
    // Reserved, but must be 1.
    body.extend_from_slice(&1u32.to_le_bytes());
    body.extend_from_slice(&0u64.to_le_bytes());
    for (node, entry) in topology.nodes.iter().enumerate() {
        for &cpu in &entry.cpus {
            processor_affinity(node as u32, cpu as u8, &mut body);
        }
    }
    for ram in &layout.ram {
        MemoryAffinity::new(ram.node as u32, ram.start, ram.size).enabled().to_aml_bytes(&mut body);
    }
    table(*b"SRAT", SRAT_REVISION, &body)
}

fn processor_affinity(domain: u32, apic_id: u8, body: &mut Vec<u8>) {
    let [domain_low, domain_high @ ..] = domain.to_le_bytes();
    body.extend_from_slice(&[PROCESSOR_AFFINITY, PROCESSOR_AFFINITY_LEN, domain_low, apic_id]);
    body.extend_from_slice(&ENABLED.to_le_bytes());
    // The local SAPIC EID, which only Itanium has.
    body.push(0);
    body.extend_from_slice(&domain_high);
    // The clock domain.
    body.extend_from_slice(&0u32.to_le_bytes());
}

/// The SLIT: the distances as they are, row by row.
pub(super) fn slit(topology: &Topology) -> Sdt {
    let mut body = (topology.distances.len() as u64).to_le_bytes().to_vec();
    body.extend(topology.distances.iter().flatten());
    table(*b"SLIT", SLIT_REVISION, &body)
}
