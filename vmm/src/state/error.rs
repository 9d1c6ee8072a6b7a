//! What can be wrong with a guest's state.

use std::fmt;
use std::io;

/// Something in guest memory is not what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Corrupt {
    /// What was read.
    pub what: &'static str,
    /// Where: a guest-physical address, or a frame number where `what` says so.
    pub at: u64,
    /// What was found.
    pub found: u64,
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest state is corrupt: {} at {:#x} is {:#x}", self.what, self.at, self.found)
    }
}

impl std::error::Error for Corrupt {}

/// Why a guest's state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The region cannot be mapped.
    #[error("cannot map the guest's state region")]
    Map(#[source] io::Error),
    /// The region is not one.
    #[error(transparent)]
    Region(#[from] pagevisor_shared::region::Corrupt),
    /// Something the guest wrote makes no sense.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The host cannot read the guest's memory.
    #[error("cannot read guest memory at {at:#x}")]
    Read {
        /// Guest-physical address.
        at: u64,
        /// Why not.
        source: io::Error,
    },
}

impl StateError {
    /// Whether the guest is to blame, not the host.
    pub const fn is_corrupt(&self) -> bool {
        matches!(self, Self::Region(_) | Self::Corrupt(_))
    }
}
