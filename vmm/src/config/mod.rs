//! What the user may say about the machine, in a file and in flags, and how it becomes a [`Topology`].
//!
//! | flag `--node KEY=VAL,...` | file, in a `[[node]]` | meaning |
//! |---|---|---|
//! | `mem=512M` | `mem = "512M"` | plain form: memory behind that of the node before, as in a PC |
//! | `dma=16M` | `dma = "16M"` | memory in zone DMA, below 16 MiB |
//! | `dma32=112M` | `dma32 = "112M"` | memory in zone DMA32, 16 MiB to 3 GiB |
//! | `normal=1G` | `normal = "1G"` | memory in zone Normal, from 4 GiB |
//! | `range=4G-5G` (again and again) | `range = ["4G-5G", "6G+1G"]` | memory at these addresses, END exclusive |
//! | `cpus=2` | `cpus = 2` | so many CPUs, with the lowest free numbers |
//! | `cpus=[0-3,5]` | `cpus = ["0-3", 5]` | these CPUs |
//!
//! | flag | file | meaning |
//! |---|---|---|
//! | `--distance 0:1=21` | `[distance]` with `"0:1" = 21` | distance from 0 to 1, and back unless 1:0 is given too |
//! | | `distance = [[10, 21], [21, 10]]` | all of them |
//! | `--latency 0:1=140` | `[latency]`, or a matrix | ns of an access by a CPU of node 0 to memory of node 1 |
//! | `--bandwidth 0:1=40000` | `[bandwidth]`, or a matrix | MB/s that CPUs of node 0 get from node 1 |
//!
//! Sizes are numbers, decimal or `0x`, with K, M, G, T for powers of 1024, and multiples of 4K: a page is the finest
//! thing both a memory slot and the guest can tell apart, and zone and node borders inside a page block are worth
//! looking at. A node takes its memory in one of the three forms. Where nobody says `cpus`, each node has one;
//! otherwise a node that does not say it has none. Where no distance is given, all are 20; otherwise all must be.
//!
//! Latencies and bandwidths are for the guest's HMAT, which has what is given here and only then, and for what
//! experiments charge for an access. Of pairs, those that are not given follow from the distances
//! ([`crate::topology::modelled_latency`], [`crate::topology::modelled_bandwidth`]); a matrix has to be complete.
//!
//! Flags override the file: `--node`, given at all, replaces all of the file's nodes, and `--distance`, `--latency`,
//! `--bandwidth` single pairs. Without file and `--node` the machine is [`Topology::default`].

mod error;
mod file;
mod flags;
mod spec;
#[cfg(test)]
pub(crate) mod tests;
mod value;
mod write;

use std::path::{Path, PathBuf};

use crate::topology::{PairKind, Topology};
use spec::Spec;

pub use error::ConfigError;
pub use value::Size;

/// The part of the command line that describes the machine.
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct TopologyArgs {
    /// File that describes the machine, such as vmm/topologies/two-socket.toml [default: 2 nodes, 2 CPUs, 512M]
    #[arg(value_name = "TOPOLOGY")]
    pub file: Option<PathBuf>,

    /// A node of the machine; once per node, in place of those in the file.
    ///
    /// mem=512M: memory laid out as in a PC. Or by zone: dma=16M,dma32=112M,normal=128M. Or by address:
    /// range=4G-5G,range=6G+1G. cpus=2 is a number of CPUs, cpus=[0-3,5] names them.
    #[arg(long = "node", value_name = "KEY=VAL,...")]
    pub nodes: Vec<String>,

    /// The distance from node A to node B, and back unless B:A is given too (repeatable).
    ///
    /// It overrides the file's. Where no distance is given at all, every one is 20; otherwise all must be given.
    #[arg(long = "distance", value_name = "A:B=D")]
    pub distances: Vec<String>,

    /// Nanoseconds that a CPU of node A needs for an access to memory of node B, and the other way round unless B:A is
    /// given too (repeatable).
    ///
    /// Tells the guest (HMAT), and what experiments charge. Pairs not given follow from the distances: 80 ns for 10.
    #[arg(long = "latency", value_name = "A:B=NS")]
    pub latencies: Vec<String>,

    /// MB/s that CPUs of node A get from memory of node B, and the other way round unless B:A is given too
    /// (repeatable).
    #[arg(long = "bandwidth", value_name = "A:B=MB/S")]
    pub bandwidths: Vec<String>,
}

/// The machine that the command line describes.
pub fn resolve(args: &TopologyArgs) -> Result<Topology, ConfigError> {
    let mut spec = match &args.file {
        Some(path) => read(path)?,
        None if args.nodes.is_empty() => file::parse(&Topology::default().to_toml(), "default topology")?,
        None => Spec { origin: "--node".to_owned(), ..Spec::default() },
    };
    if !args.nodes.is_empty() {
        spec.nodes = flags::nodes(&args.nodes)?;
    }
    for (kind, values) in [
        (PairKind::Distance, &args.distances),
        (PairKind::Latency, &args.latencies),
        (PairKind::Bandwidth, &args.bandwidths),
    ] {
        if !values.is_empty() {
            spec.layers.push(flags::pairs(kind, values)?);
        }
    }
    spec.topology()
}

fn read(path: &Path) -> Result<Spec, ConfigError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::new(&name, "", format!("cannot be read: {error}")))?;
    file::parse(&text, &name)
}

impl Topology {
    /// The machine that the text of a file describes. `file_name` is what errors call the file.
    pub fn from_toml(text: &str, file_name: &str) -> Result<Self, ConfigError> {
        file::parse(text, file_name)?.topology()
    }

    /// The machine that a file describes, such as `vmm/topologies/two-socket.toml`.
    ///
    /// # Errors
    /// In one line, with the file, and the line in it if one is wrong.
    pub fn from_toml_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        read(path.as_ref())?.topology()
    }
}
