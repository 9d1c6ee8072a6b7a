//! Counters: zone, NUMA, node and event items, in the order and with the names of `/proc/vmstat` of Linux 6.1.
//!
//! Items of layers that are not built keep their place and stay 0, as they do in a Linux that does not use them.

mod event;
mod node;
mod zone;

pub use event::{NR_VM_EVENT_ITEMS, VmEvent};
pub use node::{NR_VM_NODE_STAT_ITEMS, NodeStat};
pub use zone::{NR_VM_NUMA_EVENT_ITEMS, NR_VM_ZONE_STAT_ITEMS, NumaStat, ZoneStat};
