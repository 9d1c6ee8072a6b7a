//! Emptying pagesets.

use pagevisor_shared::region::zone::PcpState;
use pagevisor_shared::units::CpuId;
use pagevisor_shared::zone::ZoneIndex;

use super::gated;
use crate::Mm;
use crate::platform::Platform;
use crate::sync::{self, Plain};

impl<P: Platform> Mm<P> {
    /// Empties one pageset (`drain_pages_zone`).
    fn drain_pageset(&self, index: ZoneIndex, pcp: &PcpState) {
        let held = gated(pcp).lock(|| self.platform.relax());
        let count = pcp.count.get();
        if count != 0 {
            self.lock_zone(index).free_pcppages_bulk(pcp, count, 0);
        }
        sync::unlock(held);
    }

    /// Gives all pages on the pagesets of `cpu` back to their zones (`drain_pages`). Not from interrupts: it waits for
    /// the pagesets' locks.
    pub fn drain_pages(&self, cpu: CpuId) {
        let pcps = self.region.pcps_of(cpu);
        for (index, _) in self.populated_zones() {
            if let Some(pcp) = pcps.get(index.index()) {
                self.drain_pageset(index, pcp);
            }
        }
    }

    /// Empties this CPU's pagesets (`drain_local_pages`). Not from interrupts.
    pub fn drain_local_pages(&self) {
        self.drain_pages(self.platform.this_cpu().cpu);
    }

    /// Empties all CPUs' pagesets, of one zone or of all (`drain_all_pages`). Not from interrupts.
    ///
    /// Linux asks each CPU to do it; here the caller does, since the pageset's lock is all it takes.
    pub fn drain_all_pages(&self, zone: Option<ZoneIndex>) {
        for (index, _) in self.populated_zones().filter(|(index, _)| zone.is_none_or(|only| only == *index)) {
            for pcp in self.pagesets(index).filter(|pcp| pcp.count.get() != 0) {
                self.drain_pageset(index, pcp);
            }
        }
    }
}
