//! Where there is room (`get_unmapped_area`, `vm_unmapped_area`).

use pagevisor_shared::errno::Errno;
use pagevisor_shared::layout::TASK_SIZE_MAX;
use pagevisor_shared::mm_types::uapi::{MAP_32BIT, MAP_FIXED};
use pagevisor_shared::units::PAGE_SIZE;

use super::areas::vma_at_or_above;
use super::{Limits, PAGE_MASK, STACK_GUARD_GAP, Space, Vma};
use crate::Mm;
use crate::platform::Platform;
use crate::sync::Plain;
use crate::tree::TreeNode;

/// Where mappings go upwards from (`TASK_UNMAPPED_BASE`).
const TASK_UNMAPPED_BASE: u64 = (TASK_SIZE_MAX / 3 + PAGE_SIZE - 1) & PAGE_MASK;
/// Least and most room for a stack (`gap_min`, `gap_max`).
const STACK_ROOM: (u64, u64) = (128 << 20, TASK_SIZE_MAX / 6 * 5);
/// Where `MAP_32BIT` mappings go.
const LOW: (u64, u64) = (0x4000_0000, 0x8000_0000);

/// Where mappings go down from, below a stack of that limit (`mmap_base`).
pub(super) fn mmap_base(limits: &Limits) -> u64 {
    let room = limits.stack.saturating_add(STACK_GUARD_GAP).clamp(STACK_ROOM.0, STACK_ROOM.1);
    (TASK_SIZE_MAX - room + PAGE_SIZE - 1) & PAGE_MASK
}

/// The free room below `vma`: from where, up to where.
fn room_below(vma: Vma) -> (u64, u64) {
    (vma.prev().map_or(0, Vma::end), vma.start_gap())
}

/// The lowest address from `low` on with `len` free bytes up to `high` (`unmapped_area`).
pub(super) fn lowest_gap(space: Space, len: u64, low: u64, high: u64) -> Option<u64> {
    // Last place where a gap may begin, and first where it may end.
    let (last, first) = (high.checked_sub(len)?, low.checked_add(len)?);
    if low > last {
        return None;
    }
    let promising = |node: Option<Vma>| node.filter(|vma| vma.max() >= len);
    let mut node = promising(<Vma as TreeNode>::follow(space.roots()[0]));
    'down: while let Some(vma) = node {
        if vma.start_gap() >= first
            && let Some(left) = promising(vma.left())
        {
            node = Some(left);
            continue;
        }
        let mut at = vma;
        loop {
            let (start, end) = room_below(at);
            if start > last {
                return None;
            }
            if end >= first && end > start && end - start >= len {
                return Some(start.max(low));
            }
            if let Some(right) = promising(at.right()) {
                node = Some(right);
                continue 'down;
            }
            // Up to the first that we come to from the left.
            loop {
                let Some(above) = at.parent() else { break 'down };
                let was_left = above.left() == Some(at);
                at = above;
                if was_left {
                    break;
                }
            }
        }
    }
    let start = space.record().highest_vm_end.get();
    (start <= last).then_some(start.max(low))
}

/// The highest address with `len` free bytes from `low` up to `high` (`unmapped_area_topdown`).
pub(super) fn highest_gap(space: Space, len: u64, low: u64, high: u64) -> Option<u64> {
    let (last, first) = (high.checked_sub(len)?, low.checked_add(len)?);
    if low > last {
        return None;
    }
    if space.record().highest_vm_end.get() <= last {
        return Some(last);
    }
    let promising = |node: Option<Vma>| node.filter(|vma| vma.max() >= len);
    let mut node = promising(<Vma as TreeNode>::follow(space.roots()[0]));
    'down: while let Some(vma) = node {
        if room_below(vma).0 <= last
            && let Some(right) = promising(vma.right())
        {
            node = Some(right);
            continue;
        }
        let mut at = vma;
        loop {
            let (start, end) = room_below(at);
            if end < first {
                return None;
            }
            if start <= last && end > start && end - start >= len {
                return Some(end.min(high) - len);
            }
            if let Some(left) = promising(at.left()) {
                node = Some(left);
                continue 'down;
            }
            // Up to the first that we come to from the right.
            loop {
                let above = at.parent()?;
                let was_right = above.right() == Some(at);
                at = above;
                if was_right {
                    break;
                }
            }
        }
    }
    None
}

/// What the caller would like, if it is free (`mmap_address_hint_valid` and what follows it).
fn hint(space: Space, addr: u64, len: u64, end: u64) -> Option<u64> {
    let addr = addr & PAGE_MASK;
    let fits = addr != 0 && addr.checked_add(len)? <= end;
    let free = |vma: Vma| addr + len <= vma.start_gap();
    (fits && vma_at_or_above(space, addr).is_none_or(free)).then_some(addr)
}

impl<P: Platform> Mm<P> {
    /// An address for `len` bytes, a multiple of the page size: `addr` if that is free, or whatever is there with
    /// [`MAP_FIXED`] (`get_unmapped_area`). The caller has the space's lock.
    ///
    /// # Errors
    /// ENOMEM if there is no room; with [`MAP_FIXED`] also EINVAL for an address inside a page, and EPERM for one that
    /// nobody may map.
    pub(super) fn get_unmapped_area(&self, space: Space, addr: u64, len: u64, flags: u32) -> Result<u64, Errno> {
        let end = space.record().task_size.get();
        if len > end {
            return Err(Errno::ENOMEM);
        }
        let lowest = self.region.sysctl().mmap_min_addr.get();
        let addr = if flags & MAP_FIXED != 0 {
            addr
        } else if flags & MAP_32BIT != 0 {
            let found = hint(space, addr, len, LOW.1).or_else(|| lowest_gap(space, len, LOW.0, LOW.1));
            found.ok_or(Errno::ENOMEM)?
        } else {
            hint(space, addr, len, end)
                .or_else(|| highest_gap(space, len, lowest.max(PAGE_SIZE), space.record().mmap_base.get()))
                .or_else(|| lowest_gap(space, len, TASK_UNMAPPED_BASE, end))
                .ok_or(Errno::ENOMEM)?
        };
        if addr > end - len {
            return Err(Errno::ENOMEM);
        }
        if addr & !PAGE_MASK != 0 {
            return Err(Errno::EINVAL);
        }
        if addr < lowest { Err(Errno::EPERM) } else { Ok(addr) }
    }

    /// Puts mappings below the stack that `limits` allow (`arch_pick_mmap_layout`).
    pub fn pick_mmap_layout(&self, space: Space, limits: &Limits) {
        space.record().mmap_base.set(mmap_base(limits));
    }
}
