//! The page allocator of hosted machines: against a model of Linux's, at its limits, misused, and by many CPUs at once.

mod bad_pages;
mod cma;
mod contig;
mod events;
mod fallback;
mod faults;
mod highatomic;
mod isolation;
mod many_cpus;
mod model;
mod movable;
mod node_reclaim;
mod reference;
mod release;
mod serving;
mod short;
mod watched;

use pagevisor_mm::Mm;
use pagevisor_mm::check::violations;
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{NodeId, Order, Pfn};
use pagevisor_shared::zone::{ZoneIndex, ZoneType};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// An order of a test.
fn order(raw: u32) -> Order {
    Order::new(raw).expect("an order below 11")
}

/// A node's zone.
fn zone(node: usize, kind: ZoneType) -> ZoneIndex {
    ZoneIndex::of(NodeId::new(node).expect("a node below 64"), kind)
}

/// One node and CPU, one zone: 64 MiB of DMA32.
fn small() -> Machine {
    Topology::pages_only().node(&[(16 * MIB, 80 * MIB)], 1).boot()
}

/// Two nodes and two CPUs, with all three zones.
fn two_nodes() -> Machine {
    Topology::pages_only()
        .node(&[(0, 640 << 10), (MIB, 128 * MIB), (4 * GIB, 4 * GIB + 64 * MIB)], 1)
        .node(&[(4 * GIB + 64 * MIB, 4 * GIB + 192 * MIB)], 1)
        .boot()
}

/// Fails with what is wrong if anything is.
#[track_caller]
fn assert_sound(mm: &Mm<HostPlatform>) {
    let found = violations(mm);
    assert!(found.is_empty(), "{}", found.iter().map(|v| format!("{v}\n")).collect::<String>());
}

/// Takes blocks of `order` until there are none.
fn take_all(mm: &Mm<HostPlatform>, gfp: Gfp, order: Order) -> Vec<Pfn> {
    core::iter::from_fn(|| mm.alloc_pages(gfp | Gfp::NOWARN | Gfp::NORETRY, order)).collect()
}
