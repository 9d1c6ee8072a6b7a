//! Linux's texts, printed from a state region: used by the host's views and by the guest's own reports.
//!
//! Every function here is pure: it reads the region and writes text, in Linux 6.1's format to the byte. Nothing is
//! trusted: an index or a count from the region is checked, arithmetic wraps, loops are bounded by the region's
//! layout.
//!
//! Where the numbers come from ([`counters`]):
//!
//! - **files** (`/proc`, sysfs) add the CPUs' pending deltas to the counters, so they show what Linux shows once
//!   its periodic fold (`vmstat_update`) has run; NUMA events are folded before Linux prints them, and so they are
//!   here;
//! - **Mem-Info** shows the counters without the pending deltas, as `show_free_areas` does: it is printed in the
//!   middle of an allocation and takes what is there;
//! - free lists are read under the zone's sequence counter, a bounded number of times; from a guest that died in
//!   the middle of a change they are read as they are.
//!
//! Nodes and zones appear as in Linux: every online node, all five zones of it in `zoneinfo` (unpopulated ones in
//! the short form), only populated zones in `buddyinfo`, only nodes with memory in `pagetypeinfo`.

mod buddyinfo;
pub mod cma;
pub mod counters;
mod extfrag;
mod iomem;
mod mem_info;
pub mod meminfo;
mod node;
pub mod process;
pub mod slabinfo;
mod sysctl;
pub mod vmstat;
mod zoneinfo;

pub use buddyinfo::{BlockCounts, buddyinfo, pagetypeinfo};
pub use cma::cma;
pub use extfrag::{ContigPageInfo, extfrag_index, unusable_index};
pub use iomem::iomem;
pub use mem_info::{MemInfo, mem_info, mem_info_text};
pub use meminfo::{meminfo, node_meminfo};
pub use node::{
    cpumap, distance, fallback_orders, node_cpulist, node_cpumap, node_distance, numa_hardware, write_fallback_order,
};
pub use sysctl::{fail_page_alloc, failslab, sysctl};
pub use vmstat::{node_numastat, node_vmstat, vmstat};
pub use zoneinfo::zoneinfo;

/// Pages to KiB (`K` of Linux's files).
#[inline]
pub const fn kib(pages: u64) -> u64 {
    pages.wrapping_shl(crate::units::PAGE_SHIFT - 10)
}
