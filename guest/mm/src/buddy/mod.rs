//! The buddy allocator of a zone.
//!
//! Free memory is blocks of `2^order` pages, aligned to their size. A block's buddy is the block of the same order
//! beside it with which it makes one of the next order. Blocks are on lists by order and migrate type; the head of
//! each is marked `PG_buddy` with its order and type, but for untouched blocks of the largest order (see
//! [`pagevisor_shared::page`]).
//!
//! All of it is methods of `LockedZone`, which holds the zone's lock. Results are Linux's, list order included;
//! two things are done in one step that Linux does page by page: a refill carves its pages out of a larger block
//! (`carve`), and freeing many coalesces neighbours first (`bulk`).

mod bulk;
mod carve;
mod fallback;
mod free;
mod handover;
mod idle;
mod isolate;
mod lock;
mod rmqueue;

pub(crate) use fallback::AllocFlags;
pub use free::Placement;
pub(crate) use idle::Clearing;
pub(crate) use lock::{Block, LockedZone};
