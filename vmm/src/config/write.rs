//! A topology as the text of a file that describes it.

use std::fmt::Write;

use super::value::Size;
use crate::topology::{Memory, Node, PairKind, Topology};

impl Topology {
    /// The topology as a file: everything is explicit in it, and [`Topology::from_toml`] reads it back equal.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        write_matrix(PairKind::Distance, &self.distances, &mut text);
        if let Some(latencies) = &self.latencies {
            write_matrix(PairKind::Latency, latencies, &mut text);
        }
        if let Some(bandwidths) = &self.bandwidths {
            write_matrix(PairKind::Bandwidth, bandwidths, &mut text);
        }
        for node in &self.nodes {
            write_node(node, &mut text);
        }
        text
    }
}

fn write_matrix<T: ToString>(kind: PairKind, matrix: &[Vec<T>], text: &mut String) {
    *text += &format!("{} = [\n", kind.name());
    for row in matrix {
        let row: Vec<String> = row.iter().map(T::to_string).collect();
        *text += &format!("  [{}],\n", row.join(", "));
    }
    *text += "]\n";
}

fn write_node(node: &Node, text: &mut String) {
    *text += "\n[[node]]\n";
    let mut line = |key: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{key} = {value}");
    };
    match &node.memory {
        Memory::Ranges(ranges) => {
            let ranges: Vec<String> = ranges.iter().map(|range| format!("\"{range}\"")).collect();
            line("range", format!("[{}]", ranges.join(", ")));
        }
        other => {
            for (key, _, bytes) in other.amounts() {
                line(key.name(), format!("\"{}\"", Size(bytes)));
            }
        }
    }
    let cpus: Vec<String> = node.cpus.iter().map(u32::to_string).collect();
    line("cpus", format!("[{}]", cpus.join(", ")));
}
