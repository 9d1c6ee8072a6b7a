//! Finding areas, and changing which there are.

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::region::seq;
use pagevisor_shared::units::VirtAddr;

use super::lock::{MmapWrite, VmaRead};
use super::{Space, Vma, VmaTree};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::{self, Plain};
use crate::tree::TreeNode;

/// No tree of areas is deeper; who meets one that is being changed gives up.
const MAX_DEPTH: u32 = 64;

/// An area, as it was when somebody looked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AreaInfo {
    /// First byte.
    pub start: VirtAddr,
    /// First byte behind.
    pub end: VirtAddr,
    /// What may be done with it, and what it is.
    pub flags: VmaFlags,
    /// Offset of its first page, in pages.
    pub pgoff: u64,
    /// The area.
    pub vma: Vma,
}

impl AreaInfo {
    fn of(vma: Vma) -> Self {
        let (start, end) = (VirtAddr::new(vma.start()), VirtAddr::new(vma.end()));
        Self { start, end, flags: vma.flags(), pgoff: vma.pgoff(), vma }
    }
}

/// The tree of the areas of `space`.
#[inline(always)]
pub(crate) fn tree(space: Space) -> VmaTree {
    let [root, first] = space.roots();
    VmaTree::new([root, first])
}

/// The first area that ends above `addr` (`find_vma`). The caller has the space's lock.
#[inline]
pub(crate) fn vma_at_or_above(space: Space, addr: u64) -> Option<Vma> {
    walk(space, addr, u32::MAX)
}

/// The area that holds `addr` (`vma_lookup`). The caller has the space's lock.
#[inline]
pub(crate) fn vma_at(space: Space, addr: u64) -> Option<Vma> {
    vma_at_or_above(space, addr).filter(|vma| vma.start() <= addr)
}

/// The first area that ends above `addr`, looking at `most` of them at most.
#[inline(always)]
fn walk(space: Space, addr: u64, most: u32) -> Option<Vma> {
    let (mut found, mut node, mut left) = (None, Vma::follow(space.roots()[0]), most);
    while let Some(vma) = node
        && left != 0
    {
        if addr < vma.end() {
            found = node;
            if vma.start() <= addr {
                break;
            }
            node = vma.left();
        } else {
            node = vma.right();
        }
        left -= 1;
    }
    found
}

/// The area before `vma`, or the highest if there is none. The caller has the space's lock.
pub(super) fn vma_before(space: Space, vma: Option<Vma>) -> Option<Vma> {
    if let Some(vma) = vma {
        return vma.prev();
    }
    let mut node = <Vma as TreeNode>::follow(space.roots()[0])?;
    while let Some(right) = node.right() {
        node = right;
    }
    Some(node)
}

impl<P: Platform> MmapWrite<'_, P> {
    /// Puts `vma`, which is complete, among the areas (`vma_link`). False if it overlaps one that is there.
    pub(super) fn link(&self, vma: Vma) -> bool {
        let space = self.space();
        let tree = tree(space);
        let Some(place) = tree.place(vma.start(), vma.end()) else { return false };
        self.vma_start_write(vma);
        vma.set_mm(Some(space));
        let is_last = place.next.is_none();
        self.change(|| tree.insert(vma, place));
        if is_last {
            space.record().highest_vm_end.set(vma.end());
        }
        space.record().map_count.bump(1);
        true
    }

    /// Takes `vma` from among the areas; it still is what it was.
    pub(super) fn unlink(&self, vma: Vma) {
        let space = self.space();
        self.vma_start_write(vma);
        self.change(|| tree(space).remove(vma));
        if vma.next().is_none() {
            space.record().highest_vm_end.set(vma.prev().map_or(0, Vma::end));
        }
        space.record().map_count.drop_by(1);
    }
}

impl<P: Platform> Mm<P> {
    /// A record for an area (`vm_area_alloc`). What it says is that of its last owner.
    #[inline]
    pub(super) fn vm_area_alloc(&self) -> Option<Vma> {
        self.mmap.areas.alloc(self, Gfp::KERNEL)
    }

    /// Gives back the record of an area that was unlinked (`vm_area_free`).
    #[inline]
    pub(super) fn vm_area_free(&self, vma: Vma) {
        self.mmap.areas.free(self, vma);
    }

    /// The area of `space` that holds `addr`, which stays as it is as long as the guard lives
    /// (`lock_vma_under_rcu`). None if there is no such area, or if it is being changed: then [`Self::mmap_read_lock`]
    /// tells.
    #[inline]
    pub fn lock_vma(&self, space: Space, addr: VirtAddr) -> Option<VmaRead<'_, P>> {
        let record = space.record();
        if let Some(start) = seq::read_begin(&record.seq) {
            let vma = walk(space, addr.raw(), MAX_DEPTH)?;
            let held = self.vma_start_read(space, vma);
            // It was in the tree all the time, so whoever wants to take it out waits for this or was noticed.
            if !seq::read_retry(&record.seq, start) {
                return held.filter(|held| held.vma().start() <= addr.raw());
            }
        }
        self.lock_vma_slow(space, addr)
    }

    #[cold]
    fn lock_vma_slow(&self, space: Space, addr: VirtAddr) -> Option<VmaRead<'_, P>> {
        sync::lock(&space.record().tree_lock, || self.platform.relax());
        let held = vma_at(space, addr.raw()).and_then(|vma| self.vma_start_read(space, vma));
        sync::unlock(&space.record().tree_lock);
        held
    }

    /// The first area of `space` that ends above `addr`, as it is now (`find_vma`).
    pub fn find_vma(&self, space: Space, addr: VirtAddr) -> Option<AreaInfo> {
        let _held = self.mmap_read_lock(space);
        vma_at_or_above(space, addr.raw()).map(AreaInfo::of)
    }

    /// Calls `each` for the areas of `space`, in order of address, while none can be changed.
    pub fn for_each_vma(&self, space: Space, mut each: impl FnMut(&AreaInfo)) {
        let _held = self.mmap_read_lock(space);
        let areas = core::iter::successors(space.first_vma(), |vma| vma.next());
        areas.for_each(|vma| each(&AreaInfo::of(vma)));
    }
}
