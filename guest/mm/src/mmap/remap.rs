//! `mremap`.

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::mm_types::uapi::{MAP_FIXED, MREMAP_DONTUNMAP, MREMAP_FIXED, MREMAP_MAYMOVE};
use pagevisor_shared::units::{PAGE_SHIFT, VirtAddr};

use super::account::{may_expand_vm, vm_stat_account};
use super::adjust::Meaning;
use super::areas::{vma_at, vma_at_or_above, vma_before};
use super::lock::MmapWrite;
use super::unmap::page_align;
use super::{Limits, PAGE_MASK, Space, Vma};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;

/// Areas that do not grow.
const FIXED_SIZE: VmaFlags = VmaFlags::DONTEXPAND.with(VmaFlags::PFNMAP);
/// Ways of being locked.
const LOCKED_MASK: VmaFlags = VmaFlags::LOCKED.with(VmaFlags::LOCKONFAULT);

/// What `mremap` is asked for.
#[derive(Clone, Copy, Debug)]
pub struct MremapRequest {
    /// Where the memory is.
    pub addr: VirtAddr,
    /// Its bytes.
    pub old_len: u64,
    /// The bytes it is to have.
    pub new_len: u64,
    /// `MREMAP_*`.
    pub flags: u32,
    /// Where it is to be, if the flags say so.
    pub new_addr: VirtAddr,
}

/// A range that moves, lengths in whole pages.
#[derive(Clone, Copy)]
struct Move {
    addr: u64,
    old_len: u64,
    new_len: u64,
    flags: u32,
}

impl<P: Platform> Mm<P> {
    /// Makes mapped memory larger or smaller, or moves it; gives its address (`mremap`).
    ///
    /// # Errors
    /// Linux's.
    pub fn do_mremap(&self, space: Space, request: &MremapRequest, limits: &Limits) -> Result<VirtAddr, Errno> {
        let flags = request.flags;
        let moves = flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) != 0;
        if flags & !(MREMAP_FIXED | MREMAP_MAYMOVE | MREMAP_DONTUNMAP) != 0
            || moves && flags & MREMAP_MAYMOVE == 0
            || flags & MREMAP_DONTUNMAP != 0 && request.old_len != request.new_len
            || request.addr.raw() & !PAGE_MASK != 0
        {
            return Err(Errno::EINVAL);
        }
        let (old_len, new_len) = (page_align(request.old_len), page_align(request.new_len));
        if new_len == 0 {
            return Err(Errno::EINVAL);
        }
        let what = Move { addr: request.addr.raw(), old_len, new_len, flags };
        let held = self.mmap_write_lock(space);
        vma_at(space, what.addr).ok_or(Errno::EFAULT)?;
        let addr = if moves {
            self.mremap_to(&held, what, request.new_addr.raw(), limits)?
        } else if old_len >= new_len {
            if old_len != new_len {
                self.munmap_locked(&held, what.addr + new_len, old_len - new_len)?;
            }
            what.addr
        } else {
            self.mremap_grow(&held, what, limits)?
        };
        let locked = vma_at(space, addr).is_some_and(|vma| vma.flags().0 & LOCKED_MASK.0 == VmaFlags::LOCKED.0);
        drop(held);
        if locked && new_len > old_len {
            // Whatever comes of it, it is mapped.
            let _ = self.mm_populate(space, VirtAddr::new(addr + old_len), VirtAddr::new(addr + new_len));
        }
        Ok(VirtAddr::new(addr))
    }

    /// The area of `what`, if it may become larger like that (`vma_to_resize`).
    fn vma_to_resize(&self, space: Space, what: Move, limits: &Limits) -> Result<Vma, Errno> {
        let vma = vma_at(space, what.addr).ok_or(Errno::EFAULT)?;
        let flags = vma.flags();
        if what.old_len == 0 && !flags.intersects(VmaFlags::SHARED.with(VmaFlags::MAYSHARE))
            || what.flags & MREMAP_DONTUNMAP != 0 && flags.intersects(FIXED_SIZE)
        {
            return Err(Errno::EINVAL);
        }
        if what.old_len > vma.end() - what.addr {
            return Err(Errno::EFAULT);
        }
        if what.new_len == what.old_len {
            return Ok(vma);
        }
        vma.index_of(what.addr).checked_add(what.new_len >> PAGE_SHIFT).ok_or(Errno::EINVAL)?;
        if flags.intersects(FIXED_SIZE) {
            return Err(Errno::EFAULT);
        }
        let more = what.new_len.wrapping_sub(what.old_len);
        self.may_lock_more(space, flags, more, limits)?;
        if may_expand_vm(space, flags, more >> PAGE_SHIFT, limits) { Ok(vma) } else { Err(Errno::ENOMEM) }
    }

    /// Whether `vma` can become `delta` bytes larger where it is (`vma_expandable`).
    fn is_expandable(&self, space: Space, vma: Vma, delta: u64) -> bool {
        let Some(end) = vma.end().checked_add(delta) else { return false };
        vma.next().is_none_or(|next| next.start() >= end)
            && self.get_unmapped_area(space, vma.start(), end - vma.start(), MAP_FIXED).is_ok()
    }

    /// Makes a range larger, elsewhere if it may move.
    fn mremap_grow(&self, held: &MmapWrite<'_, P>, what: Move, limits: &Limits) -> Result<u64, Errno> {
        let space = held.space();
        let vma = self.vma_to_resize(space, what, limits)?;
        let delta = what.new_len - what.old_len;
        if what.old_len == vma.end() - what.addr && self.is_expandable(space, vma, delta) {
            let pages = delta >> PAGE_SHIFT;
            let charged = if vma.flags().contains(VmaFlags::ACCOUNT) { pages } else { 0 };
            if charged != 0 {
                self.vm_enough_memory(Some(space), charged)?;
            }
            let end = vma.end();
            let merged = held.vma_merge(Some(vma), end, end + delta, &Meaning::of(vma, end, vma.flags()));
            let Some(vma) = merged else {
                self.vm_unacct_memory(charged);
                return Err(Errno::ENOMEM);
            };
            vm_stat_account(space, vma.flags(), pages as i64);
            if vma.flags().contains(VmaFlags::LOCKED) {
                space.record().locked_vm.bump(pages);
            }
            return Ok(what.addr);
        }
        if what.flags & MREMAP_MAYMOVE == 0 {
            return Err(Errno::ENOMEM);
        }
        let new_addr = self.get_unmapped_area(space, 0, what.new_len, 0)?;
        self.move_vma(held, vma, what, new_addr)
    }

    /// Moves a range to a place that is given, or wherever there is room (`mremap_to`).
    fn mremap_to(&self, held: &MmapWrite<'_, P>, what: Move, to: u64, limits: &Limits) -> Result<u64, Errno> {
        let (space, mut what) = (held.space(), what);
        let size = space.record().task_size.get();
        if to & !PAGE_MASK != 0 || what.new_len > size || to > size - what.new_len {
            return Err(Errno::EINVAL);
        }
        let old_end = what.addr.checked_add(what.old_len).ok_or(Errno::EINVAL)?;
        if old_end > to && to + what.new_len > what.addr {
            return Err(Errno::EINVAL);
        }
        self.may_have_more(space, 5)?;
        if what.flags & MREMAP_FIXED != 0 {
            self.munmap_locked(held, to, what.new_len)?;
        }
        if what.old_len > what.new_len {
            self.munmap_locked(held, what.addr + what.new_len, what.old_len - what.new_len)?;
            what.old_len = what.new_len;
        }
        let vma = self.vma_to_resize(space, what, limits)?;
        let stays = what.flags & MREMAP_DONTUNMAP != 0;
        if stays && !may_expand_vm(space, vma.flags(), what.old_len >> PAGE_SHIFT, limits) {
            return Err(Errno::ENOMEM);
        }
        let fixed = if what.flags & MREMAP_FIXED != 0 { MAP_FIXED } else { 0 };
        let to = self.get_unmapped_area(space, to, what.new_len, fixed)?;
        self.move_vma(held, vma, what, to)
    }

    /// Moves the range to `to`, where nothing is (`move_vma`).
    fn move_vma(&self, held: &MmapWrite<'_, P>, vma: Vma, what: Move, to: u64) -> Result<u64, Errno> {
        let (space, stays) = (held.space(), what.flags & MREMAP_DONTUNMAP != 0);
        // No failure later on, when the old area is split in three.
        self.may_have_more(space, 3)?;
        let flags = vma.flags();
        let accounted = flags.contains(VmaFlags::ACCOUNT);
        let more = if stays { what.new_len } else { what.new_len.wrapping_sub(what.old_len) } >> PAGE_SHIFT;
        let charged = if accounted { more } else { 0 };
        if charged != 0 {
            self.vm_enough_memory(Some(space), charged)?;
        }
        let (mut addr, mut len) = (what.addr, what.old_len);
        let Some((mut vma, new)) = self.copy_vma(held, vma, addr, to, what.new_len) else {
            self.vm_unacct_memory(charged);
            return Err(Errno::ENOMEM);
        };
        held.vma_start_write(vma);
        held.vma_start_write(new);
        let moved = self.move_page_tables(vma, addr, to, len);
        let mut result = Ok(to);
        if moved < len {
            // Back, for which there are tables; and the new area goes instead of the old one.
            self.move_page_tables(new, to, addr, moved);
            (vma, addr, len, result) = (new, to, what.new_len, Err(Errno::ENOMEM));
        }
        // What goes must not take its promise with it: the new area has it.
        let mut pieces = (false, false);
        if accounted && !stays {
            vma.set_flags(vma.flags().without(VmaFlags::ACCOUNT));
            pieces = (vma.start() < addr, vma.end() > addr + len);
        }
        vm_stat_account(space, flags, (what.new_len >> PAGE_SHIFT) as i64);
        if result.is_ok() && stays {
            if flags.contains(VmaFlags::LOCKED) {
                // What was locked of the old area is not any more; what moved is, unless it is still the same area.
                let locked = &space.record().locked_vm;
                locked.set(locked.get() + (what.new_len >> PAGE_SHIFT) - vma.pages());
            }
            vma.set_flags(vma.flags().without(LOCKED_MASK));
            if new != vma && vma.start() == addr && vma.end() == addr + len {
                self.unlink_anon_vmas(vma);
            }
            return result;
        }
        if len != 0 && self.munmap_locked(held, addr, len).is_err() {
            if accounted {
                self.force_account(len >> PAGE_SHIFT);
            }
            vma.set_flags(flags);
            pieces = (false, false);
        }
        if flags.contains(VmaFlags::LOCKED) {
            space.record().locked_vm.bump(what.new_len >> PAGE_SHIFT);
        }
        let promise = |piece: Option<Vma>| {
            if let Some(piece) = piece {
                held.vma_start_write(piece);
                piece.set_flags(piece.flags().with(VmaFlags::ACCOUNT));
            }
        };
        if pieces.0 {
            promise(addr.checked_sub(1).and_then(|below| vma_at(space, below)));
        }
        if pieces.1 {
            promise(vma_at(space, addr + len));
        }
        if result.is_err() && !stays {
            self.vm_unacct_memory(charged);
        }
        result
    }

    /// An area at `to` like `vma`, whose range from `from` on goes there, of its own or part of another. Gives the area of
    /// the old range, too: it may have become another (`copy_vma`).
    fn copy_vma(&self, held: &MmapWrite<'_, P>, vma: Vma, from: u64, to: u64, len: u64) -> Option<(Vma, Vma)> {
        let (space, old_start) = (held.space(), vma.start());
        let mut meaning = Meaning::of(vma, from, vma.flags());
        if vma.is_anonymous() && vma.anon_vma().is_none() {
            // No page has its place yet: as if it was mapped there, so that it can be part of what is there.
            meaning.pgoff = to >> PAGE_SHIFT;
        }
        let next = vma_at_or_above(space, to);
        if next.is_some_and(|next| next.start() < to + len) {
            return None;
        }
        if let Some(new) = held.vma_merge(vma_before(space, next), to, to + len, &meaning) {
            let is_itself = new.start() <= old_start && old_start < new.end();
            return Some((if is_itself { new } else { vma }, new));
        }
        let new = self.vm_area_alloc()?;
        new.init(to, to + len, meaning.flags, meaning.pgoff);
        new.set_anon_vma(vma.anon_vma());
        if self.anon_vma_clone(new, vma).is_err() {
            self.vm_area_free(new);
            return None;
        }
        self.share_file(new, vma);
        if held.link(new) {
            return Some((vma, new));
        }
        self.remove_vma(new);
        None
    }
}
