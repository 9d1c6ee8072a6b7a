//! Pages come into files and go (`filemap_get_folio`, `filemap_add_folio`, `shmem_get_folio`), and their locks.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::mm_types::{AddressSpace, MappingId};
use pagevisor_shared::page::Page;
use pagevisor_shared::page_flags::{PG_NOTZERO, PG_OWNED, PageFlag};
use pagevisor_shared::units::{PAGE_SIZE, Pfn};
use pagevisor_shared::vmstat::NodeStat;

use super::tree::{self, Inserted, Removed};
use super::{FileMapping, MAX_PAGES};
use crate::Mm;
use crate::platform::{IrqFlags, Platform};
use crate::sync::{self, Plain};

/// Units of `i_blocks` in a page.
const BLOCKS: u64 = PAGE_SIZE / 512;

/// Flags of a page that is new in a file.
const NEW: u32 = PG_NOTZERO | PG_OWNED | PageFlag::Uptodate.mask() | PageFlag::Locked.mask();

/// Why there is no page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wanted {
    /// It lies behind the end of the file.
    BehindEnd,
    /// There is no memory.
    NoMemory,
    /// The file system is full, or no more memory may be promised.
    NoSpace,
}

/// Holds a file's tree.
struct TreeLock<'a, P: Platform> {
    mm: &'a Mm<P>,
    mapping: FileMapping,
    flags: IrqFlags,
}

impl<P: Platform> Drop for TreeLock<'_, P> {
    #[inline]
    fn drop(&mut self) {
        sync::unlock(&self.mapping.record().lock);
        self.mm.platform.irq_restore(self.flags);
    }
}

impl<P: Platform> Mm<P> {
    #[inline]
    fn lock_file_tree(&self, mapping: FileMapping) -> TreeLock<'_, P> {
        let flags = self.platform.irq_save();
        sync::lock(&mapping.record().lock, || self.platform.relax());
        TreeLock { mm: self, mapping, flags }
    }

    /// Page `index` of a file, with a reference, if it is in memory (`filemap_get_folio`).
    #[inline]
    pub(crate) fn find_get_page(&self, mapping: FileMapping, index: u64) -> Option<u32> {
        let _lock = self.lock_file_tree(mapping);
        let frame = tree::load(mapping, index)?;
        self.user_page(frame)._refcount.fetch_add(1, Relaxed);
        Some(frame)
    }

    /// Pages of a file from `first` on that are in memory, each with a reference, 0 for those that are not; gives how many
    /// there are.
    pub(crate) fn find_get_pages(&self, mapping: FileMapping, first: u64, pages: &mut [u32]) -> usize {
        let _lock = self.lock_file_tree(mapping);
        let mut found = 0;
        for (index, slot) in (first..).zip(pages) {
            let Some(frame) = tree::load(mapping, index) else { continue };
            self.user_page(frame)._refcount.fetch_add(1, Relaxed);
            *slot = frame;
            found += 1;
        }
        found
    }

    /// The first page at or behind `index`, with a reference (`filemap_get_folios`).
    pub(crate) fn find_next_page(&self, mapping: FileMapping, index: u64) -> Option<(u64, u32)> {
        let _lock = self.lock_file_tree(mapping);
        let found = tree::find(mapping, index)?;
        self.user_page(found.1)._refcount.fetch_add(1, Relaxed);
        Some(found)
    }

    /// Drops a reference to a page (`folio_put`).
    #[inline]
    pub(crate) fn put_file_page(&self, frame: u32) {
        self.free_user_pages(&mut [Pfn::new(frame.into())]);
    }

    /// Locks a page if nobody has (`folio_trylock`).
    #[inline]
    pub(crate) fn try_lock_page(&self, frame: u32) -> bool {
        self.user_page(frame).flags.fetch_or(PageFlag::Locked.mask(), Acquire) & PageFlag::Locked.mask() == 0
    }

    /// Locks a page, which the caller has a reference to (`folio_lock`).
    #[inline]
    pub(crate) fn lock_page(&self, frame: u32) {
        while !self.try_lock_page(frame) {
            let word = &self.user_page(frame).flags;
            let waiters = PageFlag::Waiters.mask();
            let flags = word.fetch_or(waiters, AcqRel) | waiters;
            if flags & PageFlag::Locked.mask() != 0 {
                self.platform.wait_on(word, flags);
            }
        }
    }

    /// Gives a page's lock back (`folio_unlock`).
    #[inline]
    pub(crate) fn unlock_page(&self, frame: u32) {
        let word = &self.user_page(frame).flags;
        let both = PageFlag::Locked.mask() | PageFlag::Waiters.mask();
        if word.fetch_and(!both, Release) & PageFlag::Waiters.mask() != 0 {
            self.platform.wake_all(word);
        }
    }

    /// Whether a page is a file's, for who has locked it.
    #[inline]
    pub(crate) fn is_page_of(&self, frame: u32, mapping: FileMapping) -> bool {
        self.user_page(frame).mapping.get() == MappingId::file(mapping.record().id.get()).word()
    }

    /// Page `index` of a file, locked and with a reference; one of zeros if it was missing (`shmem_get_folio`).
    ///
    /// # Errors
    /// No memory; and with `inside`, a place behind the end.
    pub(crate) fn lock_file_page(&self, mapping: FileMapping, index: u64, inside: bool) -> Result<u32, Wanted> {
        loop {
            if index >= MAX_PAGES || inside && index >= pages_of(mapping) {
                return Err(Wanted::BehindEnd);
            }
            let (frame, added) = match self.find_get_page(mapping, index) {
                Some(frame) => {
                    self.lock_page(frame);
                    (frame, false)
                }
                None => match self.add_page(mapping, index)? {
                    Some(frame) => (frame, true),
                    None => continue,
                },
            };
            // It was cut off before it was locked, or the file was before the page came.
            if self.is_page_of(frame, mapping) {
                if !inside || index < pages_of(mapping) {
                    return Ok(frame);
                }
                // Who cuts the file may have been past this place already, or still comes.
                if added {
                    self.delete_page(mapping, frame);
                }
            }
            self.unlock_page(frame);
            self.put_file_page(frame);
        }
    }

    /// Adds a page of zeros, locked and with a reference beside the tree's; `None` if somebody else did
    /// (`shmem_add_to_page_cache`).
    fn add_page(&self, mapping: FileMapping, index: u64) -> Result<Option<u32>, Wanted> {
        let frame = self.alloc_promised_page(mapping)?;
        let page = self.user_page(frame);
        let swapbacked = if is_shmem(mapping) { PageFlag::Swapbacked.mask() } else { 0 };
        page.flags.set(NEW | swapbacked);
        page.index.set(index as u32);
        page.mapping.set(MappingId::file(mapping.record().id.get()).word());
        page._refcount.fetch_add(1, Relaxed);
        let mut spare = None;
        let inserted = loop {
            let lock = self.lock_file_tree(mapping);
            let inserted = tree::insert(mapping, index, frame, &mut spare);
            if inserted == Inserted::Yes {
                mapping.record().nrpages.bump(1);
                mapping.record().i_blocks.bump(BLOCKS);
            }
            drop(lock);
            if inserted != Inserted::NeedsNode {
                break inserted;
            }
            spare = self.files.nodes.alloc(self, Gfp::KERNEL);
            if spare.is_none() {
                let lock = self.lock_file_tree(mapping);
                let removed = tree::prune(mapping, index);
                drop(lock);
                self.free_nodes(removed);
                break Inserted::NeedsNode;
            }
        };
        if let Some(node) = spare {
            self.files.nodes.free(self, node);
        }
        if inserted == Inserted::Yes {
            self.count_file_page(mapping, frame, 1);
            return Ok(Some(frame));
        }
        page.mapping.set(0);
        page.flags.fetch_and(!PageFlag::Locked.mask(), Release);
        page._refcount.fetch_sub(1, Relaxed);
        self.put_file_page(frame);
        self.unpromise_page(mapping);
        if inserted == Inserted::NeedsNode { Err(Wanted::NoMemory) } else { Ok(None) }
    }

    /// A page of zeros for a file, promised if those of the file are one by one, and counted for its file system
    /// (`shmem_alloc_and_acct_folio`).
    fn alloc_promised_page(&self, mapping: FileMapping) -> Result<u32, Wanted> {
        if !self.take_block(mapping) {
            return Err(Wanted::NoSpace);
        }
        let promises = mapping.record().flags.get() & AddressSpace::NORESERVE != 0;
        if promises && self.vm_enough_memory(None, 1).is_err() {
            self.give_block(mapping);
            return Err(Wanted::NoSpace);
        }
        let frame = self.alloc_zeroed_user_page();
        if frame.is_none() {
            self.unpromise_page(mapping);
        }
        frame.ok_or(Wanted::NoMemory)
    }

    /// A page of a file has gone, or has not come.
    fn unpromise_page(&self, mapping: FileMapping) {
        self.give_block(mapping);
        if mapping.record().flags.get() & AddressSpace::NORESERVE != 0 {
            self.vm_unacct_memory(1);
        }
    }

    /// Takes a page out of its file; the caller has locked it, has a reference, and nobody maps it any more
    /// (`filemap_remove_folio`).
    pub(crate) fn delete_page(&self, mapping: FileMapping, frame: u32) {
        let page = self.user_page(frame);
        let lock = self.lock_file_tree(mapping);
        let removed = tree::remove(mapping, page.index.get().into());
        page.mapping.set(0);
        mapping.record().nrpages.drop_by(1);
        mapping.record().i_blocks.drop_by(BLOCKS);
        drop(lock);
        self.free_nodes(removed);
        self.count_file_page(mapping, frame, -1);
        self.unpromise_page(mapping);
        // The tree's reference; the caller has another.
        page._refcount.fetch_sub(1, AcqRel);
    }

    fn free_nodes(&self, removed: Removed) {
        removed.into_iter().flatten().for_each(|node| self.files.nodes.free(self, node));
    }

    fn count_file_page(&self, mapping: FileMapping, frame: u32, by: i64) {
        if let Some(node) = self.page_to_nid(Pfn::new(frame.into())) {
            self.mod_node_page_state(node, NodeStat::NrFilePages, by);
            if is_shmem(mapping) {
                self.mod_node_page_state(node, NodeStat::NrShmem, by);
            }
        }
    }
}

/// Whether the pages count as shared memory (`shmem_mapping`).
#[inline]
pub(super) fn is_shmem(mapping: FileMapping) -> bool {
    mapping.record().flags.get() & AddressSpace::SHMEM != 0
}

/// Pages up to the end of the file, the last of which may be in part behind it.
#[inline]
pub(crate) fn pages_of(mapping: FileMapping) -> u64 {
    // Acquire pairs with the release of who cuts the file.
    mapping.record().i_size.load(Acquire).div_ceil(PAGE_SIZE)
}

/// Notes that a page was written to (`folio_mark_dirty`).
#[inline]
pub(crate) fn mark_dirty(page: &Page) {
    if page.flags.get() & PageFlag::Dirty.mask() == 0 {
        page.flags.fetch_or(PageFlag::Dirty.mask(), AcqRel);
    }
}
