//! Files' records come and go (`inode_init_always`, `alloc_file`, `fput`).

use core::sync::atomic::Ordering::{AcqRel, Relaxed, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::mm_types::AddressSpace;

use super::FileMapping;
use crate::Mm;
use crate::mmap::MappedFileRef;
use crate::platform::Platform;
use crate::raw::{Owned, set_mapping_at};
use crate::sync::Plain;

/// What a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MappingKind {
    /// Of tmpfs, or without a name: its pages count as shared memory, and as promised.
    Shmem,
    /// Memory that programs share, all of which is promised to them (`shmem_acct_size`): who makes it has seen to that.
    Reserved,
    /// Of ramfs: its pages count as files'.
    Ram,
}

impl MappingKind {
    /// As flags of a record.
    const fn flags(self) -> u32 {
        match self {
            Self::Shmem => AddressSpace::SHMEM | AddressSpace::NORESERVE,
            Self::Reserved => AddressSpace::SHMEM,
            Self::Ram => 0,
        }
    }
}

impl<P: Platform> Mm<P> {
    /// An empty file, with one reference; `dev` and `ino` are what others know it by. `None` if there is no memory.
    pub fn mapping_create(&self, kind: MappingKind, dev: u32, ino: u64) -> Option<FileMapping> {
        let mapping = self.files.mappings.alloc(self, Gfp::KERNEL)?;
        let record = mapping.record();
        // Records keep their numbers while they are free.
        if record.id.get() == 0 {
            let Some(number) = self.new_number() else {
                self.files.mappings.free(self, mapping);
                return None;
            };
            record.id.set(number);
        }
        record.dev.set(dev);
        record.ino.set(ino);
        record.flags.set(kind.flags());
        for word in [&record.i_size, &record.nrpages, &record.i_blocks] {
            word.set(0);
        }
        for word in [&record.lock, &record.i_mmap_writable, &record.i_mmap_lock, &record.seals, &record.i_rwsem] {
            word.set(0);
        }
        mapping.set_tree(None, 0);
        mapping.set_first_area(None);
        // Release: who finds it by its number finds it whole.
        record.refcount.store(1, Release);
        if let Some(word) = self.number_word(record.id.get()) {
            set_mapping_at(word, Some(mapping));
        }
        Some(mapping)
    }

    /// One reference more. The caller has one.
    pub fn mapping_get(&self, mapping: FileMapping) {
        mapping.record().refcount.fetch_add(1, Relaxed);
    }

    /// One reference less; with the last the file goes (`iput`).
    pub fn mapping_put(&self, mapping: FileMapping) {
        if mapping.record().refcount.fetch_sub(1, AcqRel) != 1 {
            return;
        }
        self.truncate_pages(mapping, 0, super::MAX_PAGES);
        if mapping.flags.get() & (AddressSpace::SHMEM | AddressSpace::NORESERVE) == AddressSpace::SHMEM {
            self.vm_unacct_memory(super::pages_of(mapping));
        }
        if let Some(word) = self.number_word(mapping.record().id.get()) {
            set_mapping_at(word, None);
        }
        self.files.mappings.free(self, mapping);
    }

    /// A record of who has a file open as `mode` says ([`MappedFile::READ`], [`MappedFile::WRITE`]), with one reference, and
    /// one of its own to the file. `path` is what others are shown. `None` if there is no memory.
    ///
    /// [`MappedFile::READ`]: pagevisor_shared::mm_types::MappedFile::READ
    /// [`MappedFile::WRITE`]: pagevisor_shared::mm_types::MappedFile::WRITE
    pub fn mapped_file_new(&self, mapping: FileMapping, path: &[u8], mode: u32) -> Option<MappedFileRef> {
        let file = self.files.files.alloc(self, Gfp::KERNEL)?;
        let mut at = 0;
        if !path.is_empty() {
            let Some(addr) = self.kmalloc(path.len(), Gfp::KERNEL) else {
                self.files.files.free(self, file);
                return None;
            };
            Owned::new(addr, path.len() as u64).write(self, 0, path);
            at = addr.raw();
        }
        let record = file.record();
        record.path.set(at);
        record.path_len.set(path.len() as u32);
        record.mode.set(mode);
        self.mapping_get(mapping);
        file.set_mapping(Some(mapping));
        record.refcount.store(1, Release);
        Some(file)
    }

    /// One reference more (`get_file`). The caller has one.
    pub fn mapped_file_get(&self, file: MappedFileRef) {
        file.record().refcount.fetch_add(1, Relaxed);
    }

    /// One reference less; with the last the record goes, and with it perhaps the file (`fput`).
    pub fn mapped_file_put(&self, file: MappedFileRef) {
        if file.record().refcount.fetch_sub(1, AcqRel) != 1 {
            return;
        }
        let path = file.record().path.get();
        file.record().path.set(0);
        if path != 0 {
            self.kfree(pagevisor_shared::units::VirtAddr::new(path));
        }
        let mapping = file.mapping();
        file.set_mapping(None);
        self.files.files.free(self, file);
        if let Some(mapping) = mapping {
            self.mapping_put(mapping);
        }
    }

    /// Copies the path of a file, as far as there is room; gives all its bytes' number. The caller has a reference.
    pub fn mapped_file_path(&self, file: MappedFileRef, to: &mut [u8]) -> usize {
        let record = file.record();
        let len = record.path_len.get() as usize;
        let path = record.path.get();
        if path != 0 {
            Owned::new(pagevisor_shared::units::VirtAddr::new(path), len as u64).read(self, 0, to);
        }
        len
    }
}
