//! Views of a guest: what `--show` and `pagevisor show` print, as text and as JSON.
//!
//! - the files of Linux's `/proc` and sysfs, to the byte ([`pagevisor_shared::report`]);
//! - crash's `kmem`, which looks into guest memory by itself ([`kmem`]);
//! - `numa`, as `numactl --hardware`;
//! - programs: the files of `/proc/PID`, crash's `ps` and `vm`, from guest memory ([`process`]);
//! - `zeroed`, memory that is known to be zero and what that saved ([`zeroed`]);
//! - crash's `vtop`, which walks the guest's page tables;
//! - the summary of a run, and a tree of files for tools that take another root.

mod error;
mod json;
pub mod kmem;
mod page_owner;
mod proc_tree;
mod process;
mod slabinfo;
mod slabtop;
mod summary;
#[cfg(test)]
mod tests;
mod view;
mod vmallocinfo;
mod vtop;
mod zeroed;

pub use error::ReportError;
pub use proc_tree::{WRITTEN_DIRS, proc_tree};
pub use process::{PidFile, ProcessView};
pub use slabinfo::slab_info;
pub use slabtop::{SlabSort, slabtop};
pub use summary::{summary, summary_json};
pub use view::{BadView, NodeFile, PageSpec, View};
