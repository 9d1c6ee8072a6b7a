//! `madvise`.

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi as u;
use pagevisor_shared::mm_types::{AddressSpace, VmaFlags};
use pagevisor_shared::units::{PAGE_SHIFT, VirtAddr};

use super::areas::vma_at_or_above;
use super::lock::MmapWrite;
use super::unmap::page_align;
use super::{PAGE_MASK, Space, Vma};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// What is to be done for a range.
#[derive(Clone, Copy, Debug)]
enum Advice {
    /// Flags go and come (`madvise_vma_behavior`).
    Flags {
        /// What goes.
        clear: VmaFlags,
        /// What comes.
        set: VmaFlags,
    },
    /// Pages go at once; those of locked areas too, or not.
    DontNeed {
        /// Locked ones too.
        locked: bool,
    },
    /// Pages may go.
    Free,
    /// What the file has there goes.
    Remove,
    /// Pages come.
    Populate {
        /// For writing.
        write: bool,
    },
    /// Pages will be needed. Those that are not there are nowhere else, so there is nothing to read (`madvise_willneed`, which
    /// only asks for what is swapped out, and `generic_fadvise` for files without a device).
    WillNeed,
    /// Pages will not be needed: nobody wants them back.
    Cold,
}

/// What is left of a range whose areas are advised one after the other (`madvise_walk_vmas`).
#[derive(Debug)]
struct Walk {
    at: u64,
    end: u64,
    /// Some of what is behind was not mapped.
    holes: bool,
}

impl Walk {
    const fn new(start: u64, end: u64) -> Self {
        Self { at: start, end, holes: false }
    }

    /// The next area, and what of it is in the range; none at the range's end. The caller has locked the space, and may
    /// unlock it before the next one.
    ///
    /// # Errors
    /// ENOMEM if nothing is mapped up to the end.
    fn next(&mut self, space: Space) -> Result<Option<(Vma, u64, u64)>, Errno> {
        if self.at >= self.end {
            return Ok(None);
        }
        let vma = vma_at_or_above(space, self.at).filter(|vma| vma.start() < self.end).ok_or(Errno::ENOMEM)?;
        self.holes |= vma.start() > self.at;
        let start = vma.start().max(self.at);
        self.at = vma.end().min(self.end);
        Ok(Some((vma, start, self.at)))
    }

    /// Whether all was mapped.
    ///
    /// # Errors
    /// ENOMEM.
    const fn finish(self) -> Result<(), Errno> {
        if self.holes { Err(Errno::ENOMEM) } else { Ok(()) }
    }
}

impl Advice {
    fn new(advice: u32) -> Option<Self> {
        let flags = |clear: VmaFlags, set: VmaFlags| Some(Self::Flags { clear, set });
        let (seq, rand, none) = (VmaFlags::SEQ_READ, VmaFlags::RAND_READ, VmaFlags::NONE);
        let huge = VmaFlags::HUGEPAGE.with(VmaFlags::NOHUGEPAGE);
        match advice {
            u::MADV_NORMAL => flags(seq.with(rand), none),
            u::MADV_SEQUENTIAL => flags(rand, seq),
            u::MADV_RANDOM => flags(seq, rand),
            u::MADV_DONTFORK => flags(none, VmaFlags::DONTCOPY),
            u::MADV_DOFORK => flags(VmaFlags::DONTCOPY, none),
            u::MADV_WIPEONFORK => flags(none, VmaFlags::WIPEONFORK),
            u::MADV_KEEPONFORK => flags(VmaFlags::WIPEONFORK, none),
            u::MADV_DONTDUMP => flags(none, VmaFlags::DONTDUMP),
            u::MADV_DODUMP => flags(VmaFlags::DONTDUMP, none),
            u::MADV_HUGEPAGE => flags(huge, VmaFlags::HUGEPAGE),
            u::MADV_NOHUGEPAGE => flags(huge, VmaFlags::NOHUGEPAGE),
            u::MADV_DONTNEED => Some(Self::DontNeed { locked: false }),
            u::MADV_DONTNEED_LOCKED => Some(Self::DontNeed { locked: true }),
            u::MADV_FREE => Some(Self::Free),
            u::MADV_REMOVE => Some(Self::Remove),
            u::MADV_POPULATE_READ => Some(Self::Populate { write: false }),
            u::MADV_POPULATE_WRITE => Some(Self::Populate { write: true }),
            u::MADV_WILLNEED => Some(Self::WillNeed),
            u::MADV_COLD | u::MADV_PAGEOUT => Some(Self::Cold),
            _ => None,
        }
    }

    /// Whether the flags of `vma` may be changed like that.
    ///
    /// # Errors
    /// EINVAL.
    fn check_flags(advice: u32, vma: Vma) -> Result<(), Errno> {
        let flags = vma.flags();
        let refused = match advice {
            u::MADV_WIPEONFORK => vma.file().is_some(),
            u::MADV_DODUMP => flags.intersects(VmaFlags::PFNMAP.with(VmaFlags::DONTEXPAND)),
            _ => false,
        };
        if refused { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

impl<P: Platform> Mm<P> {
    /// Says how the pages from `start` on are going to be used (`madvise`).
    ///
    /// # Errors
    /// EINVAL for an address inside a page, advice that there is not or that an area cannot follow; ENOMEM if something is not
    /// mapped, but what is has been done; EFAULT and ENOMEM if pages cannot be had.
    pub fn do_madvise(&self, space: Space, start: VirtAddr, len: u64, advice: u32) -> Result<(), Errno> {
        let start = start.raw();
        let what = Advice::new(advice).ok_or(Errno::EINVAL)?;
        let aligned = page_align(len);
        if start & !PAGE_MASK != 0 || len != 0 && aligned == 0 {
            return Err(Errno::EINVAL);
        }
        let end = start.checked_add(aligned).ok_or(Errno::EINVAL)?;
        if start == end {
            return Ok(());
        }
        match what {
            Advice::Populate { write } => self.faultin_range(space, VirtAddr::new(start), VirtAddr::new(end), write),
            Advice::Flags { clear, set } => {
                let held = self.mmap_write_lock(space);
                self.advise_flags(&held, start, end, |vma| {
                    Advice::check_flags(advice, vma)?;
                    Ok(vma.flags().without(clear).with(set))
                })
            }
            Advice::Remove => self.advise_remove(space, start, end),
            _ => self.advise_pages(space, start, end, what),
        }
    }

    /// Changes flags (`madvise_update_vma`).
    fn advise_flags(
        &self,
        held: &MmapWrite<'_, P>,
        start: u64,
        end: u64,
        flags_of: impl Fn(Vma) -> Result<VmaFlags, Errno>,
    ) -> Result<(), Errno> {
        let mut walk = Walk::new(start, end);
        while let Some((vma, at, stop)) = walk.next(held.space())? {
            let flags = flags_of(vma)?;
            if flags != vma.flags() {
                let prev = if at > vma.start() { Some(vma) } else { vma.prev() };
                // There may be memory later (`madvise_vma_behavior`).
                held.reflag(vma, prev, at, stop, flags).map_err(|error| match error {
                    Errno::ENOMEM => Errno::EAGAIN,
                    other => other,
                })?;
            }
        }
        walk.finish()
    }

    /// Punches holes into the files that are mapped (`madvise_remove`). The space is not locked meanwhile: who punches holes
    /// waits for pages.
    fn advise_remove(&self, space: Space, start: u64, end: u64) -> Result<(), Errno> {
        let mut walk = Walk::new(start, end);
        loop {
            let held = self.mmap_read_lock(space);
            let Some((vma, at, stop)) = walk.next(space)? else { return walk.finish() };
            let file = vma.file().filter(|_| !vma.flags().contains(VmaFlags::LOCKED)).ok_or(Errno::EINVAL)?;
            if !vma.flags().contains(VmaFlags::SHARED.with(VmaFlags::WRITE)) {
                return Err(Errno::EACCES);
            }
            let offset = vma.index_of(at) << PAGE_SHIFT;
            self.mapped_file_get(file);
            drop(held);
            let removed = match file.mapping() {
                // A ramfs cannot (`vfs_fallocate`).
                Some(mapping) if mapping.flags.get() & AddressSpace::SHMEM == 0 => Err(Errno::EOPNOTSUPP),
                Some(mapping) => self.punch_hole(mapping, offset, stop - at),
                None => Err(Errno::EINVAL),
            };
            self.mapped_file_put(file);
            removed?;
        }
    }

    /// Does something to the pages (`madvise_vma_behavior`).
    fn advise_pages(&self, space: Space, start: u64, end: u64, what: Advice) -> Result<(), Errno> {
        let _held = self.mmap_read_lock(space);
        let mut walk = Walk::new(start, end);
        while let Some((vma, at, stop)) = walk.next(space)? {
            // What must not go (`madvise_dontneed_free_valid_vma`, `can_madv_lru_vma`).
            let stays = match what {
                Advice::WillNeed => VmaFlags::NONE,
                Advice::DontNeed { locked: true } => VmaFlags::PFNMAP,
                _ => VmaFlags::PFNMAP.with(VmaFlags::LOCKED),
            };
            if vma.flags().intersects(stays) {
                return Err(Errno::EINVAL);
            }
            match what {
                Advice::DontNeed { .. } => self.zap_page_range(vma, at, stop),
                Advice::Free if !vma.is_anonymous() => return Err(Errno::EINVAL),
                Advice::Free => self.madvise_free_range(vma, at, stop),
                _ => {}
            }
        }
        walk.finish()
    }
}
