//! Areas of the guest kernel's address space, walked along the lists of them.

use std::mem::offset_of;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::layout::{VMALLOC_END, VMALLOC_START};
use pagevisor_shared::region::seq;
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE};
use pagevisor_shared::vmalloc::{VmFlags, VmStruct, VmapArea, VmapTree};

use super::error::{Corrupt, StateError};
use super::{PageSize, Patience, Sections, StateView};
use pagevisor_shared::zone::MAX_NR_ZONES;

/// What an area is for. Fields as in [`VmStruct`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "named and documented in the contract")]
pub struct VmInfo {
    /// Guest-virtual address of the record.
    pub address: u64,
    pub addr: u64,
    pub size: u64,
    pub flags: VmFlags,
    pub nr_pages: u32,
    pub phys_addr: u64,
    pub caller: u64,
}

/// An area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmallocArea {
    /// Guest-virtual address of the record.
    pub address: u64,
    /// First byte.
    pub start: u64,
    /// First byte behind.
    pub end: u64,
    /// What it is for, if it is more than a reservation.
    pub vm: Option<VmInfo>,
}

/// All areas that are not free.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VmallocAreas {
    /// Those in use, lowest first.
    pub busy: Vec<VmallocArea>,
    /// Those that were freed, but that processors may still remember.
    pub unpurged: Vec<VmallocArea>,
    /// What ended a walk early.
    pub damage: Option<Corrupt>,
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

impl StateView {
    /// Walks along the lists of areas, and again when a running guest changed them meanwhile.
    ///
    /// # Errors
    /// When the host cannot read the guest's memory.
    pub fn vmalloc_areas(&self, patience: Patience) -> Result<VmallocAreas, StateError> {
        let region = self.region();
        let roots = &region.header().roots.vmalloc;
        let mut tries = 1;
        loop {
            let trees = [&roots.busy, &roots.purge].map(|tree| (tree, seq::read_begin(&tree.seq)));
            let mut areas = VmallocAreas::default();
            let result = self
                .walk_areas(&roots.busy.first, true, &mut areas.busy)
                .and_then(|()| self.walk_areas(&roots.purge.first, false, &mut areas.unpurged));
            match result {
                Ok(()) => {}
                Err(StateError::Corrupt(damage)) => areas.damage = Some(damage),
                Err(error) => return Err(error),
            }
            let same = |(tree, start): (&VmapTree, Option<u32>)| start.is_some_and(|s| !seq::read_retry(&tree.seq, s));
            let stable = trees.into_iter().all(same);
            if stable && areas.damage.is_none() || tries >= patience.tries || !self.is_running() {
                return Ok(areas);
            }
            tries += 1;
            std::thread::sleep(patience.pause);
        }
    }

    /// Walks along a list. Addresses must go up, and there can be no more areas than memory for their records.
    fn walk_areas(&self, first: &AtomicU64, busy: bool, found: &mut Vec<VmallocArea>) -> Result<(), StateError> {
        let most = self.memory().size() / size_of::<VmapArea>() as u64;
        let (mut next, mut low) = (first.load(Relaxed), VMALLOC_START);
        while next != 0 {
            let mut bytes = [0; size_of::<VmapArea>()];
            let wrong = |what, found| Corrupt { what, at: next, found };
            if !self.read_virtual(next, &mut bytes)? {
                return Err(wrong("address of a vmalloc area", next).into());
            }
            let start = u64_at(&bytes, offset_of!(VmapArea, va_start));
            let end = u64_at(&bytes, offset_of!(VmapArea, va_end));
            let sound = start >= low && start < end && end - 1 <= VMALLOC_END && start.is_multiple_of(PAGE_SIZE);
            if !sound || found.len() as u64 >= most {
                return Err(wrong("start of a vmalloc area", start).into());
            }
            let vm = match u64_at(&bytes, offset_of!(VmapArea, max_or_vm)) {
                0 => None,
                vm if busy => Some(self.vm_struct(vm)?),
                _ => None,
            };
            found.push(VmallocArea { address: next, start, end, vm });
            (next, low) = (u64_at(&bytes, offset_of!(VmapArea, next)), end);
        }
        Ok(())
    }

    fn vm_struct(&self, address: u64) -> Result<VmInfo, StateError> {
        let mut bytes = [0; size_of::<VmStruct>()];
        if !self.read_virtual(address, &mut bytes)? {
            return Err(Corrupt { what: "address of a vmalloc area's purpose", at: address, found: address }.into());
        }
        Ok(VmInfo {
            address,
            addr: u64_at(&bytes, offset_of!(VmStruct, addr)),
            size: u64_at(&bytes, offset_of!(VmStruct, size)),
            flags: VmFlags(u32_at(&bytes, offset_of!(VmStruct, flags))),
            nr_pages: u32_at(&bytes, offset_of!(VmStruct, nr_pages)),
            phys_addr: u64_at(&bytes, offset_of!(VmStruct, phys_addr)),
            caller: u64_at(&bytes, offset_of!(VmStruct, caller)),
        })
    }

    /// Pages of an area by node (`show_numa_info`), found through the page tables. What is looked at is taken off
    /// `budget`.
    ///
    /// # Errors
    /// When a page table lies outside memory.
    pub fn area_pages(&self, vm: &VmInfo, sections: &Sections, budget: &mut u64) -> Result<Vec<u64>, StateError> {
        let mut nodes = vec![0; self.region().nr_nodes()];
        let pages = u64::from(vm.nr_pages).min(*budget);
        *budget -= pages;
        let mut page = 0;
        while page < pages {
            let Some(found) = self.translate(vm.addr.wrapping_add(page << PAGE_SHIFT))? else {
                page += 1;
                continue;
            };
            // The rest of a large page at once.
            let here = match found.size {
                PageSize::Small => 1,
                PageSize::Large | PageSize::Huge => (found.rest() >> PAGE_SHIFT).clamp(1, pages - page),
            };
            let zone = sections.zone_of(found.gpa >> PAGE_SHIFT);
            if let Some(count) = zone.and_then(|zone| nodes.get_mut(zone.index() / MAX_NR_ZONES)) {
                *count += here;
            }
            page += here;
        }
        Ok(nodes)
    }
}
