//! The pagesets of a zone.

use pagevisor_shared::page_flags::{PG_NOTZERO, PG_ORDER_SHIFT};
use pagevisor_shared::region::zone::PcpState;
use pagevisor_shared::units::Pfn;

use super::Checker;
use crate::Mm;
use crate::list;
use crate::pcp::pindex_to_order;
use crate::platform::Platform;
use crate::sync::Plain;

impl Checker<'_, '_> {
    /// Walks the lists of all CPUs' pagesets.
    pub(super) fn pagesets<P: Platform>(&mut self, mm: &Mm<P>) {
        for pcp in mm.pagesets(self.zone) {
            let shut = u64::from(pcp.hot.get() != 0);
            self.equal("lock of a pageset at rest", 0, pcp.lock.get() as u64, shut);
            self.equal("second lock of a pageset at rest", 0, pcp.hot_lock.get() as u64, 0);
            let before = self.pages.pagesets;
            self.pageset(mm, pcp);
            let pages = self.pages.pagesets - before;
            self.equal("pages on a pageset", 0, pages, pcp.count.get() as u64);
        }
    }

    fn pageset<P: Platform>(&mut self, mm: &Mm<P>, pcp: &PcpState) {
        for (pindex, head) in pcp.lists.iter().enumerate() {
            let order = pindex_to_order(pindex);
            let most = pcp.count.get() >> order;
            let (mut pfn, mut previous, mut count) = (head.first.get(), 0, 0);
            while pfn != 0 && count <= most {
                let page = mm.memmap().page(pfn);
                let at = pfn as u64;
                if previous != 0 {
                    self.equal("backward link on a pageset", at, list::prev(pfn, page) as u64, previous as u64);
                }
                let zone = mm.page_zone(Pfn::new(at)).map_or(u16::MAX, |zone| zone.0);
                self.equal("zone of a block on a pageset", at, zone as u64, self.zone.0 as u64);
                self.equal("alignment of a block on a pageset", at, at & ((1 << order) - 1), 0);
                self.equal("references to a block on a pageset", at, page._refcount.get() as u64, 0);
                self.equal("type mark of a block on a pageset", at, page._mapcount.get() as u64, 0);
                let flags = page.flags.get() & !PG_NOTZERO;
                self.equal("flags of a block on a pageset", at, flags as u64, (order << PG_ORDER_SHIFT) as u64);
                count += 1;
                previous = pfn;
                pfn = list::next(pfn, page);
            }
            if previous != 0 {
                self.equal("last block on a pageset list", 0, head.last.get() as u64, previous as u64);
            }
            self.pages.pagesets += (count as u64) << order;
        }
    }
}
