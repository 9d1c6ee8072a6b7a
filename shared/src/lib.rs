//! The contract between the Pagevisor host and its guest: what both must know, and nothing else.
//!
//! - the vocabulary of Linux memory management ([`gfp`], [`zone`], [`migrate`], [`page_flags`], [`vmstat`]),
//!   with Linux's names and, where a number is visible to users, Linux's numbers;
//! - the layout of a page's metadata ([`page`]) and of the guest's address space ([`layout`]);
//! - the state region ([`region`]): the allocator's live counters, in memory that host and guest share;
//! - who owns each page ([`page_owner`]);
//! - page-table entries ([`pgtable`]) and the areas of the kernel's address space ([`vmalloc`]);
//! - per-CPU memory ([`percpu`]);
//! - tasks ([`sched`]), the address spaces of programs and what their pages belong to ([`mm_types`]), and the errors that
//!   programs are told ([`errno`]), and the names of system calls ([`syscalls`]);
//! - the devices through which they meet ([`device`]);
//! - the commands that the host sends and the replies ([`command`]), and how seldom the two disturb each other
//!   ([`virtq`]);
//! - the texts that both sides print from the same state ([`report`]);
//! - the set operations of types of flags ([`flag_set`]).
//!
//! Two rules hold for everything here. Shared memory is only ever read and written through atomics. And the host
//! trusts nothing it reads: a length, an offset or an index from the guest is checked before it is used.
#![no_std]

pub mod command;
pub mod device;
pub mod errno;
pub mod flags;
pub mod gfp;
pub mod layout;
pub mod migrate;
pub mod mm_types;
pub mod page;
pub mod page_flags;
pub mod page_owner;
pub mod percpu;
pub mod pgtable;
pub mod random;
pub mod region;
pub mod report;
pub mod sched;
pub mod slab;
pub mod sync;
pub mod syscalls;
pub mod units;
pub mod virtq;
pub mod vmalloc;
pub mod vmstat;
pub mod zone;

/// Version of everything in this crate that host and guest must agree on. A reader refuses any other.
pub const ABI_VERSION: u32 = 5;

/// Most NUMA nodes a machine may have (`MAX_NUMNODES`, here bounded by the node masks' 64 bits).
pub const MAX_NUMNODES: usize = 64;

/// Most CPUs a machine may have (`NR_CPUS`, here bounded by the CPU masks' 64 bits).
pub const NR_CPUS: usize = 64;
