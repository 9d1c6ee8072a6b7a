//! The free lists of zones, walked in guest memory and compared with the counters.

use std::time::{Duration, Instant};

use pagevisor_shared::migrate::{MIGRATE_TYPES, MigrateType};
use pagevisor_shared::region::seq;
use pagevisor_shared::region::zone::ZoneState;
use pagevisor_shared::report::counters::{self, FreeCounts};
use pagevisor_shared::units::{MAX_ORDER, NodeId, Order, PAGE_SHIFT};
use pagevisor_shared::vmstat::ZoneStat;
use pagevisor_shared::zone::{ZoneIndex, ZoneType};

use super::StateView;
use super::error::StateError;
use super::lists::{ListFault, ListFaultKind, ListRule, ends, visit_list};
use super::memmap::{Memmap, PageMeta};

/// How long to wait for a zone of a running guest to hold still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// Most attempts at a zone.
    pub tries: u32,
    /// Between attempts.
    pub pause: Duration,
    /// No further attempt at any zone after this long.
    pub limit: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { tries: 100, pause: Duration::from_micros(200), limit: Duration::from_secs(5) }
    }
}

/// A damaged free list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FreeListFault {
    /// Order of its blocks.
    pub order: Order,
    /// Its migrate type.
    pub kind: MigrateType,
    /// What is wrong.
    pub fault: ListFault,
}

/// What a walk along the free lists of a zone found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ZoneWalk {
    /// The zone.
    pub zone: ZoneIndex,
    /// Its node.
    pub node: NodeId,
    /// Its type.
    pub zone_type: ZoneType,
    /// `nr_free_pages`, what CPUs hold back included.
    pub free_pages: u64,
    /// Blocks by the counters.
    pub counted: FreeCounts,
    /// Blocks on the lists.
    pub found: FreeCounts,
    /// Pages of blocks on the lists whose content is known to be zero.
    pub known_zero: u64,
    /// Lists that could not be followed to their end.
    pub faults: Vec<FreeListFault>,
    /// Whether the zone held still: counters and lists are of one moment.
    pub stable: bool,
}

impl ZoneWalk {
    /// Whether lists and counters agree.
    pub fn is_verified(&self) -> bool {
        self.faults.is_empty() && self.found == self.counted && self.found.pages() == self.free_pages
    }
}

/// What a walk along all free lists found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FreeWalk {
    /// All zones of all online nodes, populated or not.
    pub zones: Vec<ZoneWalk>,
}

impl FreeWalk {
    /// `nr_free_pages` of all zones.
    pub fn free_pages(&self) -> u64 {
        self.zones.iter().fold(0, |sum, zone| sum.wrapping_add(zone.free_pages))
    }

    /// Pages on the lists of all zones.
    pub fn found_pages(&self) -> u64 {
        self.zones.iter().fold(0, |sum, zone| sum.wrapping_add(zone.found.pages()))
    }

    /// Whether lists and counters agree in every zone.
    pub fn is_verified(&self) -> bool {
        self.zones.iter().all(ZoneWalk::is_verified)
    }
}

impl StateView {
    /// Walks along the free lists of all zones.
    ///
    /// A zone is looked at under its sequence counter, and again when a running guest changed it meanwhile or when
    /// lists and counters disagree (a CPU may be folding its part of a counter). A guest that is not running is
    /// looked at once, whatever the sequence counter says: it may have died in the middle of a change.
    ///
    /// # Errors
    /// When a page table or the memory map lies outside memory.
    pub fn walk_free_lists(&self, patience: Patience) -> Result<FreeWalk, StateError> {
        let deadline = Instant::now() + patience.limit;
        let mut budget = self.memory().size() >> PAGE_SHIFT;
        let mut memmap = self.memmap();
        let mut walk = FreeWalk::default();
        let region = self.region();
        for node in self.online_nodes() {
            for (zone_type, zone, record) in counters::zones_of(&region, node) {
                let place = Place { zone, node, zone_type, record };
                let found = self.walk_zone_patiently(&mut memmap, &place, budget, patience, deadline)?;
                budget = budget.saturating_sub(found.found.pages());
                walk.zones.push(found);
            }
        }
        Ok(walk)
    }

    /// Whether a free block of `order` that starts at frame `pfn` is on one of the zone's lists.
    ///
    /// # Errors
    /// When a page table or the memory map lies outside memory.
    pub fn is_on_free_list(&self, zone: ZoneIndex, order: Order, pfn: u64) -> Result<bool, StateError> {
        let region = self.region();
        let Some(area) = region.zones().get(zone.index()).and_then(|zone| zone.free_area.get(order.index())) else {
            return Ok(false);
        };
        let mut budget = self.memory().size() >> PAGE_SHIFT;
        let accept = &|page: &PageMeta| page.is_free_head(order);
        let refused = ListFaultKind::NotFree;
        let rule = ListRule { order, zone: self.zone_frames(zone), accept, refused, closed: true };
        let (mut memmap, mut found) = (self.memmap(), false);
        for list in &area.free_list {
            visit_list(&mut memmap, ends(list), &rule, &mut budget, &mut |block, _| found |= u64::from(block) == pfn)?;
        }
        Ok(found)
    }

    fn walk_zone_patiently(
        &self,
        memmap: &mut Memmap<'_>,
        place: &Place<'_>,
        budget: u64,
        patience: Patience,
        deadline: Instant,
    ) -> Result<ZoneWalk, StateError> {
        let mut tries = 1;
        loop {
            let start = seq::read_begin(&place.record.seq);
            let mut result = self.walk_zone(memmap, place, budget);
            let stable = start.is_some_and(|start| !seq::read_retry(&place.record.seq, start));
            if let Ok(walk) = &mut result {
                walk.stable = stable;
            }
            let good = stable && result.as_ref().is_ok_and(ZoneWalk::is_verified);
            if good || tries >= patience.tries || !self.is_running() || Instant::now() >= deadline {
                return result;
            }
            tries += 1;
            std::thread::sleep(patience.pause);
        }
    }

    /// One walk along the lists of a zone, whatever happens to it meanwhile.
    fn walk_zone(&self, memmap: &mut Memmap<'_>, place: &Place<'_>, budget: u64) -> Result<ZoneWalk, StateError> {
        let frames = self.zone_frames(place.zone);
        let mut budget = budget;
        let mut found = [[0; MIGRATE_TYPES]; MAX_ORDER];
        let mut known_zero = 0;
        let mut faults = Vec::new();
        for ((row, area), order) in found.iter_mut().zip(&place.record.free_area).zip(0..) {
            let Ok(order) = Order::new(order) else { continue };
            let accept = &|page: &PageMeta| page.is_free_head(order);
            let refused = ListFaultKind::NotFree;
            let rule = ListRule { order, zone: frames.clone(), accept, refused, closed: true };
            for ((count, list), kind) in row.iter_mut().zip(&area.free_list).zip(MigrateType::ALL) {
                let visit = &mut |_, page: &PageMeta| known_zero += page.known_zero_pages(order);
                let walk = visit_list(memmap, ends(list), &rule, &mut budget, visit)?;
                *count = walk.blocks;
                faults.extend(walk.fault.map(|fault| FreeListFault { order, kind, fault }));
            }
        }
        Ok(ZoneWalk {
            zone: place.zone,
            node: place.node,
            zone_type: place.zone_type,
            free_pages: counters::zone_page_state_snapshot(&self.region(), place.zone, ZoneStat::NrFreePages),
            counted: FreeCounts::read_now(place.record),
            found: FreeCounts(found),
            known_zero,
            faults,
            stable: false,
        })
    }
}

/// A zone to walk.
struct Place<'a> {
    zone: ZoneIndex,
    node: NodeId,
    zone_type: ZoneType,
    record: &'a ZoneState,
}
