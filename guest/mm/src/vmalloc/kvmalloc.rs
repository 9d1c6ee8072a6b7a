//! Memory that need not be physically contiguous, but mostly is (`mm/util.c`).

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{NodeId, PAGE_SIZE, VirtAddr};

use super::VmallocRequest;
use crate::Mm;
use crate::platform::Platform;

/// The largest size that [`Mm::kvmalloc`] tries (`INT_MAX`).
const KVMALLOC_MAX_SIZE: usize = i32::MAX as usize;

impl<P: Platform> Mm<P> {
    /// Allocates `size` bytes: by [`Self::kmalloc`] if that has them at hand, else by [`Self::vmalloc`] (`kvmalloc`). To be
    /// freed by [`Self::kvfree`].
    #[inline]
    pub fn kvmalloc(&self, size: usize, gfp: Gfp) -> Option<VirtAddr> {
        self.kvmalloc_node(size, gfp, None)
    }

    /// As [`Self::kvmalloc`], zeros (`kvzalloc`).
    pub fn kvzalloc(&self, size: usize, gfp: Gfp) -> Option<VirtAddr> {
        self.kvmalloc(size, gfp | Gfp::ZERO)
    }

    /// `count` times `size` bytes of zeros; `None` if that is more than a number holds (`kvcalloc`).
    pub fn kvcalloc(&self, count: usize, size: usize, gfp: Gfp) -> Option<VirtAddr> {
        self.kvzalloc(count.checked_mul(size)?, gfp)
    }

    /// As [`Self::kvmalloc`], from `node` first; from this CPU's for `None` (`kvmalloc_node`).
    pub fn kvmalloc_node(&self, size: usize, gfp: Gfp, node: Option<NodeId>) -> Option<VirtAddr> {
        if size <= PAGE_SIZE as usize {
            return self.kmalloc_node(size, gfp, node);
        }
        // Not worth an effort where single pages will do, and it is the other way that must not fail.
        let retry = if gfp.contains(Gfp::RETRY_MAYFAIL) { Gfp::NONE } else { Gfp::NORETRY };
        let light = gfp.without(Gfp::NOFAIL) | Gfp::NOWARN | retry;
        if let Some(addr) = self.kmalloc_node(size, light, node) {
            return Some(addr);
        }
        // Mapping may have to wait.
        if !gfp.contains(Gfp::DIRECT_RECLAIM) || size > KVMALLOC_MAX_SIZE {
            return None;
        }
        self.vmalloc_range(&VmallocRequest { gfp, node, ..VmallocRequest::new(size as u64) })
    }

    /// Frees what [`Self::kvmalloc`] or a relative gave, or `kmalloc`, or `vmalloc` (`kvfree`).
    pub fn kvfree(&self, addr: VirtAddr) {
        if Self::is_vmalloc_addr(addr) {
            self.vfree(addr);
        } else {
            self.kfree(addr);
        }
    }
}
