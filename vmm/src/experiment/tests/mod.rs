mod engine;
mod file;
mod results;

use std::path::Path;

use super::*;

/// A machine of two nodes, 100 ns apart.
const TWO: &str = "[[node]]\nmem = \"64M\"\ncpus = 1\n[[node]]\nmem = \"64M\"\ncpus = 1\n[latency]\n\"0:1\" = 100\n";

/// The file `text` in a folder that has `two.toml` and `one.toml`.
fn parse_in(folder: &Path, text: &str) -> Result<Experiment, ExperimentError> {
    std::fs::write(folder.join("two.toml"), TWO).unwrap();
    std::fs::write(folder.join("one.toml"), "[[node]]\nmem = \"64M\"\ncpus = 2\n").unwrap();
    Experiment::parse(text, "e.toml", folder, "kernel")
}

fn parse(text: &str) -> Result<Experiment, ExperimentError> {
    parse_in(tempfile::tempdir().unwrap().path(), text)
}

#[track_caller]
fn parsed(text: &str) -> Experiment {
    parse(text).unwrap_or_else(|error| panic!("{error}"))
}

/// Eight runs of two machines.
const EIGHT: &str = "\
topologies = [\"two.toml\", \"one.toml\"]
seeds = 2
[[workload]]
name = \"fragment\"
order = [3, 9]
gfp = \"KERNEL\"
[settings]
\"vm.min_free_kbytes\" = 4096
";
