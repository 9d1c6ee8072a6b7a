//! Page tables from the page allocator: typed as such, their entries counted, and they themselves.

use std::collections::HashSet;

use pagevisor_shared::page::PG_TABLE;
use pagevisor_shared::report::counters;
use pagevisor_shared::units::NodeId;
use pagevisor_shared::vmstat::NodeStat;
use pagevisor_shared::zone::MAX_NR_ZONES;

use super::Verifier;
use super::report::Place;
use super::rule::Rule;

impl Verifier<'_> {
    /// Compares the tables that were walked with the pages that are typed as tables.
    pub(super) fn check_page_tables(&mut self) {
        let mut known = HashSet::new();
        let mut nodes = vec![0u64; self.region.nr_nodes()];
        for table in &self.tables.tables {
            // Those of the boot are reserved, not allocated.
            if !self.memory.present.contains(table.frame) || self.memory.reserved.contains(table.frame) {
                continue;
            }
            known.insert(table.frame);
            let (place, page) = (Place::Pfn(table.frame), self.metadata.get(table.frame).unwrap_or_default());
            if page.mapcount != PG_TABLE || page.refcount != 1 {
                let evidence = format_args!(
                    "a table of level {} for {:#x}: _mapcount {:#x}, _refcount {}",
                    table.level, table.virt, page.mapcount, page.refcount
                );
                self.findings.add(Rule::PageTableType, place, evidence);
                continue;
            }
            if page.private != table.present {
                let evidence = format_args!(
                    "the table of level {} for {:#x} has {} entries, {} are counted",
                    table.level, table.virt, table.present, page.private
                );
                self.findings.add(Rule::PageTableEntries, place, evidence);
            }
        }
        for pfn in &self.programs.tables {
            let page = self.metadata.get(*pfn).unwrap_or_default();
            if page.mapcount != PG_TABLE || page.refcount != 1 {
                let evidence =
                    format_args!("a program's table: _mapcount {:#x}, _refcount {}", page.mapcount, page.refcount);
                self.findings.add(Rule::PageTableType, Place::Pfn(*pfn), evidence);
            }
        }
        for (pfn, page) in self.metadata.touched(&self.memory.present) {
            if page.mapcount != PG_TABLE {
                continue;
            }
            if !known.contains(&pfn) && !self.programs.tables.contains(&pfn) {
                let evidence = format_args!("typed as a page table, but in no tree of them");
                self.findings.add(Rule::PageTableType, Place::Pfn(pfn), evidence);
            }
            let node = self.memory.zone_of(pfn).and_then(|zone| nodes.get_mut(zone.index() / MAX_NR_ZONES));
            if let Some(count) = node {
                *count += 1;
            }
        }
        for (index, count) in nodes.into_iter().enumerate() {
            let Some(node) = NodeId::new(index) else { continue };
            let counted = counters::node_page_state_snapshot(&self.region, node, NodeStat::NrPageTablePages);
            let place = Place::Node(index);
            self.findings.equal(Rule::PageTableStat, place, "nr_page_table_pages", counted, count);
        }
    }
}
