//! Areas of the vmalloc space: the three trees, what areas say of themselves, what is mapped in them.

mod mapped;
mod trees;
mod units;

use std::mem::offset_of;

use pagevisor_shared::layout::{VMALLOC_END, VMALLOC_START};
use pagevisor_shared::units::PAGE_SHIFT;
use pagevisor_shared::vmalloc::{VmFlags, VmStruct};
use std::sync::atomic::Ordering::Relaxed;

use super::Verifier;
use super::report::Place;
use super::rule::Rule;
use crate::state::StateError;
use crate::state::slab::Record;
use trees::{Area, Kind};

/// First address behind the vmalloc space.
const SPACE_END: u64 = VMALLOC_END + 1;

/// An area in use, by its own record.
#[derive(Clone, Copy, Debug)]
struct Vm {
    start: u64,
    flags: VmFlags,
    /// Pages that are mapped.
    pages: u64,
    phys: u64,
    /// First address behind the area.
    behind: u64,
    /// Address of the chunk of per-CPU memory whose units are here.
    chunk: u64,
}

impl Vm {
    /// First address behind what is mapped.
    const fn end(&self) -> u64 {
        self.start.saturating_add(self.pages << PAGE_SHIFT)
    }
}

impl Verifier<'_> {
    /// Checks the trees of areas, and what is mapped in the vmalloc space.
    pub(super) fn check_areas(&mut self) -> Result<(), StateError> {
        let region = self.region.clone();
        let state = &region.header().roots.vmalloc;
        let purging = state.purge_lock.load(Relaxed);
        if purging != 0 {
            self.findings.add(Rule::VmallocLock, Place::Machine, format_args!("purge_lock is {purging}"));
        }
        let mut areas = Vec::new();
        for (kind, tree) in [(Kind::Busy, &state.busy), (Kind::Free, &state.free), (Kind::Lazy, &state.purge)] {
            let (lock, seq) = (tree.lock.load(Relaxed), tree.seq.load(Relaxed));
            if lock != 0 || seq & 1 != 0 {
                let evidence = format_args!("of the {kind} tree the lock is {lock}, seq {seq}");
                self.findings.add(Rule::VmallocLock, Place::Machine, evidence);
            }
            areas.extend(self.read_area_tree(kind, tree.root.load(Relaxed), tree.first.load(Relaxed))?);
        }
        self.checked.areas = areas.len() as u64;
        self.check_tiling(&mut areas);
        let lazy: u64 = areas.iter().filter(|area| area.kind == Kind::Lazy).map(Area::pages).sum();
        let counted = state.lazy_nr.load(Relaxed);
        self.findings.equal(Rule::VmapLazy, Place::Machine, "lazy_nr", counted, lazy);
        let mut used = Vec::new();
        for area in areas.iter().filter(|area| area.kind == Kind::Busy) {
            used.extend(self.read_vm(area)?);
        }
        let pages = used.iter().filter(|vm| vm.flags.contains(VmFlags::ALLOC)).map(|vm| vm.pages).sum();
        let counted = region.header().nr_vmalloc_pages.load(Relaxed);
        self.findings.equal(Rule::VmallocPages, Place::Machine, "nr_vmalloc_pages", counted, pages);
        self.check_unit_areas(&used);
        self.check_mapped(&used);
        Ok(())
    }

    /// All areas together are the vmalloc space, each address once, and free areas do not touch.
    fn check_tiling(&mut self, areas: &mut [Area]) {
        areas.sort_by_key(|area| area.start);
        let mut last: Option<&Area> = None;
        for area in areas.iter() {
            let place = Place::Virtual(area.start);
            let expected = last.map_or(VMALLOC_START, |last| last.end);
            if area.start != expected {
                let what = if area.start < expected { "overlaps what is before it" } else { "does not follow" };
                let evidence = format_args!("the {} area up to {:#x} {what}: {expected:#x}", area.kind, area.end);
                self.findings.add(Rule::VmapTiling, place, evidence);
            } else if area.kind == Kind::Free && last.is_some_and(|last| last.kind == Kind::Free) {
                let evidence = format_args!("the free area up to {:#x} touches another", area.end);
                self.findings.add(Rule::VmapTiling, place, evidence);
            }
            last = Some(area);
        }
        if let Some(last) = last.filter(|last| last.end != SPACE_END) {
            let evidence = format_args!("the last area ends there, not at {SPACE_END:#x}");
            self.findings.add(Rule::VmapTiling, Place::Virtual(last.end), evidence);
        }
    }

    /// Reads what an area in use is for; `None` when it does not say.
    fn read_vm(&mut self, area: &Area) -> Result<Option<Vm>, StateError> {
        let place = Place::Virtual(area.start);
        let mut bytes = [0; size_of::<VmStruct>()];
        let there = match self.direct(area.max_or_vm) {
            Some(gpa) if gpa.is_multiple_of(64) => self.read(gpa, &mut bytes)?,
            _ => false,
        };
        if !there {
            let evidence = format_args!("the area says at {:#x} what it is for, where nothing is", area.max_or_vm);
            self.findings.add(Rule::VmapRecord, place, evidence);
            return Ok(None);
        }
        let record = Record(&bytes);
        let (start, size) = (record.u64(offset_of!(VmStruct, addr)), record.u64(offset_of!(VmStruct, size)));
        let flags = VmFlags(record.u32(offset_of!(VmStruct, flags)));
        let pages = u64::from(record.u32(offset_of!(VmStruct, nr_pages)));
        let phys = record.u64(offset_of!(VmStruct, phys_addr));
        let asked = record.u64(offset_of!(VmStruct, requested_size));
        let kinds = [VmFlags::ALLOC, VmFlags::MAP, VmFlags::IOREMAP];
        let one_kind = kinds.into_iter().filter(|kind| flags.contains(*kind)).count() == 1;
        let guard = u64::from(!flags.contains(VmFlags::NO_GUARD));
        let fits = pages.saturating_add(guard) <= area.pages() && asked <= size;
        if start != area.start || size != area.size() || !one_kind || flags.contains(VmFlags::UNINITIALIZED) || !fits {
            let evidence = format_args!(
                "{:#x} bytes, by its record {start:#x} and {size:#x}, {asked:#x} asked for, {pages} pages, flags {:#x}",
                area.size(),
                flags.0
            );
            self.findings.add(Rule::VmapRecord, place, evidence);
            return Ok(None);
        }
        let chunk = record.u64(offset_of!(VmStruct, chunk));
        Ok(Some(Vm { start, flags, pages, phys, behind: area.end, chunk }))
    }
}
