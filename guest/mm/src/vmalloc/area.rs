//! Areas: carving them out of the free ones, and putting them back.

use core::ops::Deref;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::region::seq;
use pagevisor_shared::units::{PAGE_SHIFT, VirtAddr};
use pagevisor_shared::vmalloc::{VmallocState, VmapTree};

use super::{AreaTree, SPACE_END, SPACE_START};
use crate::Mm;
use crate::platform::{IrqFlags, Level, Platform};
use crate::raw::{AreaRef, AreaWord, VmRef};
use crate::sync::{self, Plain};

/// A tree, held with interrupts off; its sequence counter is odd as long as this lives.
pub(super) struct Held<'a, P: Platform, const AUGMENTED: bool> {
    mm: &'a Mm<P>,
    words: &'static VmapTree,
    irq: IrqFlags,
    tree: AreaTree<AUGMENTED>,
}

impl<P: Platform, const AUGMENTED: bool> Deref for Held<'_, P, AUGMENTED> {
    type Target = AreaTree<AUGMENTED>;

    #[inline(always)]
    fn deref(&self) -> &AreaTree<AUGMENTED> {
        &self.tree
    }
}

impl<P: Platform, const AUGMENTED: bool> Drop for Held<'_, P, AUGMENTED> {
    #[inline]
    fn drop(&mut self) {
        seq::write_end(&self.words.seq);
        sync::unlock(&self.words.lock);
        self.mm.platform.irq_restore(self.irq);
    }
}

/// Why nothing could be carved.
pub(super) enum NoArea {
    /// There must be one more record, for what is left on the other side.
    NeedsRecord,
    /// No free area is large enough.
    NoSpace,
}

/// What was carved.
struct Carved {
    start: u64,
    /// The record of a free area that is used up.
    emptied: Option<AreaRef>,
}

/// Puts `area`, which is in no tree, into `tree`, as part of its neighbours if they touch (`merge_or_add_vmap_area`).
/// Gives the records that are not needed any more.
pub(super) fn merge_or_add<const AUGMENTED: bool>(tree: AreaTree<AUGMENTED>, area: AreaRef) -> [Option<AreaRef>; 2] {
    let (start, end) = (area.start(), area.end());
    // An overlap would be damage: the range is not free twice.
    let Some(place) = tree.place(start, end) else { return [Some(area), None] };
    let prev = place.prev.filter(|prev| prev.end() == start);
    let next = place.next.filter(|next| next.start() == end);
    let (grown, unneeded) = match (prev, next) {
        (None, None) => {
            tree.insert(area, place);
            return [None, None];
        }
        (Some(prev), None) => {
            prev.va_end.set(end);
            (prev, [Some(area), None])
        }
        (None, Some(next)) => {
            next.va_start.set(start);
            (next, [Some(area), None])
        }
        (Some(prev), Some(next)) => {
            tree.remove(next);
            prev.va_end.set(next.end());
            (prev, [Some(area), Some(next)])
        }
    };
    if AUGMENTED {
        tree.propagate(grown);
    }
    unneeded
}

impl AreaTree<true> {
    /// Takes `size` bytes at a multiple of `align` from the lowest free area that has them (`__alloc_vmap_area`,
    /// `adjust_va_to_fit_type`).
    fn carve(&self, size: u64, align: u64, spare: &mut Option<AreaRef>) -> Result<Carved, NoArea> {
        let hole = self.find_fit(size, align, || {}).ok_or(NoArea::NoSpace)?;
        // A power of two, and free areas end far below the last address.
        let start = (hole.start() + (align - 1)) & !(align - 1);
        let emptied = self.cut(hole, start, start + size, spare)?;
        Ok(Carved { start, emptied })
    }

    /// Takes the addresses from `start` up to `end` out of `hole`, a free area that has them (`adjust_va_to_fit_type`). Gives
    /// its record if it is used up.
    #[inline(always)]
    pub(super) fn cut(
        &self,
        hole: AreaRef,
        start: u64,
        end: u64,
        spare: &mut Option<AreaRef>,
    ) -> Result<Option<AreaRef>, NoArea> {
        match (start == hole.start(), end == hole.end()) {
            (true, true) => {
                self.remove(hole);
                return Ok(Some(hole));
            }
            (true, false) => hole.va_start.set(end),
            (false, true) => hole.va_end.set(start),
            (false, false) => {
                let above = spare.take().ok_or(NoArea::NeedsRecord)?;
                above.va_start.set(end);
                above.va_end.set(hole.end());
                hole.va_end.set(start);
                self.propagate(hole);
                if let Some(place) = self.place(end, above.end()) {
                    self.insert(above, place);
                }
                return Ok(None);
            }
        }
        self.propagate(hole);
        Ok(None)
    }
}

impl AreaTree<false> {
    /// Makes `area` one in use (`insert_vmap_area`).
    #[inline]
    pub(super) fn insert_busy(&self, area: AreaRef, start: u64, size: u64) {
        let vm = area.own_vm();
        area.va_start.set(start);
        area.va_end.set(start + size);
        area.set_vm(Some(vm));
        vm.addr.set(start);
        vm.size.set(size);
        // What was free is not in use.
        if let Some(place) = self.place(start, start + size) {
            self.insert(area, place);
        }
    }
}

impl<P: Platform> Mm<P> {
    /// The roots and counters.
    #[inline(always)]
    pub(super) fn vmalloc_state(&self) -> &'static VmallocState {
        &self.region.header().roots.vmalloc
    }

    #[inline]
    fn lock_tree<const AUGMENTED: bool>(&self, words: &'static VmapTree) -> Held<'_, P, AUGMENTED> {
        let irq = self.platform.irq_save();
        sync::lock(&words.lock, || self.platform.relax());
        seq::write_begin(&words.seq);
        Held { mm: self, words, irq, tree: AreaTree::new(AreaWord::of(words)) }
    }

    /// The areas in use (`vmap_area_lock`).
    #[inline]
    pub(super) fn lock_busy(&self) -> Held<'_, P, false> {
        self.lock_tree(&self.vmalloc_state().busy)
    }

    /// The free areas (`free_vmap_area_lock`).
    #[inline]
    pub(super) fn lock_free(&self) -> Held<'_, P, true> {
        self.lock_tree(&self.vmalloc_state().free)
    }

    /// The areas that are to be purged (`purge_vmap_area_lock`).
    #[inline]
    pub(super) fn lock_purge(&self) -> Held<'_, P, false> {
        self.lock_tree(&self.vmalloc_state().purge)
    }

    /// A record.
    #[inline(always)]
    pub(super) fn new_area(&self, gfp: Gfp) -> Option<AreaRef> {
        self.vmalloc.records.alloc(self, gfp)
    }

    /// Gives back a record that nothing links to.
    #[inline(always)]
    pub(super) fn free_area(&self, area: AreaRef) {
        self.vmalloc.records.free(self, area);
    }

    /// Whether the vmalloc space can be used, which includes that its top-level tables are there. The first who asks pays
    /// for it.
    #[inline]
    pub(crate) fn vmalloc_ready(&self, gfp: Gfp) -> bool {
        self.vmalloc.ready.load(Acquire) != 0 || self.vmalloc_init(gfp)
    }

    /// Makes all of the vmalloc space free, if that was not done yet (`vmalloc_init`): who asks first pays for it. False
    /// when there is no memory for it.
    #[cold]
    pub(super) fn vmalloc_init(&self, gfp: Gfp) -> bool {
        let init = &self.vmalloc.init_lock;
        if !self.platform.in_interrupt() {
            sync::lock(init, || self.platform.relax());
        } else if !sync::try_lock(init) {
            // It may be this very CPU that is at it.
            return false;
        }
        let done = self.vmalloc.ready.get() != 0 || self.vmalloc_init_locked(gfp);
        sync::unlock(init);
        done
    }

    fn vmalloc_init_locked(&self, gfp: Gfp) -> bool {
        if !self.vmalloc.records.init(self) || !self.preallocate_top_level(gfp) {
            return false;
        }
        let Some(all) = self.new_area(gfp) else { return false };
        all.va_start.set(SPACE_START);
        all.va_end.set(SPACE_END);
        let free = self.lock_free();
        let unneeded = merge_or_add(*free, all);
        drop(free);
        self.free_areas(unneeded);
        // Release: who sees this sees the cache.
        self.vmalloc.ready.store(1, Release);
        true
    }

    /// Takes `size` bytes of address space at a multiple of `align` for `area`, which is in no tree
    /// (`alloc_vmap_area`). False if there are none.
    #[inline]
    pub(super) fn alloc_vmap_area(&self, area: AreaRef, size: u64, align: u64, gfp: Gfp) -> bool {
        let mut spare = None;
        let mut purged = false;
        let carved = loop {
            let free = self.lock_free();
            let result = free.carve(size, align, &mut spare);
            drop(free);
            match result {
                Ok(carved) => break Some(carved),
                Err(NoArea::NeedsRecord) => {
                    spare = self.new_area(gfp);
                    if spare.is_none() {
                        break None;
                    }
                }
                Err(NoArea::NoSpace) => {
                    if purged || self.platform.in_interrupt() {
                        self.report_no_space(size, gfp);
                        break None;
                    }
                    // If there was nothing to purge, somebody else may just have done so: in any case once more.
                    self.purge_vmap_areas();
                    purged = true;
                }
            }
        };
        if let Some(unneeded) = spare {
            self.free_area(unneeded);
        }
        let Some(Carved { start, emptied }) = carved else { return false };
        // Nobody else has what was carved: on its way to those in use it needs no lock.
        self.lock_busy().insert_busy(area, start, size);
        if let Some(emptied) = emptied {
            self.free_area(emptied);
        }
        true
    }

    #[cold]
    fn report_no_space(&self, size: u64, gfp: Gfp) {
        if !gfp.contains(Gfp::NOWARN) {
            let what = format_args!("vmap allocation for size {size} failed: use vmalloc=<size> to increase size");
            self.platform.log(Level::Warning, what);
        }
    }

    /// Takes the area that starts at `addr` out of those in use, if it is of a kind that `wanted` wants; it counts as lazily
    /// freed from here on (`find_unlink_vmap_area`).
    pub(super) fn unlink_vmap_area(&self, addr: VirtAddr, wanted: impl Fn(VmRef) -> bool) -> Option<(AreaRef, VmRef)> {
        let busy = self.lock_busy();
        let area = busy.find(addr.raw()).filter(|area| area.start() == addr.raw())?;
        let vm = area.vm().filter(|vm| wanted(*vm))?;
        busy.remove(area);
        self.vmalloc_state().lazy_nr.fetch_add(area.size() >> PAGE_SHIFT, Relaxed);
        Some((area, vm))
    }
}
