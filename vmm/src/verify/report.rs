//! What a verification found.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::rule::Rule;

/// Findings that are kept; the rest is counted.
pub const MAX_FINDINGS: usize = 1000;

/// Where a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// A frame.
    Pfn(u64),
    /// A guest-virtual address.
    Virtual(u64),
    /// A zone, by its index in the region's table.
    Zone(usize),
    /// A node.
    Node(usize),
    /// A CPU.
    Cpu(usize),
    /// The machine as a whole.
    Machine,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pfn(pfn) => write!(f, "pfn {pfn:#x}"),
            Self::Virtual(address) => write!(f, "address {address:#x}"),
            Self::Zone(zone) => write!(f, "zone {zone}"),
            Self::Node(node) => write!(f, "node {node}"),
            Self::Cpu(cpu) => write!(f, "CPU {cpu}"),
            Self::Machine => f.write_str("machine"),
        }
    }
}

/// A rule that does not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// Where.
    pub place: Place,
    /// What was found there.
    pub evidence: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.rule, self.place, self.evidence)
    }
}

/// What was looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Checked {
    /// Pages of memory.
    pub pages: u64,
    /// Records of page metadata that somebody has touched.
    pub touched: u64,
    /// Free blocks.
    pub blocks: u64,
    /// Lists of free blocks and of pagesets.
    pub lists: u64,
    /// Page tables.
    pub tables: u64,
    /// Zones with memory.
    pub zones: u64,
    /// Slabs.
    pub slabs: u64,
    /// Areas of the vmalloc space.
    pub areas: u64,
    /// Chunks of per-CPU memory.
    pub chunks: u64,
}

/// The result of a verification.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// The findings, the first [`MAX_FINDINGS`] of them.
    pub findings: Vec<Finding>,
    /// Findings beyond those.
    pub more: u64,
    /// What was looked at.
    pub checked: Checked,
    /// How long it took.
    pub elapsed: Duration,
}

impl Report {
    /// Whether nothing was found.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    /// All findings, also those that are not kept.
    pub fn count(&self) -> u64 {
        self.more + self.findings.len() as u64
    }

    /// Whether there is a finding of `rule`.
    pub fn has(&self, rule: Rule) -> bool {
        self.findings.iter().any(|finding| finding.rule == rule)
    }

    /// One line: what was checked and how it came out.
    pub fn summary(&self) -> String {
        let Checked { pages, touched, blocks, lists, tables, zones, slabs, areas, chunks } = self.checked;
        let result = match self.count() {
            0 => "sound".to_owned(),
            1 => "1 finding".to_owned(),
            count => format!("{count} findings"),
        };
        format!(
            "{result}: {pages} pages in {zones} zones ({touched} touched), {blocks} free blocks, {lists} lists, \
             {tables} page tables, {slabs} slabs, {areas} areas, {chunks} chunks, {} rules, {:.1} ms",
            Rule::ALL.len(),
            self.elapsed.as_secs_f64() * 1e3
        )
    }

    /// As a document for scripts.
    pub fn json(&self) -> serde_json::Value {
        let findings = self.findings.iter().map(|finding| {
            let mut entry = serde_json::json!({ "rule": finding.rule.name(), "evidence": finding.evidence });
            let (key, value) = match finding.place {
                Place::Pfn(pfn) => ("pfn", pfn),
                Place::Virtual(address) => ("address", address),
                Place::Zone(zone) => ("zone", zone as u64),
                Place::Node(node) => ("node", node as u64),
                Place::Cpu(cpu) => ("cpu", cpu as u64),
                Place::Machine => return entry,
            };
            if let Some(entry) = entry.as_object_mut() {
                entry.insert(key.into(), value.into());
            }
            entry
        });
        serde_json::json!({
            "sound": self.is_sound(),
            "findings": findings.collect::<Vec<_>>(),
            "more": self.more,
            "checked": self.checked,
            "elapsed_ms": self.elapsed.as_secs_f64() * 1e3,
        })
    }
}

/// Takes findings down.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub list: Vec<Finding>,
    pub more: u64,
}

impl Findings {
    /// Adds a finding; what comes after the first [`MAX_FINDINGS`] is only counted.
    pub fn add(&mut self, rule: Rule, place: Place, evidence: fmt::Arguments<'_>) {
        if self.list.len() < MAX_FINDINGS {
            self.list.push(Finding { rule, place, evidence: evidence.to_string() });
        } else {
            self.more += 1;
        }
    }

    /// Adds a finding if a value is not what it must be.
    pub fn equal<T: PartialEq + fmt::Display>(&mut self, rule: Rule, place: Place, what: &str, found: T, expected: T) {
        if found != expected {
            self.add(rule, place, format_args!("{what} is {found}, not {expected}"));
        }
    }
}
