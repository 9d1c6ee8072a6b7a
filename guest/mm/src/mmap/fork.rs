//! A space becomes two (`dup_mm`, `dup_mmap`).

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::{MmStruct, VmaFlags};

use super::account::vm_stat_account;
use super::{MmapWrite, Space, Vma};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// Flags that a child's areas do not have.
const NOT_INHERITED: VmaFlags = VmaFlags::LOCKED.with(VmaFlags::LOCKONFAULT);

impl<P: Platform> Mm<P> {
    /// A copy of `parent` for a child: the same areas, and the same pages, which become two as soon as one of them is
    /// written to.
    ///
    /// # Errors
    /// [`Errno::ENOMEM`]; then there is no child.
    pub fn dup_mmap(&self, parent: Space) -> Result<Space, Errno> {
        let child = self.mm_alloc().ok_or(Errno::ENOMEM)?;
        let from = self.mmap_write_lock(parent);
        let to = self.mmap_write_lock(child);
        copy_fields(parent.record(), child.record());
        if let Some(file) = parent.exe_file() {
            self.set_exe_file(child, file);
        }
        let areas = core::iter::successors(parent.first_vma(), |vma| vma.next());
        let result = areas.into_iter().try_for_each(|vma| {
            // No fault changes pages that are being copied.
            from.vma_start_write(vma);
            if vma.flags().contains(VmaFlags::DONTCOPY) { Ok(()) } else { self.dup_vma(&to, vma) }
        });
        self.flush_after_copy(parent);
        let rss: i64 = child.record().rss_stat.iter().map(Plain::get).sum();
        child.record().hiwater_rss.set(rss.max(0) as u64);
        drop((to, from));
        match result {
            Ok(()) => Ok(child),
            Err(error) => {
                self.mmput(child);
                Err(error)
            }
        }
    }

    /// Gives the child its copy of an area. What it has when this fails goes with it.
    fn dup_vma(&self, held: &MmapWrite<'_, P>, from: Vma) -> Result<(), Errno> {
        let (child, pages) = (held.space(), from.pages());
        let accounted = from.flags().contains(VmaFlags::ACCOUNT);
        if accounted {
            self.vm_enough_memory(Some(child), pages)?;
        }
        let made = self.vm_area_alloc().filter(|vma| {
            vma.init(from.start(), from.end(), from.flags().without(NOT_INHERITED), from.pgoff());
            self.share_file(*vma, from);
            let wiped = from.flags().contains(VmaFlags::WIPEONFORK);
            if (wiped || self.anon_vma_fork(*vma, from).is_ok()) && held.link(*vma) {
                return true;
            }
            self.remove_vma(*vma);
            false
        });
        let Some(vma) = made else {
            self.vm_unacct_memory(if accounted { pages } else { 0 });
            return Err(Errno::ENOMEM);
        };
        vm_stat_account(child, vma.flags(), pages as i64);
        if vma.anon_vma().is_some() { self.copy_page_range(vma, from) } else { Ok(()) }
    }
}

/// What a child has of its parent beside areas.
fn copy_fields(from: &MmStruct, to: &MmStruct) {
    for (from, to) in [
        (&from.mmap_base, &to.mmap_base),
        (&from.task_size, &to.task_size),
        (&from.start_code, &to.start_code),
        (&from.end_code, &to.end_code),
        (&from.start_data, &to.start_data),
        (&from.end_data, &to.end_data),
        (&from.start_brk, &to.start_brk),
        (&from.brk, &to.brk),
        (&from.start_stack, &to.start_stack),
        (&from.arg_start, &to.arg_start),
        (&from.arg_end, &to.arg_end),
        (&from.env_start, &to.env_start),
        (&from.env_end, &to.env_end),
    ] {
        to.set(from.get());
    }
}
