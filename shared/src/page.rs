//! The metadata of a page (`struct page`), 32 bytes, as it lies in guest memory.
//!
//! **All-zero metadata is a valid state**: a page that nobody has touched since the machine started. Boot never
//! writes metadata page by page. What zero means by the page's place:
//!
//! - in free memory handed over from memblock: part of a free block of order 10, whose head is the frame aligned
//!   to 1024 pages (the links of those heads are implicit, see [`LINK_STRIDE`]);
//! - in memory that was reserved at boot (kernel image, memmap, page tables; the region's reserved table): in use
//!   and never to be freed; Linux would show `PG_reserved` there;
//! - in a hole of a present section: nothing.

use core::mem::size_of;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::units::MAX_ORDER_NR_PAGES;

/// Metadata of one page. Field names are Linux's.
#[repr(C, align(32))]
#[derive(Debug, Default)]
pub struct Page {
    /// [`crate::page_flags::PageFlag`] bits and, above them, [`crate::page_flags::PG_NOTZERO`],
    /// [`crate::page_flags::PG_OWNED`] and the order of a block in use ([`crate::page_flags::PG_ORDER_MASK`]).
    pub flags: AtomicU32,
    /// References held; 0 on free pages and on tails of blocks.
    pub _refcount: AtomicU32,
    /// Page-table entries that map the page. Linux counts from -1; here the stored word is Linux's plus 1, so that
    /// zero is "not mapped". With [`PAGE_TYPE_BASE`] set it is a page type instead (`page_type`).
    pub _mapcount: AtomicU32,
    /// Order of a free block's head (`PG_buddy`); the owner's own of a page in use. The order of a block in use is in
    /// [`Self::flags`].
    pub private: AtomicU32,
    /// Forward list link, encoded by [`encode_next`].
    pub next: AtomicU32,
    /// Backward list link, encoded by [`encode_prev`].
    pub prev: AtomicU32,
    /// Owner of the content, as a handle; 0 for none.
    pub mapping: AtomicU32,
    /// Offset within the mapping in pages; on a per-CPU list the migrate type of the page; on the head of a free
    /// block the migrate type of the list it is on, XOR 1 (so that zero is `Movable`, where boot puts all memory).
    pub index: AtomicU32,
}

/// Size of [`Page`] in bytes.
pub const PAGE_STRUCT_SIZE: u64 = 32;
const _: () = assert!(size_of::<Page>() as u64 == PAGE_STRUCT_SIZE);

/// `_mapcount` holds a page type when this bit is set (Linux's `PAGE_TYPE_BASE`, inverted like the word itself).
pub const PAGE_TYPE_BASE: u32 = 1 << 31;
/// Type of the head of a free block in the buddy allocator (`PG_buddy`).
pub const PG_BUDDY: u32 = PAGE_TYPE_BASE | 0x80;
/// Type of a page that is logically offline (`PG_offline`).
pub const PG_OFFLINE: u32 = PAGE_TYPE_BASE | 0x100;
/// Type of a page-table page (`PG_table`).
pub const PG_TABLE: u32 = PAGE_TYPE_BASE | 0x200;

/// Distance of the neighbours that a zero link means: blocks of the largest order, side by side.
///
/// Free memory is handed over as whole blocks of order 10. Were each linked by hand, booting would touch one
/// metadata cache line per 4 MiB. A stored link is therefore relative: zero in `next` means the block right behind,
/// zero in `prev` the block right before, and a run of untouched blocks is a correct list already. Only the ends of
/// a run are written.
pub const LINK_STRIDE: u32 = MAX_ORDER_NR_PAGES as u32;

/// The word to store in [`Page::next`] of frame `this` for a link to frame `target` (0: end of the list).
#[inline(always)]
pub const fn encode_next(this: u32, target: u32) -> u32 {
    target.wrapping_sub(this.wrapping_add(LINK_STRIDE))
}

/// The frame that `stored` in [`Page::next`] of frame `this` links to (0: end of the list).
#[inline(always)]
pub const fn decode_next(this: u32, stored: u32) -> u32 {
    stored.wrapping_add(this.wrapping_add(LINK_STRIDE))
}

/// The word to store in [`Page::prev`] of frame `this` for a link to frame `target` (0: start of the list). Two
/// neighbours on a list hold the same word in `next` of the first and `prev` of the second.
#[inline(always)]
pub const fn encode_prev(this: u32, target: u32) -> u32 {
    this.wrapping_sub(LINK_STRIDE).wrapping_sub(target)
}

/// The frame that `stored` in [`Page::prev`] of frame `this` links to (0: start of the list).
#[inline(always)]
pub const fn decode_prev(this: u32, stored: u32) -> u32 {
    this.wrapping_sub(LINK_STRIDE).wrapping_sub(stored)
}

const _: () = assert!(encode_next(7, 4099) == encode_prev(4099, 7) && decode_prev(4099, encode_prev(4099, 7)) == 7);

impl Page {
    /// Whether the page is marked as the head of a free block. Heads inside an untouched run of order-10 blocks are
    /// free without being marked.
    #[inline(always)]
    pub fn is_buddy(&self) -> bool {
        self._mapcount.load(Relaxed) == PG_BUDDY
    }
}
