//! The counters of slab pages.

use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::report::counters;
use pagevisor_shared::slab::SlabFlags;
use pagevisor_shared::units::NodeId;
use pagevisor_shared::vmstat::NodeStat;
use pagevisor_shared::zone::MAX_NR_ZONES;

use super::Slabs;
use crate::verify::Verifier;
use crate::verify::pages::order_of;
use crate::verify::report::Place;
use crate::verify::rule::Rule;

/// The lowest order of the blocks that kmalloc gives out as they are.
const LARGE_ORDER: u32 = 2;

/// Pages of a node.
#[derive(Clone, Copy, Default)]
struct Pages {
    reclaimable: u64,
    unreclaimable: u64,
    /// Compound blocks that kmalloc may have given out as they are.
    large: u64,
}

impl Verifier<'_> {
    /// The counters of slab pages are the pages of slabs, and of what kmalloc gave out as whole blocks. Those cannot be
    /// told from other compound blocks, so that there are two bounds.
    pub(super) fn check_slab_counters(&mut self, slabs: &Slabs) {
        let mut nodes = vec![Pages::default(); self.region.nr_nodes()];
        for slab in &slabs.slabs {
            let (Some(cache), Some(node)) = (slabs.cache(slab), nodes.get_mut(slab.node)) else { continue };
            let reclaimable = cache.flags.contains(SlabFlags::RECLAIM_ACCOUNT);
            *(if reclaimable { &mut node.reclaimable } else { &mut node.unreclaimable }) += cache.slab_pages();
        }
        for (pfn, page) in self.metadata.touched(&self.memory.present) {
            let (order, flags) = (order_of(page), page.flags & (PageFlag::Head.mask() | PageFlag::Slab.mask()));
            let node = self.memory.zone_of(pfn).and_then(|zone| nodes.get_mut(zone.index() / MAX_NR_ZONES));
            if let Some(node) = node.filter(|_| page.refcount != 0 && flags == PageFlag::Head.mask()) {
                node.large += if order >= LARGE_ORDER { 1 << order } else { 0 };
            }
        }
        for (index, pages) in nodes.iter().enumerate() {
            let Some(node) = NodeId::new(index) else { continue };
            let counted = |item| counters::node_page_state_snapshot(&self.region, node, item);
            let reclaimable = counted(NodeStat::NrSlabReclaimable);
            let unreclaimable = counted(NodeStat::NrSlabUnreclaimable);
            let (found, place) = (&mut self.findings, Place::Node(index));
            found.equal(Rule::SlabStat, place, "nr_slab_reclaimable", reclaimable, pages.reclaimable);
            let most = pages.unreclaimable + pages.large;
            if !(pages.unreclaimable..=most).contains(&unreclaimable) {
                let evidence = format_args!(
                    "nr_slab_unreclaimable is {unreclaimable}, slabs have {} pages and large blocks up to {}",
                    pages.unreclaimable, pages.large
                );
                found.add(Rule::SlabStat, place, evidence);
            }
        }
    }
}
