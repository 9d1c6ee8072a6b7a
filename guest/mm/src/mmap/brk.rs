//! The heap (`brk`).

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::mm_types::uapi::MAP_FIXED;
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, VirtAddr};

use super::account::{may_expand_vm, vm_stat_account};
use super::adjust::Meaning;
use super::areas::{vma_at_or_above, vma_before};
use super::lock::MmapWrite;
use super::map::MAY_ALL;
use super::unmap::page_align;
use super::{Limits, STACK_GUARD_GAP, Space};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// Flags of the heap (`VM_DATA_DEFAULT_FLAGS`).
const HEAP_FLAGS: VmaFlags = MAY_ALL.with(VmaFlags::READ).with(VmaFlags::WRITE).with(VmaFlags::ACCOUNT);

impl<P: Platform> Mm<P> {
    /// Makes the heap end at `brk` if that is possible; gives where it ends (`brk`).
    pub fn do_brk(&self, space: Space, brk: VirtAddr, limits: &Limits) -> VirtAddr {
        let held = self.mmap_write_lock(space);
        let record = space.record();
        let grown = self.brk_locked(&held, brk.raw(), limits);
        let now = record.brk.get();
        drop(held);
        if let Ok(Some((start, end))) = grown
            && record.def_flags.get() & VmaFlags::LOCKED.with(VmaFlags::LOCKONFAULT).0 == VmaFlags::LOCKED.0
        {
            // Whatever comes of it, it is mapped.
            let _ = self.mm_populate(space, VirtAddr::new(start), VirtAddr::new(end));
        }
        VirtAddr::new(now)
    }

    /// Gives the range that is new, if any.
    fn brk_locked(&self, held: &MmapWrite<'_, P>, brk: u64, limits: &Limits) -> Result<Option<(u64, u64)>, Errno> {
        let record = held.space().record();
        let (start, old) = (record.start_brk.get(), record.brk.get());
        let data = record.end_data.get().wrapping_sub(record.start_data.get());
        if brk < start || limits.data != u64::MAX && (brk - start).saturating_add(data) > limits.data {
            return Err(Errno::ENOMEM);
        }
        let (new_end, old_end) = (page_align(brk), page_align(old));
        let mut grown = None;
        // Shrinking is told by what was asked for: the end of its last page is 0 at the very top.
        if new_end != old_end && brk <= old {
            let heap = vma_at_or_above(held.space(), new_end).filter(|vma| vma.start() < old_end);
            heap.ok_or(Errno::EINVAL)?;
            self.munmap_range(held, new_end, old_end)?;
        } else if new_end != old_end {
            self.grow_heap(held, old_end, new_end, limits)?;
            grown = Some((old_end, new_end));
        }
        record.brk.set(brk);
        Ok(grown)
    }

    /// Maps the heap's pages from `addr` up to `end` (`do_brk_flags`).
    fn grow_heap(&self, held: &MmapWrite<'_, P>, addr: u64, end: u64, limits: &Limits) -> Result<(), Errno> {
        let (space, len) = (held.space(), end.checked_sub(addr).ok_or(Errno::ENOMEM)?);
        let (record, pages) = (space.record(), len >> PAGE_SHIFT);
        self.get_unmapped_area(space, addr, len, MAP_FIXED)?;
        let flags = HEAP_FLAGS.with(VmaFlags(record.def_flags.get()));
        self.may_lock_more(space, flags, len, limits)?;
        let next = vma_at_or_above(space, addr);
        let near = next.filter(|next| next.start() < end + PAGE_SIZE + STACK_GUARD_GAP);
        if near.is_some_and(|next| end + PAGE_SIZE > next.start_gap()) {
            return Err(Errno::ENOMEM);
        }
        if !may_expand_vm(space, flags, pages, limits) {
            return Err(Errno::ENOMEM);
        }
        if record.map_count.get() > self.region.sysctl().max_map_count.get() {
            return Err(Errno::ENOMEM);
        }
        self.vm_enough_memory(Some(space), pages)?;
        let meaning = Meaning { flags, anon_vma: None, file: None, pgoff: addr >> PAGE_SHIFT };
        let heap = vma_before(space, next).filter(|heap| heap.end() == addr && meaning.can_merge_after::<P>(*heap));
        let vma = match heap {
            Some(heap) => held.vma_expand(heap, heap.start(), end, heap.pgoff(), None).is_ok().then_some(heap),
            None => self.make_area(held, addr, end, &meaning),
        };
        let Some(vma) = vma else {
            self.vm_unacct_memory(pages);
            return Err(Errno::ENOMEM);
        };
        vm_stat_account(space, flags, pages as i64);
        if flags.contains(VmaFlags::LOCKED) {
            record.locked_vm.bump(pages);
        }
        vma.set_flags(vma.flags().with(VmaFlags::SOFTDIRTY));
        Ok(())
    }
}
