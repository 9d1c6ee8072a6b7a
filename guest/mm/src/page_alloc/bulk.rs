//! Allocating many single pages at once (`__alloc_pages_bulk`).

use core::sync::atomic::Ordering::{Relaxed, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::zone::hot;
use pagevisor_shared::units::{NodeId, NodeMask, Order, Pfn};
use pagevisor_shared::vmstat::VmEvent;

use super::context::{AllocContext, Candidate, alloc_flags_cma};
use super::watermark::{wmark_pages, zone_watermark_fast};
use crate::Mm;
use crate::buddy::AllocFlags;
use crate::list;
use crate::pcp::gated;
use crate::platform::Platform;
use crate::sync::{self, Plain};

impl<P: Platform> Mm<P> {
    /// Fills the empty slots of `pages` with single pages, from `node` first (this CPU's for `None`) and only from
    /// nodes in `nodemask`; gives how many slots at the start are filled now (`alloc_pages_bulk_array_node`).
    ///
    /// It takes what one local zone can give above its low watermark; at least one page if any can be had. A caller
    /// that needs all asks again.
    pub fn alloc_pages_bulk(
        &self,
        gfp: Gfp,
        node: Option<NodeId>,
        nodemask: Option<NodeMask>,
        pages: &mut [Option<Pfn>],
    ) -> usize {
        let node = node.unwrap_or(self.platform.this_cpu().node);
        let filled = pages.iter().take_while(|page| page.is_some()).count();
        let Some((_, rest)) = pages.split_at_mut_checked(filled) else { return filled };
        if rest.is_empty() {
            return filled;
        }
        if rest.len() > 1
            && self.instrumented() & !(hot::EVENTS | hot::ON) == 0
            && let Some(context) = AllocContext::prepare(self, gfp, node, nodemask)
            && let Some(zone) = self.bulk_zone(gfp, &context, rest.len())
        {
            let got = self.fill_from_pageset(gfp, &context, zone, rest);
            if got != 0 {
                return filled + got;
            }
        }
        let Some(page) = self.alloc_pages_nodemask(gfp, Order::ZERO, node, nodemask) else { return filled };
        rest[0] = Some(page);
        filled + rest.iter().take_while(|page| page.is_some()).count()
    }

    /// The first zone of the preferred node that has `count` pages above its low watermark.
    fn bulk_zone(&self, gfp: Gfp, context: &AllocContext, count: usize) -> Option<Candidate> {
        let preferred = context.preferred?;
        let flags = AllocFlags::WMARK_LOW.with(alloc_flags_cma(gfp));
        context.zones(self).take_while(|candidate| candidate.zone.node.get() == preferred.zone.node.get()).find(
            |candidate| {
                let mark = wmark_pages(candidate.zone, flags.watermark()) + count as u64;
                zone_watermark_fast(candidate.zone, 0, mark, context.highest, flags, gfp)
            },
        )
    }

    /// Fills empty slots from this CPU's pageset of a zone; gives how many slots at the start are filled now.
    fn fill_from_pageset(
        &self,
        gfp: Gfp,
        context: &AllocContext,
        candidate: Candidate,
        pages: &mut [Option<Pfn>],
    ) -> usize {
        let cpu = self.platform.this_cpu();
        let (index, kind) = (candidate.index, context.migratetype);
        let Some(pcp) = cpu.pcps.get(index.index()) else { return 0 };
        let Some(held) = gated(pcp).try_lock() else { return 0 };
        let list = &pcp.lists[kind.index()];
        let flags = AllocFlags::WMARK_LOW.with(alloc_flags_cma(gfp));
        let (mut got, mut filled) = (0, 0);
        for slot in pages.iter_mut() {
            if slot.is_none() {
                if list.first.get() == 0 && !self.refill_pageset(index, pcp, 0, kind, flags) {
                    break;
                }
                let pfn = list.first.get();
                let page = self.memmap().page(pfn);
                list::pcp_pop_head(list, pfn, page);
                if gfp.contains(Gfp::ZERO) {
                    self.prep_flags(pfn, 0, gfp);
                }
                page.flags.set(Self::pcp_flags(0));
                // Release: whoever gets a reference by `get_page` sees the page prepared.
                page._refcount.store(1, Release);
                *slot = Some(Pfn::new(pfn as u64));
                got += 1;
            }
            filled += 1;
        }
        pcp.count.drop_by(got as u32);
        sync::unlock(held);
        if got != 0 {
            let event = VmEvent::PgallocDma.index() + candidate.zone.zone_type.get() as usize % 5;
            cpu.state.vm_events[event].fetch_add(got, Relaxed);
            let preferred = context.preferred.map_or(index, |preferred| preferred.index);
            self.zone_statistics(cpu, preferred, index, got);
        }
        filled
    }
}
