//! Areas split, and neighbours that mean the same become one (`vma_merge`, `__vma_adjust`, `split_vma`).
//!
//! When a range with a new meaning touches its neighbours there are eight cases; `P` is the area before, `N` the one
//! behind, `A` the range:
//!
//! ```text
//!     AAAA             AAAA                   AAAA
//!    PPPPPPNNNNNN    PPPPPPNNNNNN       PPPPPPNNNNNN
//!    cannot merge    might become       might become
//!                    PPNNNNNNNNNN       PPPPPPPPPPNN
//!                    4                  5
//!        AAAA             AAAA
//!    PPPP    NNNN    PPPPNNNNXXXX
//!    might become    might become
//!    PPPPPPPPPPPP 1  PPPPPPPPPPPP 6
//!    PPPPPPPPNNNN 2  PPPPPPPPXXXX 7
//!    PPPPNNNNNNNN 3  PPPPXXXXXXXX 8
//! ```

use pagevisor_shared::errno::Errno;
use pagevisor_shared::mm_types::{AnonVma, MappedFile, VmaFlags};
use pagevisor_shared::units::PAGE_SHIFT;

use super::Vma;
use super::areas::tree;
use super::lock::MmapWrite;
use crate::Mm;
use crate::platform::Platform;
use crate::raw::Handle;
use crate::sync::Plain;

/// Areas with these are never part of others (`VM_SPECIAL`).
const SPECIAL: VmaFlags = VmaFlags::DONTEXPAND.with(VmaFlags::PFNMAP);

/// What a range is going to mean.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meaning {
    /// Its flags.
    pub(super) flags: VmaFlags,
    /// The family of its pages.
    pub(super) anon_vma: Option<Handle<AnonVma>>,
    /// Its file.
    pub(super) file: Option<Handle<MappedFile>>,
    /// Offset of its first page.
    pub(super) pgoff: u64,
}

impl Meaning {
    /// What `vma` means from `addr` on, with other flags.
    pub(super) fn of(vma: Vma, addr: u64, flags: VmaFlags) -> Self {
        Self { flags, anon_vma: vma.anon_vma(), file: vma.file(), pgoff: vma.index_of(addr) }
    }

    /// Whether `vma` means the same, families aside (`is_mergeable_vma`).
    fn is_mergeable(&self, vma: Vma) -> bool {
        // Whether it was changed since somebody asked is no reason to be two.
        (vma.flags().0 ^ self.flags.0) & !VmaFlags::SOFTDIRTY.0 == 0 && vma.file() == self.file
    }

    /// Whether the range can be part of `vma`, which ends where it begins (`can_vma_merge_after`).
    pub(super) fn can_merge_after<P: Platform>(&self, vma: Vma) -> bool {
        self.is_mergeable(vma)
            && Mm::<P>::is_mergeable_anon_vma(self.anon_vma, vma.anon_vma(), Some(vma))
            && vma.pgoff().wrapping_add(vma.pages()) == self.pgoff
    }

    /// Whether the range, of `pages`, can be part of `vma`, which begins where it ends (`can_vma_merge_before`).
    pub(super) fn can_merge_before<P: Platform>(&self, vma: Vma, pages: u64) -> bool {
        self.is_mergeable(vma)
            && Mm::<P>::is_mergeable_anon_vma(self.anon_vma, vma.anon_vma(), Some(vma))
            && vma.pgoff() == self.pgoff.wrapping_add(pages)
    }
}

/// Whether `vma` and `next`, which begins where it ends, would be one if one of them had come now: for who recounts.
#[cfg(feature = "hosted")]
pub(crate) fn could_be_one<P: Platform>(vma: Vma, next: Vma) -> bool {
    let meaning = Meaning::of(next, next.start(), next.flags());
    !meaning.flags.intersects(SPECIAL) && meaning.can_merge_after::<P>(vma)
}

/// New bounds of an area, and of what is behind it.
struct Bounds {
    vma: Vma,
    start: u64,
    end: u64,
    pgoff: u64,
    /// The area behind, and how far its start moves.
    moved: Option<(Vma, i64)>,
    /// Areas that go.
    gone: [Option<Vma>; 2],
    /// An area that comes.
    insert: Option<Vma>,
}

impl<P: Platform> MmapWrite<'_, P> {
    /// Makes the range from `addr` up to `end` part of its neighbours if that is possible; gives the area it is in then
    /// (`vma_merge`). `prev` is the area before, or the one in which the range begins but not at its start.
    pub(super) fn vma_merge(&self, prev: Option<Vma>, addr: u64, end: u64, meaning: &Meaning) -> Option<Vma> {
        if meaning.flags.intersects(SPECIAL) {
            return None;
        }
        let pages = (end - addr) >> PAGE_SHIFT;
        let mid = prev.map_or_else(|| self.space().first_vma(), Vma::next);
        // Cases 6, 7, 8.
        let next = if mid.is_some_and(|mid| mid.end() == end) { mid.and_then(Vma::next) } else { mid };
        let before = prev.filter(|prev| prev.end() == addr && meaning.can_merge_after::<P>(*prev));
        let after = next.filter(|next| next.start() == end && meaning.can_merge_before::<P>(*next, pages));
        let (result, done) = match (before, after) {
            // Cases 1, 6.
            (Some(prev), Some(next)) if Mm::<P>::is_mergeable_anon_vma(prev.anon_vma(), next.anon_vma(), None) => {
                (prev, self.vma_adjust(prev, prev.start(), next.end(), prev.pgoff(), None, Some(prev)))
            }
            // Cases 2, 5, 7.
            (Some(prev), _) => (prev, self.vma_adjust(prev, prev.start(), end, prev.pgoff(), None, Some(prev))),
            (None, Some(next)) => {
                let done = match prev {
                    // Case 4.
                    Some(prev) if addr < prev.end() => {
                        self.vma_adjust(prev, prev.start(), addr, prev.pgoff(), None, Some(next))
                    }
                    // Cases 3, 8.
                    _ => {
                        let mid = mid.unwrap_or(next);
                        self.vma_adjust(mid, addr, next.end(), next.pgoff() - pages, None, Some(next))
                    }
                };
                (next, done)
            }
            (None, None) => return None,
        };
        done.ok().map(|()| result)
    }

    /// Changes the bounds of `vma`, and with them those of the area behind it, which goes if there is nothing left of it;
    /// `insert` is put where `vma` was, `expand` is the one that becomes larger (`__vma_adjust`).
    ///
    /// # Errors
    /// ENOMEM; then nothing has changed.
    fn vma_adjust(
        &self,
        vma: Vma,
        start: u64,
        end: u64,
        pgoff: u64,
        insert: Option<Vma>,
        expand: Option<Vma>,
    ) -> Result<(), Errno> {
        let mut bounds = Bounds { vma, start, end, pgoff, moved: None, gone: [None; 2], insert };
        if insert.is_none()
            && let Some(next) = vma.next()
        {
            // Who gives pages, and who gets them.
            let families = if end >= next.end() && expand == Some(next) {
                // Case 8: the area behind grows down over this one.
                bounds.vma = next;
                bounds.gone[0] = Some(vma);
                Some((vma, next))
            } else if end >= next.end() {
                bounds.gone[0] = Some(next);
                // Case 6: and the one behind that.
                bounds.gone[1] = next.next().filter(|_| end > next.end());
                let giver = bounds.gone[1].filter(|_| next.anon_vma().is_none()).unwrap_or(next);
                Some((giver, vma))
            } else if end > next.start() {
                // Case 5.
                bounds.moved = Some((next, (end - next.start()).cast_signed()));
                Some((next, vma))
            } else if end < vma.end() {
                // Case 4.
                bounds.moved = Some((next, -(vma.end() - end).cast_signed()));
                Some((vma, next))
            } else {
                None
            };
            if let Some((giver, getter)) = families
                && giver.anon_vma().is_some()
                && getter.anon_vma().is_none()
            {
                self.vma_start_write(getter);
                getter.set_anon_vma(giver.anon_vma());
                self.mm().anon_vma_clone(getter, giver)?;
            }
        }
        self.set_bounds(&bounds);
        for gone in bounds.gone.into_iter().flatten() {
            self.mm().remove_vma(gone);
        }
        Ok(())
    }

    /// Makes all changes at once, for who looks.
    fn set_bounds(&self, bounds: &Bounds) {
        let (vma, tree) = (bounds.vma, tree(self.space()));
        self.vma_start_write(vma);
        let others = bounds.gone.into_iter().chain([bounds.moved.map(|(next, _)| next), bounds.insert]);
        others.flatten().for_each(|other| self.vma_start_write(other));
        let change = || {
            self.change(|| {
                bounds.gone.into_iter().flatten().for_each(|gone| tree.remove(gone));
                let record = vma.record();
                record.vm_start.set(bounds.start);
                record.vm_end.set(bounds.end);
                record.vm_pgoff.set(bounds.pgoff);
                if let Some((next, by)) = bounds.moved {
                    let record = next.record();
                    record.vm_start.set(record.vm_start.get().wrapping_add_signed(by));
                    record.vm_pgoff.set(record.vm_pgoff.get().wrapping_add_signed(by >> PAGE_SHIFT));
                }
                tree.propagate(vma);
                if let Some(next) = vma.next() {
                    tree.propagate(next);
                }
                if let Some(insert) = bounds.insert
                    && let Some(place) = tree.place(insert.start(), insert.end())
                {
                    tree.insert(insert, place);
                }
            })
        };
        self.mm().with_areas_locked(vma, change);
        let record = self.space().record();
        let gone = bounds.gone.iter().flatten().count() as u32;
        record.map_count.set(record.map_count.get() - gone + u32::from(bounds.insert.is_some()));
        if vma.next().is_none() {
            record.highest_vm_end.set(vma.end());
        }
        if let Some(insert) = bounds.insert {
            insert.set_mm(Some(self.space()));
            if insert.next().is_none() {
                record.highest_vm_end.set(insert.end());
            }
        }
    }

    /// Makes an area larger, over the one behind it if that goes (`vma_expand`).
    ///
    /// # Errors
    /// ENOMEM; then nothing has changed.
    pub(super) fn vma_expand(
        &self,
        vma: Vma,
        start: u64,
        end: u64,
        pgoff: u64,
        next: Option<Vma>,
    ) -> Result<(), Errno> {
        let goes = next.filter(|next| *next != vma && end == next.end());
        if let Some(next) = goes
            && next.anon_vma().is_some()
            && vma.anon_vma().is_none()
        {
            self.vma_start_write(vma);
            vma.set_anon_vma(next.anon_vma());
            self.mm().anon_vma_clone(vma, next)?;
        }
        self.set_bounds(&Bounds { vma, start, end, pgoff, moved: None, gone: [goes, None], insert: None });
        if let Some(gone) = goes {
            self.mm().remove_vma(gone);
        }
        Ok(())
    }

    /// Makes an area that is smaller of `vma`: what is not from `start` up to `end` has been unmapped.
    pub(super) fn shrink(&self, vma: Vma, start: u64, end: u64) {
        let pgoff = vma.index_of(start);
        self.set_bounds(&Bounds { vma, start, end, pgoff, moved: None, gone: [None; 2], insert: None });
    }

    /// Cuts `vma` in two at `addr`, a page inside it; the new one is that below, or that above (`__split_vma`).
    ///
    /// # Errors
    /// ENOMEM.
    pub(super) fn split_vma_unchecked(&self, vma: Vma, addr: u64, new_below: bool) -> Result<(), Errno> {
        let mm = self.mm();
        let new = mm.vm_area_alloc().ok_or(Errno::ENOMEM)?;
        let (start, end) = if new_below { (vma.start(), addr) } else { (addr, vma.end()) };
        new.init(start, end, vma.flags(), vma.index_of(start));
        new.set_anon_vma(vma.anon_vma());
        if let Err(error) = mm.anon_vma_clone(new, vma) {
            mm.vm_area_free(new);
            return Err(error);
        }
        mm.share_file(new, vma);
        let (start, end) = if new_below { (addr, vma.end()) } else { (vma.start(), addr) };
        let pgoff = vma.index_of(start);
        self.vma_adjust(vma, start, end, pgoff, Some(new), None)
    }

    /// As [`Self::split_vma_unchecked`], unless there are as many areas as there may be (`split_vma`).
    ///
    /// # Errors
    /// ENOMEM.
    pub(super) fn split_vma(&self, vma: Vma, addr: u64, new_below: bool) -> Result<(), Errno> {
        self.mm().may_have_more(self.space(), 0)?;
        self.split_vma_unchecked(vma, addr, new_below)
    }

    /// Gives the range from `start` up to `end` of `vma` other flags: as part of a neighbour, or as an area of its own.
    /// Gives that area. `prev` is as for [`Self::vma_merge`].
    ///
    /// # Errors
    /// ENOMEM.
    pub(super) fn reflag(
        &self,
        vma: Vma,
        prev: Option<Vma>,
        start: u64,
        end: u64,
        flags: VmaFlags,
    ) -> Result<Vma, Errno> {
        let meaning = Meaning::of(vma, start, flags);
        let vma = match self.vma_merge(prev, start, end, &meaning) {
            Some(merged) => merged,
            None => {
                if start != vma.start() {
                    self.split_vma(vma, start, true)?;
                }
                if end != vma.end() {
                    self.split_vma(vma, end, false)?;
                }
                vma
            }
        };
        self.vma_start_write(vma);
        let soft_dirty = VmaFlags(vma.flags().0 & VmaFlags::SOFTDIRTY.0);
        vma.set_flags(flags.with(soft_dirty));
        Ok(vma)
    }
}

impl<P: Platform> Mm<P> {
    /// Whether there may be `more` areas and one, however many there are (`sysctl_max_map_count`).
    ///
    /// # Errors
    /// ENOMEM.
    pub(super) fn may_have_more(&self, space: super::Space, more: u32) -> Result<(), Errno> {
        let most = self.region.sysctl().max_map_count.get();
        if space.record().map_count.get().saturating_add(more) >= most { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Gives up an area that was taken out (`remove_vma`).
    pub(super) fn remove_vma(&self, vma: Vma) {
        self.unlink_anon_vmas(vma);
        self.leave_file(vma);
        self.vm_area_free(vma);
    }
}
