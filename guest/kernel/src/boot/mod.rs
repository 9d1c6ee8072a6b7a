//! Getting from the loader to a kernel that knows its machine.

pub mod entry;
