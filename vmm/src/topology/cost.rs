//! What an access costs between two nodes: figures of the user's, or a model made of the distances.

use super::{LOCAL_DISTANCE, Topology};

/// Nanoseconds of an access to a node's own memory where nobody says how many: what servers of today have.
pub const LOCAL_LATENCY_NS: u32 = 80;
/// MB/s from a node's own memory where nobody says how many: four channels of DDR4-3200.
pub const LOCAL_BANDWIDTH_MBPS: u32 = 100_000;
/// Longest latency. In an HMAT, whose entries have 16 bits, 0xffff means that there is no way from here to there.
pub const MAX_LATENCY_NS: u32 = 65_534;
/// Highest bandwidth: 10 TB/s.
pub const MAX_BANDWIDTH_MBPS: u32 = 10_000_000;

/// A figure that a pair of nodes has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PairKind {
    /// As SLIT has it: 10 for local memory.
    Distance,
    /// Nanoseconds of an access.
    Latency,
    /// MB/s.
    Bandwidth,
}

impl PairKind {
    /// The word for it in files, flags and errors.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Distance => "distance",
            Self::Latency => "latency",
            Self::Bandwidth => "bandwidth",
        }
    }

    /// What its value is called, and a pair with a plausible one.
    pub(crate) const fn example(self) -> (&'static str, &'static str) {
        match self {
            Self::Distance => ("DISTANCE", "0:1=20"),
            Self::Latency => ("NANOSECONDS", "0:1=140"),
            Self::Bandwidth => ("MB/S", "0:1=40000"),
        }
    }
}

/// The latency that goes with a distance, in ns: a distance of 20 says that an access takes twice as long as a local
/// one, so it is [`LOCAL_LATENCY_NS`] * distance / 10.
pub const fn modelled_latency(distance: u8) -> u32 {
    LOCAL_LATENCY_NS * distance as u32 / LOCAL_DISTANCE as u32
}

/// The bandwidth that goes with a distance, in MB/s: with as many accesses under way, each of which takes twice as
/// long, half as many bytes arrive, so it is [`LOCAL_BANDWIDTH_MBPS`] * 10 / distance.
pub const fn modelled_bandwidth(distance: u8) -> u32 {
    LOCAL_BANDWIDTH_MBPS * LOCAL_DISTANCE as u32 / distance as u32
}

impl Topology {
    /// Nanoseconds that a CPU of node `from` needs for an access to memory of node `to`: as the topology says, or else
    /// [`modelled_latency`]. `None` if there is no such node.
    pub fn latency_ns(&self, from: usize, to: usize) -> Option<u32> {
        match &self.latencies {
            Some(latencies) => latencies.get(from)?.get(to).copied(),
            None => self.distance(from, to).map(modelled_latency),
        }
    }

    /// MB/s that CPUs of node `from` get from memory of node `to`: as the topology says, or else
    /// [`modelled_bandwidth`]. `None` if there is no such node.
    pub fn bandwidth_mbps(&self, from: usize, to: usize) -> Option<u32> {
        match &self.bandwidths {
            Some(bandwidths) => bandwidths.get(from)?.get(to).copied(),
            None => self.distance(from, to).map(modelled_bandwidth),
        }
    }

    fn distance(&self, from: usize, to: usize) -> Option<u8> {
        self.distances.get(from)?.get(to).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsaid_costs_follow_the_distances() {
        let machine = Topology::default();
        assert_eq!((machine.latency_ns(0, 0), machine.latency_ns(0, 1)), (Some(80), Some(160)));
        assert_eq!((machine.bandwidth_mbps(1, 1), machine.bandwidth_mbps(1, 0)), (Some(100_000), Some(50_000)));
        assert_eq!((machine.latency_ns(0, 2), machine.bandwidth_mbps(2, 0)), (None, None));
        assert_eq!(modelled_latency(21), 168);
        assert_eq!(modelled_latency(255), 2040);
    }

    #[test]
    fn said_costs_count() {
        let machine = Topology::default().with_costs(Some(vec![vec![70, 140], vec![150, 80]]), None).unwrap();
        assert_eq!((machine.latency_ns(0, 1), machine.latency_ns(1, 0)), (Some(140), Some(150)));
        assert_eq!(machine.bandwidth_mbps(0, 1), Some(50_000), "still by distance");
    }
}
