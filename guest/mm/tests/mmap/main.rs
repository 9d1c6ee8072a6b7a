//! Address spaces of programs on a hosted machine.

mod content;
mod gaps;
mod limits;
mod merge;
mod model;
mod spaces;
mod threads;

use pagevisor_mm::Mm;
use pagevisor_mm::hosted::{HostPlatform, Machine, Topology};

/// The memory stack of a test.
type Stack = Mm<HostPlatform>;

/// A machine of 64 MiB and `cpus` CPUs.
fn machine(cpus: usize) -> Machine {
    Topology::new().node(&[(0, 640 << 10), (1 << 20, 64 << 20)], cpus).boot()
}
