//! Sizes and counters of zones and nodes, and what CPUs belong to them.

use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::migrate::MigrateType;
use pagevisor_shared::region::zone::ZoneState;
use pagevisor_shared::report::counters;
use pagevisor_shared::units::{NodeId, PAGEBLOCK_NR_PAGES};
use pagevisor_shared::vmstat::{NR_VM_ZONE_STAT_ITEMS, ZoneStat};
use pagevisor_shared::zone::{MAX_NR_ZONES, ZoneIndex};

use super::Verifier;
use super::report::Place;
use super::rule::Rule;

/// Counters that have rules of their own.
const COUNTED: [ZoneStat; 4] =
    [ZoneStat::NrFreePages, ZoneStat::NrFreeCma, ZoneStat::NrMlock, ZoneStat::NrZoneUnevictable];

impl Verifier<'_> {
    /// Checks the records of all zones.
    pub(super) fn check_zones(&mut self) {
        for (index, zone) in self.region.zones().iter().enumerate() {
            self.check_identity(index, zone);
            self.check_sizes(index, zone);
            self.check_counters(index, zone);
            self.check_reserves(index, zone);
        }
        self.checked.zones = self.region.zones().iter().filter(|zone| counters::is_populated(zone)).count() as u64;
    }

    fn check_identity(&mut self, index: usize, zone: &ZoneState) {
        let (found, place) = (&mut self.findings, Place::Zone(index));
        let (node, kind) = (zone.node.load(Relaxed), zone.zone_type.load(Relaxed));
        found.equal(Rule::ZoneIdentity, place, "the zone's node", node as usize, index / MAX_NR_ZONES);
        found.equal(Rule::ZoneIdentity, place, "the zone's type", kind as usize, index % MAX_NR_ZONES);
        let (lock, seq) = (zone.lock.load(Relaxed), zone.seq.load(Relaxed));
        if lock != 0 || seq & 1 != 0 {
            found.add(Rule::ZoneLock, place, format_args!("lock is {lock}, seq {seq}"));
        }
    }

    fn check_sizes(&mut self, index: usize, zone: &ZoneState) {
        let frames = self.memory.of_zone(index);
        let usage = self.usage.get(index).copied().unwrap_or_default();
        let (found, place) = (&mut self.findings, Place::Zone(index));
        let [start, spanned, present, managed] =
            [&zone.zone_start_pfn, &zone.spanned_pages, &zone.present_pages, &zone.managed_pages]
                .map(|word| word.load(Relaxed));
        let inside = start..start.saturating_add(spanned);
        let outside = frames.iter().find(|range| range.start < inside.start || range.end > inside.end);
        if let Some(range) = outside {
            let evidence = format_args!("memory {:#x}-{:#x} is outside {inside:#x?}", range.start, range.end);
            found.add(Rule::ZoneSpan, place, evidence);
        }
        // The span of a zone is that of its node within the zone's limits: it may be larger than its memory.
        if spanned < present || frames.len() == 0 && present != 0 {
            found.add(Rule::ZoneSpan, place, format_args!("{present} pages are present of {spanned} spanned"));
        }
        found.equal(Rule::ZonePresentPages, place, "present_pages", present, frames.len());
        let expected = frames.len().saturating_sub(usage.reserved);
        found.equal(Rule::ZoneManagedPages, place, "managed_pages", managed, expected);
        let sum = usage.free + usage.cached + usage.in_use + usage.reserved;
        if sum != present {
            let evidence = format_args!(
                "{} free, {} on pagesets, {} in use and {} reserved pages are {sum}, of {present} present",
                usage.free, usage.cached, usage.in_use, usage.reserved
            );
            found.add(Rule::ZoneAccounting, place, evidence);
        }
    }

    fn check_counters(&mut self, index: usize, zone: &ZoneState) {
        let usage = self.usage.get(index).copied().unwrap_or_default();
        let zone_index = ZoneIndex(index as u16);
        let exact = |item: usize| {
            let stored = zone.vm_stat.get(item).map_or(0, |word| word.load(Relaxed));
            let pending = counters::pcps_of_zone(&self.region, zone_index);
            let pending = pending.map(|pcp| pcp.vm_stat_diff.get(item).map_or(0, |word| word.load(Relaxed)));
            pending.fold(stored, |sum, diff| sum.wrapping_add(diff.into()))
        };
        let place = Place::Zone(index);
        let (free, cma) = (exact(ZoneStat::NrFreePages.index()), exact(ZoneStat::NrFreeCma.index()));
        let others: Vec<(usize, i64)> = (0..NR_VM_ZONE_STAT_ITEMS)
            .filter(|item| !COUNTED.iter().any(|counted| counted.index() == *item))
            .map(|item| (item, exact(item)))
            .filter(|(_, value)| *value != 0)
            .collect();
        let found = &mut self.findings;
        let expected = usage.free - usage.isolated;
        found.equal(Rule::ZoneNrFreePages, place, "nr_free_pages", free, expected as i64);
        found.equal(Rule::ZoneNrFreeCma, place, "nr_free_cma", cma, usage.cma as i64);
        for (item, value) in others {
            // Nothing is on LRU lists, or under write-back: these counters have nothing to count.
            found.add(Rule::ZoneCounter, place, format_args!("counter {item} is {value}"));
        }
    }

    /// What is set aside in whole page blocks.
    fn check_reserves(&mut self, index: usize, zone: &ZoneState) {
        let blocks = |kind: MigrateType| {
            let mut count = 0;
            for part in self.memory.parts.iter().filter(|part| part.zone.index() == index) {
                let first = part.frames.start & !(PAGEBLOCK_NR_PAGES - 1);
                let blocks = (first..part.frames.end).step_by(PAGEBLOCK_NR_PAGES as usize);
                count += blocks.filter(|block| self.memory.migratetype(*block) == kind).count() as u64;
            }
            count * PAGEBLOCK_NR_PAGES
        };
        let (cma, highatomic) = (blocks(MigrateType::Cma), blocks(MigrateType::HighAtomic));
        let (cma_pages, reserved) = (zone.cma_pages.load(Relaxed), zone.nr_reserved_highatomic.load(Relaxed));
        let (found, place) = (&mut self.findings, Place::Zone(index));
        // Page blocks that are isolated for a moment are of no other type.
        if cma > cma_pages
            || !cma_pages.is_multiple_of(PAGEBLOCK_NR_PAGES)
            || cma_pages > zone.present_pages.load(Relaxed)
        {
            let evidence = format_args!("cma_pages is {cma_pages}, the zone's page blocks of that type have {cma}");
            found.add(Rule::ZoneCmaPages, place, evidence);
        }
        let limit = (zone.managed_pages.load(Relaxed) / 100).next_multiple_of(PAGEBLOCK_NR_PAGES);
        let whole = reserved.is_multiple_of(PAGEBLOCK_NR_PAGES);
        if highatomic > reserved || !whole || reserved > limit {
            let evidence = format_args!(
                "nr_reserved_highatomic is {reserved} of at most {limit}, page blocks of that type have {highatomic}"
            );
            found.add(Rule::ZoneHighatomic, place, evidence);
        }
    }

    /// Checks the records of all nodes and CPUs.
    pub(super) fn check_nodes(&mut self) {
        let (region, online) = (self.region.clone(), counters::online_nodes(&self.region));
        for (index, node) in region.nodes().iter().enumerate() {
            let Some(id) = NodeId::new(index) else { continue };
            let of_node = |part: &&super::memory::Part| part.zone.index() / MAX_NR_ZONES == index;
            let parts: Vec<_> = self.memory.parts.iter().filter(of_node).map(|part| part.frames.clone()).collect();
            let present: u64 = parts.iter().map(|frames| frames.end - frames.start).sum();
            let (first, last) = (parts.first().map_or(0, |f| f.start), parts.last().map_or(0, |f| f.end));
            let (found, place) = (&mut self.findings, Place::Node(index));
            let read = |word: &std::sync::atomic::AtomicU64| word.load(Relaxed);
            found.equal(Rule::NodeSizes, place, "node_start_pfn", read(&node.node_start_pfn), first);
            found.equal(Rule::NodeSizes, place, "node_present_pages", read(&node.node_present_pages), present);
            found.equal(Rule::NodeSizes, place, "node_spanned_pages", read(&node.node_spanned_pages), last - first);
            let mut cpus = 0;
            for (cpu, _) in region.cpus().iter().enumerate().filter(|(_, cpu)| cpu.node.load(Relaxed) as usize == index)
            {
                cpus |= 1u64 << cpu;
            }
            if read(&node.cpus) != cpus {
                let evidence = format_args!("the node has CPUs {:#x}, {cpus:#x} say so", read(&node.cpus));
                found.add(Rule::NodeCpus, place, evidence);
            }
            let expected = present != 0 || cpus != 0;
            found.equal(Rule::NodeCpus, place, "whether the node is online", online.contains(id), expected);
        }
        self.check_cpus();
    }

    fn check_cpus(&mut self) {
        let online = self.region.header().cpus_online.load(Relaxed);
        for (cpu, record) in self.region.cpus().iter().enumerate() {
            let told = record.online.load(Relaxed) != 0;
            if told != (online >> cpu & 1 != 0) {
                let evidence = format_args!("its record says online: {told}, the mask is {online:#x}");
                self.findings.add(Rule::NodeCpus, Place::Cpu(cpu), evidence);
            }
        }
    }
}
