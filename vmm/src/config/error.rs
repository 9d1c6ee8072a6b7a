//! What is wrong with the user's input, and where it says so.

use crate::topology::TopologyError;

/// A machine description that was refused: one line that names file and line or flag, the key, and the reason.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}{}{reason}", prefix(.origin), prefix(.subject))]
pub struct ConfigError {
    /// `machine.toml:7`, `machine.toml`, or `--node mem=0`; empty when nobody wrote it.
    pub origin: String,
    /// `node 1, dma`; empty when the origin alone says it.
    pub subject: String,
    /// Why it was refused.
    pub reason: String,
}

fn prefix(part: &str) -> String {
    if part.is_empty() { String::new() } else { format!("{part}: ") }
}

impl ConfigError {
    pub(super) fn new(origin: impl Into<String>, subject: impl ToString, reason: impl ToString) -> Self {
        Self { origin: origin.into(), subject: subject.to_string(), reason: reason.to_string() }
    }
}

/// For a topology that nobody wrote down.
impl From<TopologyError> for ConfigError {
    fn from(error: TopologyError) -> Self {
        Self::new("", error.subject, error.fault)
    }
}
