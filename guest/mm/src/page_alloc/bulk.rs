//! Allocating many single pages at once (`__alloc_pages_bulk`).

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{NodeId, NodeMask, Order, Pfn};
use pagevisor_shared::vmstat::VmEvent;

use super::context::{AllocContext, Candidate};
use super::watermark::{wmark_pages, zone_watermark_fast};
use crate::Mm;
use crate::buddy::AllocFlags;
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
        if filled == pages.len() {
            return filled;
        }
        if pages.len() - filled > 1
            && let Some(context) = AllocContext::prepare(self, gfp, node, nodemask)
            && let Some(zone) = self.bulk_zone(gfp, &context, pages.len())
        {
            let got = self.fill_from_pageset(gfp, &context, zone, pages);
            if got != 0 {
                return pages.iter().take_while(|page| page.is_some()).count();
            }
        }
        let Some(page) = self.alloc_pages_nodemask(gfp, Order::ZERO, node, nodemask) else { return filled };
        pages[filled] = Some(page);
        pages.iter().take_while(|page| page.is_some()).count()
    }

    /// The first zone of the preferred node that has `count` pages above its low watermark.
    fn bulk_zone(&self, gfp: Gfp, context: &AllocContext, count: usize) -> Option<Candidate> {
        let preferred = context.preferred?;
        let flags = AllocFlags::WMARK_LOW;
        context.zones(self).take_while(|candidate| candidate.zone.node.get() == preferred.zone.node.get()).find(
            |candidate| {
                let mark = wmark_pages(candidate.zone, flags.watermark()) + count as u64;
                zone_watermark_fast(candidate.zone, 0, mark, context.highest, flags, gfp)
            },
        )
    }

    /// Fills empty slots from this CPU's pageset of a zone; gives how many.
    fn fill_from_pageset(
        &self,
        gfp: Gfp,
        context: &AllocContext,
        candidate: Candidate,
        pages: &mut [Option<Pfn>],
    ) -> u64 {
        let cpu = self.platform.this_cpu();
        let (index, kind) = (candidate.index, context.migratetype);
        let Some(pcp) = cpu.pcps.get(index.index()) else { return 0 };
        if !sync::try_lock(&pcp.lock) {
            return 0;
        }
        let mut got = 0;
        for slot in pages.iter_mut().filter(|slot| slot.is_none()) {
            let Some(pfn) = self.rmqueue_pcplist_locked(index, pcp, 0, kind, AllocFlags::WMARK_LOW) else { break };
            self.prep_new_page(pfn, 0, gfp);
            *slot = Some(Pfn::new(pfn as u64));
            got += 1;
        }
        sync::unlock(&pcp.lock);
        if got != 0 {
            let event = VmEvent::PgallocDma.index() + candidate.zone.zone_type.get() as usize % 5;
            cpu.state.vm_events[event].fetch_add(got, Relaxed);
            let preferred = context.preferred.map_or(index, |preferred| preferred.index);
            self.zone_statistics(cpu, preferred, index, got);
        }
        got
    }
}
