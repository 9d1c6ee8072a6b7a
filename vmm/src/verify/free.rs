//! The free lists of the zones.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::{MIGRATE_PCPTYPES, MigrateType};
use pagevisor_shared::page::PG_BUDDY;
use pagevisor_shared::page_flags::{PG_CLEARING, PG_NOTZERO};
use pagevisor_shared::region::zone::ZoneState;
use pagevisor_shared::units::{MAX_ORDER, Order, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER};
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneIndex, ZoneType};

use super::Verifier;
use super::report::Place;
use super::rule::Rule;
use crate::state::PageMeta;

/// Faults of one list after which the rest of it is not looked at.
const MAX_FAULTS: u32 = 16;

/// A block on a free list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub pfn: u64,
    pub order: Order,
    pub kind: MigrateType,
    pub zone: ZoneIndex,
    /// Whether its content is said to be zero.
    pub zero: bool,
}

/// The list that is being walked.
#[derive(Clone, Copy)]
struct List {
    zone: ZoneIndex,
    order: Order,
    kind: MigrateType,
    /// Whether page blocks of the zone can be set aside for high-order atomic allocations.
    highatomic: bool,
}

impl std::fmt::Display for List {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (node, kind) = (self.zone.index() / MAX_NR_ZONES, self.zone.index() % MAX_NR_ZONES);
        let zone = ZoneType::new(kind).map_or("?", ZoneType::name);
        write!(f, "node {node} zone {zone} order {} {}", self.order.raw(), self.kind.name())
    }
}

impl Verifier<'_> {
    /// Walks all free lists.
    pub(super) fn check_free_lists(&mut self) {
        let zones = self.region.zones();
        for (index, zone) in (0u16..).zip(zones) {
            let index = ZoneIndex(index);
            let pages = self.memory.of_zone(index.index()).len();
            for (order, area) in (0..MAX_ORDER as u32).zip(&zone.free_area) {
                let Ok(order) = Order::new(order) else { continue };
                for ((kind, head), counted) in MigrateType::ALL.into_iter().zip(&area.free_list).zip(&area.nr_free) {
                    let list = List { zone: index, order, kind, highatomic: may_reserve(zone) };
                    let ends = (head.first.load(Relaxed), head.last.load(Relaxed));
                    let before = self.blocks.len();
                    self.walk_free_list(list, ends, pages >> order.raw());
                    let (found, counted) = ((self.blocks.len() - before) as u64, counted.load(Relaxed));
                    if found != counted {
                        let evidence = format_args!("nr_free of {list} is {counted}, on the list are {found}");
                        self.findings.add(Rule::FreeListCount, Place::Zone(index.index()), evidence);
                    }
                    self.checked.lists += 1;
                }
            }
        }
        self.checked.blocks = self.blocks.len() as u64;
    }

    fn walk_free_list(&mut self, list: List, (first, last): (u32, u32), most: u64) {
        let start = self.blocks.len();
        let (mut from, mut pfn, mut faults) = (0, first, 0);
        while pfn != 0 {
            let place = Place::Pfn(pfn.into());
            let Some(page) = self.metadata.get(pfn.into()) else {
                let evidence = format_args!("{list}: a link from {from:#x} leads to a frame without metadata");
                return self.findings.add(Rule::FreeListZone, place, evidence);
            };
            if (self.blocks.len() - start) as u64 >= most {
                let evidence = format_args!("{list}: more than the {most} blocks that the zone can have");
                return self.findings.add(Rule::FreeListLength, place, evidence);
            }
            if page.prev_of(pfn) != from {
                let evidence = format_args!("{list}: links back to {:#x}, reached from {from:#x}", page.prev_of(pfn));
                self.findings.add(Rule::FreeListBackLink, place, evidence);
                faults += 1;
                let again = self.blocks.iter().skip(start).any(|block| block.pfn == u64::from(pfn));
                if again {
                    let evidence = format_args!("{list}: the list comes back to this block");
                    return self.findings.add(Rule::FreeListLength, place, evidence);
                }
            }
            if !self.check_free_block(list, pfn, &page) {
                faults += 1;
            }
            if faults > MAX_FAULTS {
                return;
            }
            let zero = page.known_zero_pages(list.order) != 0;
            self.blocks.push(Block { pfn: pfn.into(), order: list.order, kind: list.kind, zone: list.zone, zero });
            (from, pfn) = (pfn, page.next_of(pfn));
        }
        if from != last {
            let evidence = format_args!("{list}: the last block is {from:#x}, by the head {last:#x}");
            self.findings.add(Rule::FreeListEnd, Place::Pfn(from.into()), evidence);
        }
    }

    /// Checks the head of a block; `false` when something is wrong with it.
    fn check_free_block(&mut self, list: List, pfn: u32, page: &PageMeta) -> bool {
        let before = self.findings.list.len() as u64 + self.findings.more;
        let (at, place) = (u64::from(pfn), Place::Pfn(pfn.into()));
        let last = at + list.order.pages() - 1;
        for frame in [at, last] {
            let zone = self.memory.zone_of(frame);
            if zone != Some(list.zone) {
                let evidence = format_args!("{list}: frame {frame:#x} is of zone {zone:?}");
                self.findings.add(Rule::FreeListZone, place, evidence);
            }
        }
        let found = &mut self.findings;
        if at & (list.order.pages() - 1) != 0 {
            found.add(Rule::FreeListAlign, place, format_args!("{list}: the block is not aligned"));
        }
        if page.refcount != 0 {
            let evidence = format_args!("{list}: _refcount is {}", page.refcount);
            found.add(Rule::FreeListReferences, place, evidence);
        }
        if !matches!(page.flags & !PG_NOTZERO, 0 | PG_CLEARING) || page.flags == PG_CLEARING {
            let evidence = format_args!("{list}: flags are {:#x}", page.flags);
            found.add(Rule::FreeListFlags, place, evidence);
        }
        let untouched = list.order == Order::MAX && page.mapcount == 0 && page.private == 0;
        let marked = page.mapcount == PG_BUDDY && page.private == list.order.raw();
        if !marked && !untouched {
            let evidence = format_args!("{list}: _mapcount is {:#x}, private {:#x}", page.mapcount, page.private);
            found.add(Rule::FreeListMark, place, evidence);
        }
        if page.index != u32::from(list.kind.block_byte()) {
            let evidence = format_args!("{list}: the block names migrate type {:#x}", page.index ^ 1);
            found.add(Rule::FreeListType, place, evidence);
        }
        self.check_pageblocks(list, at);
        self.check_buddy(list, at);
        before == self.findings.list.len() as u64 + self.findings.more
    }

    /// Isolated page blocks and contiguous areas have lists of their own.
    fn check_pageblocks(&mut self, list: List, at: u64) {
        for block in (at..at + list.order.pages()).step_by(PAGEBLOCK_NR_PAGES as usize) {
            let kind = self.memory.migratetype(block);
            let special = |kind: MigrateType| matches!(kind, MigrateType::Isolate | MigrateType::Cma);
            if kind != list.kind && (special(kind) || special(list.kind)) {
                let evidence = format_args!("{list}: the page block at {block:#x} is {}", kind.name());
                self.findings.add(Rule::FreeListPageblock, Place::Pfn(at), evidence);
            }
        }
    }

    /// Free buddies merge, unless their page blocks are kept apart.
    fn check_buddy(&mut self, list: List, at: u64) {
        let buddy = at ^ list.order.pages();
        if list.order == Order::MAX || self.memory.zone_of(buddy) != Some(list.zone) {
            return;
        }
        let Some(page) = self.metadata.get(buddy) else { return };
        if page.mapcount != PG_BUDDY || page.private != list.order.raw() {
            return;
        }
        if list.order.raw() >= PAGEBLOCK_ORDER {
            let (mine, its) = (self.memory.migratetype(at), self.memory.migratetype(buddy));
            let mergeable = |kind: MigrateType| kind.index() < MIGRATE_PCPTYPES;
            let apart = mine != its && !(mergeable(mine) && mergeable(its));
            // A page block that was set aside and given back is not merged until the next free, as in Linux.
            if apart || list.highatomic {
                return;
            }
        }
        // Once for the pair.
        if at < buddy {
            let evidence = format_args!("{list}: the buddy at {buddy:#x} is free too");
            self.findings.add(Rule::FreeListBuddy, Place::Pfn(at), evidence);
        }
    }
}

/// Whether page blocks of `zone` can be set aside for high-order atomic allocations: one in a hundred must be a whole
/// one.
fn may_reserve(zone: &ZoneState) -> bool {
    zone.managed_pages.load(Relaxed) / 100 >= PAGEBLOCK_NR_PAGES
}
