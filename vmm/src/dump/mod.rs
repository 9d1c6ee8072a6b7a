//! Dumps: a guest's memory, state region and registers in an ELF core file.
//!
//! `readelf` and `gdb` read it (with the kernel's ELF, `gdb` has the kernel's symbols, a thread for each vCPU, and the
//! guest's memory at the addresses of the direct map and of the kernel's image), and so do the views and the verifier.
//!
//! ```text
//! ELF header, program headers
//!   PT_NOTE   NT_PRSTATUS for each vCPU; a note of our own ([`Description`], JSON)
//!   PT_LOAD   each range of memory: p_paddr its address, p_vaddr PAGE_OFFSET + p_paddr
//!   PT_LOAD   the state region, where the guest maps it
//!   PT_LOAD   the kernel's image at its own addresses; the same bytes of the file as in its range of memory
//! notes, state region, memory (with holes)
//! ```
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod format;
mod read;
mod write;

use std::io;
use std::path::PathBuf;

pub use format::{Description, DumpNode, FORMAT};
pub use read::Dump;
pub use write::{write, write_to};

use crate::state::StateError;

/// What was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dumped {
    /// Bytes of the file, holes included.
    pub size: u64,
    /// Bytes that are not holes.
    pub written: u64,
}

/// Why there is no dump, or it cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The path names no file.
    #[error("{} is no regular file", .0.display())]
    NoFile(PathBuf),
    /// The file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is no dump, or not a whole one.
    #[error("{} cannot be used: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The dump belongs to another version of this program.
    #[error(
        "{} has format {format} and contract version {abi}, this pagevisor reads format {FORMAT} and version {}",
        path.display(),
        pagevisor_shared::ABI_VERSION
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u64,
        /// Its version of the contract.
        abi: u64,
    },
    /// The guest's memory cannot be read, or its state region is none.
    #[error(transparent)]
    State(#[from] StateError),
}

impl DumpError {
    /// Whether what is in the file is to blame.
    pub const fn is_corrupt(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::State(error) => error.is_corrupt(),
            _ => false,
        }
    }
}
