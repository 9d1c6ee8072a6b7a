//! The machine in a file: TOML, with the words of the flags.

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::flags::{NODE_KEYS, memory_key};
use super::spec::{NodeSpec, PairLayer, PairSpec, Spec};
use super::value::{self, Cpus};
use crate::topology::{AddrRange, MemoryKey, PairKind};

type Spanned<T> = toml::Spanned<T>;
type Value<'a> = Spanned<DeValue<'a>>;

/// Reads the text of a file.
pub(super) fn parse(text: &str, name: &str) -> Result<Spec, ConfigError> {
    let file = File::new(text, name);
    let document = DeTable::parse(text).map_err(|error| {
        let origin = error.span().map_or_else(|| name.to_owned(), |span| file.line(span.start));
        ConfigError::new(origin, "", error.message().trim().replace('\n', "; "))
    })?;
    let mut spec = Spec { origin: name.to_owned(), ..Spec::default() };
    for (key, value) in in_order(document.get_ref()) {
        match key.get_ref().as_ref() {
            "node" => spec.nodes = file.nodes(value)?,
            "distance" => spec.layers.extend(file.pairs(PairKind::Distance, value)?),
            "latency" => spec.layers.extend(file.pairs(PairKind::Latency, value)?),
            "bandwidth" => spec.layers.extend(file.pairs(PairKind::Bandwidth, value)?),
            other => {
                let reason = format!("unknown key {other:?}; the keys are node, distance, latency, bandwidth");
                return Err(ConfigError::new(file.line(key.span().start), "", reason));
            }
        }
    }
    Ok(spec)
}

/// The entries of a table as they follow each other in the file.
fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<(&'t Spanned<toml::de::DeString<'i>>, &'t Value<'i>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// A file that is being read.
struct File<'a> {
    name: &'a str,
    /// Offsets of the line ends.
    line_ends: Vec<usize>,
}

impl<'a> File<'a> {
    fn new(text: &str, name: &'a str) -> Self {
        Self { name, line_ends: text.match_indices('\n').map(|(offset, _)| offset).collect() }
    }

    /// `NAME:LINE` of the byte at `offset`.
    fn line(&self, offset: usize) -> String {
        format!("{}:{}", self.name, self.line_ends.partition_point(|&end| end < offset) + 1)
    }

    fn at(&self, value: &Value) -> String {
        self.line(value.span().start)
    }

    fn nodes(&self, value: &Value) -> Result<Vec<NodeSpec>, ConfigError> {
        let bad = |value| ConfigError::new(self.at(value), "node", "it is not a table; a node begins with [[node]]");
        let list = value.get_ref().as_array().ok_or_else(|| bad(value))?;
        let table = |value| Value::get_ref(value).as_table().ok_or_else(|| bad(value));
        list.iter().enumerate().map(|(id, node)| self.node(id, table(node)?, self.at(node))).collect()
    }

    fn node(&self, id: usize, table: &DeTable, origin: String) -> Result<NodeSpec, ConfigError> {
        let mut node = NodeSpec::new(id, origin);
        for (key, value) in in_order(table) {
            let (word, origin) = (key.get_ref().as_ref(), self.line(key.span().start));
            let refuse = |reason: String| ConfigError::new(&origin, node.about(word), reason);
            match memory_key(word) {
                Some(MemoryKey::Range) => self.add_ranges(&mut node, value)?,
                Some(key) => {
                    let size = size(value.get_ref()).map_err(refuse)?;
                    node.add_amount(key, AddrRange { start: 0, size }, &origin)?;
                }
                None if word == "cpus" => {
                    let cpus = cpus(value.get_ref()).map_err(refuse)?;
                    node.set_cpus(cpus, &origin)?;
                }
                None => {
                    let reason = format!("unknown key {word:?}; the keys are {NODE_KEYS}");
                    return Err(ConfigError::new(origin, "", reason));
                }
            }
        }
        Ok(node)
    }

    /// `range = "4G-5G"`, or a list of these.
    fn add_ranges(&self, node: &mut NodeSpec, value: &Value) -> Result<(), ConfigError> {
        let ranges = match value.get_ref() {
            DeValue::Array(list) => &list[..],
            _ => std::slice::from_ref(value),
        };
        for value in ranges {
            let origin = self.at(value);
            let text = value.get_ref().as_str().ok_or_else(|| {
                let reason = format!("{} is not a range, such as \"4G-6G\"", describe(value.get_ref()));
                ConfigError::new(&origin, node.about("range"), reason)
            })?;
            let range = value::range(text).map_err(|reason| ConfigError::new(&origin, node.about("range"), reason))?;
            node.add_amount(MemoryKey::Range, range, &origin)?;
        }
        Ok(())
    }

    /// A matrix, or a table of pairs; `None` if it says nothing.
    fn pairs(&self, kind: PairKind, value: &Value) -> Result<Option<PairLayer>, ConfigError> {
        let name = kind.name();
        let mut layer = PairLayer { kind, origin: self.at(value), matrix: false, entries: Vec::new() };
        match value.get_ref() {
            DeValue::Array(rows) => {
                layer.matrix = !rows.is_empty();
                for (from, row) in rows.iter().enumerate() {
                    let refuse = || ConfigError::new(self.at(row), name, format!("row {from} is not a list"));
                    for (to, entry) in row.get_ref().as_array().ok_or_else(refuse)?.iter().enumerate() {
                        layer.entries.push(self.pair(kind, from, to, entry)?);
                    }
                }
            }
            DeValue::Table(pairs) => {
                for (pair, entry) in in_order(pairs) {
                    let (from, to) = value::node_pair(pair.get_ref())
                        .map_err(|reason| ConfigError::new(self.at(entry), name, reason))?;
                    layer.entries.push(self.pair(kind, from, to, entry)?);
                }
            }
            other => {
                let reason = format!("{} is neither a matrix nor a table of pairs", describe(other));
                return Err(ConfigError::new(self.at(value), name, reason));
            }
        }
        Ok(Some(layer).filter(|layer| layer.matrix || !layer.entries.is_empty()))
    }

    fn pair(&self, kind: PairKind, from: usize, to: usize, value: &Value) -> Result<PairSpec, ConfigError> {
        let origin = self.at(value);
        match integer(value.get_ref()) {
            Some(value) => Ok(PairSpec { from, to, value, origin }),
            None => {
                let reason = format!("{} is not a {}", describe(value.get_ref()), kind.name());
                Err(ConfigError::new(origin, format!("{} {from}:{to}", kind.name()), reason))
            }
        }
    }
}

/// A size: text with a unit, or a number of bytes.
fn size(value: &DeValue) -> Result<u64, String> {
    match (value, integer(value)) {
        (DeValue::String(text), _) => value::amount(text),
        (_, Some(bytes)) => value::amount(&bytes.to_string()),
        _ => Err(format!("{} is not a size, such as \"512M\"", describe(value))),
    }
}

/// CPUs: a count, or a list of numbers and of ranges such as `"0-3"`.
fn cpus(value: &DeValue) -> Result<Cpus, String> {
    let DeValue::Array(list) = value else {
        let count = integer(value).and_then(|count| usize::try_from(count).ok()).map(Cpus::Count);
        let bad = || format!("{} is neither a number of CPUs nor a list such as [0, \"2-5\"]", describe(value));
        return count.ok_or_else(bad);
    };
    let mut numbers = Vec::new();
    for entry in list.iter() {
        match (entry.get_ref(), integer(entry.get_ref())) {
            (DeValue::String(text), _) => value::add_cpus(text, &mut numbers)?,
            (_, Some(number)) => value::add_cpus(&number.to_string(), &mut numbers)?,
            (other, _) => return Err(format!("{} is not a CPU or a range of CPUs, such as 3 or 0-3", describe(other))),
        }
    }
    numbers.sort_unstable();
    Ok(Cpus::List(numbers))
}

fn integer(value: &DeValue) -> Option<i64> {
    value.as_integer().and_then(|integer| i64::from_str_radix(integer.as_str(), integer.radix()).ok())
}

/// What a value of the wrong type is.
fn describe(value: &DeValue) -> String {
    match value {
        DeValue::String(text) => format!("the string {text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
