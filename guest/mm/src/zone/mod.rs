//! Nodes and zones: their sizes, the order allocations try them in, what they keep in reserve, and their counters.
//!
//! - `movable`: how much of each node is ZONE_MOVABLE;
//! - `sizes`: spanned and present pages (`free_area_init`);
//! - [`zonelist`]: the fallback order of nodes and zones;
//! - [`watermark`]: watermarks, `min_free_kbytes`, `lowmem_reserve`, pageset sizes, counter thresholds, as pure
//!   functions of sizes, and their application to a machine;
//! - [`settings`]: what can be changed while the machine runs;
//! - `vmstat`: the counters.

mod movable;
pub mod settings;
mod setup;
mod sizes;
mod vmstat;
pub mod watermark;
pub mod zonelist;

pub(crate) use movable::{Core, MovableRequest, MovableStart};
pub(crate) use settings::Settings;
pub(crate) use setup::update_alloc_mark;
pub(crate) use sizes::{free_area_init, mark_frames, zone_ranges};
