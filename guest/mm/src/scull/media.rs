//! Where quanta come from.

use pagevisor_shared::gfp::Gfp;
use pagevisor_shared::units::{Order, Pfn, VirtAddr};

use crate::Mm;
use crate::platform::Platform;
use crate::slab::Cache;
use crate::vmalloc::VmallocRequest;

/// Bytes of a quantum that need not be whole pages (`SCULL_QUANTUM`).
pub(crate) const QUANTUM: u32 = 4000;
/// Quanta of a set: scull's (`SCULL_QSET`), and the others' (`SCULLC_QSET`, `SCULLP_QSET`, `SCULLV_QSET`).
const SCULL_QSET: u64 = 1000;
const OTHERS_QSET: u64 = 500;

/// What a driver is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Media {
    /// scull: `kmalloc`.
    Kmalloc,
    /// scullc: a cache of objects of [`QUANTUM`] bytes.
    Cache(Cache),
    /// scullp: pages.
    Pages(Order),
    /// scullv: `vmalloc`.
    Vmalloc(Order),
}

impl Media {
    /// Bytes of a quantum.
    pub(super) fn quantum(self) -> u64 {
        match self {
            Self::Kmalloc | Self::Cache(_) => QUANTUM.into(),
            Self::Pages(order) | Self::Vmalloc(order) => order.bytes(),
        }
    }

    /// Quanta of a set.
    pub(super) fn qset(self) -> u64 {
        if let Self::Kmalloc = self { SCULL_QSET } else { OTHERS_QSET }
    }

    /// A quantum of zeros.
    pub(super) fn get<P: Platform>(self, mm: &Mm<P>, gfp: Gfp) -> Option<VirtAddr> {
        let gfp = gfp | Gfp::ZERO;
        match self {
            Self::Kmalloc => mm.kmalloc(QUANTUM as usize, gfp),
            Self::Cache(cache) => mm.kmem_cache_alloc(cache, gfp),
            Self::Pages(order) => mm.alloc_pages(gfp, order).map(|first| mm.virt(first.addr())),
            Self::Vmalloc(order) => mm.vmalloc_range(&VmallocRequest { gfp, ..VmallocRequest::new(order.bytes()) }),
        }
    }

    /// Gives a quantum back.
    pub(super) fn put<P: Platform>(self, mm: &Mm<P>, addr: VirtAddr) {
        match self {
            Self::Kmalloc => mm.kfree(addr),
            Self::Cache(cache) => mm.kmem_cache_free(cache, addr),
            Self::Pages(order) => {
                if let Some(phys) = mm.phys(addr) {
                    mm.free_pages(Pfn::containing(phys), order);
                }
            }
            Self::Vmalloc(_) => mm.vfree(addr),
        }
    }
}
