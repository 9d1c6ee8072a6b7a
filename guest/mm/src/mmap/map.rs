//! `mmap`.

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::uapi::{
    LEGACY_MAP_MASK, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_GROWSDOWN, MAP_HUGE_SHIFT, MAP_HUGETLB, MAP_LOCKED,
    MAP_NONBLOCK, MAP_NORESERVE, MAP_POPULATE, MAP_PRIVATE, MAP_SHARED, MAP_SHARED_VALIDATE, MAP_TYPE, PROT_EXEC,
    PROT_READ, PROT_WRITE,
};
use pagevisor_shared::mm_types::{MappedFile, VmaFlags};
use pagevisor_shared::units::{PAGE_SHIFT, VirtAddr};

use super::account::{OVERCOMMIT_NEVER, may_expand_vm, vm_stat_account};
use super::adjust::Meaning;
use super::areas::{vma_at_or_above, vma_before};
use super::lock::MmapWrite;
use super::unmap::page_align;
use super::{Limits, MappedFileRef, PAGE_MASK, Space, Vma};
use crate::Mm;
use crate::filemap::MAX_PAGES;
use crate::platform::Platform;
use crate::sync::Plain;

/// What `mmap` is asked for.
#[derive(Clone, Copy, Debug)]
pub struct MmapRequest {
    /// Where it should be, or has to be.
    pub addr: VirtAddr,
    /// Bytes.
    pub len: u64,
    /// `PROT_*`.
    pub prot: u32,
    /// `MAP_*`.
    pub flags: u32,
    /// The file; none for `MAP_ANONYMOUS`. The caller holds a reference meanwhile.
    pub file: Option<MappedFileRef>,
    /// Offset of the first page in the file, in pages.
    pub pgoff: u64,
}

/// Sizes of huge pages, as powers of two, that the flags of a mapping can name: the default, and 2 MiB (`hstate_sizelog`).
const HUGE_SIZES: [u32; 2] = [0, 21];

/// Flags of an area that can be protected in any way.
pub(super) const MAY_ALL: VmaFlags = VmaFlags::MAYREAD.with(VmaFlags::MAYWRITE).with(VmaFlags::MAYEXEC);

/// `PROT_*` as flags of an area (`calc_vm_prot_bits`).
pub(super) const fn prot_flags(prot: u32) -> VmaFlags {
    // The numbers are the same.
    VmaFlags((prot & (PROT_READ | PROT_WRITE | PROT_EXEC)) as u64)
}

/// Private memory that may be written to counts as promised (`accountable_mapping`).
const fn is_accountable(flags: VmaFlags) -> bool {
    flags.contains(VmaFlags::WRITE) && !flags.intersects(VmaFlags::NORESERVE.with(VmaFlags::SHARED))
}

impl<P: Platform> Mm<P> {
    /// Maps what `request` asks for; gives the address (`do_mmap`).
    ///
    /// # Errors
    /// Linux's.
    pub fn do_mmap(&self, space: Space, request: &MmapRequest, limits: &Limits) -> Result<VirtAddr, Errno> {
        let held = self.mmap_write_lock(space);
        let (addr, len, flags) = self.mmap_locked(&held, request, limits)?;
        drop(held);
        // What is locked as it comes need not come now.
        let locked = flags.contains(VmaFlags::LOCKED) && !flags.contains(VmaFlags::LOCKONFAULT);
        if locked || request.flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE {
            // Whatever comes of it, it is mapped.
            let _ = self.mm_populate(space, VirtAddr::new(addr), VirtAddr::new(addr + len));
        }
        Ok(VirtAddr::new(addr))
    }

    /// Where the range is, its bytes and the flags of its area.
    fn mmap_locked(
        &self,
        held: &MmapWrite<'_, P>,
        request: &MmapRequest,
        limits: &Limits,
    ) -> Result<(u64, u64, VmaFlags), Errno> {
        let (space, record) = (held.space(), held.space().record());
        if request.len == 0 {
            return Err(Errno::EINVAL);
        }
        let mut flags = request.flags;
        if flags & MAP_FIXED_NOREPLACE != 0 {
            flags |= MAP_FIXED;
        }
        let mut hint = request.addr.raw();
        if flags & MAP_FIXED == 0 {
            // `round_hint_to_min`.
            hint &= PAGE_MASK;
            let lowest = self.region.sysctl().mmap_min_addr.get();
            hint = if hint != 0 && hint < lowest { page_align(lowest) } else { hint };
        }
        if flags & MAP_HUGETLB != 0 && (request.file.is_some() || !HUGE_SIZES.contains(&(flags >> MAP_HUGE_SHIFT))) {
            return Err(Errno::EINVAL);
        }
        let len = page_align(request.len);
        if len == 0 || flags & MAP_HUGETLB != 0 {
            // There are no pools of huge pages.
            return Err(Errno::ENOMEM);
        }
        request.pgoff.checked_add(len >> PAGE_SHIFT).ok_or(Errno::EOVERFLOW)?;
        if record.map_count.get() > self.region.sysctl().max_map_count.get() {
            return Err(Errno::ENOMEM);
        }
        let addr = self.get_unmapped_area(space, hint, len, flags)?;
        if flags & MAP_FIXED_NOREPLACE != 0 && vma_at_or_above(space, addr).is_some_and(|vma| vma.start() < addr + len)
        {
            return Err(Errno::EEXIST);
        }
        let bit = |map: u32, flag: VmaFlags| if flags & map != 0 { flag } else { VmaFlags::NONE };
        let mut vm_flags = prot_flags(request.prot)
            .with(bit(MAP_GROWSDOWN, VmaFlags::GROWSDOWN))
            .with(bit(MAP_LOCKED, VmaFlags::LOCKED))
            .with(VmaFlags(record.def_flags.get()))
            .with(MAY_ALL);
        if flags & MAP_LOCKED != 0 && limits.memlock == 0 {
            return Err(Errno::EPERM);
        }
        self.may_lock_more(space, vm_flags, len, limits)?;
        vm_flags = match request.file {
            Some(file) => file_flags(vm_flags, request, file)?,
            None => anonymous_flags(vm_flags, flags)?,
        };
        if flags & MAP_NORESERVE != 0 && self.region.sysctl().overcommit_memory.get() != OVERCOMMIT_NEVER {
            vm_flags = vm_flags.with(VmaFlags::NORESERVE);
        }
        let writable = self.map_writable(request.file, &mut vm_flags, request.prot)?;
        // Shared memory is a file that nobody else sees.
        let unnamed = match request.file {
            None if vm_flags.contains(VmaFlags::SHARED) => Some(self.shmem_file(space, len, vm_flags)?),
            _ => None,
        };
        let pgoff = match (request.file, unnamed) {
            (Some(_), _) => request.pgoff,
            (None, Some(_)) => 0,
            (None, None) => addr >> PAGE_SHIFT,
        };
        let meaning = Meaning { flags: vm_flags, anon_vma: None, file: request.file.or(unnamed), pgoff };
        let result = self.mmap_region(held, addr, addr + len, meaning, limits);
        self.unmap_writable(writable);
        if let Some(unnamed) = unnamed {
            // The area has a reference of its own, if it came.
            self.mapped_file_put(unnamed);
        }
        result.map(|()| (addr, len, vm_flags))
    }

    /// Pages of areas that are in a range (`count_vma_pages_range`).
    fn count_pages(&self, space: Space, addr: u64, end: u64) -> u64 {
        let areas = core::iter::successors(vma_at_or_above(space, addr), |vma| vma.next());
        let inside = areas.take_while(|vma| vma.start() < end);
        inside.map(|vma| (vma.end().min(end) - vma.start().max(addr)) >> PAGE_SHIFT).sum()
    }

    /// Maps the range, in place of what is there (`mmap_region`).
    ///
    /// # Errors
    /// ENOMEM.
    fn mmap_region(
        &self,
        held: &MmapWrite<'_, P>,
        addr: u64,
        end: u64,
        mut meaning: Meaning,
        limits: &Limits,
    ) -> Result<(), Errno> {
        let (space, pages) = (held.space(), (end - addr) >> PAGE_SHIFT);
        if !may_expand_vm(space, meaning.flags, pages, limits) {
            let gone = self.count_pages(space, addr, end);
            if !may_expand_vm(space, meaning.flags, pages - gone, limits) {
                return Err(Errno::ENOMEM);
            }
        }
        self.munmap_range(held, addr, end).map_err(|_| Errno::ENOMEM)?;
        let charged = if is_accountable(meaning.flags) { pages } else { 0 };
        if charged != 0 {
            self.vm_enough_memory(Some(space), charged)?;
            meaning.flags = meaning.flags.with(VmaFlags::ACCOUNT);
        }
        let vma = match self.expand_neighbour(held, addr, end, &meaning) {
            Some(vma) => Some(vma),
            None => self.make_area(held, addr, end, &meaning),
        };
        let Some(vma) = vma else {
            self.vm_unacct_memory(charged);
            return Err(Errno::ENOMEM);
        };
        vm_stat_account(space, meaning.flags, pages as i64);
        if meaning.flags.contains(VmaFlags::LOCKED) {
            space.record().locked_vm.bump(pages);
        }
        // Linux tells who asks for changes of a new area that all of it has changed.
        vma.set_flags(vma.flags().with(VmaFlags::SOFTDIRTY));
        Ok(())
    }

    /// Makes the range part of the areas beside it, if they mean the same.
    fn expand_neighbour(&self, held: &MmapWrite<'_, P>, addr: u64, end: u64, meaning: &Meaning) -> Option<Vma> {
        let pages = (end - addr) >> PAGE_SHIFT;
        let next = vma_at_or_above(held.space(), addr);
        let prev = vma_before(held.space(), next);
        let after = next.filter(|next| next.start() == end && meaning.can_merge_before::<P>(*next, pages));
        let both = Meaning { anon_vma: after.and_then(Vma::anon_vma), ..*meaning };
        let before = prev.filter(|prev| prev.end() == addr && both.can_merge_after::<P>(*prev));
        let top = after.map_or(end, Vma::end);
        let (vma, start, pgoff) = match (before, after) {
            (Some(prev), _) => (prev, prev.start(), prev.pgoff()),
            (None, Some(next)) => (next, addr, next.pgoff() - pages),
            (None, None) => return None,
        };
        held.vma_expand(vma, start, top, pgoff, after).ok()?;
        Some(vma)
    }

    /// Makes an area of its own.
    pub(super) fn make_area(&self, held: &MmapWrite<'_, P>, addr: u64, end: u64, meaning: &Meaning) -> Option<Vma> {
        let vma = self.vm_area_alloc()?;
        vma.init(addr, end, meaning.flags, meaning.pgoff);
        if let Some(file) = meaning.file {
            self.join_file(vma, file);
        }
        if held.link(vma) {
            return Some(vma);
        }
        self.leave_file(vma);
        self.vm_area_free(vma);
        None
    }
}

/// Flags of an area without a file.
fn anonymous_flags(flags: VmaFlags, map: u32) -> Result<VmaFlags, Errno> {
    match map & MAP_TYPE {
        MAP_SHARED if flags.contains(VmaFlags::GROWSDOWN) => Err(Errno::EINVAL),
        MAP_SHARED => Ok(flags.with(VmaFlags::SHARED).with(VmaFlags::MAYSHARE)),
        MAP_PRIVATE => Ok(flags),
        _ => Err(Errno::EINVAL),
    }
}

/// Flags of an area of a file.
fn file_flags(flags: VmaFlags, request: &MmapRequest, file: MappedFileRef) -> Result<VmaFlags, Errno> {
    let mode = file.mode.get();
    let mut flags = flags;
    // `file_mmap_ok`.
    let end = request.pgoff.saturating_add(page_align(request.len) >> PAGE_SHIFT);
    if end > MAX_PAGES {
        return Err(Errno::EOVERFLOW);
    }
    let kind = request.flags & MAP_TYPE;
    if kind == MAP_SHARED || kind == MAP_SHARED_VALIDATE {
        if kind == MAP_SHARED_VALIDATE && request.flags & !LEGACY_MAP_MASK != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        if request.prot & PROT_WRITE != 0 && mode & MappedFile::WRITE == 0 {
            return Err(Errno::EACCES);
        }
        flags = flags.with(VmaFlags::SHARED).with(VmaFlags::MAYSHARE);
        if mode & MappedFile::WRITE == 0 {
            flags = flags.without(VmaFlags::MAYWRITE.with(VmaFlags::SHARED));
        }
    } else if kind != MAP_PRIVATE {
        return Err(Errno::EINVAL);
    }
    if mode & MappedFile::READ == 0 {
        return Err(Errno::EACCES);
    }
    if flags.contains(VmaFlags::GROWSDOWN) { Err(Errno::EINVAL) } else { Ok(flags) }
}
