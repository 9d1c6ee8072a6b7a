//! The machine in flags: `--node`, `--distance`, `--latency`, `--bandwidth`.

use super::error::ConfigError;
use super::spec::{NodeSpec, PairLayer, PairSpec};
use super::value;
use crate::topology::{AddrRange, MemoryKey, PairKind};

/// The keys of a node, as an error names them.
pub(super) const NODE_KEYS: &str = "mem, dma, dma32, normal, range, cpus";

/// The memory key that `word` is.
pub(super) fn memory_key(word: &str) -> Option<MemoryKey> {
    use MemoryKey::{Dma, Dma32, Mem, Normal, Range};
    [Mem, Dma, Dma32, Normal, Range].into_iter().find(|key| key.name() == word)
}

/// Reads the values of `--node`, one node each.
pub(super) fn nodes(values: &[String]) -> Result<Vec<NodeSpec>, ConfigError> {
    values.iter().enumerate().map(|(id, text)| node(id, text)).collect()
}

fn node(id: usize, text: &str) -> Result<NodeSpec, ConfigError> {
    let origin = format!("--node {text}");
    let mut node = NodeSpec::new(id, &origin);
    for part in split(text) {
        let Some((key, value)) = part.split_once('=') else {
            return Err(ConfigError::new(origin, "", format!("{part:?} is not KEY=VALUE; the keys are {NODE_KEYS}")));
        };
        let refuse = |reason: String| ConfigError::new(&origin, node.about(key), reason);
        if key == "cpus" {
            let cpus = value::cpus(value).map_err(refuse)?;
            node.set_cpus(cpus, &origin)?;
        } else if let Some(memory) = memory_key(key) {
            let range = match memory {
                MemoryKey::Range => value::range(value).map_err(refuse)?,
                _ => AddrRange { start: 0, size: value::amount(value).map_err(refuse)? },
            };
            node.add_amount(memory, range, &origin)?;
        } else {
            return Err(ConfigError::new(origin, "", format!("unknown key {key:?}; the keys are {NODE_KEYS}")));
        }
    }
    Ok(node)
}

/// The parts of `text` between commas, brackets holding together what is in them.
fn split(text: &str) -> Vec<&str> {
    let mut inside = false;
    text.split(|character| {
        match character {
            '[' => inside = true,
            ']' => inside = false,
            _ => {}
        }
        character == ',' && !inside
    })
    .collect()
}

/// Reads the values of `--distance`, or of another figure that pairs of nodes have.
pub(super) fn pairs(kind: PairKind, values: &[String]) -> Result<PairLayer, ConfigError> {
    let mut layer = PairLayer { kind, origin: String::new(), matrix: false, entries: Vec::new() };
    for text in values {
        let origin = format!("--{} {text}", kind.name());
        let (from, to, value) = value::pair(kind, text).map_err(|reason| ConfigError::new(&origin, "", reason))?;
        if layer.entries.iter().any(|entry| (entry.from, entry.to) == (from, to)) {
            return Err(ConfigError::new(origin, format!("{} {from}:{to}", kind.name()), "it is given twice"));
        }
        layer.origin.clone_from(&origin);
        layer.entries.push(PairSpec { from, to, value, origin });
    }
    Ok(layer)
}
