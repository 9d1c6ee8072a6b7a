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
            Self::Unverified { .. } => true,
            Self::Write(_) | Self::NoNode { .. } | Self::NoPage { .. } | Self::Off { .. } => false,
        }
    }

    /// Whether what was asked for does not exist.
    pub const fn is_usage(&self) -> bool {
        matches!(self, Self::NoNode { .. } | Self::NoPage { .. } | Self::Off { .. })
    }
}
