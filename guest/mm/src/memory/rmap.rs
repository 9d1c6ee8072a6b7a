//! Who maps a page: counts in its metadata, and of all pages (`mm/rmap.c`).

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use pagevisor_shared::mm_types::{MappingId, MmCounter, MmStruct, NR_MM_COUNTERS};
use pagevisor_shared::page::Page;
use pagevisor_shared::page_flags::{PG_NOTZERO, PG_OWNED, PageFlag};
use pagevisor_shared::units::Pfn;
use pagevisor_shared::vmstat::NodeStat;

use crate::Mm;
use crate::platform::Platform;
use crate::raw::Vma;
use crate::sync::Plain;

/// Flags of a new anonymous page: nobody else can come to it.
const NEW_ANON: u32 =
    PG_NOTZERO | PG_OWNED | PageFlag::Uptodate.mask() | PageFlag::Swapbacked.mask() | PageFlag::ANON_EXCLUSIVE.mask();

/// Pages mapped more or less by one piece of work, by [`MmCounter`] (`rss` in `mm/memory.c`).
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Rss([i64; NR_MM_COUNTERS]);

impl Rss {
    /// Counts `by` more pages.
    #[inline(always)]
    pub(crate) fn add(&mut self, counter: MmCounter, by: i64) {
        self.0[counter as usize] += by;
    }

    /// Adds them to those of `space` (`add_mm_rss_vec`).
    #[inline]
    pub(crate) fn apply(self, space: &MmStruct) {
        for (total, by) in space.rss_stat.iter().zip(self.0) {
            if by != 0 {
                total.fetch_add(by, Relaxed);
            }
        }
    }
}

/// Whether a page is anonymous memory (`PageAnon`).
#[inline(always)]
pub(crate) fn is_anon(page: &Page) -> bool {
    page.mapping.get() & MappingId::ANON != 0
}

/// What a mapped page counts as (`mm_counter`).
#[inline(always)]
pub(crate) fn mm_counter(page: &Page) -> MmCounter {
    if is_anon(page) {
        MmCounter::Anon
    } else if page.flags.get() & PageFlag::Swapbacked.mask() != 0 {
        MmCounter::Shmem
    } else {
        MmCounter::File
    }
}

/// Whether an anonymous page is one address space's alone (`PageAnonExclusive`).
#[inline(always)]
pub(crate) fn is_exclusive(page: &Page) -> bool {
    page.flags.load(Acquire) & PageFlag::ANON_EXCLUSIVE.mask() != 0
}

/// Pages of nodes that are mapped more or less, as long as they are of the same node (`__mod_lruvec_page_state`).
#[derive(Debug)]
pub(crate) struct NodeCount {
    item: NodeStat,
    node: Option<pagevisor_shared::units::NodeId>,
    count: i64,
}

impl NodeCount {
    pub(crate) const fn new(item: NodeStat) -> Self {
        Self { item, node: None, count: 0 }
    }

    /// Counts the page at `pfn`.
    #[inline]
    pub(crate) fn add<P: Platform>(&mut self, mm: &Mm<P>, pfn: Pfn, by: i64) {
        let node = mm.page_to_nid(pfn);
        if node != self.node {
            self.apply(mm);
            self.node = node;
        }
        self.count += by;
    }

    /// Adds what was counted to the node's counter.
    #[inline]
    pub(crate) fn apply<P: Platform>(&mut self, mm: &Mm<P>) {
        if self.count != 0
            && let Some(node) = self.node
        {
            mm.mod_node_page_state(node, self.item, self.count);
        }
        self.count = 0;
    }
}

impl<P: Platform> Mm<P> {
    /// Metadata of a frame that is mapped.
    #[inline(always)]
    pub(crate) fn user_page(&self, frame: u32) -> &'static Page {
        self.memmap().page(frame)
    }

    #[inline]
    fn count_mapped(&self, frame: u32, item: NodeStat, by: i64) {
        if let Some(node) = self.page_to_nid(Pfn::new(frame as u64)) {
            self.mod_node_page_state(node, item, by);
        }
    }

    /// Makes a page that was just allocated an anonymous one, mapped once, at `addr` of `vma`, which has a family
    /// (`page_add_new_anon_rmap`, `lru_cache_add_inactive_or_unevictable`).
    #[inline]
    pub(crate) fn page_add_new_anon_rmap(&self, frame: u32, vma: Vma, addr: u64) {
        let page = self.user_page(frame);
        page.flags.set(NEW_ANON);
        page._mapcount.set(1);
        page_set_anon(page, vma, addr);
        self.count_mapped(frame, NodeStat::NrAnonPages, 1);
    }

    /// Notes that an anonymous page belongs to the family of `vma` from now on, whose alone it is (`page_move_anon_rmap`).
    #[inline]
    pub(crate) fn page_move_anon_rmap(&self, page: &Page, vma: Vma) {
        if let Some(family) = vma.anon_vma() {
            page.mapping.set(MappingId::anon(family.id.get()).word());
        }
        page.flags.fetch_or(PageFlag::ANON_EXCLUSIVE.mask(), AcqRel);
    }

    /// Counts one entry more that keeps a file's page (`page_add_file_rmap`).
    #[inline]
    pub(crate) fn page_add_file_rmap(&self, frame: u32) {
        if self.user_page(frame)._mapcount.fetch_add(1, AcqRel) == 0 {
            self.count_mapped(frame, NodeStat::NrMapped, 1);
        }
    }

    /// Counts one entry less that keeps the page (`page_remove_rmap`).
    #[inline]
    pub(crate) fn page_remove_rmap(&self, frame: u32) {
        let page = self.user_page(frame);
        if page._mapcount.fetch_sub(1, AcqRel) == 1 {
            let item = if is_anon(page) { NodeStat::NrAnonPages } else { NodeStat::NrMapped };
            self.count_mapped(frame, item, -1);
        }
    }
}

/// `__page_set_anon_rmap`.
#[inline(always)]
fn page_set_anon(page: &Page, vma: Vma, addr: u64) {
    if let Some(family) = vma.anon_vma() {
        page.mapping.set(MappingId::anon(family.id.get()).word());
    }
    page.index.set(vma.index_of(addr) as u32);
}
