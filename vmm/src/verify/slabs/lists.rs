//! The lists of slabs of each node, followed link by link, and the pages of the slabs on them.

use std::collections::HashSet;

use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::slab::{FreelistWords, SlabWord};
use pagevisor_shared::units::{NodeId, PAGE_SHIFT};
use pagevisor_shared::zone::MAX_NR_ZONES;

use super::{Slab, Slabs, words};
use crate::state::PageMeta;
use crate::state::slab::{NodeSlabs, SlabCache, SlabList};
use crate::verify::Verifier;
use crate::verify::pages::order_of;
use crate::verify::report::Place;
use crate::verify::rule::Rule;
use crate::verify::spans::Spans;

/// Which list of whom.
#[derive(Clone, Copy)]
struct List<'c> {
    cache: &'c SlabCache,
    node: usize,
    kind: SlabList,
}

impl std::fmt::Display for List<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} node {} {}", self.cache.name, self.node, self.kind.name())
    }
}

/// What was found so far, on all lists.
#[derive(Default)]
struct Seen {
    firsts: HashSet<u32>,
    /// Pages that slabs may still have.
    budget: u64,
    slabs: Vec<Slab>,
}

impl Verifier<'_> {
    /// Follows the lists of all nodes of all caches.
    pub(super) fn walk_slab_lists(&mut self, slabs: &mut Slabs) {
        let mut seen = Seen { budget: self.memory.present.len(), ..Seen::default() };
        for (index, cache) in slabs.caches.iter().enumerate() {
            for node in &cache.nodes {
                self.walk_slab_node(index, cache, node, &mut seen);
            }
        }
        seen.slabs.sort_unstable_by_key(|slab| slab.pfn);
        let mut bits = 0;
        for slab in &mut seen.slabs {
            slab.bits = bits;
            bits += slabs.caches.get(slab.cache).map_or(0, |cache| 2 * words(cache));
        }
        slabs.bits = vec![0; bits];
        let frames = |slab: &Slab| {
            let pages = slabs.caches.get(slab.cache).map_or(0, SlabCache::slab_pages);
            slab.pfn..slab.pfn + pages
        };
        slabs.frames = Spans::new(seen.slabs.iter().map(frames));
        slabs.slabs = seen.slabs;
    }

    fn walk_slab_node(&mut self, index: usize, cache: &SlabCache, node: &NodeSlabs, seen: &mut Seen) {
        let place = Place::Virtual(node.address);
        if node.list_lock != 0 || node.seq & 1 != 0 {
            let evidence =
                format_args!("{} node {}: list_lock is {}, seq {}", cache.name, node.node, node.list_lock, node.seq);
            self.findings.add(Rule::SlabLock, place, evidence);
        }
        let heads = [node.slabs_partial, node.slabs_full, node.slabs_free];
        let (mut total, mut free, mut left) = (0, 0, 0u64);
        for (kind, ends) in SlabList::ALL.into_iter().zip(heads) {
            let before = seen.slabs.len();
            self.walk_slab_list(List { cache, node: node.node, kind }, index, ends, seen);
            self.checked.lists += 1;
            let found = seen.slabs.get(before..).unwrap_or(&[]);
            total += found.len() as u64;
            free += if kind == SlabList::Free { found.len() as u64 } else { 0 };
            let active = |slab: &Slab| self.metadata.get(slab.pfn).map_or(0, |page| page.mapcount.min(cache.num));
            left += found.iter().map(|slab| u64::from(cache.num - active(slab))).sum::<u64>();
        }
        let counted = [
            ("total_slabs", node.total_slabs, total),
            ("free_slabs", node.free_slabs, free),
            ("free_objects", node.free_objects, left),
        ];
        for (what, counted, found) in counted {
            if counted != found {
                let evidence = format_args!("{} node {}: {what} is {counted}, not {found}", cache.name, node.node);
                self.findings.add(Rule::SlabCounters, place, evidence);
            }
        }
    }

    fn walk_slab_list(&mut self, list: List<'_>, index: usize, (first, last): (u32, u32), seen: &mut Seen) {
        let (mut from, mut pfn) = (0, first);
        while pfn != 0 {
            let place = Place::Pfn(pfn.into());
            let Some(page) = self.metadata.get(pfn.into()) else {
                let evidence = format_args!("{list}: a link from {from:#x} leads to a frame without metadata");
                return self.findings.add(Rule::SlabListLink, place, evidence);
            };
            if !seen.firsts.insert(pfn) {
                let evidence = format_args!("{list}: reached from {from:#x}, the slab is on a list already");
                return self.findings.add(Rule::SlabListLink, place, evidence);
            }
            let Some(budget) = seen.budget.checked_sub(list.cache.slab_pages()) else {
                let evidence = format_args!("{list}: more slabs than there is memory");
                return self.findings.add(Rule::SlabListLink, place, evidence);
            };
            seen.budget = budget;
            if page.prev_of(pfn) != from {
                let evidence = format_args!("{list}: links back to {:#x}, reached from {from:#x}", page.prev_of(pfn));
                self.findings.add(Rule::SlabListLink, place, evidence);
            }
            if !self.check_slab(list, pfn.into(), &page) {
                return;
            }
            let colour = u64::from(FreelistWords { index: page.index, private: page.private }.colour());
            let objects = (u64::from(pfn) << PAGE_SHIFT) + colour * u64::from(list.cache.colour_off);
            seen.slabs.push(Slab { pfn: pfn.into(), cache: index, node: list.node, first: objects, bits: 0 });
            (from, pfn) = (pfn, page.next_of(pfn));
        }
        if from != last {
            let evidence = format_args!("{list}: the last slab is {from:#x}, by the head {last:#x}");
            self.findings.add(Rule::SlabListLink, Place::Pfn(from.into()), evidence);
        }
    }

    /// Checks what the metadata of a slab's pages says; `false` when there is no slab of this cache.
    fn check_slab(&mut self, list: List<'_>, pfn: u64, page: &PageMeta) -> bool {
        let (cache, place) = (list.cache, Place::Pfn(pfn));
        let word = SlabWord(page.mapping);
        let fits = pfn & (cache.slab_pages() - 1) == 0 && order_of(page) == cache.order.raw();
        let memory = self.memory.present.count_within(pfn..pfn + cache.slab_pages()) == cache.slab_pages();
        if page.flags & PageFlag::Slab.mask() == 0 || page.refcount == 0 || !fits || !memory {
            let evidence = format_args!(
                "{list}: flags {:#x} and _refcount {} are not those of a slab of order {}",
                page.flags,
                page.refcount,
                cache.order.raw()
            );
            self.findings.add(Rule::SlabListMember, place, evidence);
        }
        if !word.is_slab() || word.is_tail() || !fits || !memory {
            let evidence = format_args!("{list}: the page's word {:#x} is not that of a first page", page.mapping);
            self.findings.add(Rule::SlabListMember, place, evidence);
            return false;
        }
        self.check_slab_words(list, pfn, page);
        if self.memory.zone_of(pfn).map(|zone| zone.index() / MAX_NR_ZONES) != Some(list.node) {
            let evidence = format_args!("{list}: the slab's memory is of zone {:?}", self.memory.zone_of(pfn));
            self.findings.add(Rule::SlabPageNode, place, evidence);
        }
        if page.mapcount > cache.num || SlabList::of(page.mapcount, cache.num) != list.kind {
            let evidence = format_args!("{list}: {} of {} objects are handed out", page.mapcount, cache.num);
            self.findings.add(Rule::SlabListPlace, place, evidence);
        }
        true
    }

    /// Every page of a slab names its cache and node, and how far it is from the first.
    fn check_slab_words(&mut self, list: List<'_>, pfn: u64, first: &PageMeta) {
        let Some(node) = NodeId::new(list.node) else { return };
        for distance in 0..list.cache.slab_pages() {
            let page = if distance == 0 { *first } else { self.metadata.get(pfn + distance).unwrap_or_default() };
            let expected = SlabWord::new(list.cache.id, node, distance != 0).0;
            if page.mapping != expected || distance != 0 && u64::from(page.index) != distance {
                let evidence = format_args!(
                    "{list}: the word of page {distance} is {:#x}, not {expected:#x}, its index {:#x}",
                    page.mapping, page.index
                );
                self.findings.add(Rule::SlabPageWord, Place::Pfn(pfn + distance), evidence);
            }
        }
    }
}
