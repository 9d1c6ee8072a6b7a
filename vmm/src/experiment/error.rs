//! Why an experiment cannot be done.

use std::io;
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::error::exit_status;

/// Why an experiment cannot be done, or not be finished.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// The file of the experiment.
    #[error("{origin}: {reason}")]
    File {
        /// `experiment.toml:7`
        origin: String,
        /// What is wrong there.
        reason: String,
    },
    /// A topology.
    #[error(transparent)]
    Topology(#[from] ConfigError),
    /// The results of another experiment are being written there.
    #[error("{} is in use by another experiment", path.display())]
    Busy {
        /// What is in use.
        path: PathBuf,
    },
    /// Results cannot be written or read.
    #[error("cannot {what} {}; finished runs are kept, and the same command goes on from there", path.display())]
    Results {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// No run can succeed on this host.
    #[error("{reason}")]
    Host {
        /// Why not.
        reason: String,
        /// Exit status for it.
        status: u8,
    },
}

impl ExperimentError {
    /// The exit status of a command that ends so.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::File { .. } | Self::Topology(_) => exit_status::USAGE,
            Self::Busy { .. } | Self::Results { .. } => exit_status::FAILURE,
            Self::Host { status, .. } => *status,
        }
    }
}
