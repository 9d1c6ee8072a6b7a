//! Areas of files: references, and the list of areas that map a file (`__vma_link_file`, `__remove_shared_vm_struct`).

use core::sync::atomic::Ordering::{AcqRel, Relaxed};

use pagevisor_shared::mm_types::{MappedFile, VmaFlags};

use super::Vma;
use crate::Mm;
use crate::platform::Platform;
use crate::raw::Handle;
use crate::sync;

/// A file that can be mapped. Whoever has one holds a reference, and so does each area.
pub type MappedFileRef = Handle<MappedFile>;

/// Counts as one that may write to its file (`mapping_map_writable`).
const fn may_write(flags: VmaFlags) -> bool {
    flags.contains(VmaFlags::SHARED)
}

impl<P: Platform> Mm<P> {
    /// Makes `vma`, which has none, an area of `file`, with a reference of its own; its flags and bounds are set.
    pub(super) fn join_file(&self, vma: Vma, file: MappedFileRef) {
        file.refcount.fetch_add(1, Relaxed);
        vma.set_file(Some(file));
        let Some(mapping) = file.mapping() else { return };
        if may_write(vma.flags()) {
            mapping.i_mmap_writable.fetch_add(1, Relaxed);
        }
        sync::lock(&mapping.i_mmap_lock, || self.platform.relax());
        let first = mapping.first_area();
        vma.set_shared_prev(None);
        vma.set_shared_next(first);
        if let Some(first) = first {
            first.set_shared_prev(Some(vma));
        }
        mapping.set_first_area(Some(vma));
        sync::unlock(&mapping.i_mmap_lock);
    }

    /// Makes `vma` an area of the file of `other`, if that has one.
    pub(super) fn share_file(&self, vma: Vma, other: Vma) {
        if let Some(file) = other.file() {
            self.join_file(vma, file);
        }
    }

    /// `vma` is not an area of its file any more.
    pub(super) fn leave_file(&self, vma: Vma) {
        let Some(file) = vma.file() else { return };
        if let Some(mapping) = file.mapping() {
            sync::lock(&mapping.i_mmap_lock, || self.platform.relax());
            let (next, prev) = (vma.shared_next(), vma.shared_prev());
            match prev {
                Some(prev) => prev.set_shared_next(next),
                None => mapping.set_first_area(next),
            }
            if let Some(next) = next {
                next.set_shared_prev(prev);
            }
            sync::unlock(&mapping.i_mmap_lock);
            if may_write(vma.flags()) {
                mapping.i_mmap_writable.fetch_sub(1, Relaxed);
            }
        }
        vma.set_file(None);
        file.refcount.fetch_sub(1, AcqRel);
    }
}
