//! Programs: tasks, address spaces, the areas of these, and what their page tables map.
//!
//! [`tasks`] the list of tasks; [`tree`] areas; [`families`] anonymous memory; [`files`] files; [`pages`] page tables;
//! [`locked`] what is locked.

mod families;
mod files;
mod locked;
mod pages;
mod tasks;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;

use pagevisor_shared::mm_types::{VmArea, VmaFlags};
use pagevisor_shared::report::counters;
use pagevisor_shared::vmstat::NodeStat;
use std::sync::atomic::Ordering::Relaxed;

use super::Verifier;
use super::report::Place;
use super::rule::Rule;
use crate::state::slab::Record;
use crate::state::{AreaInfo, Patience, SpaceInfo, StateError};
use families::Families;
use files::Files;
use pages::Owners;

/// What programs' page tables are made of and map.
#[derive(Debug, Default)]
pub(super) struct Programs {
    /// Frames of their page tables.
    pub tables: BTreeSet<u64>,
    /// How often frames are mapped, but for those that nobody counts.
    pub mapped: BTreeMap<u64, u32>,
    /// How many entries lock frames.
    pub locked: BTreeMap<u64, u32>,
}

/// An area with its links.
#[derive(Clone, Debug)]
struct Area {
    info: AreaInfo,
    parent: u64,
    left: u64,
    right: u64,
    gap: u64,
    anon_vma: u64,
    chain: u64,
    file: u64,
}

impl Area {
    fn of(info: AreaInfo, record: &Record<'_>) -> Self {
        Self {
            info,
            parent: record.u64(offset_of!(VmArea, parent)),
            left: record.u64(offset_of!(VmArea, left)),
            right: record.u64(offset_of!(VmArea, right)),
            gap: record.u64(offset_of!(VmArea, subtree_gap)),
            anon_vma: record.u64(offset_of!(VmArea, anon_vma)),
            chain: record.u64(offset_of!(VmArea, anon_vma_chain)),
            file: record.u64(offset_of!(VmArea, vm_file)),
        }
    }
}

/// Pages of areas by what they count as (`vm_stat_account`): all, locked, data, text, stack, promised.
fn sums(areas: &[Area]) -> [u64; 6] {
    let mut sums = [0u64; 6];
    for area in areas.iter().map(|area| &area.info) {
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
        self.check_tasks(&spaces)?;
        let (mut promised, mut stable) = (0, true);
        let (mut families, mut files) = (Families::default(), Files::default());
        // Files of shared memory that are promised as a whole, by their records.
        let mut shared = BTreeMap::new();
        for space in &spaces {
            // Somebody is changing it, or it is coming or going.
            if space.mmap_lock != 0 || space.tree_lock != 0 || space.mm_users == 0 {
                stable = false;
                self.read_program_tables(space, &mut |_| {})?;
                continue;
            }
            let areas = self.check_program_areas(space)?;
            promised += sums(&areas).last().copied().unwrap_or_default();
            let mapped = areas.iter().filter_map(|area| area.info.file.as_ref());
            shared.extend(mapped.map(|file| (file.mapping, file.promised)));
            let mut owners = Vec::with_capacity(areas.len());
            for area in &areas {
                let file = self.check_area_file(area, &mut files)?;
                owners.push(Owners { families: self.check_area_links(area, &mut families)?, file });
            }
            self.check_program_pages(space, &areas, &owners)?;
        }
        if stable {
            let counted = self.region.header().roots.committed_as.load(Relaxed);
            // Of all other files of shared memory the pages that are there.
            let present = counters::global_node_page_state(&self.region, NodeStat::NrShmem);
            let whole = shared.values().fold(0u64, |sum, [size, pages]| sum.wrapping_add(size.wrapping_sub(*pages)));
            let promised = i64::try_from(promised.wrapping_add(present).wrapping_add(whole)).unwrap_or(i64::MAX);
            self.findings.equal(Rule::CommittedAs, Place::Machine, "Committed_AS in pages", counted, promised);
            self.check_families(&families)?;
            self.check_files(&files)?;
            self.check_program_stats();
            self.check_locked_pages();
        }
        Ok(())
    }

    /// Copies a record of the kernel's; `false` when none can be there.
    fn program_record(&self, address: u64, bytes: &mut [u8]) -> Result<bool, StateError> {
        match self.direct(address) {
            Some(gpa) if gpa.is_multiple_of(64) => self.read(gpa, bytes),
            _ => Ok(false),
        }
    }

    /// The areas of an address space: order, links, tree, flags, sums.
    fn check_program_areas(&mut self, space: &SpaceInfo) -> Result<Vec<Area>, StateError> {
        let found = self.view.user_areas(space.address, Patience { tries: 1, ..Patience::default() })?;
        let mut areas = Vec::with_capacity(found.list.len());
        for info in found.list {
            let mut bytes = [0; size_of::<VmArea>()];
            let place = Place::Virtual(info.address);
            if !self.program_record(info.address, &mut bytes)? {
                self.findings.add(Rule::AreaOrder, place, format_args!("the area is not in the direct map"));
            }
            let flags = info.flags;
            let may = VmaFlags((flags.0 & VmaFlags::ACCESS.0) << MAY_SHIFT);
            let shared = flags.contains(VmaFlags::SHARED) && !flags.contains(VmaFlags::MAYSHARE);
            if !flags.contains(may) || shared || flags.contains(VmaFlags::ACCOUNT.with(VmaFlags::NORESERVE)) {
                let evidence = format_args!("the area {:#x} has flags {:#x}, which contradict", info.start, flags.0);
                self.findings.add(Rule::AreaFlags, place, evidence);
            }
            areas.push(Area::of(info, &Record(&bytes)));
        }
        if let Some(damage) = found.damage {
            self.findings.add(Rule::AreaOrder, Place::Virtual(damage.at), format_args!("{damage}"));
            return Ok(areas);
        }
        self.check_user_tree(space, &areas)?;
        let counted = [space.total_vm, space.locked_vm, space.data_vm, space.exec_vm, space.stack_vm];
        let names = ["total_vm", "locked_vm", "data_vm", "exec_vm", "stack_vm"];
        for ((name, counted), sum) in names.into_iter().zip(counted).zip(sums(&areas)) {
            self.findings.equal(Rule::SpaceSizes, Place::Virtual(space.address), name, counted, sum);
        }
        Ok(areas)
    }
}

/// From what pages allow to what they may come to allow (`VM_READ` to `VM_MAYREAD`).
const MAY_SHIFT: u32 = 4;
