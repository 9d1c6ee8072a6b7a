//! Getting from the loader to a kernel that knows its machine.

pub mod cmdline;
pub mod entry;
pub mod low;
pub mod start_info;
