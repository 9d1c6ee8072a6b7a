//! The files of `--proc-dir`.

use std::fmt::Write;

use pagevisor_shared::command::Setting;
use pagevisor_shared::report::counters;

use super::error::ReportError;
use super::view::{NodeFile, View};
use crate::state::StateView;

/// Where the nodes are in sysfs.
const NODES: &str = "sys/devices/system/node";

/// Where the settings of memory management are in procfs.
const SYSCTLS: &str = "proc/sys/vm";
/// Directories with files that take what is written to them.
pub const WRITTEN_DIRS: [&str; 2] = ["proc", SYSCTLS];

fn text(view: View, state: &StateView) -> Result<String, ReportError> {
    let mut bytes = Vec::new();
    view.render(state, false, &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The files of a guest's `/proc` and `/sys` that Linux's tools read: paths relative to the root, and contents.
///
/// # Errors
/// When the guest's state is damaged.
pub fn proc_tree(state: &StateView) -> Result<Vec<(String, String)>, ReportError> {
    let region = state.region();
    let mut files = Vec::new();
    let views = [
        View::Buddyinfo,
        View::Pagetypeinfo,
        View::Zoneinfo,
        View::Meminfo,
        View::Vmstat,
        View::Iomem,
        View::Slabinfo,
        View::Vmallocinfo,
    ];
    for view in views {
        files.push((format!("proc/{view}"), text(view, state)?));
    }
    // Lines of `vm.NAME = VALUE`.
    for line in text(View::Sysctl, state)?.lines() {
        let Some((name, value)) = line.strip_prefix("vm.").and_then(|line| line.split_once(" = ")) else { continue };
        files.push((format!("{SYSCTLS}/{name}"), format!("{value}\n")));
    }
    // Linux's can only be written.
    files.push((format!("{SYSCTLS}/{}", Setting::DropCaches.name()), String::new()));
    let masks = [
        ("online", counters::online_nodes(&region)),
        ("possible", counters::possible_nodes(&region)),
        ("has_cpu", counters::nodes_with_cpus(&region)),
        ("has_memory", counters::nodes_with_memory(&region)),
        ("has_normal_memory", counters::nodes_with_normal_memory(&region)),
    ];
    for (name, mask) in masks {
        let mut line = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(line, "{mask}");
        files.push((format!("{NODES}/{name}"), line));
    }
    for node in counters::online_nodes(&region).iter() {
        for (file, name) in NodeFile::ALL {
            files.push((format!("{NODES}/node{}/{name}", node.index()), text(View::Node(node, file), state)?));
        }
    }
    Ok(files)
}
