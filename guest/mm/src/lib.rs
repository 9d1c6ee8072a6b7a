//! The memory stack of the Pagevisor guest, built the way Linux builds it.
//!
//! Layers, each using only those above it:
//!
//! | layer | what |
//! |---|---|
//! | [`platform`], [`sync`], [`raw`] | the machine; words and locks; the rooms where `unsafe` may live |
//! | [`memblock`] | the allocator of early boot |
//! | [`page`], [`list`] | page metadata; lists of pages linked by frame number |
//! | [`zone`] | nodes, zones, zonelists, watermarks, pageset sizes, counters |
//! | [`buddy`] | free areas, page blocks, fallback between migrate types |
//! | [`pcp`] | per-CPU page lists |
//! | [`page_alloc`] | the page allocator: fast path, slow path, freeing, reports |
//! | [`slab`] | caches of objects, `kmalloc` |
//! | [`mempool`] | reserves of objects or pages |
//! | [`shrinker`] | asking caches for memory back |
//! | [`pgtable`], [`vmalloc`] | the kernel's page tables; areas of its address space |
//! | [`mmap`], [`rwsem`] | address spaces of programs; their locks |
//! | [`memory`] | programs' page tables, faults and pages |
//! | [`instrument`] | what can look at every allocation and free |
//! | [`percpu`] | per-CPU memory |
//! | [`kmap`] | pages mapped for a short time |
//! | [`contig`] | page isolation, ranges of frames, contiguous memory areas |
//! | [`filemap`] | files' pages |
//! | [`workload`], [`command`] | what the host can have done: workloads, single operations |
//!
//! One [`Mm`] owns everything; the crate has no mutable global. All that differs between ring 0 and a hosted test
//! sits behind [`platform::Platform`]. The counters and lists are in the state region and in the page metadata:
//! they are the allocator's own, and the host reads them while the guest runs.
//!
//! # Locks, by rank
//!
//! Outside of all: those of address spaces ([`mmap`]); the list of shrinkers, read while they work; and those of [`slab`], which says more of them.
//!
//! 1. a pageset ([`PcpState`](pagevisor_shared::region::zone::PcpState)): taken by `try` on the hot paths,
//!    so an interrupt that finds it held goes to the zone instead;
//! 2. per-CPU memory ([`PcpuRoot::lock`](pagevisor_shared::percpu::PcpuRoot::lock)): taken with interrupts off;
//! 3. a zone ([`ZoneState::lock`](pagevisor_shared::region::zone::ZoneState::lock)): taken with interrupts off,
//!    guards free lists, page blocks and their counters.
#![no_std]
#![deny(unsafe_code)]

#[cfg(any(test, feature = "hosted"))]
extern crate std;

mod boot;
pub mod buddy;
pub mod check;
pub mod command;
pub mod contig;
mod cpu;
pub mod filemap;
mod hooks;
#[cfg(feature = "hosted")]
pub mod hosted;
pub mod instrument;
pub mod kmap;
pub mod list;
pub mod memblock;
pub mod memory;
pub mod mempool;
mod mm;
pub mod mmap;
pub mod page;
pub mod page_alloc;
mod params;
pub mod pcp;
pub mod percpu;
pub mod pgtable;
pub mod platform;
pub mod raw;
pub mod rwsem;
mod scull;
pub mod shrinker;
pub mod slab;
mod sparse;
pub mod sync;
mod tree;
pub mod vmalloc;
pub mod workload;
pub mod zone;

pub use boot::{BootConfig, BootError};
pub use cpu::{CpuLocal, Route};
pub use hooks::{Hooks, NodeReclaim, ReclaimNode, ReclaimRequest};
pub use mm::Mm;
pub use raw::{KBox, KVec, NoMemory};
pub use sparse::MemmapChunk;
