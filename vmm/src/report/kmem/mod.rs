//! The views of crash's `kmem` command, in its format for a 64-bit kernel with SPARSEMEM_VMEMMAP.
//!
//! Addresses are guest-virtual ones: of page metadata in the memory map, of nodes, zones and free areas in the
//! state region, where the guest's allocator has them. In JSON they are strings of hexadecimal digits, since they
//! do not fit the numbers of many JSON readers; sizes and counts are numbers.

mod address;
mod flags;
mod free;
pub(super) mod just;
mod nodes;
mod pages;
mod percpu;
mod slabs;
mod stats;
mod usage;

use std::mem::offset_of;

use pagevisor_shared::region::zone::{FreeArea, ZoneState};
use pagevisor_shared::units::{NodeId, Order};
use pagevisor_shared::zone::ZoneIndex;

use crate::state::StateView;

pub use address::address;
pub use flags::{flags, flags_json};
pub use free::{free, verified};
pub use nodes::{nodes, nodes_json};
pub use pages::pages;
pub use slabs::{CacheName, SlabSpec, slabs};
pub use stats::{vmstat, vmstat_json, zones, zones_json};
pub use usage::{usage, usage_json};

/// An address as JSON has it.
pub(super) fn hex(address: u64) -> String {
    format!("{address:#x}")
}

/// Address of a zone's record.
fn zone_address(state: &StateView, zone: ZoneIndex) -> u64 {
    state.region_address(state.region().zone_offset(zone))
}

/// Address of a free area.
fn free_area_address(state: &StateView, zone: ZoneIndex, order: Order) -> u64 {
    let offset = offset_of!(ZoneState, free_area) + order.index() * size_of::<FreeArea>();
    zone_address(state, zone).wrapping_add(offset as u64)
}

/// Address of a node's record.
fn node_address(state: &StateView, node: NodeId) -> u64 {
    let region = state.region();
    match state.roots().node_data {
        0 => state.region_address(region.node_offset(node)),
        table => table.wrapping_add(region.node_offset(node).wrapping_sub(region.node_offset(NodeId::default()))),
    }
}
