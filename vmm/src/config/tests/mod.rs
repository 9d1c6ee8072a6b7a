mod accepted;
mod hostile;
mod refused;

use std::path::Path;

use super::*;

/// The topologies that come with the project, by file name.
pub(crate) fn shipped() -> Vec<(String, Topology)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies");
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let topology = Topology::from_toml_file(&path).unwrap_or_else(|error| panic!("{error}"));
            (name, topology)
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// The command line `--node A --node B ... --distance X ...`.
fn flags(nodes: &[&str], distances: &[&str]) -> TopologyArgs {
    let own = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
    TopologyArgs { nodes: own(nodes), distances: own(distances), ..TopologyArgs::default() }
}
