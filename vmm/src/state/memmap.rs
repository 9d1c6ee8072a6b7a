//! Page metadata, read through the guest's page tables.

use pagevisor_shared::page::{self, PAGE_STRUCT_SIZE, PG_BUDDY};
use pagevisor_shared::page_flags::PG_NOTZERO;
use pagevisor_shared::units::Order;

use super::error::StateError;
use super::walk::walk;
use super::{Roots, StateView};

/// Bytes of a page's metadata.
const SIZE: usize = PAGE_STRUCT_SIZE as usize;

/// The metadata of a page as it was read. Fields as in [`pagevisor_shared::page::Page`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageMeta {
    /// Flags.
    pub flags: u32,
    /// References held.
    pub refcount: u32,
    /// Mappings plus one, or a page type.
    pub mapcount: u32,
    /// Order of a free block; the owner's own of a page in use.
    pub private: u32,
    /// Forward link, encoded.
    pub next: u32,
    /// Backward link, encoded.
    pub prev: u32,
    /// Owner of the content.
    pub mapping: u32,
    /// Offset within the mapping, or the migrate type of a page on a per-CPU list.
    pub index: u32,
}

impl PageMeta {
    /// The metadata in the bytes of a [`pagevisor_shared::page::Page`].
    pub fn from_bytes(bytes: &[u8; SIZE]) -> Self {
        let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        let mut word = || words.next().unwrap_or(0);
        Self {
            flags: word(),
            refcount: word(),
            mapcount: word(),
            private: word(),
            next: word(),
            prev: word(),
            mapping: word(),
            index: word(),
        }
    }

    /// Whether nobody has written it since the machine started.
    pub fn is_untouched(&self) -> bool {
        *self == Self::default()
    }

    /// The frame the forward link of frame `pfn` leads to; 0 at the end.
    pub const fn next_of(&self, pfn: u32) -> u32 {
        page::decode_next(pfn, self.next)
    }

    /// The frame the backward link of frame `pfn` leads to; 0 at the start.
    pub const fn prev_of(&self, pfn: u32) -> u32 {
        page::decode_prev(pfn, self.prev)
    }

    /// Whether this may be the head of a free block of `order`: marked as one, or in the largest order not marked
    /// because nobody has touched it.
    pub fn is_free_head(&self, order: Order) -> bool {
        let marked = self.mapcount == PG_BUDDY && self.private == order.raw();
        let unmarked = order == Order::MAX && self.mapcount == 0 && self.private == 0;
        self.refcount == 0 && (marked || unmarked)
    }

    /// How many pages of the free block of `order` that this is the head of are known to be zero: all or none.
    pub const fn known_zero_pages(&self, order: Order) -> u64 {
        if self.flags & PG_NOTZERO == 0 { order.pages() } else { 0 }
    }
}

/// The part of the memory map that is behind one of the guest's pages.
#[derive(Clone, Copy, Debug)]
struct Window {
    start: u64,
    size: u64,
    /// Physical address, or `None` where nothing is mapped.
    gpa: Option<u64>,
}

/// A reader of page metadata. It remembers where the last page of the memory map was, so that reading neighbours
/// walks no page tables.
#[derive(Debug)]
pub struct Memmap<'a> {
    view: &'a StateView,
    roots: Roots,
    window: Window,
}

impl StateView {
    /// A reader of page metadata.
    pub fn memmap(&self) -> Memmap<'_> {
        Memmap { view: self, roots: self.roots(), window: Window { start: 0, size: 0, gpa: None } }
    }
}

impl Memmap<'_> {
    /// Physical address of the bytes at `address` in the memory map, and how many follow in the same page.
    fn locate(&mut self, address: u64) -> Result<Option<(u64, u64)>, StateError> {
        if address.wrapping_sub(self.window.start) >= self.window.size {
            let found = walk(self.view.memory(), self.roots.pgd, address)?;
            self.window = match found {
                Some(page) => {
                    let inside = page.size.bytes() - page.rest();
                    Window { start: address - inside, size: page.size.bytes(), gpa: Some(page.gpa - inside) }
                }
                // Holes are remembered a small page at a time: only that much is known.
                None => Window { start: address & !0xfff, size: 0x1000, gpa: None },
            };
        }
        let inside = address.wrapping_sub(self.window.start);
        Ok(self.window.gpa.map(|gpa| (gpa + inside, self.window.size - inside)))
    }

    /// The metadata of frame `pfn`; `None` in a hole, where there is no metadata.
    ///
    /// # Errors
    /// When a page table or the memory map lies outside memory.
    pub fn get(&mut self, pfn: u64) -> Result<Option<PageMeta>, StateError> {
        // A page's metadata never crosses a page: its size divides the page's.
        let Some((gpa, _)) = self.locate(self.view.page_address(pfn))? else { return Ok(None) };
        let mut bytes = [0; SIZE];
        self.view.memory().read(gpa, &mut bytes)?;
        Ok(Some(PageMeta::from_bytes(&bytes)))
    }

    /// The metadata of the frames from `pfn` to the end of the page that holds it, appended to `pages`, which is
    /// cleared first; `false` in a hole.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_chunk(&mut self, pfn: u64, pages: &mut Vec<PageMeta>) -> Result<bool, StateError> {
        pages.clear();
        let Some((gpa, rest)) = self.locate(self.view.page_address(pfn))? else { return Ok(false) };
        let mut bytes = [0; 4096];
        let len = rest.min(4096 - (gpa & 0xfff)) as usize;
        let Some(bytes) = bytes.get_mut(..len) else { return Ok(false) };
        self.view.memory().read(gpa, bytes)?;
        pages.extend(bytes.as_chunks::<SIZE>().0.iter().map(PageMeta::from_bytes));
        Ok(true)
    }
}
