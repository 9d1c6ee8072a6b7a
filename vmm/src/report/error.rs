//! Why a view cannot be shown, or what it found wrong.

use std::io;

use crate::state::StateError;

/// What can go wrong with a view.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The guest's state cannot be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The view cannot be written.
    #[error("cannot write the view")]
    Write(#[source] io::Error),
    /// The free lists in guest memory are not what the counters say. The view was written to its end.
    #[error("free lists and counters disagree: {free} pages counted, {found} found{details}")]
    Unverified {
        /// Pages by the counters.
        free: u64,
        /// Pages on the lists.
        found: u64,
        /// Where, each after a semicolon.
        details: String,
    },
    /// The machine has no such node.
    #[error("there is no node {node}: the machine has nodes {online}")]
    NoNode {
        /// The node that was asked for.
        node: usize,
        /// The nodes there are, as a list of ranges.
        online: String,
    },
    /// The guest does not do what the view shows.
    #[error("the guest does not note {what}: it does when '{option}' is on its command line")]
    Off {
        /// What is not there.
        what: &'static str,
        /// The word that makes it be there.
        option: &'static str,
    },
    /// The slabs in guest memory are not what the counters say, or are damaged. The view was written to its end.
    #[error("slabs are not as they should be: {0}")]
    Slabs(String),
    /// There is no such slab cache.
    #[error("there is no slab cache '{name}'")]
    NoCache {
        /// The name that was asked for.
        name: String,
    },
    /// There is no slab at an address.
    #[error("address is not allocated in slab subsystem: {address:x}")]
    NoSlab {
        /// The address that was asked for.
        address: u64,
    },
    /// There is no memory at an address.
    #[error("address not found in mem map: {address:x}")]
    NoAddress {
        /// The address that was asked for.
        address: u64,
    },
    /// An address is none of the kernel's.
    #[error("not a kernel virtual address: {address:x}")]
    NotKernel {
        /// The address that was asked for.
        address: u64,
    },
    /// There is no such task.
    #[error("there is no task {pid}")]
    NoTask {
        /// The number that was asked for.
        pid: u32,
    },
    /// An address is none of a program's.
    #[error("not a user virtual address of task {pid}: {address:x}")]
    NotUser {
        /// The task.
        pid: u32,
        /// The address that was asked for.
        address: u64,
    },
    /// The machine has no such page.
    #[error("there is no page with frame number {pfn:#x}")]
    NoPage {
        /// The frame that was asked for.
        pfn: u64,
    },
}

impl ReportError {
    /// Whether the guest's state is damaged.
    pub const fn is_corrupt(&self) -> bool {
        match self {
            Self::State(error) => error.is_corrupt(),
            Self::Unverified { .. } | Self::Slabs(_) => true,
            _ => false,
        }
    }

    /// Whether what was asked for does not exist.
    pub const fn is_usage(&self) -> bool {
        !matches!(self, Self::State(_) | Self::Write(_) | Self::Unverified { .. } | Self::Slabs(_))
    }
}

/// Texts are written to strings first, which does not fail.
impl From<std::fmt::Error> for ReportError {
    fn from(error: std::fmt::Error) -> Self {
        Self::Write(io::Error::other(error))
    }
}
