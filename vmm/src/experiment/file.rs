//! The file that describes an experiment.
//!
//! ```toml
//! topologies = ["../topologies/two-socket.toml"]   # relative to this file
//! seeds = [1, 2, 3]                                # or seeds = 3
//! timeout = 60                                     # seconds for each run
//!
//! [[workload]]
//! name = "fragment"
//! order = [4, 9]                                   # a list is an axis of the matrix
//!
//! [settings]
//! "vm.min_free_kbytes" = [4096, 65536]
//! ```

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::error::ExperimentError;
use super::matrix::{self, Run, Setting};
use crate::topology::Topology;
use crate::workload::Value;

/// Seconds for a run where the file does not say.
const DEFAULT_TIMEOUT: u64 = 60;
/// Most runs of an experiment.
const MAX_RUNS: usize = 100_000;

/// An experiment as it was described, its topologies read.
#[derive(Debug)]
pub struct Experiment {
    /// Time for each run.
    pub timeout: Duration,
    /// All runs, in the order of the file: topologies outermost, seeds innermost.
    pub runs: Vec<Run>,
}

/// An axis: one value, or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a number, a string, or a list of these")]
pub(super) enum Axis {
    One(Scalar),
    Many(Vec<Scalar>),
}

/// A value on an axis.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a number or a string")]
pub(super) enum Scalar {
    Number(u64),
    Text(String),
}

impl Axis {
    /// Its values.
    pub(super) fn values(&self) -> Vec<Value> {
        let value = |scalar: &Scalar| match scalar {
            Scalar::Number(number) => Value::Number(*number),
            Scalar::Text(text) => Value::Text(text.clone()),
        };
        match self {
            Self::One(scalar) => vec![value(scalar)],
            Self::Many(scalars) => scalars.iter().map(value).collect(),
        }
    }
}

/// `seeds = 3` or `seeds = [1, 2, 3]`
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a number of seeds, or a list of seeds")]
enum Seeds {
    Count(u32),
    List(Vec<u64>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    topologies: Vec<Spanned<String>>,
    #[serde(default)]
    seeds: Option<Spanned<Seeds>>,
    #[serde(default)]
    timeout: Option<Spanned<u64>>,
    workload: Vec<Spanned<RawWorkload>>,
    #[serde(default)]
    settings: BTreeMap<Spanned<String>, Spanned<Axis>>,
}

#[derive(Debug, Deserialize)]
struct RawWorkload {
    name: String,
    #[serde(flatten)]
    params: BTreeMap<String, Axis>,
}

/// The text that is being read.
struct Source<'a> {
    name: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn error(&self, span: Option<Range<usize>>, reason: impl Into<String>) -> ExperimentError {
        let line = |span: Range<usize>| self.text.get(..span.start).map(|before| before.matches('\n').count() + 1);
        let origin = match span.and_then(line) {
            Some(line) => format!("{}:{line}", self.name),
            None => self.name.to_owned(),
        };
        ExperimentError::File { origin, reason: reason.into() }
    }
}

impl Experiment {
    /// Reads the file of an experiment and the topologies it names. `kernel` tells kernels apart.
    ///
    /// # Errors
    /// In one line, with the file, the line and the key.
    pub fn read(path: &Path, kernel: &str) -> Result<Self, ExperimentError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ExperimentError::File {
            origin: name.clone(),
            reason: format!("cannot be read: {error}"),
        })?;
        Self::parse(&text, &name, path.parent().unwrap_or(Path::new("")), kernel)
    }

    /// The same for text that is already read. Paths in it are relative to `folder`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str, name: &str, folder: &Path, kernel: &str) -> Result<Self, ExperimentError> {
        let source = Source { name, text };
        let raw: Raw = toml::from_str(text)
            .map_err(|error| source.error(error.span(), error.message().trim().replace('\n', "; ")))?;
        let timeout = raw.timeout.as_ref().map_or(DEFAULT_TIMEOUT, |seconds| *seconds.get_ref());
        if timeout == 0 {
            let span = raw.timeout.map(|seconds| seconds.span());
            return Err(source.error(span, "timeout: it must be more than 0 seconds"));
        }
        let seeds = seeds(&source, raw.seeds.as_ref())?;
        let topologies = topologies(&source, &raw.topologies, folder)?;
        let workloads = workloads(&source, &raw.workload, folder)?;
        let settings = settings(&source, &raw.settings)?;
        let sizes = [topologies.len(), workloads.len(), settings.len(), seeds.len()];
        if sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size)).is_none_or(|runs| runs > MAX_RUNS)
        {
            return Err(source.error(None, format!("its matrix has more than {MAX_RUNS} runs")));
        }
        let runs = matrix::expand(&topologies, &workloads, &settings, &seeds, kernel)
            .map_err(|(setting, reason)| source.error(None, format!("settings, {setting}: {reason}")))?;
        Ok(Self { timeout: Duration::from_secs(timeout), runs })
    }
}

fn seeds(source: &Source<'_>, seeds: Option<&Spanned<Seeds>>) -> Result<Vec<u64>, ExperimentError> {
    let Some(seeds) = seeds else { return Ok(vec![1]) };
    let list: Vec<u64> = match seeds.get_ref() {
        Seeds::Count(count) => (1..=u64::from(*count)).take(MAX_RUNS + 1).collect(),
        Seeds::List(list) => list.clone(),
    };
    match list.is_empty() {
        true => Err(source.error(Some(seeds.span()), "seeds: there must be at least one")),
        false => Ok(list),
    }
}

/// The topologies with the names they have in results: their file names without the ending.
fn topologies(
    source: &Source<'_>,
    paths: &[Spanned<String>],
    folder: &Path,
) -> Result<Vec<(String, Topology)>, ExperimentError> {
    if paths.is_empty() {
        return Err(source.error(None, "topologies: there must be at least one"));
    }
    let mut found: Vec<(String, Topology)> = Vec::new();
    for path in paths {
        let file: PathBuf = folder.join(path.get_ref());
        let name = file.file_stem().map_or_else(|| path.get_ref().clone(), |stem| stem.to_string_lossy().into_owned());
        if found.iter().any(|(other, _)| *other == name) {
            let reason = format!("topologies: there is another one called {name:?}");
            return Err(source.error(Some(path.span()), reason));
        }
        found.push((name, Topology::from_toml_file(file)?));
    }
    Ok(found)
}

/// Every combination of the parameters of each workload.
fn workloads(
    source: &Source<'_>,
    raw: &[Spanned<RawWorkload>],
    folder: &Path,
) -> Result<Vec<crate::workload::Workload>, ExperimentError> {
    let mut found = Vec::new();
    for entry in raw {
        let RawWorkload { name, params } = entry.get_ref();
        let refuse = |reason: String| source.error(Some(entry.span()), format!("workload {name:?}, {reason}"));
        if params.contains_key("seed") {
            return Err(refuse("seed: it comes from `seeds`".to_owned()));
        }
        let axes: Vec<_> = params.iter().map(|(key, axis)| (key.clone(), axis.values())).collect();
        if let Some((key, _)) = axes.iter().find(|(_, values)| values.is_empty()) {
            return Err(refuse(format!("{key}: the list is empty")));
        }
        for params in matrix::combinations(&axes, MAX_RUNS).ok_or_else(|| refuse("too many combinations".to_owned()))? {
            let mut workload = crate::workload::Workload { name: name.clone(), params: params.into_iter().collect() };
            if let Some(Value::Text(file)) = workload.params.get_mut("file") {
                *file = folder.join(&file).display().to_string();
            }
            workload.check().map_err(&refuse)?;
            found.push(workload);
        }
    }
    match found.is_empty() {
        true => Err(source.error(None, "workload: there must be at least one [[workload]]")),
        false => Ok(found),
    }
}

/// Every combination of the settings.
fn settings(
    source: &Source<'_>,
    raw: &BTreeMap<Spanned<String>, Spanned<Axis>>,
) -> Result<Vec<Vec<(Setting, Value)>>, ExperimentError> {
    let mut axes = Vec::new();
    for (name, axis) in raw {
        let refuse = |reason: String| source.error(Some(name.span()), reason);
        let setting = Setting::named(name.get_ref()).ok_or_else(|| {
            let known: Vec<_> = Setting::ALL.iter().map(|setting| setting.name()).collect();
            refuse(format!("unknown setting {:?}; the settings are {}", name.get_ref(), known.join(", ")))
        })?;
        let values = axis.get_ref().values();
        if values.is_empty() {
            return Err(refuse(format!("settings, {}: the list is empty", setting.name())));
        }
        for value in &values {
            setting.check(value).map_err(|reason| refuse(format!("settings, {}: {reason}", setting.name())))?;
        }
        axes.push((setting, values));
    }
    matrix::combinations(&axes, MAX_RUNS).ok_or_else(|| source.error(None, "settings: too many combinations"))
}
