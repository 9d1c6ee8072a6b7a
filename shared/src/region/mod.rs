//! The state region: the guest allocator's live counters, in memory that the host maps too.
//!
//! **These are the counters, not copies of them**: the guest's allocator works on these words, so showing them costs
//! it nothing, and the host may look at any moment. All records are `repr(C)`, made of atomics only, and valid when
//! zero. The region is one block:
//!
//! ```text
//! 0        Header          magic, ABI version, table of (offset, stride, count), roots, panic record
//! 0x1000   log ring        at a fixed place, so that the guest can log before it knows the machine
//! ...      tables          laid out by RegionLayout::new(nodes, cpus), found through the header
//! ```
//!
//! What must be read together is guarded by a sequence counter ([`seq`]): a zone's by [`zone::ZoneState::seq`],
//! which its lock holder keeps odd while the free lists and their counters change.
//!
//! The guest writes the header last ([`Header::publish`]); the host opens the region with [`RegionRef::open`], which
//! checks every offset, stride and count against what it mapped and never again trusts the header.

pub mod event;
pub mod fault;
mod header;
pub mod log;
mod reader;
pub mod records;
pub mod seq;
pub mod zone;

pub use header::{GuestState, Header, MAX_BACKTRACE, PanicRecord, RegionLayout, Roots, TABLES, Table, TableDesc};
pub use reader::{Corrupt, RegionRef};
