//! Pages of locked areas: by their entries, by their own marks, and as they are counted.

use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::report::counters;
use pagevisor_shared::vmstat::{NodeStat, ZoneStat};
use pagevisor_shared::zone::ZoneIndex;

use super::Area;
use crate::state::UserPage;
use crate::verify::Verifier;
use crate::verify::report::Place;
use crate::verify::rule::Rule;

impl Verifier<'_> {
    /// An entry locks its page if its area is locked.
    pub(super) fn check_lock(&mut self, page: UserPage, area: &Area) {
        let locks = page.entry.0 & Entry::MLOCKED != 0;
        if locks != area.info.flags.contains(VmaFlags::LOCKED) {
            let evidence = format_args!(
                "the entry for frame {:#x} {} it, the area has flags {:#x}",
                page.pfn(),
                if locks { "locks" } else { "does not lock" },
                area.info.flags.0
            );
            self.findings.add(Rule::ProgramLocked, Place::Virtual(page.address), evidence);
        }
    }

    /// Pages that programs map are marked as locked if entries lock them, count these, and are counted.
    pub(super) fn check_locked_pages(&mut self) {
        let mut zones = vec![0u64; self.region.zones().len()];
        for pfn in self.programs.mapped.keys() {
            let page = self.metadata.get(*pfn).unwrap_or_default();
            let locks = self.programs.locked.get(pfn).copied().unwrap_or_default();
            let marks = [PageFlag::Mlocked, PageFlag::Unevictable].map(|flag| page.flags & flag.mask() != 0);
            if marks != [locks != 0; 2] || locks != 0 && page.prev != locks {
                let evidence = format_args!(
                    "{locks} entries lock the page, which has flags {:#x} and counts {}",
                    page.flags, page.prev
                );
                self.findings.add(Rule::ProgramLocked, Place::Pfn(*pfn), evidence);
            }
            let zone = self.memory.zone_of(*pfn).filter(|_| locks != 0);
            if let Some(count) = zone.and_then(|zone| zones.get_mut(zone.index())) {
                *count += 1;
            }
        }
        for (index, count) in zones.iter().enumerate() {
            for (name, item) in [("nr_mlock", ZoneStat::NrMlock), ("nr_zone_unevictable", ZoneStat::NrZoneUnevictable)]
            {
                let counted = counters::zone_page_state_snapshot(&self.region, ZoneIndex(index as u16), item);
                self.findings.equal(Rule::MlockStat, Place::Zone(index), name, counted, *count);
            }
        }
        let counted = counters::global_node_page_state(&self.region, NodeStat::NrUnevictable);
        self.findings.equal(Rule::MlockStat, Place::Machine, "nr_unevictable", counted, zones.iter().sum());
    }
}
