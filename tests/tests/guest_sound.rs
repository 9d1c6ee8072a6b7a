//! The verifier raises no false alarm: after ten thousand random operations on each example machine, with pages kept
//! and without, everything the allocator keeps is as it should be.

use std::path::Path;

use pagevisor::guest::Guest;
use pagevisor::machine::Machine;
use pagevisor::topology::Topology;
use pagevisor::workload::Workload;
use pagevisor_tests::guest::{COMMAND_TIMEOUT, Outcome, guest_with, sound};

/// Runs a workload and verifies what it leaves.
fn run(guest: &Guest, workload: &str) -> Outcome {
    let report = guest.run(&workload.parse::<Workload>()?)?;
    assert!(report.allocs > 0, "{workload} has done nothing");
    sound(guest).map_err(|findings| format!("after {workload}: {findings}").into())
}

/// Ten thousand operations of `file`'s machine: small blocks, all orders, pages that stay, and large ones among them.
fn ten_thousand(file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmm/topologies").join(file);
    let topology = Topology::from_toml_file(path).unwrap_or_else(|error| panic!("{error}"));
    guest_with(Machine::builder().command_timeout(COMMAND_TIMEOUT), &topology, |guest| {
        run(guest, "random:ops=2500,seed=1")?;
        run(guest, "random:ops=2500,seed=2,mix=0:8+1:4+2:2+3:1+5:1+8:1+9:1+10:1,hold=40")?;
        run(guest, "random:ops=2500,seed=3,gfp=KERNEL|MOVABLE,keep=yes")?;
        run(guest, "random:ops=2500,seed=4,gfp=KERNEL|RECLAIMABLE,mix=0:8+1:4+2:2+3:1+5:1+8:1+9:1+10:1,hold=40")?;
        guest.release_workload()?;
        sound(guest)?;
        guest.drain_pages()?;
        Ok(())
    });
}

#[test]
fn a_uma_pc() {
    ten_thousand("uma-pc.toml");
}

#[test]
fn two_sockets() {
    ten_thousand("two-socket.toml");
}

#[test]
fn a_ring_of_four_nodes() {
    ten_thousand("four-node-ring.toml");
}

#[test]
fn a_far_node_of_memory() {
    ten_thousand("memory-only-far-node.toml");
}

#[test]
fn eight_nodes_in_three_levels() {
    ten_thousand("eight-node-three-levels.toml");
}
