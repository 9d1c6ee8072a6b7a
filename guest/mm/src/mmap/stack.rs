//! Stacks grow (`expand_stack`, `expand_downwards`).

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, VirtAddr};

use super::account::{may_expand_vm, vm_stat_account};
use super::areas::{tree, vma_at_or_above};
use super::{Limits, STACK_GUARD_GAP, Space, Vma};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// Whether what is below leaves a stack that would start at `start` its gap.
fn leaves_gap(prev: Option<Vma>, start: u64) -> bool {
    prev.is_none_or(|prev| {
        let is_stack = prev.flags().contains(VmaFlags::GROWSDOWN);
        prev.end() <= start
            && (is_stack || !prev.flags().intersects(VmaFlags::ACCESS) || start - prev.end() >= STACK_GUARD_GAP)
    })
}

impl<P: Platform> Mm<P> {
    /// Lets the stack above `addr` grow down to the page there. Nothing happens if an area has it already.
    ///
    /// # Errors
    /// EFAULT if the next area up is no stack, EPERM below what may be mapped, ENOMEM if something is in the way, if the
    /// limits do not allow it or if there is no memory.
    pub fn expand_stack(&self, space: Space, addr: VirtAddr, limits: &Limits) -> Result<(), Errno> {
        let start = addr.raw() & !(PAGE_SIZE - 1);
        let held = self.mmap_write_lock(space);
        let vma = vma_at_or_above(space, start).ok_or(Errno::EFAULT)?;
        if vma.start() <= start {
            return Ok(());
        }
        let flags = vma.flags();
        if !flags.contains(VmaFlags::GROWSDOWN) {
            return Err(Errno::EFAULT);
        }
        if start < self.region.sysctl().mmap_min_addr.get() {
            return Err(Errno::EPERM);
        }
        let grow = (vma.start() - start) >> PAGE_SHIFT;
        let fits = leaves_gap(vma.prev(), start) && grow <= vma.pgoff() && vma.end() - start <= limits.stack;
        if !fits || !may_expand_vm(space, flags, grow, limits) {
            return Err(Errno::ENOMEM);
        }
        let locked = if flags.contains(VmaFlags::LOCKED) { grow } else { 0 };
        if locked != 0 && space.record().locked_vm.get() + locked > limits.memlock >> PAGE_SHIFT {
            return Err(Errno::ENOMEM);
        }
        self.anon_vma_prepare(vma)?;
        self.vm_enough_memory(Some(space), grow)?;
        held.vma_start_write(vma);
        held.change(|| {
            vma.record().vm_start.set(start);
            vma.record().vm_pgoff.drop_by(grow);
            tree(space).propagate(vma);
        });
        vm_stat_account(space, flags, grow as i64);
        space.record().locked_vm.bump(locked);
        Ok(())
    }
}
