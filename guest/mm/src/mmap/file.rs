//! Areas of files: references, and the list of areas that map a file (`__vma_link_file`, `__remove_shared_vm_struct`).

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::{F_SEAL_FUTURE_WRITE, F_SEAL_WRITE, PROT_WRITE};
use pagevisor_shared::mm_types::{MappedFile, VmaFlags};
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE};

use super::{AreaInfo, Space, Vma};
use crate::Mm;
use crate::filemap::{FileMapping, MAX_PAGES, MappingKind};
use crate::platform::Platform;
use crate::raw::Handle;
use crate::sync::Plain;

/// A file that can be mapped. Whoever has one holds a reference, and so does each area.
pub type MappedFileRef = Handle<MappedFile>;

/// What is shown of an area's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AreaFile {
    /// Number of its device: major number shifted by 20, minor number.
    pub dev: u32,
    /// Its number there.
    pub ino: u64,
    /// Bytes of its path.
    pub path_len: usize,
}

/// Counts as one that may write to its file (`mapping_map_writable`).
const fn may_write(flags: VmaFlags) -> bool {
    flags.contains(VmaFlags::SHARED)
}

impl<P: Platform> Mm<P> {
    /// The file that `area` maps, if it does; its path is written to `path`, as far as there is room. For who is called by
    /// [`Self::for_each_vma`].
    pub fn area_file(&self, area: &AreaInfo, path: &mut [u8]) -> Option<AreaFile> {
        let file = area.vma.file()?;
        let mapping = file.mapping()?;
        let path_len = self.mapped_file_path(file, path);
        Some(AreaFile { dev: mapping.dev.get(), ino: mapping.ino.get(), path_len })
    }

    /// A number for a file without a name, which none had before (`get_next_ino`).
    pub fn next_unnamed_ino(&self) -> u64 {
        self.mmap.unnamed.fetch_add(1, Relaxed) + 1
    }

    /// Notes that the program of `space` is in `file`, to which it has a reference from now on (`set_mm_exe_file`).
    pub fn set_exe_file(&self, space: Space, file: MappedFileRef) {
        self.mapped_file_get(file);
        let old = space.exe_file();
        space.set_exe_file(Some(file));
        if let Some(old) = old {
            self.mapped_file_put(old);
        }
    }

    /// The program of `space` is nobody's any more.
    pub(super) fn forget_exe_file(&self, space: Space) {
        if let Some(file) = space.exe_file() {
            space.set_exe_file(None);
            self.mapped_file_put(file);
        }
    }

    /// The file behind shared memory without one (`shmem_zero_setup`), with a reference for the caller.
    ///
    /// # Errors
    /// EINVAL if it is too large for any file, ENOMEM.
    pub(super) fn shmem_file(&self, space: Space, len: u64, flags: VmaFlags) -> Result<MappedFileRef, Errno> {
        if len > MAX_PAGES * PAGE_SIZE {
            return Err(Errno::EINVAL);
        }
        let reserved = if flags.contains(VmaFlags::NORESERVE) { 0 } else { len >> PAGE_SHIFT };
        self.vm_enough_memory(Some(space), reserved)?;
        let kind = if reserved == 0 { MappingKind::Shmem } else { MappingKind::Reserved };
        let Some(mapping) = self.mapping_create(kind, 1, self.next_unnamed_ino()) else {
            self.vm_unacct_memory(reserved);
            return Err(Errno::ENOMEM);
        };
        mapping.i_size.set(len);
        let file = self.mapped_file_new(mapping, b"/dev/zero (deleted)", MappedFile::READ | MappedFile::WRITE);
        // The file has a reference of its own, if there is one.
        self.mapping_put(mapping);
        file.ok_or(Errno::ENOMEM)
    }

    /// Counts an area to come as one that may write to its file, if it may; gives the file for
    /// [`Self::unmap_writable`]. Flags of areas of files that are sealed lose what the seals forbid
    /// (`mapping_map_writable`, `seal_check_future_write`).
    ///
    /// # Errors
    /// EPERM for a sealed file.
    pub(super) fn map_writable(
        &self,
        file: Option<MappedFileRef>,
        flags: &mut VmaFlags,
        prot: u32,
    ) -> Result<Option<FileMapping>, Errno> {
        let Some(mapping) = file.and_then(|file| file.mapping()).filter(|_| may_write(*flags)) else { return Ok(None) };
        self.lock_areas(mapping);
        let seals = mapping.seals.get();
        let refused = seals & F_SEAL_WRITE != 0 || seals & F_SEAL_FUTURE_WRITE != 0 && prot & PROT_WRITE != 0;
        if !refused {
            mapping.i_mmap_writable.bump(1);
        }
        self.unlock_areas(mapping);
        if refused {
            return Err(Errno::EPERM);
        }
        if seals & F_SEAL_FUTURE_WRITE != 0 {
            *flags = flags.without(VmaFlags::MAYWRITE);
        }
        Ok(Some(mapping))
    }

    /// The area has come, or has not: it is not to come any more (`mapping_unmap_writable`).
    pub(super) fn unmap_writable(&self, mapping: Option<FileMapping>) {
        if let Some(mapping) = mapping {
            self.lock_areas(mapping);
            mapping.i_mmap_writable.drop_by(1);
            self.unlock_areas(mapping);
        }
    }

    /// Makes `vma`, which has none, an area of `file`, with a reference of its own; its flags and bounds are set.
    pub(super) fn join_file(&self, vma: Vma, file: MappedFileRef) {
        self.mapped_file_get(file);
        vma.set_file(Some(file));
        let Some(mapping) = file.mapping() else { return };
        self.lock_areas(mapping);
        if may_write(vma.flags()) {
            mapping.i_mmap_writable.bump(1);
        }
        let first = mapping.first_area();
        vma.set_shared_prev(None);
        vma.set_shared_next(first);
        if let Some(first) = first {
            first.set_shared_prev(Some(vma));
        }
        mapping.set_first_area(Some(vma));
        self.unlock_areas(mapping);
    }

    /// Makes `vma` an area of the file of `other`, if that has one.
    pub(super) fn share_file(&self, vma: Vma, other: Vma) {
        if let Some(file) = other.file() {
            self.join_file(vma, file);
        }
    }

    /// Takes `vma` off the list of areas that map its file: who goes through them does not come to its pages and tables
    /// any more (`unlink_file_vma`). An area that is its own neighbour is not on the list.
    pub(crate) fn unlink_file_vma(&self, vma: Vma) {
        let Some(mapping) = vma.file().and_then(|file| file.mapping()) else { return };
        if vma.shared_prev() == Some(vma) {
            return;
        }
        self.lock_areas(mapping);
        let (next, prev) = (vma.shared_next(), vma.shared_prev());
        match prev {
            Some(prev) => prev.set_shared_next(next),
            None => mapping.set_first_area(next),
        }
        if let Some(next) = next {
            next.set_shared_prev(prev);
        }
        vma.set_shared_prev(Some(vma));
        if may_write(vma.flags()) {
            mapping.i_mmap_writable.drop_by(1);
        }
        self.unlock_areas(mapping);
    }

    /// `vma` is not an area of its file any more.
    pub(super) fn leave_file(&self, vma: Vma) {
        let Some(file) = vma.file() else { return };
        self.unlink_file_vma(vma);
        vma.set_file(None);
        self.mapped_file_put(file);
    }

    /// Calls `change`, which changes where areas of the file of `vma` lie: who goes through them waits.
    pub(super) fn with_areas_locked<R>(&self, vma: Vma, change: impl FnOnce() -> R) -> R {
        let mapping = vma.file().and_then(|file| file.mapping());
        if let Some(mapping) = mapping {
            self.lock_areas(mapping);
        }
        let result = change();
        if let Some(mapping) = mapping {
            self.unlock_areas(mapping);
        }
        result
    }
}
