//! What a workload reports, checked: the guest may say anything.

use std::fmt;

use pagevisor_shared::MAX_NUMNODES;
use pagevisor_shared::command::workload::{Count, Report};
use pagevisor_shared::zone::MAX_NR_ZONES;

/// What a workload did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WorkloadReport {
    /// Allocations that succeeded.
    pub allocs: u64,
    /// Allocations that failed.
    pub failed: u64,
    /// Blocks freed.
    pub freed: u64,
    /// Blocks kept.
    pub kept: u64,
    /// Pages that came from another node than the one asked for.
    pub node_fallback: u64,
    /// Pages that came from a lower zone of the node than the highest that their flags allow there.
    pub zone_fallback: u64,
    /// Attempts at large blocks after fragmenting; parts of a device that were read back.
    pub tries: u64,
    /// Those that succeeded, or were as they had been written.
    pub hits: u64,
    /// Objects, or parts of a device, whose content was not what had been written.
    pub mismatches: u64,
    /// Page faults of the workload's programs.
    pub faults: u64,
    /// Ticks of the time stamp counter from start to end, of the slowest CPU.
    pub ticks: u64,
    /// Pages that were allocated, by node, then zone type.
    pub placement: Vec<[u64; MAX_NR_ZONES]>,
    /// Accesses by node of the CPU, then node of the page.
    pub accesses: Vec<Vec<u64>>,
    /// The fewest free pages there were, by node, then zone type.
    pub min_free: Vec<[u64; MAX_NR_ZONES]>,
}

/// In one line.
impl fmt::Display for WorkloadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { allocs, failed, freed, kept, ticks, .. } = self;
        write!(f, "{allocs} allocations, {failed} failed, {freed} freed, {kept} kept")?;
        if self.tries != 0 {
            write!(f, ", {} of {} tries", self.hits, self.tries)?;
        }
        if self.mismatches != 0 {
            write!(f, ", {} NOT AS WRITTEN", self.mismatches)?;
        }
        if self.faults != 0 {
            write!(f, ", {} page faults", self.faults)?;
        }
        let (node, zone) = (self.node_fallback, self.zone_fallback);
        write!(f, ", {node} pages from other nodes, {zone} from lower zones, {ticks} ticks")
    }
}

impl WorkloadReport {
    /// As JSON, tables as arrays of rows.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "allocs": self.allocs,
            "failed": self.failed,
            "freed": self.freed,
            "kept": self.kept,
            "node_fallback": self.node_fallback,
            "zone_fallback": self.zone_fallback,
            "tries": self.tries,
            "hits": self.hits,
            "mismatches": self.mismatches,
            "faults": self.faults,
            "ticks": self.ticks,
            "placement": self.placement,
            "accesses": self.accesses,
            "min_free": self.min_free,
        })
    }
}

/// A report that is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the guest's report of {words} words is none of a machine of {nodes} nodes")]
pub struct BadReport {
    /// Its length.
    pub words: usize,
    /// The nodes that the guest claims to have.
    pub nodes: u64,
}

impl WorkloadReport {
    /// Adds what the next part of the workload has done, on the same machine.
    pub fn add(&mut self, next: &Self) {
        let fields: [(&mut u64, u64); 11] = [
            (&mut self.allocs, next.allocs),
            (&mut self.failed, next.failed),
            (&mut self.freed, next.freed),
            (&mut self.kept, next.kept),
            (&mut self.node_fallback, next.node_fallback),
            (&mut self.zone_fallback, next.zone_fallback),
            (&mut self.tries, next.tries),
            (&mut self.hits, next.hits),
            (&mut self.mismatches, next.mismatches),
            (&mut self.faults, next.faults),
            (&mut self.ticks, next.ticks),
        ];
        let placement = self.placement.iter_mut().flatten().zip(next.placement.iter().flatten().copied());
        let accesses = self.accesses.iter_mut().flatten().zip(next.accesses.iter().flatten().copied());
        // The guest may say anything.
        fields.into_iter().chain(placement).chain(accesses).for_each(|(sum, more)| *sum = sum.saturating_add(more));
        let least = self.min_free.iter_mut().flatten().zip(next.min_free.iter().flatten());
        least.for_each(|(least, next)| *least = (*least).min(*next));
    }

    /// From the words of a reply of a machine of `nodes` nodes.
    ///
    /// # Errors
    /// When they are the report of no such machine.
    pub fn from_words(words: &[u64], nodes: usize) -> Result<Self, BadReport> {
        let count = |count: Count| words.get(count as usize).copied().unwrap_or(0);
        let claimed = count(Count::Nodes);
        if claimed != nodes as u64 || nodes > MAX_NUMNODES || words.len() < Report::words(nodes) {
            return Err(BadReport { words: words.len(), nodes: claimed });
        }
        let zones = |start: usize| -> Vec<[u64; MAX_NR_ZONES]> {
            let table = words.get(start..).unwrap_or(&[]);
            table.as_chunks().0.iter().take(nodes).copied().collect()
        };
        let accesses = words.get(Report::accesses(nodes)..).unwrap_or(&[]);
        Ok(Self {
            allocs: count(Count::Allocs),
            failed: count(Count::Failed),
            freed: count(Count::Freed),
            kept: count(Count::Kept),
            node_fallback: count(Count::NodeFallback),
            zone_fallback: count(Count::ZoneFallback),
            tries: count(Count::Tries),
            hits: count(Count::Hits),
            mismatches: count(Count::Mismatches),
            faults: count(Count::Faults),
            ticks: count(Count::Ticks),
            placement: zones(Report::placement()),
            accesses: accesses.chunks_exact(nodes.max(1)).take(nodes).map(<[u64]>::to_vec).collect(),
            min_free: zones(Report::min_free(nodes)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_table_by_table() {
        let mut words: Vec<u64> = (0..Report::words(2) as u64).map(|word| 100 + word).collect();
        words[Count::Nodes as usize] = 2;
        let report = WorkloadReport::from_words(&words, 2).unwrap();
        assert_eq!((report.allocs, report.ticks), (100, 108));
        assert_eq!(report.placement, [[116, 117, 118, 119, 120], [121, 122, 123, 124, 125]]);
        assert_eq!(report.accesses, [[126, 127], [128, 129]]);
        assert_eq!(report.min_free, [[130, 131, 132, 133, 134], [135, 136, 137, 138, 139]]);
    }

    #[test]
    fn parts_of_a_workload_add_up() {
        let words: Vec<u64> = (0..Report::words(1) as u64).map(|word| if word == 9 { 1 } else { 100 + word }).collect();
        let first = WorkloadReport::from_words(&words, 1).unwrap();
        let mut sum = first.clone();
        sum.add(&WorkloadReport { min_free: vec![[200, 0, 200, 200, 200]], ticks: u64::MAX, ..first.clone() });
        assert_eq!((sum.allocs, sum.hits, sum.ticks), (200, 214, u64::MAX));
        assert_eq!((&sum.placement[0], &sum.accesses[0]), (&[232, 234, 236, 238, 240], &vec![242]));
        assert_eq!(sum.min_free[0], [122, 0, 124, 125, 126]);
    }

    #[test]
    fn a_lying_guest_is_an_error() {
        let mut words = vec![0; Report::words(2)];
        for claimed in [0, 1, 3, 65, u64::MAX] {
            words[Count::Nodes as usize] = claimed;
            assert_eq!(WorkloadReport::from_words(&words, 2).unwrap_err().nodes, claimed);
        }
        words[Count::Nodes as usize] = 2;
        for len in [0, 9, 10, words.len() - 1] {
            assert!(WorkloadReport::from_words(&words[..len], 2).is_err());
        }
    }
}
