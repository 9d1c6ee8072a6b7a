//! Addresses for chunks of per-CPU memory: an area for each group of units, at the same distances in every chunk.

use pagevisor_shared::NR_CPUS;
use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::pgtable::PMD_SIZE;
use pagevisor_shared::units::VirtAddr;
use pagevisor_shared::vmalloc::VmFlags;

use super::{AreaTree, SPACE_END, SPACE_START};
use crate::Mm;
use crate::platform::Platform;
use crate::raw::{AreaRef, VmRef};
use crate::sync::Plain;

/// A group of units: bytes from the lowest address of a chunk to it, and its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Group {
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// Room for a record of each group.
type Records = [Option<AreaRef>; NR_CPUS];

impl AreaTree<true> {
    /// The highest address, a multiple of `align`, at which every one of `groups` is in a free area. What does not fit
    /// comes down until it does, and the others with it, until all do.
    pub(super) fn fit_groups(&self, groups: &[Group], align: u64) -> Option<u64> {
        let span = groups.iter().map(|group| group.offset + group.size).max()?;
        let mut base = SPACE_END.checked_sub(span)? & !(align - 1);
        let mut fitting = 0;
        let mut turns = groups.iter().cycle();
        while fitting < groups.len() {
            let group = turns.next()?;
            let (low, high) = (base + group.offset, base + group.offset + group.size);
            let area = self.find_below(high)?;
            let end = if area.end() < high {
                area.end()
            } else if area.start() > low {
                area.prev()?.end()
            } else {
                fitting += 1;
                continue;
            };
            base = end.checked_sub(group.offset + group.size)? & !(align - 1);
            if base < SPACE_START {
                return None;
            }
            fitting = 0;
        }
        Some(base)
    }
}

impl<P: Platform> Mm<P> {
    /// Takes addresses for all `groups` of a chunk, from the top of the vmalloc space down, where they are in nobody's way;
    /// what is between them stays free for others (`pcpu_get_vm_areas`). Gives the address that offsets count from.
    pub(crate) fn get_percpu_areas(&self, groups: &[Group], gfp: Gfp) -> Option<VirtAddr> {
        if !self.vmalloc_ready(gfp) {
            return None;
        }
        let (mut areas, mut spares): (Records, Records) = ([None; NR_CPUS], [None; NR_CPUS]);
        for slot in areas.iter_mut().zip(&mut spares).take(groups.len()) {
            (*slot.0, *slot.1) = (self.new_area(gfp), self.new_area(gfp));
        }
        let complete = areas.iter().zip(&spares).take(groups.len()).all(|pair| pair.0.is_some() && pair.1.is_some());
        let base = if complete { self.cut_groups(groups, &mut spares) } else { None };
        spares.into_iter().flatten().for_each(|spare| self.free_area(spare));
        let Some(base) = base else {
            areas.into_iter().flatten().for_each(|area| self.free_area(area));
            return None;
        };
        let caller = self.platform.caller();
        for (area, group) in areas.into_iter().flatten().zip(groups) {
            let vm = area.own_vm();
            vm.flags.set(VmFlags::ALLOC.with(VmFlags::PERCPU).0);
            vm.nr_pages.set(0);
            vm.phys_addr.set(0);
            vm.caller.set(caller);
            vm.requested_size.set(group.size);
            vm.chunk.set(0);
            self.lock_busy().insert_busy(area, base + group.offset, group.size);
        }
        Some(VirtAddr::new(base))
    }

    /// Takes the addresses of all `groups` out of the free ones, with records from `spares`, where those are left that
    /// are not needed.
    fn cut_groups(&self, groups: &[Group], spares: &mut Records) -> Option<u64> {
        // As all of them are aligned, so that a group begins where a page table does if possible.
        let bits = groups.iter().fold(PMD_SIZE, |bits, group| bits | group.offset | group.size);
        let align = 1 << bits.trailing_zeros();
        let mut emptied: Records = [None; NR_CPUS];
        let mut base = None;
        for purge in [true, false] {
            let free = self.lock_free();
            base = free.fit_groups(groups, align);
            if let Some(base) = base {
                for ((group, spare), emptied) in groups.iter().zip(spares.iter_mut()).zip(&mut emptied) {
                    let start = base + group.offset;
                    if let Some(hole) = free.find(start) {
                        *emptied = free.cut(hole, start, start + group.size, spare).ok().flatten();
                    }
                }
                break;
            }
            drop(free);
            if !purge || self.platform.in_interrupt() {
                break;
            }
            self.purge_vmap_areas();
        }
        emptied.into_iter().flatten().for_each(|record| self.free_area(record));
        base
    }

    /// Gives back the addresses of all `groups` from `base` on, behind which nothing is mapped any more
    /// (`pcpu_free_vm_areas`).
    pub(crate) fn free_percpu_areas(&self, groups: &[Group], base: VirtAddr) {
        for group in groups {
            if let Some((area, vm)) = self.unlink_vmap_area(VirtAddr::new(base.raw() + group.offset), |_| true) {
                self.release_unlinked(area, vm);
            }
        }
    }

    /// Notes that the areas of `groups` from `base` on are those of the chunk at `chunk`, or with 0 of none any more
    /// (`pcpu_set_page_chunk`). Under the lock of per-CPU memory.
    pub(crate) fn set_area_chunk(&self, groups: &[Group], base: VirtAddr, chunk: u64) {
        let busy = self.lock_busy();
        for group in groups {
            if let Some(vm) = unit_area(&busy, base.raw() + group.offset) {
                vm.chunk.set(chunk);
            }
        }
    }

    /// The chunk that has units around `addr`; 0 for none (`pcpu_get_page_chunk`). Under the lock of per-CPU memory.
    pub(crate) fn area_chunk(&self, addr: VirtAddr) -> u64 {
        unit_area(&self.lock_busy(), addr.raw()).map_or(0, |vm| vm.chunk.get())
    }
}

/// The area around `addr` if units are in it.
fn unit_area(busy: &AreaTree<false>, addr: u64) -> Option<VmRef> {
    busy.find(addr)?.vm().filter(|vm| VmFlags(vm.flags.get()).contains(VmFlags::PERCPU))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use pagevisor_shared::random::SplitMix64;
    use pagevisor_shared::units::PAGE_SIZE;

    use super::*;
    use crate::tree::fixtures::{area, tree};

    /// The last pages of the vmalloc space.
    const PAGES: u64 = 60;
    const BOTTOM: u64 = SPACE_END - PAGES * PAGE_SIZE;

    /// What trying all addresses finds.
    fn highest(free: &[bool], groups: &[(u64, u64)], align: u64) -> Option<u64> {
        let fits = |base: u64| {
            groups.iter().all(|(offset, size)| {
                (*offset..offset + size).all(|page| free.get((base + page) as usize).copied().unwrap_or(false))
            })
        };
        (0..PAGES).rev().find(|base| (BOTTOM / PAGE_SIZE + base).is_multiple_of(align) && fits(*base))
    }

    #[test]
    fn groups_go_to_the_highest_addresses_that_have_room_for_all() {
        let mut random = SplitMix64::new(4);
        let (mut found, mut none) = (0, 0);
        for _ in 0..4000 {
            let dense = 1 + random.below(10);
            let free: Vec<bool> = (0..PAGES).map(|_| random.below(12) < 11 - dense / 2).collect();
            let tree = tree::<true>();
            let mut page = 0;
            for run in free.chunk_by(|a, b| a == b) {
                let (start, end) = (BOTTOM + page * PAGE_SIZE, BOTTOM + (page + run.len() as u64) * PAGE_SIZE);
                if run[0] {
                    let place = tree.place(start, end).expect("they do not overlap");
                    tree.insert(area(start, end), place);
                }
                page += run.len() as u64;
            }
            let align = 1 << random.below(3);
            let mut groups = Vec::from([(0, 1 + random.below(4))]);
            for _ in 0..random.below(4) {
                let (offset, size) = *groups.last().expect("there is one");
                groups.push((offset + size + random.below(6), 1 + random.below(4)));
            }
            // In any order: CPUs come from nodes as they like.
            let turn = random.below(groups.len() as u64) as usize;
            groups.rotate_left(turn);
            let pages = |&(offset, size): &(u64, u64)| Group { offset: offset * PAGE_SIZE, size: size * PAGE_SIZE };
            let wanted: Vec<_> = groups.iter().map(pages).collect();
            let base = tree.fit_groups(&wanted, align * PAGE_SIZE);
            let expected = highest(&free, &groups, align);
            assert_eq!(base, expected.map(|page| BOTTOM + page * PAGE_SIZE), "{groups:?} in {free:?}");
            *if base.is_some() { &mut found } else { &mut none } += 1;
        }
        assert!(found > 500 && none > 500, "{found} found, {none} not");
    }
}
