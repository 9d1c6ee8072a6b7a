//! Applies the formulas and builds the zonelists of a machine.

use core::fmt;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::migrate::MIGRATE_TYPES;
use pagevisor_shared::region::records::{MAX_ZONELISTS, ZONELIST_FALLBACK, ZONELIST_NOFALLBACK};
use pagevisor_shared::region::zone::ZoneState;
use pagevisor_shared::units::{NodeId, NodeMask, PAGE_SHIFT, PAGEBLOCK_NR_PAGES};
use pagevisor_shared::zone::{MAX_NR_ZONES, Watermark, ZoneIndex, ZoneRef, ZoneType};

use super::zonelist::{NodeLoad, NodeMap, NodeOrder};
use super::{MovableStart, watermark};
use crate::Mm;
use crate::platform::{Level, Platform};
use crate::sync::Plain;

/// `Fallback order for Node 0: 0 1 `.
struct Fallback<'a>(NodeId, &'a NodeOrder);

impl fmt::Display for Fallback<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fallback order for Node {}: ", self.0.index())?;
        self.1.nodes().iter().try_for_each(|node| write!(f, "{} ", node.index()))
    }
}

/// Recomputes [`ZoneState::alloc_mark`]. The holder of the zone's lock calls it after a change of what it sums up.
pub(crate) fn update_alloc_mark(zone: &ZoneState) {
    let low = zone.watermark[Watermark::Low as usize].get() + zone.watermark_boost.get();
    // Free or not: below it, the general way finds out.
    let kept = zone.nr_reserved_highatomic.get() + zone.cma_pages.get();
    zone.alloc_mark.set((low + kept) as i64);
}

impl<P: Platform> Mm<P> {
    /// Builds the zonelists of all nodes (`build_all_zonelists`). `memory` are the nodes with memory, `cpus` those
    /// with CPUs.
    pub(crate) fn build_all_zonelists(&self, memory: NodeMask, cpus: NodeMask) {
        let nr_nodes = self.nodes.len();
        let distances = self.region.distances();
        let map = NodeMap {
            memory,
            cpus,
            distance: |from: NodeId, to: NodeId| {
                distances.get(from.index() * nr_nodes + to.index()).map_or(u8::MAX, Plain::get)
            },
        };
        let mut load = NodeLoad::new();
        for node in (0..nr_nodes).filter_map(NodeId::new) {
            let order = map.fallback_order(node, &mut load);
            self.build_zonelists(node, &order);
            self.platform.log(Level::Info, format_args!("{}", Fallback(node, &order)));
        }
    }

    /// Writes the zonelists of `node` (`build_zonelists_in_node_order`, `build_thisnode_zonelists`).
    fn build_zonelists(&self, node: NodeId, order: &NodeOrder) {
        let Some(state) = self.nodes.get(node.index()) else { return };
        for (slot, member) in state.fallback_order.iter().zip(order.nodes()) {
            slot.set(member.index() as u8);
        }
        state.nr_fallback.set(order.nodes().len() as u32);
        for list in 0..MAX_ZONELISTS {
            let members = if list == ZONELIST_NOFALLBACK { &[node][..] } else { order.nodes() };
            let refs = members.iter().flat_map(|&member| self.zonerefs_node(member));
            let mut len = 0;
            let mut first = [None; MAX_NR_ZONES];
            for (slot, zone_ref) in state.node_zonelists[list].iter().zip(refs) {
                slot.set(zone_ref.0);
                // The first entry not above a zone type is the start of a walk for that type.
                for start in first.iter_mut().skip(zone_ref.zone_idx()) {
                    start.get_or_insert(len);
                }
                len += 1;
            }
            if let Some(end) = state.node_zonelists[list].get(len as usize) {
                end.set(ZoneRef::END.0);
            }
            for (slot, start) in state.first_zone[list].iter().zip(first) {
                slot.set(start.unwrap_or(len));
            }
        }
    }

    /// The populated zones of `node`, highest first (`build_zonerefs_node`).
    fn zonerefs_node(&self, node: NodeId) -> impl Iterator<Item = ZoneRef> {
        ZoneType::ALL.iter().rev().filter_map(move |&kind| {
            let index = ZoneIndex::of(node, kind);
            (self.zones.get(index.index())?.present_pages.get() != 0).then_some(ZoneRef::new(index, kind))
        })
    }

    /// The first zone an allocation for `kind` tries on list `list` of `node` (`first_zones_zonelist`).
    pub(crate) fn first_zone(&self, node: NodeId, list: usize, kind: ZoneType) -> Option<ZoneIndex> {
        let state = self.nodes.get(node.index())?;
        let start = state.first_zone[list][kind.index()].get() as usize;
        ZoneRef(state.node_zonelists[list].get(start)?.get()).zone()
    }

    /// `nr_free_zone_pages`: pages beyond the high watermark in all zones not above `kind`.
    pub(crate) fn nr_free_zone_pages(&self, kind: ZoneType) -> u64 {
        let usable =
            |zone: &ZoneState| zone.managed_pages.get().saturating_sub(zone.watermark[Watermark::High as usize].get());
        self.zones.iter().filter(|zone| zone.zone_type.get() <= kind as u32).map(usable).sum()
    }

    /// Decides on grouping by mobility and reports what was built (the end of `build_all_zonelists`).
    pub(crate) fn report_zonelists(&self) {
        let total = self.nr_free_zone_pages(Gfp::HIGHUSER_MOVABLE.zone());
        let disabled = total < PAGEBLOCK_NR_PAGES * MIGRATE_TYPES as u64;
        self.region.sysctl().page_group_by_mobility_disabled.set(disabled as u32);
        self.platform.log(
            Level::Info,
            format_args!(
                "Built {} zonelists, mobility grouping {}.  Total pages: {total}",
                self.online_nodes.weight(),
                if disabled { "off" } else { "on" },
            ),
        );
    }

    /// Tells where ZONE_MOVABLE starts, as Linux does, if there is one.
    pub(crate) fn report_movable(&self, movable: &MovableStart) {
        if movable.nodes().next().is_none() {
            return;
        }
        self.platform.log(Level::Info, format_args!("Movable zone start for each node"));
        for (node, start) in movable.nodes() {
            let addr = start << PAGE_SHIFT;
            self.platform.log(Level::Info, format_args!("  Node {}: {addr:#018x}", node.index()));
        }
    }

    /// Sets the settings to Linux's defaults and everything that follows from them.
    pub(crate) fn init_settings(&self) {
        let sysctl = self.region.sysctl();
        sysctl.watermark_scale_factor.set(watermark::WATERMARK_SCALE_FACTOR);
        sysctl.watermark_boost_factor.set(watermark::WATERMARK_BOOST_FACTOR);
        for (slot, ratio) in sysctl.lowmem_reserve_ratio.iter().zip(watermark::LOWMEM_RESERVE_RATIO) {
            slot.set(ratio);
        }
        self.init_overcommit();
        self.recompute_reserves();
    }

    /// Recomputes watermarks and pageset sizes from the settings in the region (`setup_per_zone_wmarks`). To be
    /// called after `min_free_kbytes`, `watermark_scale_factor` or a zone's size has changed.
    pub fn setup_per_zone_wmarks(&self) {
        let sysctl = self.region.sysctl();
        let lowmem: u64 = self.zones.iter().map(|zone| zone.managed_pages.get()).sum();
        for (index, zone) in self.populated_zones() {
            let marks = watermark::setup_per_zone_wmarks(
                sysctl.min_free_kbytes.get(),
                zone.managed_pages.get(),
                lowmem,
                sysctl.watermark_scale_factor.get(),
            );
            {
                let _guard = self.lock_zone(index);
                zone.watermark_boost.set(0);
                zone.watermark[Watermark::Min as usize].set(marks.min);
                zone.watermark[Watermark::Low as usize].set(marks.low);
                zone.watermark[Watermark::High as usize].set(marks.high);
                zone.watermark[Watermark::Promo as usize].set(marks.promo);
                update_alloc_mark(zone);
            }
            self.zone_set_pageset_high_and_batch(zone, index);
        }
    }

    /// Recomputes the pageset sizes of a zone (`zone_set_pageset_high_and_batch`).
    pub(crate) fn zone_set_pageset_high_and_batch(&self, zone: &ZoneState, index: ZoneIndex) {
        let managed = zone.managed_pages.get();
        let batch = watermark::zone_batchsize(managed);
        let node_cpus = self.nodes.get(zone.node.get() as usize).map_or(0, |node| node.cpus.get().count_ones());
        let high = watermark::zone_highsize(
            zone.watermark[Watermark::Low as usize].get(),
            managed,
            batch,
            self.region.sysctl().percpu_pagelist_high_fraction.get(),
            node_cpus,
            self.cpus.len() as u32,
        );
        zone.pageset_high.set(high);
        zone.pageset_batch.set(batch);
        for pcp in self.pagesets(index) {
            pcp.batch.set(batch);
            pcp.high.set(high);
        }
    }

    /// Recomputes the pageset sizes of all zones, after `percpu_pagelist_high_fraction` has changed.
    pub fn setup_pagesets(&self) {
        for (index, zone) in self.populated_zones() {
            self.zone_set_pageset_high_and_batch(zone, index);
        }
    }

    /// Recomputes how much of a counter each CPU may hold back (`refresh_zone_stat_thresholds`).
    pub fn refresh_zone_stat_thresholds(&self) {
        let cpus = self.cpus.len() as u32;
        for pending in self.node_cpus {
            pending.stat_threshold.set(0);
        }
        for (index, zone) in self.populated_zones() {
            let threshold = watermark::calculate_normal_threshold(zone.managed_pages.get(), cpus);
            for pcp in self.pagesets(index) {
                pcp.stat_threshold.set(threshold);
            }
            // A node's threshold is the largest of its zones'.
            for pending in self.node_cpus.iter().skip(zone.node.get() as usize).step_by(self.nodes.len()) {
                pending.stat_threshold.set(pending.stat_threshold.get().max(threshold as i32));
            }
            let mark = |which: Watermark| zone.watermark[which as usize].get();
            let (min, low, high) = (mark(Watermark::Min), mark(Watermark::Low), mark(Watermark::High));
            zone.percpu_drift_mark.set(watermark::percpu_drift_mark(high, low, min, threshold, cpus));
        }
    }

    /// Recomputes the zones' reserves against allocations that could have used a higher zone
    /// (`setup_per_zone_lowmem_reserve`). To be called after `lowmem_reserve_ratio` has changed.
    pub fn setup_per_zone_lowmem_reserve(&self) {
        let ratios = &self.region.sysctl().lowmem_reserve_ratio;
        for zones in self.zones.chunks_exact(MAX_NR_ZONES) {
            let mut managed = [0; MAX_NR_ZONES];
            for (pages, zone) in managed.iter_mut().zip(zones) {
                *pages = zone.managed_pages.get();
            }
            for (kind, zone) in zones.iter().enumerate().take(MAX_NR_ZONES - 1) {
                let reserve = watermark::setup_per_zone_lowmem_reserve(&managed, kind, ratios[kind].get());
                for (slot, pages) in zone.lowmem_reserve.iter().zip(reserve) {
                    slot.set(pages);
                }
            }
        }
    }

    /// The node allocations of a CPU of `node` start from: the first with memory on its list (`local_memory_node`).
    pub(crate) fn local_memory_node(&self, node: NodeId) -> NodeId {
        self.first_zone(node, ZONELIST_FALLBACK, ZoneType::Normal)
            .and_then(|zone| NodeId::new(zone.index() / MAX_NR_ZONES))
            .unwrap_or(node)
    }
}
