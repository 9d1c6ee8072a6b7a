//! Programs: their address spaces, the areas of these, and what their page tables map.

use std::collections::{HashMap, HashSet};

use pagevisor_shared::mm_types::{MappingId, MmCounter, NR_MM_COUNTERS, VmaFlags};
use pagevisor_shared::page_flags::PageFlag;
use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::report::counters;
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE};
use pagevisor_shared::vmstat::NodeStat;
use std::sync::atomic::Ordering::Relaxed;

use super::Verifier;
use super::report::Place;
use super::rule::Rule;
use crate::state::{AreaInfo, PageMeta, Patience, SpaceInfo, StateError, USER_END, UserPage};

/// What programs' page tables are made of and map.
#[derive(Debug, Default)]
pub(super) struct Programs {
    /// Frames of their page tables, with the number of present entries.
    pub tables: HashSet<u64>,
    /// How often frames are mapped, but for those that nobody counts.
    pub mapped: HashMap<u64, u32>,
}

/// The kind of memory that a mapped page counts as (`mm_counter`).
fn counter_of(page: &PageMeta) -> MmCounter {
    if MappingId::from_word(page.mapping).is_some_and(MappingId::is_anon) {
        MmCounter::Anon
    } else if page.flags & PageFlag::Swapbacked.mask() != 0 {
        MmCounter::Shmem
    } else {
        MmCounter::File
    }
}

/// Pages of areas by what they count as (`vm_stat_account`): all, locked, data, text, stack, promised.
fn sums(areas: &[AreaInfo]) -> [u64; 6] {
    let mut sums = [0u64; 6];
    for area in areas {
        let has = |flag: VmaFlags| area.flags.contains(flag);
        let (stack, write) = (has(VmaFlags::GROWSDOWN), has(VmaFlags::WRITE));
        let text = has(VmaFlags::EXEC) && !write && !stack;
        let data = write && !stack && !has(VmaFlags::SHARED);
        let kinds = [true, has(VmaFlags::LOCKED), data, text, stack, has(VmaFlags::ACCOUNT)];
        sums.iter_mut().zip(kinds).filter(|(_, is_kind)| *is_kind).for_each(|(sum, _)| *sum += area.pages());
    }
    sums
}

impl Verifier<'_> {
    /// Goes through all address spaces, and remembers what they map for those who look at pages.
    pub(super) fn check_programs(&mut self) -> Result<(), StateError> {
        let spaces = match self.view.spaces() {
            Ok(spaces) => spaces,
            Err(StateError::Corrupt(damage)) => {
                self.findings.add(Rule::SpaceList, Place::Virtual(damage.at), format_args!("{damage}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let (mut promised, mut stable) = (0, true);
        // Files of shared memory that are promised as a whole, by their records.
        let mut files = HashMap::new();
        for space in &spaces {
            // Somebody is changing it, or it is coming or going.
            if space.mmap_lock != 0 || space.tree_lock != 0 || space.mm_users == 0 {
                stable = false;
                self.read_program_tables(space, &mut |_| {})?;
                continue;
            }
            let areas = self.check_program_areas(space)?;
            promised += sums(&areas).last().copied().unwrap_or_default();
            let mapped = areas.iter().filter_map(|area| area.file.as_ref());
            files.extend(mapped.map(|file| (file.mapping, file.promised)));
            self.check_program_pages(space, &areas)?;
        }
        if stable {
            let counted = self.region.header().roots.committed_as.load(Relaxed);
            // Of all other files of shared memory the pages that are there.
            let present = counters::global_node_page_state(&self.region, NodeStat::NrShmem);
            let whole = files.values().fold(0u64, |sum, [size, pages]| sum.wrapping_add(size.wrapping_sub(*pages)));
            let promised = i64::try_from(promised.wrapping_add(present).wrapping_add(whole)).unwrap_or(i64::MAX);
            self.findings.equal(Rule::CommittedAs, Place::Machine, "Committed_AS in pages", counted, promised);
        }
        Ok(())
    }

    /// The areas of an address space: order, links, sums.
    fn check_program_areas(&mut self, space: &SpaceInfo) -> Result<Vec<AreaInfo>, StateError> {
        let areas = self.view.user_areas(space.address, Patience { tries: 1, ..Patience::default() })?;
        if let Some(damage) = areas.damage {
            self.findings.add(Rule::AreaOrder, Place::Virtual(damage.at), format_args!("{damage}"));
            return Ok(areas.list);
        }
        let counted = [space.total_vm, space.locked_vm, space.data_vm, space.exec_vm, space.stack_vm];
        let names = ["total_vm", "locked_vm", "data_vm", "exec_vm", "stack_vm"];
        for ((name, counted), sum) in names.into_iter().zip(counted).zip(sums(&areas.list)) {
            self.findings.equal(Rule::SpaceSizes, Place::Virtual(space.address), name, counted, sum);
        }
        Ok(areas.list)
    }

    /// Walks through a program's page tables and notes tables and pages.
    fn read_program_tables(&mut self, space: &SpaceInfo, visit: &mut dyn FnMut(UserPage)) -> Result<u64, StateError> {
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
        let zero = self.region.header().roots.zero_pfn.load(Relaxed);
        for page in pages {
            if page.entry.0 & Entry::SPECIAL == 0 && (zero == 0 || page.pfn() != zero) {
                *self.programs.mapped.entry(page.pfn()).or_default() += 1;
            }
            visit(page);
        }
        Ok(number)
    }

    /// What a program maps: in areas, as they allow, and as much as is counted.
    fn check_program_pages(&mut self, space: &SpaceInfo, areas: &[AreaInfo]) -> Result<(), StateError> {
        let mut pages = Vec::new();
        let tables = self.read_program_tables(space, &mut |page| pages.push(page))?;
        let zero = self.region.header().roots.zero_pfn.load(Relaxed);
        let mut rss = [0i64; NR_MM_COUNTERS];
        for page in pages {
            let place = Place::Virtual(page.address);
            let area = areas.get(..areas.partition_point(|area| area.start <= page.address)).and_then(<[_]>::last);
            match area.filter(|area| page.address < area.end) {
                None => {
                    let evidence = format_args!("frame {:#x} is mapped where the program has no area", page.pfn());
                    self.findings.add(Rule::ProgramMapping, place, evidence);
                }
                Some(area) if page.entry.is_writable() && !area.flags.contains(VmaFlags::WRITE) => {
                    let evidence = format_args!("frame {:#x} can be written, its area cannot", page.pfn());
                    self.findings.add(Rule::ProgramMapping, place, evidence);
                }
                Some(_) => {}
            }
            if page.entry.0 & Entry::SPECIAL != 0 || zero != 0 && page.pfn() == zero {
                continue;
            }
            let Some(meta) = self.metadata.get(page.pfn()).filter(|meta| meta.refcount != 0) else {
                let evidence = format_args!("frame {:#x} is mapped, and not in use", page.pfn());
                self.findings.add(Rule::ProgramMapping, place, evidence);
                continue;
            };
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

    /// Every mapping of a page holds a reference to it.
    pub(super) fn check_program_references(&mut self) {
        for (pfn, mapped) in &self.programs.mapped {
            let page = self.metadata.get(*pfn).unwrap_or_default();
            if page.refcount < *mapped {
                let evidence = format_args!("_refcount is {}, programs map the page {mapped} times", page.refcount);
                self.findings.add(Rule::ProgramReferences, Place::Pfn(*pfn), evidence);
            }
        }
    }
}
