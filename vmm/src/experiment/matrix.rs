//! The runs of an experiment: every combination of its axes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::topology::Topology;
use crate::workload::{Value, Workload};

/// Something about a machine that an experiment may vary.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Setting {
    /// Words for the kernel's command line.
    #[serde(rename = "append")]
    Append,
    /// Only the CPUs with the lowest numbers, so many of them.
    #[serde(rename = "cpus")]
    Cpus,
    /// `/proc/sys/vm/lowmem_reserve_ratio`: a number per zone, separated by spaces.
    #[serde(rename = "vm.lowmem_reserve_ratio")]
    LowmemReserveRatio,
    /// `/proc/sys/vm/min_free_kbytes`
    #[serde(rename = "vm.min_free_kbytes")]
    MinFreeKbytes,
    /// `/proc/sys/vm/percpu_pagelist_high_fraction`
    #[serde(rename = "vm.percpu_pagelist_high_fraction")]
    PercpuPagelistHighFraction,
    /// `/proc/sys/vm/watermark_scale_factor`
    #[serde(rename = "vm.watermark_scale_factor")]
    WatermarkScaleFactor,
    /// `/proc/sys/vm/zone_reclaim_mode`
    #[serde(rename = "vm.zone_reclaim_mode")]
    ZoneReclaimMode,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Append,
        Self::Cpus,
        Self::LowmemReserveRatio,
        Self::MinFreeKbytes,
        Self::PercpuPagelistHighFraction,
        Self::WatermarkScaleFactor,
        Self::ZoneReclaimMode,
    ];

    /// Its name in files and results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Cpus => "cpus",
            Self::LowmemReserveRatio => "vm.lowmem_reserve_ratio",
            Self::MinFreeKbytes => "vm.min_free_kbytes",
            Self::PercpuPagelistHighFraction => "vm.percpu_pagelist_high_fraction",
            Self::WatermarkScaleFactor => "vm.watermark_scale_factor",
            Self::ZoneReclaimMode => "vm.zone_reclaim_mode",
        }
    }

    /// `NAME=VALUE`, in quotes where one could not see where the value ends.
    pub(super) fn with(self, value: &Value) -> String {
        match value {
            Value::Text(text) if text.is_empty() || text.contains(' ') => format!("{}={text:?}", self.name()),
            plain => format!("{}={plain}", self.name()),
        }
    }

    /// The setting of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|setting| setting.name() == name)
    }

    /// Whether it can have this value; whether the guest takes it shows when it runs.
    pub(super) fn check(self, value: &Value) -> Result<(), String> {
        match (self, value) {
            (Self::Append, Value::Text(_)) => Ok(()),
            (Self::Append, Value::Number(_)) => Err(format!("{value} is not a string of kernel words")),
            (Self::Cpus, Value::Number(0)) => Err("a machine has at least one CPU".to_owned()),
            (Self::LowmemReserveRatio, value) => self.numbers(value).map(|_| ()),
            (_, Value::Number(_)) => Ok(()),
            (_, Value::Text(text)) => Err(format!("{text:?} is not a number")),
        }
    }

    /// The numbers in a value of this setting.
    pub fn numbers(self, value: &Value) -> Result<Vec<u64>, String> {
        match value {
            Value::Number(number) => Ok(vec![*number]),
            Value::Text(text) => text
                .split_whitespace()
                .map(|word| word.parse().map_err(|_| format!("{word:?} is not a number")))
                .collect(),
        }
    }
}

/// One run: a machine, what it does, and how it is set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Tells the run from all that differ in anything that could change its result, the kernel included.
    pub key: String,
    /// Name of the topology.
    pub name: String,
    /// The machine, with the CPUs it is to have.
    pub topology: Arc<Topology>,
    /// The workload, without its seed.
    pub workload: Workload,
    /// The settings that the experiment varies, or fixes.
    pub settings: BTreeMap<Setting, Value>,
    /// The seed.
    pub seed: u64,
}

impl Run {
    /// The workload with its seed.
    pub fn seeded(&self) -> Workload {
        let mut workload = self.workload.clone();
        workload.params.insert("seed".to_owned(), Value::Number(self.seed));
        workload
    }
}

/// `two-socket fragment:order=9,seed=1 vm.min_free_kbytes=4096`
impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.seeded())?;
        self.settings.iter().try_for_each(|(setting, value)| write!(f, " {}", setting.with(value)))
    }
}

/// Every combination of a value of each axis, the last axis varying fastest; `None` if there are more than `max`.
pub(super) fn combinations<K: Clone>(axes: &[(K, Vec<Value>)], max: usize) -> Option<Vec<Vec<(K, Value)>>> {
    let mut found: Vec<Vec<(K, Value)>> = vec![Vec::new()];
    for (key, values) in axes {
        if found.len().checked_mul(values.len())? > max {
            return None;
        }
        let longer = |before: Vec<(K, Value)>| {
            let with = |value: &Value| before.iter().cloned().chain([(key.clone(), value.clone())]).collect();
            values.iter().map(with).collect::<Vec<Vec<_>>>()
        };
        found = found.into_iter().flat_map(longer).collect();
    }
    Some(found)
}

/// The runs. A setting that does not go with a topology is refused, with its name.
pub(super) fn expand(
    topologies: &[(String, Topology)],
    workloads: &[Workload],
    settings: &[Vec<(Setting, Value)>],
    seeds: &[u64],
    kernel: &str,
) -> Result<Vec<Run>, (&'static str, String)> {
    let mut runs = Vec::new();
    for (name, topology) in topologies {
        for workload in workloads {
            for settings in settings {
                let topology = machine(name, topology, settings)?;
                for &seed in seeds {
                    let settings = settings.iter().cloned().collect();
                    let key = key(&topology, workload, &settings, seed, kernel);
                    let (name, workload, topology) = (name.clone(), workload.clone(), topology.clone());
                    runs.push(Run { key, name, topology, workload, settings, seed });
                }
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    runs.retain(|run| seen.insert(run.key.clone()));
    Ok(runs)
}

/// The topology with as many CPUs as the settings say.
fn machine(
    name: &str,
    topology: &Topology,
    settings: &[(Setting, Value)],
) -> Result<Arc<Topology>, (&'static str, String)> {
    let mut machine = topology.clone();
    if let Some((setting, Value::Number(count))) = settings.iter().find(|(setting, _)| *setting == Setting::Cpus) {
        let refuse = |reason: String| (setting.name(), reason);
        if *count > topology.nr_cpus() as u64 {
            return Err(refuse(format!("{name} has {} CPUs, not {count}", topology.nr_cpus())));
        }
        for node in &mut machine.nodes {
            node.cpus.retain(|&cpu| u64::from(cpu) < *count);
        }
        machine.validate().map_err(|error| refuse(format!("{name} with {count} CPUs: {error}")))?;
    }
    Ok(Arc::new(machine))
}

/// SHA-256 over all that a result depends on.
fn key(
    topology: &Topology,
    workload: &Workload,
    settings: &BTreeMap<Setting, Value>,
    seed: u64,
    kernel: &str,
) -> String {
    let mut hash = Sha256::new();
    let settings: Vec<String> =
        settings.iter().map(|(setting, value)| format!("{}={value:?}", setting.name())).collect();
    let parts = [
        env!("CARGO_PKG_VERSION").to_owned(),
        kernel.to_owned(),
        topology.to_toml(),
        // With the contents of a trace, whatever its file is called.
        format!("{}{:?}", workload.name, workload.encode().map_or(Vec::new(), |messages| messages.payloads().to_vec())),
        settings.join("\n"),
        seed.to_string(),
    ];
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
