//! Allocating: an area, its pages, their mapping.

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::pgtable::{PMD_SIZE, Protection};
use pagevisor_shared::units::{NodeId, Order, PAGE_SHIFT, PAGE_SIZE, Pfn, VirtAddr};
use pagevisor_shared::vmalloc::VmFlags;

use crate::Mm;
use crate::page_alloc::PAGE_ALLOC_COSTLY_ORDER;
use crate::pgtable::{Backing, Reservation};
use crate::platform::Platform;
use crate::raw::{AreaRef, VmRef};
use crate::sync::Plain;

/// The largest blocks that are mapped by small pages: a larger area is by large ones for the most part.
const LARGEST_SMALL: u32 = 8;
/// From so many pages on blocks larger than pagesets keep are cheaper than several of those.
const LARGE_BLOCKS_FROM: u64 = 64;

/// What an area of memory is to be (`__vmalloc_node_range`).
#[derive(Clone, Copy, Debug)]
pub struct VmallocRequest {
    /// Bytes; rounded up to whole pages.
    pub size: u64,
    /// Alignment of its address; rounded up to a power of two.
    pub align: u64,
    /// How its pages are allocated.
    pub gfp: Gfp,
    /// What may be done with it.
    pub protection: Protection,
    /// [`VmFlags::USERMAP`], [`VmFlags::NO_GUARD`] and [`VmFlags::ALLOW_HUGE_VMAP`], or none of them.
    pub flags: VmFlags,
    /// The node its pages come from first; this CPU's for `None`.
    pub node: Option<NodeId>,
}

impl VmallocRequest {
    /// Of `size` bytes, as `vmalloc` wants it.
    pub const fn new(size: u64) -> Self {
        Self {
            size,
            align: PAGE_SIZE,
            gfp: Gfp::KERNEL,
            protection: Protection::KERNEL,
            flags: VmFlags::ALLOW_HUGE_VMAP,
            node: None,
        }
    }
}

/// Why an area has no pages.
enum Unfilled {
    Pages,
    Tables,
}

impl<P: Platform> Mm<P> {
    /// Allocates `size` bytes with consecutive addresses (`vmalloc`). To be freed by [`Self::vfree`].
    #[inline(never)]
    pub fn vmalloc(&self, size: u64) -> Option<VirtAddr> {
        self.allocate_area(&VmallocRequest::new(size))
    }

    /// As [`Self::vmalloc`], cleared (`vzalloc`).
    pub fn vzalloc(&self, size: u64) -> Option<VirtAddr> {
        self.vmalloc_range(&VmallocRequest { gfp: Gfp::KERNEL | Gfp::ZERO, ..VmallocRequest::new(size) })
    }

    /// As [`Self::vmalloc`], with pages from `node` first (`vmalloc_node`).
    pub fn vmalloc_node(&self, size: u64, node: NodeId) -> Option<VirtAddr> {
        self.vmalloc_range(&VmallocRequest { node: Some(node), ..VmallocRequest::new(size) })
    }

    /// As [`Self::vmalloc_node`], cleared (`vzalloc_node`).
    pub fn vzalloc_node(&self, size: u64, node: NodeId) -> Option<VirtAddr> {
        let gfp = Gfp::KERNEL | Gfp::ZERO;
        self.vmalloc_range(&VmallocRequest { gfp, node: Some(node), ..VmallocRequest::new(size) })
    }

    /// As [`Self::vzalloc`], of single pages that may each be mapped to user space and held by themselves
    /// (`vmalloc_user`).
    pub fn vmalloc_user(&self, size: u64) -> Option<VirtAddr> {
        let gfp = Gfp::KERNEL | Gfp::ZERO;
        self.vmalloc_range(&VmallocRequest { gfp, flags: VmFlags::USERMAP, ..VmallocRequest::new(size) })
    }

    /// As [`Self::vmalloc`], allocated with `gfp`, and for what `protection` allows (`__vmalloc`).
    pub fn vmalloc_with(&self, size: u64, gfp: Gfp, protection: Protection) -> Option<VirtAddr> {
        self.vmalloc_range(&VmallocRequest { gfp, protection, ..VmallocRequest::new(size) })
    }

    /// Allocates what is asked for (`__vmalloc_node_range`).
    #[inline(never)]
    pub fn vmalloc_range(&self, request: &VmallocRequest) -> Option<VirtAddr> {
        self.allocate_area(request)
    }

    /// Inlined, so that [`Self::vmalloc`] is no call more and the caller a frame nearer.
    #[inline(always)]
    fn allocate_area(&self, request: &VmallocRequest) -> Option<VirtAddr> {
        let &VmallocRequest { size, gfp, .. } = request;
        self.vfree_deferred();
        let total = self.region.header().pages_total.get();
        if size == 0 || size.div_ceil(PAGE_SIZE) > total {
            self.warn_alloc_of(gfp, None, format_args!("vmalloc error: size {size}, exceeds total pages"));
            return None;
        }
        let bytes = size.next_multiple_of(PAGE_SIZE);
        let large = bytes >= PMD_SIZE && request.flags.contains(VmFlags::ALLOW_HUGE_VMAP);
        let align = request.align.checked_next_power_of_two()?.max(if large { PMD_SIZE } else { PAGE_SIZE });
        let kept = VmFlags(VmFlags::USERMAP.0 | VmFlags::NO_GUARD.0 | VmFlags::ALLOW_HUGE_VMAP.0);
        let flags = VmFlags(request.flags.0 & kept.0).with(VmFlags::ALLOC).with(VmFlags::UNINITIALIZED);
        let Some((area, vm)) = self.new_vm_area(size, align, flags, gfp, self.platform.caller()) else {
            self.warn_alloc_of(gfp, None, format_args!("vmalloc error: size {size}, vm_struct allocation failed"));
            return None;
        };
        // One page is the most frequent of all sizes, and needs little of what others do.
        let filled = match bytes {
            PAGE_SIZE => self.fill_single(area, vm, request),
            _ => self.fill_area(area, vm, request, bytes, large),
        };
        if let Err(why) = filled {
            // Before anything is logged: what is half there should go.
            self.release_vm_area(area, vm);
            match why {
                Unfilled::Pages => {
                    let what = "page order 0, failed to allocate pages";
                    self.warn_alloc_of(gfp, None, format_args!("vmalloc error: size {size}, {what}"));
                }
                Unfilled::Tables => {
                    self.warn_alloc_of(gfp, None, format_args!("vmalloc error: size {size}, failed to map pages"));
                }
            }
            return None;
        }
        vm.flags.set(flags.without(VmFlags::UNINITIALIZED).0);
        Some(VirtAddr::new(area.start()))
    }

    /// An area of `size` bytes and its guard page, in use and unmapped, for `caller` (`__get_vm_area_node`).
    #[inline]
    pub(super) fn new_vm_area(
        &self,
        size: u64,
        align: u64,
        flags: VmFlags,
        gfp: Gfp,
        caller: u64,
    ) -> Option<(AreaRef, VmRef)> {
        let guard = if flags.contains(VmFlags::NO_GUARD) { 0 } else { PAGE_SIZE };
        let bytes = size.checked_next_multiple_of(PAGE_SIZE)?.checked_add(guard)?;
        let gfp = Gfp::from_bits(gfp.bits() & Gfp::RECLAIM_MASK.bits()).unwrap_or(Gfp::KERNEL);
        if !self.vmalloc_ready(gfp) {
            return None;
        }
        let area = self.new_area(gfp)?;
        let vm = area.own_vm();
        vm.flags.set(flags.0);
        vm.nr_pages.set(0);
        vm.phys_addr.set(0);
        vm.caller.set(caller);
        vm.requested_size.set(size);
        if !self.alloc_vmap_area(area, bytes, align, gfp) {
            self.free_area(area);
            return None;
        }
        Some((area, vm))
    }

    /// Gives the area its only page.
    #[inline]
    fn fill_single(&self, area: AreaRef, vm: VmRef, request: &VmallocRequest) -> Result<(), Unfilled> {
        let page = self.alloc_vm_block(request, 0).ok_or(Unfilled::Pages)?;
        if !self.map_single(area.start(), page.addr(), request.protection, request.gfp) {
            self.free_page(page);
            return Err(Unfilled::Tables);
        }
        vm.nr_pages.set(1);
        self.region.header().nr_vmalloc_pages.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Gives the area its pages (`__vmalloc_area_node`). On failure it has some of them.
    #[inline(never)]
    fn fill_area(
        &self,
        area: AreaRef,
        vm: VmRef,
        request: &VmallocRequest,
        bytes: u64,
        large: bool,
    ) -> Result<(), Unfilled> {
        let end = area.start() + bytes;
        let mut at = Reservation::new(area.start());
        let mut largest = if request.flags.contains(VmFlags::USERMAP) { 0 } else { LARGEST_SMALL };
        let mut large = large;
        let result = loop {
            let left = (end - at.virt()) >> PAGE_SHIFT;
            if left == 0 {
                break Ok(());
            }
            if large && left >= PMD_SIZE >> PAGE_SHIFT {
                large = self.fill_large(&mut at, request);
                continue;
            }
            let most = if left < LARGE_BLOCKS_FROM { PAGE_ALLOC_COSTLY_ORDER } else { LARGEST_SMALL };
            let order = left.ilog2().min(most).min(largest);
            let Some(block) = self.alloc_vm_block(request, order) else {
                let Some(lower) = order.checked_sub(1) else { break Err(Unfilled::Pages) };
                largest = lower;
                continue;
            };
            if !self.map_block(&mut at, end, block, order, request) {
                break Err(Unfilled::Tables);
            }
        };
        self.end_mapping(&at);
        let pages = (at.virt() - area.start()) >> PAGE_SHIFT;
        vm.nr_pages.set(pages as u32);
        self.region.header().nr_vmalloc_pages.fetch_add(pages, Relaxed);
        result
    }

    /// Fills 2 MiB by a large page. False, with nothing done, if that cannot be had.
    fn fill_large(&self, at: &mut Reservation, request: &VmallocRequest) -> bool {
        let Some(block) = self.alloc_vm_block(request, Order::PAGEBLOCK.raw()) else { return false };
        let mapped = self.map_large(at, block.addr(), request.protection, request.gfp);
        if !mapped {
            self.free_pages(block, Order::PAGEBLOCK);
        }
        mapped
    }

    /// A block of pages. Only single ones are worth an effort.
    #[inline]
    fn alloc_vm_block(&self, request: &VmallocRequest, order: u32) -> Option<Pfn> {
        let gfp = request.gfp.with(Gfp::NOWARN).without(Gfp::COMP | Gfp::MOVABLE);
        let gfp = match order {
            0 => gfp,
            _ => gfp.without(Gfp::DIRECT_RECLAIM | Gfp::KSWAPD_RECLAIM | Gfp::NOFAIL).with(Gfp::NORETRY),
        };
        self.alloc_pages_node(request.node, gfp, Order::new(order).ok()?)
    }

    /// Maps a block at the next addresses. False if that fails; then the block is free again and nothing is mapped.
    #[inline]
    fn map_block(&self, at: &mut Reservation, end: u64, block: Pfn, order: u32, request: &VmallocRequest) -> bool {
        let backing = Backing { phys: block.addr(), bytes: PAGE_SIZE << order };
        let start = at.virt();
        let mapped = self.map_small(at, end, backing, request.protection, request.gfp);
        if !mapped {
            self.unmap_range(start, at.virt(), |_| 1, |_, _| {});
            at.back_to(start);
            self.free_pages(block, Order::new(order).unwrap_or_default());
        }
        mapped
    }
}
