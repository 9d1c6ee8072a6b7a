//! Areas that the kernel makes when a program starts.

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE, VirtAddr};

use super::account::{may_expand_vm, vm_stat_account};
use super::{Limits, Space};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// Flags of stacks (`VM_STACK_FLAGS`), without the right to execute.
const STACK_FLAGS: VmaFlags = VmaFlags::READ
    .with(VmaFlags::WRITE)
    .with(VmaFlags::MAYREAD)
    .with(VmaFlags::MAYWRITE)
    .with(VmaFlags::MAYEXEC)
    .with(VmaFlags::GROWSDOWN)
    .with(VmaFlags::ACCOUNT)
    .with(VmaFlags::SOFTDIRTY);

impl<P: Platform> Mm<P> {
    /// Makes a stack of `len` bytes below `top`, from where it grows down (`setup_arg_pages`). Both are multiples of
    /// the page size.
    ///
    /// # Errors
    /// EINVAL if they are not, or if there is no such range; ENOMEM if something is there, if there is no memory for it,
    /// or if the limits do not allow it.
    pub fn insert_stack(&self, space: Space, top: VirtAddr, len: u64, limits: &Limits) -> Result<(), Errno> {
        let (end, pages) = (top.raw(), len >> PAGE_SHIFT);
        if len == 0 || (len | end) & (PAGE_SIZE - 1) != 0 || len > end || end > space.record().task_size.get() {
            return Err(Errno::EINVAL);
        }
        let held = self.mmap_write_lock(space);
        if len > limits.stack || !may_expand_vm(space, STACK_FLAGS, pages, limits) {
            return Err(Errno::ENOMEM);
        }
        self.vm_enough_memory(Some(space), pages)?;
        let flags = STACK_FLAGS.with(VmaFlags(space.record().def_flags.get()));
        let vma = self.vm_area_alloc().filter(|vma| {
            vma.init(end - len, end, flags, (end - len) >> PAGE_SHIFT);
            if held.link(*vma) {
                return true;
            }
            self.vm_area_free(*vma);
            false
        });
        if vma.is_none() {
            self.vm_unacct_memory(pages);
            return Err(Errno::ENOMEM);
        }
        vm_stat_account(space, flags, pages as i64);
        space.record().start_stack.set(end);
        Ok(())
    }
}
