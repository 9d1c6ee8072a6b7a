//! The per-CPU lists of pages.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::{MIGRATE_PCPTYPES, MIGRATE_TYPES, MigrateType};
use pagevisor_shared::page_flags::{PG_NOTZERO, PG_ORDER_SHIFT};
use pagevisor_shared::region::zone::{NR_PCP_LISTS, PcpState};
use pagevisor_shared::units::Order;
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneIndex};

use super::Verifier;
use super::report::Place;
use super::rule::Rule;
use crate::state::PageMeta;

/// A block on a pageset.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cached {
    pub pfn: u64,
    pub order: Order,
    pub list: PagesetList,
}

/// A list of a pageset.
#[derive(Clone, Copy, Debug)]
pub(super) struct PagesetList {
    pub cpu: usize,
    pub zone: ZoneIndex,
    pub number: usize,
}

impl PagesetList {
    /// Order of its blocks.
    fn order(self) -> Order {
        if self.number + 1 == NR_PCP_LISTS {
            return Order::PAGEBLOCK;
        }
        Order::new((self.number / MIGRATE_PCPTYPES) as u32).unwrap_or(Order::ZERO)
    }

    /// Whether blocks of page blocks of type `kind` belong on it: those of reserved page blocks are kept with the movable
    /// ones, and the largest are all together.
    fn takes(self, kind: u32) -> bool {
        let movable = MigrateType::Movable.index() as u32;
        let list = if (kind as usize) < MIGRATE_PCPTYPES { kind } else { movable };
        let known = (kind as usize) < MIGRATE_TYPES && kind as usize != MigrateType::Isolate.index();
        known && (self.number + 1 == NR_PCP_LISTS || list as usize == self.number % MIGRATE_PCPTYPES)
    }
}

impl std::fmt::Display for PagesetList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (node, zone) = (self.zone.index() / MAX_NR_ZONES, self.zone.index() % MAX_NR_ZONES);
        write!(f, "CPU {} list {} of node {node} zone {zone}", self.cpu, self.number)
    }
}

impl Verifier<'_> {
    /// Walks the lists of all pagesets.
    pub(super) fn check_pagesets(&mut self) {
        let zones = self.region.zones().len().max(1);
        for (cpu, pagesets) in self.region.pcps().chunks(zones).enumerate() {
            for (zone, pcp) in (0u16..).zip(pagesets) {
                self.check_pageset(cpu, ZoneIndex(zone), pcp);
            }
        }
    }

    fn check_pageset(&mut self, cpu: usize, zone: ZoneIndex, pcp: &PcpState) {
        let place = Place::Zone(zone.index());
        let (lock, hot) = (pcp.lock.load(Relaxed), pcp.hot.load(Relaxed));
        // Closed while something watches allocations; then there is another.
        if lock != u32::from(hot != 0) || pcp.hot_lock.load(Relaxed) != 0 {
            let evidence =
                format_args!("CPU {cpu}: the pageset's lock is held: {lock}, {}", pcp.hot_lock.load(Relaxed));
            self.findings.add(Rule::PagesetLock, place, evidence);
        }
        let before = self.cached.len();
        let count = u64::from(pcp.count.load(Relaxed));
        let most = self.memory.of_zone(zone.index()).len();
        for (number, head) in pcp.lists.iter().enumerate() {
            let list = PagesetList { cpu, zone, number };
            self.walk_pageset_list(list, head.first.load(Relaxed), head.last.load(Relaxed), most);
            self.checked.lists += 1;
        }
        let pages: u64 = self.cached.iter().skip(before).map(|block| block.order.pages()).sum();
        if pages != count {
            let evidence = format_args!("CPU {cpu}: count of the pageset is {count}, on its lists are {pages} pages");
            self.findings.add(Rule::PagesetCount, place, evidence);
        }
    }

    /// Neither the backward link of the first page nor the end of an empty list is kept up.
    fn walk_pageset_list(&mut self, list: PagesetList, first: u32, last: u32, most: u64) {
        let (mut from, mut pfn, mut pages) = (0, first, 0);
        while pfn != 0 {
            let place = Place::Pfn(pfn.into());
            let Some(page) = self.metadata.get(pfn.into()) else {
                let evidence = format_args!("{list}: a link from {from:#x} leads to a frame without metadata");
                return self.findings.add(Rule::PagesetLink, place, evidence);
            };
            if from != 0 && page.prev_of(pfn) != from {
                let evidence = format_args!("{list}: links back to {:#x}, reached from {from:#x}", page.prev_of(pfn));
                return self.findings.add(Rule::PagesetLink, place, evidence);
            }
            pages += list.order().pages();
            if pages > most {
                let evidence = format_args!("{list}: more pages than the zone has, {most}");
                return self.findings.add(Rule::PagesetLink, place, evidence);
            }
            self.check_cached(list, pfn.into(), &page);
            self.cached.push(Cached { pfn: pfn.into(), order: list.order(), list });
            (from, pfn) = (pfn, page.next_of(pfn));
        }
        if from != 0 && from != last {
            let evidence = format_args!("{list}: the last page is {from:#x}, by the head {last:#x}");
            self.findings.add(Rule::PagesetLink, Place::Pfn(from.into()), evidence);
        }
    }

    fn check_cached(&mut self, list: PagesetList, at: u64, page: &PageMeta) {
        let (place, order) = (Place::Pfn(at), list.order());
        let last = at + order.pages() - 1;
        let mine = |frame| self.memory.zone_of(frame) == Some(list.zone);
        if at & (order.pages() - 1) != 0 || !mine(at) || !mine(last) {
            let evidence = format_args!("{list}: the block of order {} is not aligned or not of the zone", order.raw());
            self.findings.add(Rule::PagesetBlock, place, evidence);
        }
        if page.refcount != 0 || page.mapcount != 0 {
            let evidence = format_args!("{list}: _refcount is {}, _mapcount {:#x}", page.refcount, page.mapcount);
            self.findings.add(Rule::PagesetReferences, place, evidence);
        }
        if page.flags & !PG_NOTZERO != order.raw() << PG_ORDER_SHIFT {
            let evidence = format_args!("{list}: flags are {:#x}, order {}", page.flags, order.raw());
            self.findings.add(Rule::PagesetFlags, place, evidence);
        }
        if !list.takes(page.index) {
            let evidence = format_args!("{list}: the page is of migrate type {:#x}", page.index);
            self.findings.add(Rule::PagesetType, place, evidence);
        }
    }
}
