//! Spaces come and go (`kernel/fork.c`).

use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::layout::TASK_SIZE_MAX;
use pagevisor_shared::mm_types::VmaFlags;

use super::account::vm_stat_account;
use super::gap::mmap_base;
use super::{Limits, Space, Vma};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::{self, Plain};
use crate::tree::TreeNode;

impl<P: Platform> Mm<P> {
    /// An address space without areas, with one user and one reference (`mm_alloc`).
    pub fn mm_alloc(&self) -> Option<Space> {
        let space = self.mmap.spaces.alloc(self, Gfp::KERNEL)?;
        let record = space.record();
        for (word, value) in [
            (&record.pgd, 0),
            (&record.highest_vm_end, 0),
            (&record.mmap_base, mmap_base(&Limits::DEFAULT)),
            (&record.task_size, TASK_SIZE_MAX),
            (&record.cpu_bitmap, 0),
            (&record.tlb_gen, 1),
            (&record.ctx_id, self.mmap.made.fetch_add(1, Relaxed) + 1),
        ] {
            word.set(value);
        }
        let numbers = [&record.total_vm, &record.locked_vm, &record.pinned_vm, &record.data_vm, &record.exec_vm];
        let seen = [&record.stack_vm, &record.def_flags, &record.pgtables_bytes, &record.hiwater_rss];
        let program = [&record.hiwater_vm, &record.start_code, &record.end_code, &record.start_data, &record.end_data];
        let heap = [&record.start_brk, &record.brk, &record.start_stack, &record.arg_start, &record.arg_end];
        let all = numbers.into_iter().chain(seen).chain(program).chain(heap);
        all.chain([&record.env_start, &record.env_end]).for_each(|word| word.set(0));
        record.rss_stat.iter().for_each(|pages| pages.set(0));
        let [root, first] = space.roots();
        Vma::lead(root, None);
        Vma::lead(first, None);
        space.set_exe_file(None);
        record.map_count.set(0);
        record.mm_users.set(1);
        record.mm_count.set(1);
        if !self.pgd_alloc(space) {
            self.mmap.spaces.free(self, space);
            return None;
        }
        self.list_space(space);
        Some(space)
    }

    /// Puts a space on the list of all.
    fn list_space(&self, space: Space) {
        let lock = &self.mmap.list_lock;
        sync::lock(lock, || self.platform.relax());
        let first = Space::list(&self.region.header().roots);
        let next = first.get();
        space.set_prev_mm(None);
        space.set_next_mm(next);
        if let Some(next) = next {
            next.set_prev_mm(Some(space));
        }
        first.set(Some(space));
        sync::unlock(lock);
    }

    /// Takes a space off the list of all.
    fn unlist_space(&self, space: Space) {
        let lock = &self.mmap.list_lock;
        sync::lock(lock, || self.platform.relax());
        let (next, prev) = (space.next_mm(), space.prev_mm());
        match prev {
            Some(prev) => prev.set_next_mm(next),
            None => Space::list(&self.region.header().roots).set(next),
        }
        if let Some(next) = next {
            next.set_prev_mm(prev);
        }
        sync::unlock(lock);
    }

    /// One user more (`mmget`). The caller is one, or knows one.
    pub fn mmget(&self, space: Space) {
        space.record().mm_users.fetch_add(1, Relaxed);
    }

    /// One reference more (`mmgrab`): the record stays, its areas need not.
    pub fn mmgrab(&self, space: Space) {
        space.record().mm_count.fetch_add(1, Relaxed);
    }

    /// One user less; with the last the areas go (`mmput`).
    pub fn mmput(&self, space: Space) {
        // The others have done with the areas.
        if space.record().mm_users.fetch_sub(1, AcqRel) == 1 {
            self.exit_mmap(space);
            self.mmdrop(space);
        }
    }

    /// One reference less; with the last the space goes (`mmdrop`).
    pub fn mmdrop(&self, space: Space) {
        if space.record().mm_count.fetch_sub(1, AcqRel) == 1 {
            self.unlist_space(space);
            self.pgd_free(space);
            self.mmap.spaces.free(self, space);
        }
    }

    /// All areas go (`exit_mmap`). Nobody uses the space any more.
    fn exit_mmap(&self, space: Space) {
        let held = self.mmap_write_lock(space);
        self.exit_pages(&held);
        let mut promised = 0;
        while let Some(vma) = space.first_vma() {
            if vma.flags().contains(VmaFlags::ACCOUNT) {
                promised += vma.pages();
            }
            vm_stat_account(space, vma.flags(), -(vma.pages() as i64));
            held.unlink(vma);
            self.remove_vma(vma);
        }
        self.vm_unacct_memory(promised);
        self.forget_exe_file(space);
    }
}
