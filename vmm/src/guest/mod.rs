//! Guests as a library: boot one, tell each of its CPUs what to do, look at what came of it.
//!
//! ```no_run
//! use pagevisor::guest::{Gfp, NodeId, Order};
//! use pagevisor::machine::Machine;
//! use pagevisor::topology::Topology;
//! use pagevisor_shared::vmstat::NumaStat;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let topology = Topology::from_toml("[[node]]\nmem = \"128M\"\n[[node]]\nmem = \"128M\"\n", "example")?;
//! let guest = Machine::builder().topology(topology).boot()?;
//!
//! let pages = guest.cpu(1)?.alloc_pages(Gfp::KERNEL | Gfp::DMA32, Order::new(3)?)?;
//! println!("{} on {}", pages.pfn(), pages.node()?);
//! pages.fill(42)?;
//! pages.check(42)?;
//!
//! // Half of the machine, in a few messages.
//! let many = guest.cpu(0)?.alloc_many(Gfp::KERNEL, Order::ZERO, 10_000)?;
//! let node = NodeId::new(0).ok_or("no node 0")?;
//! println!("{} blocks, {} hits", many.len(), guest.state().node(node).map_or(0, |n| n.numa(NumaStat::NumaHit)));
//!
//! drop((pages, many));
//! guest.drain_pages()?;
//! assert!(guest.verify()?.is_sound());
//! # Ok(())
//! # }
//! ```
//!
//! Everything that is allocated is freed when its handle is dropped, by the CPU that allocated it; dropping the
//! [`Guest`] ends the machine and leaves no thread, file or memory behind. CPUs may be driven from different threads:
//! commands to one CPU are executed in the order in which they were sent, those to different CPUs side by side.
//!
//! A command that is not answered in time is an error, and what it allocates when the guest executes it after all is freed
//! as soon as the late reply comes. Until then what is dropped is freed later, too, and dropping it waits for nothing.
//!
//! What can go wrong is one type, [`Error`]: it says what happened ([`ErrorKind`]) and what the guest said last.

mod batch;
mod builder;
mod cpu;
mod error;
mod estate;
mod events;
mod handles;
mod objects;
mod pages;
mod prepared;
mod session;
mod snapshot;
mod state;
mod text;

pub use pagevisor_shared::command::{Fault, Mapping, OpError, Placement, Setting};
pub use pagevisor_shared::gfp::Gfp;
pub use pagevisor_shared::migrate::MigrateType;
pub use pagevisor_shared::slab::SlabFlags;
pub use pagevisor_shared::units::{CpuId, CpuMask, NodeId, NodeMask, Order, Pfn};
pub use pagevisor_shared::zone::ZoneType;

pub use batch::{Batch, BatchBlock, Outcome};
pub use builder::Builder;
pub use cpu::CpuHandle;
pub use error::{Error, ErrorKind};
pub use events::Events;
pub use objects::{Object, Shrinker, SlabCache};
pub use pages::{Blocks, Frames, Pages};
pub use prepared::PreparedWorkload;
pub use session::{Executed, Guest};
pub use snapshot::Snapshot;
pub use state::{NodeCounters, PcpCounters, State, ZoneCounters};
