//! Slab caches: descriptors, arrays of free objects, lists of slabs, and every object with its state.
//!
//! ```text
//! slab_caches()          descriptors, by the region's table                (cache.rs)
//! walk_slabs(cache)      the slabs on the lists of its nodes, link by link (walk.rs)
//!   arrays               addresses of the objects that arrays hold         (arrays.rs)
//!   objects(slab)        each object: in use, free, or in which array      (objects.rs)
//! slab_of(pfn)           the slab that a page belongs to                   (find.rs)
//! ```

mod arrays;
mod cache;
mod find;
mod objects;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
mod walk;

pub use arrays::{ArrayFault, ArrayFaultKind, Arrays, Holder};
pub(crate) use cache::Record;
pub use cache::{ArrayInfo, NodeSlabs, SlabCache, SlabCaches};
pub use objects::{FreelistFault, ObjectState, SlabObjects};
pub use walk::{NodeWalk, Slab, SlabList, SlabListFault, SlabWalk};
