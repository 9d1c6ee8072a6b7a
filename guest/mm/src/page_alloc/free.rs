//! Freeing, the general way: all checks, references, blocks of every order (`__free_pages`, `free_the_page`).

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::mm_types::MappingId;
use pagevisor_shared::page::Page;
use pagevisor_shared::page_flags::{PG_NOTZERO, PG_ORDER_MASK, PG_ORDER_SHIFT, PageFlag};
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::units::{Order, PAGEBLOCK_ORDER, Pfn};
use pagevisor_shared::vmstat::VmEvent;
use pagevisor_shared::zone::ZoneIndex;

use crate::Mm;
use crate::buddy::{Block, Placement};
use crate::pcp::{gated, pcp_allowed_order};
use crate::platform::Platform;
use crate::sync::{self, Plain};

/// Flags a page must not have when it is freed (`PAGE_FLAGS_CHECK_AT_FREE`).
pub(super) const CHECK_AT_FREE: u32 = PageFlag::Lru.mask()
    | PageFlag::Locked.mask()
    | PageFlag::Private.mask()
    | PageFlag::Private2.mask()
    | PageFlag::Writeback.mask()
    | PageFlag::Reserved.mask()
    | PageFlag::Slab.mask()
    | PageFlag::Active.mask()
    | PageFlag::Unevictable.mask()
    | PageFlag::Mlocked.mask();

/// Flags that tell anonymous memory from others who write a number into `mapping`.
const OWNED_BY: u32 = PageFlag::Uptodate.mask() | PageFlag::Slab.mask();

/// The order of the allocation that `page` heads.
#[inline(always)]
pub(crate) fn allocated_order(flags: u32) -> u32 {
    (flags & PG_ORDER_MASK) >> PG_ORDER_SHIFT
}

/// Whether blocks of `order` in page blocks of `kind` go to the zone at once. All types share the pageset list of
/// blocks as large as a page block; what an area has lent must not go to unmovable pages from there.
#[inline]
fn stays_off_pagesets(order: u32, kind: MigrateType) -> bool {
    kind == MigrateType::Isolate || kind == MigrateType::Cma && order == PAGEBLOCK_ORDER
}

/// What is wrong with a page that is to be freed (`page_bad_reason`).
fn bad_reason(page: &Page) -> Option<&'static str> {
    // The last reason that holds, as in Linux.
    if page.flags.get() & CHECK_AT_FREE != 0 {
        Some("PAGE_FLAGS_CHECK_AT_FREE flag(s) set")
    } else if page._refcount.get() != 0 {
        Some("nonzero _refcount")
    } else if page.mapping.get() != 0 {
        Some("non-NULL mapping")
    } else if page._mapcount.get() != 0 {
        Some("nonzero mapcount")
    } else {
        None
    }
}

impl<P: Platform> Mm<P> {
    /// `__free_pages`, with nothing taken for granted.
    #[inline(never)]
    pub(super) fn free_pages_slow(&self, pfn: Pfn, order: Order) {
        match self.drop_checked(pfn, order) {
            Some((index, _, 1)) => {
                self.settle(index, pfn.raw() as u32);
                self.free_the_page(index, pfn.raw() as u32, order.raw());
            }
            Some((index, flags, _)) if flags & PageFlag::Head.mask() == 0 => {
                self.free_all_but_first(index, pfn.raw() as u32, order)
            }
            _ => {}
        }
    }

    /// Drops a reference to a block, if that is one in use and of this order; gives its zone, and its flags and how many
    /// references there were before.
    #[inline(always)]
    pub(super) fn drop_checked(&self, pfn: Pfn, order: Order) -> Option<(ZoneIndex, u32, u32)> {
        let Some(index) = self.page_zone(pfn) else {
            self.report_no_page(pfn, "no such page");
            return None;
        };
        let page = self.memmap().page(pfn.raw() as u32);
        let flags = page.flags.get();
        if page._refcount.load(Acquire) == 0 {
            let reason = if self.is_reserved(pfn) { "freeing a reserved page" } else { "freeing a page not in use" };
            self.bad_page(pfn, reason);
            return None;
        }
        if allocated_order(flags) != order.raw() || !pfn.is_aligned(order) {
            self.bad_page(pfn, "freed with another order than allocated");
            return None;
        }
        let references = self.drop_reference(page);
        if references.is_none() {
            self.bad_page(pfn, "freeing a page not in use");
        }
        references.map(|references| (index, flags, references))
    }

    /// Drops a reference if there is one; gives how many there were.
    fn drop_reference(&self, page: &Page) -> Option<u32> {
        // AcqRel: what others did with the page before they dropped their references comes before its next use.
        page._refcount.fetch_update(AcqRel, Relaxed, |count| count.checked_sub(1)).ok()
    }

    /// Frees a block to which somebody still has a reference through its first page, but for that page.
    fn free_all_but_first(&self, index: ZoneIndex, pfn: u32, order: Order) {
        let page = self.memmap().page(pfn);
        page.flags.set(page.flags.get() & !PG_ORDER_MASK);
        if self.instrumented() & hot::PAGE_OWNER != 0 {
            self.split_page_owner(pfn, 1);
        }
        for order in (0..order.raw()).rev() {
            let half = pfn + (1 << order);
            self.memmap().page(half).flags.set(Self::pcp_flags(order));
            self.free_the_page(index, half, order);
        }
    }

    /// Takes a reference to the page or compound page at `pfn`, if it is in use (`get_page_unless_zero`).
    pub fn get_page(&self, pfn: Pfn) -> bool {
        let Some(head) = self.compound_head(pfn) else { return false };
        let count = &self.memmap().page(head.raw() as u32)._refcount;
        // Acquire pairs with the release in `prep_new_page`.
        count.fetch_update(Acquire, Relaxed, |n| if n == 0 { None } else { n.checked_add(1) }).is_ok()
    }

    /// Drops a reference to the page or compound page at `pfn`, and frees it if that was the last (`put_page`).
    pub fn put_page(&self, pfn: Pfn) {
        let zone = self.page_zone(pfn);
        let (Some(index), Some(head)) = (zone, self.compound_head(pfn)) else {
            return self.report_no_page(pfn, "no such page");
        };
        let page = self.memmap().page(head.raw() as u32);
        match self.drop_reference(page) {
            None => self.bad_page(head, "freeing a page not in use"),
            Some(1) => {
                // The last reference to what is left of a block frees that; to a compound page, all of it.
                let order = allocated_order(page.flags.get());
                self.free_the_page(index, head.raw() as u32, order);
            }
            Some(_) => {}
        }
    }

    /// Checks and cleans the head of a block that nobody uses any more (`free_pages_prepare`). False if the block must
    /// stay off the lists.
    pub(super) fn free_pages_prepare(&self, pfn: u32, order: u32) -> bool {
        let page = self.memmap().page(pfn);
        let flags = page.flags.get();
        if page.mapping.get() & MappingId::ANON != 0 && flags & OWNED_BY == PageFlag::Uptodate.mask() {
            // Anonymous memory ends with its last user; nobody else takes it out of anything.
            page.mapping.set(0);
        }
        if let Some(reason) = bad_reason(page) {
            self.bad_page(Pfn::new(pfn as u64), reason);
            return false;
        }
        if order == 0 && flags & PageFlag::Hwpoison.mask() != 0 {
            return false;
        }
        if self.instrumented() != 0 {
            self.free_hook(pfn, order);
        }
        page.flags.set(Self::pcp_flags(order));
        page.private.set(0);
        true
    }

    /// Frees a block whose last reference is gone (`free_the_page`).
    pub(super) fn free_the_page(&self, index: ZoneIndex, pfn: u32, order: u32) {
        if !self.free_pages_prepare(pfn, order) {
            return;
        }
        let cpu = self.platform.this_cpu();
        cpu.state.vm_events[VmEvent::Pgfree.index()].fetch_add(1 << order, Relaxed);
        let block_type = self.frames.migratetype(pfn as u64);
        if pcp_allowed_order(order)
            && !stays_off_pagesets(order, block_type)
            && let Some(pcp) = cpu.pcps.get(index.index())
            && let Some(held) = gated(pcp).try_lock()
        {
            self.free_unref_page_commit(index, pcp, pfn, order, block_type);
            sync::unlock(held);
            return;
        }
        self.free_one_page(index, pfn, order, Placement::Auto);
    }

    /// Lets later frees of pages in this page block take the short way.
    pub(super) fn settle(&self, index: ZoneIndex, pfn: u32) {
        if self.frames.home(pfn as u64).is_some_and(|home| home.zone() >= self.zones.len()) {
            let _zone = self.lock_zone(index);
            self.frames.settle(pfn as u64);
        }
    }

    /// Frees a block to its zone's lists (`free_one_page`).
    pub(crate) fn free_one_page(&self, index: ZoneIndex, pfn: u32, order: u32, placement: Placement) {
        let zone = self.lock_zone(index);
        // The type counts as it is under the lock.
        let migratetype = self.frames.migratetype(pfn as u64);
        zone.free_one_page(Block { pfn, order, notzero: PG_NOTZERO, migratetype }, placement);
        if migratetype != MigrateType::Isolate {
            zone.mod_free_pages_of(1i64 << order, migratetype);
        }
    }
}
