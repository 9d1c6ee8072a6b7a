//! The textbook's memory devices: scull, scullc, scullp and scullv (Simple Character Utility for Loading Localities).
//!
//! A device keeps what is written to it in quanta of memory. Pointers to quanta lie in arrays, the quantum sets; each
//! array hangs on a small structure, and these are linked. The four drivers differ in where their quanta come from
//! ([`Media`]) and in nothing else, as [`Device`] shows: they are the worked example of how the allocators are used.
//!
//! | driver | a quantum | is allocated by | freed by |
//! |---|---|---|---|
//! | scull | 4000 bytes | `kmalloc` | `kfree` |
//! | scullc | 4000 bytes | `kmem_cache_alloc` | `kmem_cache_free` |
//! | scullp | pages of an order | `alloc_pages` | `free_pages` |
//! | scullv | pages of an order | `vmalloc` | `vfree` |
//!
//! They are driven by workloads ([`pagevisor_shared::command::workload::Kind::Scull`] and its like).

mod device;
mod media;

pub(crate) use device::Device;
pub(crate) use media::{Media, QUANTUM};
