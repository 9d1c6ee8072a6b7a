//! What an allocation may use, worked out once (`struct alloc_context`).

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::records::{MAX_ZONES_PER_ZONELIST, NodeState, ZONELIST_FALLBACK, ZONELIST_NOFALLBACK};
use pagevisor_shared::region::zone::ZoneState;
use pagevisor_shared::units::{NodeId, NodeMask};
use pagevisor_shared::zone::{ZoneIndex, ZoneRef, ZoneType};

use crate::Mm;
use crate::buddy::AllocFlags;
use crate::platform::Platform;
use crate::sync::Plain;

/// A zone on a zonelist.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) index: ZoneIndex,
    pub(crate) zone: &'static ZoneState,
    /// Its place on the list.
    place: usize,
}

/// What an allocation may use. Only [`Self::nodemask`] and [`Self::preferred`] change on the way, when the slow path
/// drops the mask.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AllocContext {
    node: &'static NodeState,
    list: usize,
    pub(super) nodemask: Option<NodeMask>,
    /// The first zone of the list that it may use: where walks start and what statistics refer to.
    pub(super) preferred: Option<Candidate>,
    pub(super) highest: ZoneType,
    pub(super) migratetype: MigrateType,
}

impl AllocContext {
    /// `prepare_alloc_pages`. `None` for a node the machine cannot have.
    #[inline]
    pub(crate) fn prepare<P: Platform>(mm: &Mm<P>, gfp: Gfp, node: NodeId, nodemask: Option<NodeMask>) -> Option<Self> {
        let list = if gfp.contains(Gfp::THISNODE) { ZONELIST_NOFALLBACK } else { ZONELIST_FALLBACK };
        let node = mm.nodes.get(node.index())?;
        let (highest, migratetype) = (gfp.zone(), gfp.migratetype());
        let mut context = Self { node, list, nodemask, preferred: None, highest, migratetype };
        context.find_preferred(mm);
        Some(context)
    }

    /// Finds the preferred zone anew (`first_zones_zonelist`).
    #[inline]
    pub(super) fn find_preferred<P: Platform>(&mut self, mm: &Mm<P>) {
        let start = self.node.first_zone[self.list][self.highest.index()].get() as usize;
        self.preferred = self.zone_from(mm, start);
    }

    /// The next zone after `candidate` (`next_zones_zonelist`).
    #[inline]
    pub(super) fn next<P: Platform>(&self, mm: &Mm<P>, candidate: Candidate) -> Option<Candidate> {
        self.zone_from(mm, candidate.place + 1)
    }

    /// All zones it may use, preferred first.
    pub(crate) fn zones<P: Platform>(&self, mm: &Mm<P>) -> impl Iterator<Item = Candidate> {
        core::iter::successors(self.preferred, move |&candidate| self.next(mm, candidate))
    }

    /// The first usable zone at or behind `place`.
    #[inline]
    fn zone_from<P: Platform>(&self, mm: &Mm<P>, mut place: usize) -> Option<Candidate> {
        while place < MAX_ZONES_PER_ZONELIST {
            let entry = ZoneRef(self.node.node_zonelists[self.list][place].get());
            let index = entry.zone()?;
            let zone = mm.zones.get(index.index())?;
            let allowed = match self.nodemask {
                None => true,
                Some(mask) => NodeId::new(zone.node.get() as usize).is_some_and(|node| mask.contains(node)),
            };
            if allowed && entry.zone_idx() <= self.highest.index() {
                return Some(Candidate { index, zone, place });
            }
            place += 1;
        }
        None
    }
}

/// `gfp_to_alloc_flags_cma`: movable pages may be lent pages of contiguous memory areas.
#[inline(always)]
pub(super) const fn alloc_flags_cma(gfp: Gfp) -> AllocFlags {
    AllocFlags(if matches!(gfp.migratetype(), MigrateType::Movable) { AllocFlags::CMA.0 } else { 0 })
}

/// `alloc_flags_nofragment`: whether the first pass is to avoid mixing migrate types. Only where there is a DMA32 zone
/// to go to instead.
#[inline]
pub(super) fn alloc_flags_nofragment<P: Platform>(mm: &Mm<P>, context: &AllocContext, gfp: Gfp) -> AllocFlags {
    let flags = AllocFlags(gfp.bits() & Gfp::KSWAPD_RECLAIM.bits());
    let Some(preferred) = context.preferred else { return flags };
    if preferred.zone.zone_type.get() != ZoneType::Normal as u32 {
        return flags;
    }
    let dma32 = mm.zones.get(preferred.index.index().wrapping_sub(1));
    if mm.online_nodes.0 & mm.online_nodes.0.wrapping_sub(1) != 0
        && dma32.is_none_or(|zone| zone.present_pages.get() == 0)
    {
        return flags;
    }
    flags.with(AllocFlags::NOFRAGMENT)
}

const _: () =
    assert!(AllocFlags::KSWAPD.0 == Gfp::KSWAPD_RECLAIM.bits() && AllocFlags::MIN_RESERVE.0 == Gfp::HIGH.bits());
