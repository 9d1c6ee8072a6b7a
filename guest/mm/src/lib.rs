//! The memory stack of the Pagevisor guest, built the way Linux builds it.
//!
//! Layers, each using only those above it: addresses, page metadata, memblock, nodes and zones and zonelists, buddy,
//! per-CPU page lists, page allocator. One [`Mm`](crate) instance owns everything; the crate has no mutable global.
//! All that differs between ring 0 and a hosted test sits behind [`platform::Platform`].
#![no_std]
#![deny(unsafe_code)]

pub mod memblock;
pub mod platform;
