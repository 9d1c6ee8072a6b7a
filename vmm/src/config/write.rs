//! A topology as the text of a file that describes it.

use std::fmt::Write;

use super::value::Size;
use crate::topology::{Memory, Node, Topology};

impl Topology {
    /// The topology as a file: everything is explicit in it, and [`Topology::from_toml`] reads it back equal.
    pub fn to_toml(&self) -> String {
        let mut text = String::from("distance = [\n");
        for row in &self.distances {
            let row: Vec<String> = row.iter().map(u8::to_string).collect();
            text += &format!("  [{}],\n", row.join(", "));
        }
        text += "]\n";
        for node in &self.nodes {
            write_node(node, &mut text);
        }
        text
    }
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
