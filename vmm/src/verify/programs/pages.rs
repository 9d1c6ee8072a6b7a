//! What programs' page tables map: in areas, as they allow, what belongs there, and as much as is counted.

use std::collections::HashSet;

use pagevisor_shared::mm_types::{MappingId, MmCounter, NR_MM_COUNTERS, VmaFlags};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::report::counters;
use pagevisor_shared::units::{NodeId, PAGE_SHIFT, PAGE_SIZE};
use pagevisor_shared::vmstat::NodeStat;
use pagevisor_shared::zone::MAX_NR_ZONES;
use std::sync::atomic::Ordering::Relaxed;

use super::Area;
use crate::state::{PageMeta, SpaceInfo, StateError, USER_END, UserPage};
use crate::verify::Verifier;
use crate::verify::report::Place;
use crate::verify::rule::Rule;

/// What pages of an area may belong to.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Numbers of families.
    pub families: HashSet<u32>,
    /// The number of the file.
    pub file: Option<u32>,
}

fn is_anon(page: &PageMeta) -> bool {
    MappingId::from_word(page.mapping).is_some_and(MappingId::is_anon)
}

const fn is_exclusive(page: &PageMeta) -> bool {
    page.flags & PageFlag::ANON_EXCLUSIVE.mask() != 0
}

/// The kind of memory that a mapped page counts as (`mm_counter`).
fn counter_of(page: &PageMeta) -> MmCounter {
    if is_anon(page) {
        MmCounter::Anon
    } else if page.flags & PageFlag::Swapbacked.mask() != 0 {
        MmCounter::Shmem
    } else {
        MmCounter::File
    }
}

impl Verifier<'_> {
    /// Walks through a program's page tables and notes tables and pages.
    pub(super) fn read_program_tables(
        &mut self,
        space: &SpaceInfo,
        visit: &mut dyn FnMut(UserPage),
    ) -> Result<u64, StateError> {
        let (mut tables, mut pages) = (Vec::new(), Vec::new());
        let mut budget = self.view.table_budget(0);
        let walked =
            self.view.user_tables(space.pgd, 0..USER_END, &mut budget, &mut |page| pages.push(page), &mut |at| {
                tables.push(at >> PAGE_SHIFT);
            });
        match walked {
            Ok(()) => {}
            Err(StateError::Corrupt(damage)) => {
                self.findings.add(Rule::ProgramTables, Place::Virtual(damage.at), format_args!("{damage}"));
            }
            Err(error) => return Err(error),
        }
        let number = tables.len() as u64;
        for frame in tables {
            if !self.programs.tables.insert(frame) {
                let evidence = format_args!("a page table of a program is used a second time");
                self.findings.add(Rule::ProgramTables, Place::Pfn(frame), evidence);
            }
        }
        for page in pages {
            if !self.is_uncounted(page) {
                *self.programs.mapped.entry(page.pfn()).or_default() += 1;
                if page.entry.0 & Entry::MLOCKED != 0 {
                    *self.programs.locked.entry(page.pfn()).or_default() += 1;
                }
            }
            visit(page);
        }
        Ok(number)
    }

    /// Whether nobody counts who maps the page: it is the zero page.
    fn is_uncounted(&self, page: UserPage) -> bool {
        let zero = self.region.header().roots.zero_pfn.load(Relaxed);
        page.entry.0 & Entry::SPECIAL != 0 || zero != 0 && page.pfn() == zero
    }

    /// All that a program maps. `owners` are those of `areas`.
    pub(super) fn check_program_pages(
        &mut self,
        space: &SpaceInfo,
        areas: &[Area],
        owners: &[Owners],
    ) -> Result<(), StateError> {
        let mut pages = Vec::new();
        let tables = self.read_program_tables(space, &mut |page| pages.push(page))?;
        let mut rss = [0i64; NR_MM_COUNTERS];
        for page in pages {
            let index = areas.partition_point(|area| area.info.start <= page.address).checked_sub(1);
            let area = index.and_then(|index| areas.get(index).zip(owners.get(index)));
            let area = area.filter(|(area, _)| page.address < area.info.end);
            let place = Place::Virtual(page.address);
            match area {
                Some((area, _)) => self.check_access(page, area),
                None => {
                    let evidence = format_args!("frame {:#x} is mapped where the program has no area", page.pfn());
                    self.findings.add(Rule::ProgramMapping, place, evidence);
                }
            }
            if self.is_uncounted(page) {
                continue;
            }
            let Some(meta) = self.metadata.get(page.pfn()).filter(|meta| meta.refcount != 0) else {
                let evidence = format_args!("frame {:#x} is mapped, and not in use", page.pfn());
                self.findings.add(Rule::ProgramMapping, place, evidence);
                continue;
            };
            if let Some((area, owners)) = area {
                self.check_lock(page, area);
                self.check_page_owner(page, &meta, area, owners);
            }
            if let Some(count) = rss.get_mut(counter_of(&meta) as usize) {
                *count += 1;
            }
        }
        let place = Place::Virtual(space.address);
        let names = ["pages of files", "anonymous pages", "entries for swap", "pages of shared memory"];
        for ((name, counted), found) in names.into_iter().zip(space.rss_stat).zip(rss) {
            self.findings.equal(Rule::SpaceRss, place, name, counted, found);
        }
        // The top table does not count.
        let bytes = tables.saturating_sub(1) * PAGE_SIZE;
        self.findings.equal(Rule::SpaceTables, place, "pgtables_bytes", space.pgtables_bytes, bytes);
        Ok(())
    }

    /// An entry allows no more than its area.
    fn check_access(&mut self, page: UserPage, area: &Area) {
        let flags = area.info.flags;
        let (writes, runs) =
            (page.entry.is_writable(), page.entry.is_present() && page.entry.0 & Entry::NO_EXECUTE == 0);
        let wrong = if !flags.intersects(VmaFlags::ACCESS) && page.entry.is_present() {
            "come to"
        } else if writes && !flags.contains(VmaFlags::WRITE) {
            "written"
        } else if runs && !flags.contains(VmaFlags::EXEC) {
            "executed"
        } else if page.entry.is_present() && page.entry.0 & Entry::USER == 0 {
            "come to by the kernel only"
        } else {
            return;
        };
        let evidence = format_args!("frame {:#x} can be {wrong}, its area {:#x} cannot", page.pfn(), flags.0);
        self.findings.add(Rule::ProgramMapping, Place::Virtual(page.address), evidence);
    }

    /// A page belongs to its area's file or to one of its families, at that place; and is written to only by who has it
    /// alone.
    fn check_page_owner(&mut self, page: UserPage, meta: &PageMeta, area: &Area, owners: &Owners) {
        let info = &area.info;
        let index = info.pgoff.wrapping_add((page.address - info.start) >> PAGE_SHIFT) & u64::from(u32::MAX);
        let id = MappingId::from_word(meta.mapping);
        let known = match id {
            Some(id) if id.is_anon() => {
                owners.families.contains(&id.number()) && !info.flags.contains(VmaFlags::SHARED)
            }
            Some(id) => owners.file == Some(id.number()),
            None => false,
        };
        let place = Place::Virtual(page.address);
        if !known || u64::from(meta.index) != index {
            let evidence = format_args!(
                "frame {:#x} is page {:#x} of {:#x}, which is not the area's page {index:#x}",
                page.pfn(),
                meta.index,
                meta.mapping
            );
            self.findings.add(Rule::ProgramPage, place, evidence);
        }
        let alone = is_anon(meta) && is_exclusive(meta);
        let private = !info.flags.contains(VmaFlags::SHARED);
        if private && page.entry.is_writable() && !alone || alone && meta.mapcount > 1 {
            let evidence = format_args!(
                "frame {:#x}, mapped {} times, is {}a program's own, and the entry {:#x}",
                page.pfn(),
                meta.mapcount,
                if alone { "" } else { "not " },
                page.entry.0
            );
            self.findings.add(Rule::ProgramExclusive, place, evidence);
        }
    }

    /// Every mapping of a page holds a reference to it.
    pub(in crate::verify) fn check_program_references(&mut self) {
        for (pfn, mapped) in &self.programs.mapped {
            let page = self.metadata.get(*pfn).unwrap_or_default();
            if page.refcount < *mapped {
                let evidence = format_args!("_refcount is {}, programs map the page {mapped} times", page.refcount);
                self.findings.add(Rule::ProgramReferences, Place::Pfn(*pfn), evidence);
            }
        }
    }

    /// What nodes count of programs' pages: each once, however often it is mapped.
    pub(super) fn check_program_stats(&mut self) {
        let mut nodes = vec![[0u64; 2]; self.region.nr_nodes()];
        for pfn in self.programs.mapped.keys() {
            let page = self.metadata.get(*pfn).unwrap_or_default();
            let node = self.memory.zone_of(*pfn).and_then(|zone| nodes.get_mut(zone.index() / MAX_NR_ZONES));
            if let Some(count) = node.and_then(|node| node.get_mut(usize::from(!is_anon(&page)))) {
                *count += 1;
            }
        }
        for (index, counts) in nodes.into_iter().enumerate() {
            let Some(node) = NodeId::new(index) else { continue };
            let items = [("nr_anon_pages", NodeStat::NrAnonPages), ("nr_mapped", NodeStat::NrMapped)];
            for ((name, item), count) in items.into_iter().zip(counts) {
                let counted = counters::node_page_state_snapshot(&self.region, node, item);
                self.findings.equal(Rule::ProgramStat, Place::Node(index), name, counted, count);
            }
        }
    }
}
