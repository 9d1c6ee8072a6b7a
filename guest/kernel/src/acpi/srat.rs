//! The SRAT: which CPU and which memory belongs to which node.

use core::ops::Range;

use pagevisor_shared::units::NodeId;

use super::{HEADER, Machine, entries};
use crate::boot::low::Fields;

const LOCAL_APIC: u8 = 0;
const MEMORY: u8 = 1;
const LOCAL_X2APIC: u8 = 2;
/// Bytes of the table in front of its structures.
const FIXED: usize = HEADER + 12;
/// The structure counts.
const ENABLED: u32 = 1;
/// The memory can be taken out while the machine runs.
const HOT_PLUGGABLE: u32 = 1 << 1;

/// Memory of a node.
#[derive(Clone, Debug)]
pub struct MemoryAffinity {
    /// Physical addresses; what of them is RAM is not said here.
    pub range: Range<u64>,
    /// The node.
    pub node: NodeId,
    /// Whether it is hot-pluggable.
    pub hot_pluggable: bool,
}

/// The proximity domain of a memory structure that counts.
fn memory_domain(entry: &Fields) -> Option<u32> {
    (entry.u8(0) == MEMORY && entry.u32(28) & ENABLED != 0 && entry.u64(16) != 0).then(|| entry.u32(2))
}

/// The APIC id and the proximity domain of a processor structure that counts.
fn processor(entry: &Fields) -> Option<(u32, u32)> {
    match entry.u8(0) {
        LOCAL_APIC if entry.u32(4) & ENABLED != 0 => {
            let high = [entry.u8(9), entry.u8(10), entry.u8(11)];
            Some((entry.u8(3) as u32, u32::from_le_bytes([entry.u8(2), high[0], high[1], high[2]])))
        }
        LOCAL_X2APIC if entry.u32(12) & ENABLED != 0 => Some((entry.u32(8), entry.u32(4))),
        _ => None,
    }
}

impl Machine {
    /// Numbers the nodes and gives the CPUs theirs.
    pub(super) fn read_srat(&mut self, srat: Fields) {
        for entry in entries(srat, FIXED) {
            if let Some(domain) = processor(&entry).map(|(_, domain)| domain).or_else(|| memory_domain(&entry)) {
                self.add_domain(domain);
            }
        }
        for (apic_id, domain) in entries(srat, FIXED).filter_map(|entry| processor(&entry)) {
            if let Some(node) = self.node_of(domain)
                && let Some(cpu) = self.cpu_with(apic_id)
            {
                cpu.node = node;
            }
        }
    }

    /// Memory by node, as the table lists it; nothing without a table.
    pub fn memory(&self) -> impl Iterator<Item = MemoryAffinity> {
        let entries = self.srat.into_iter().flat_map(|srat| entries(srat, FIXED));
        entries.filter_map(|entry| {
            let node = self.node_of(memory_domain(&entry)?)?;
            Some(MemoryAffinity {
                range: entry.u64(8)..entry.u64(8).saturating_add(entry.u64(16)),
                node,
                hot_pluggable: entry.u32(28) & HOT_PLUGGABLE != 0,
            })
        })
    }
}
