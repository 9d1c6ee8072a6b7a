//! Addresses of pages for a short time (`kmap_local_page`).
//!
//! All memory is in the direct map, so an address is there already. What Linux asks of those who map pages holds all the
//! same, so that code that breaks it is found out: mappings belong to the CPU that made them, they end in the opposite
//! order, and there are few at a time.

use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::AtomicU8;

use pagevisor_shared::NR_CPUS;
use pagevisor_shared::units::{PAGE_SIZE, Pfn, VirtAddr};

use crate::Mm;
use crate::platform::{Level, Platform};
use crate::sync::Plain;

/// Mappings that a CPU can have at a time (`KM_MAX_IDX`).
pub const KM_MAX_IDX: u8 = 16;

/// How many mappings each CPU has.
#[derive(Debug)]
pub(crate) struct KmapDepths([AtomicU8; NR_CPUS]);

impl KmapDepths {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU8::new(0) }; NR_CPUS])
    }
}

/// A page that is mapped. Dropping it ends that (`kunmap_local`). It stays on the CPU that made it.
pub struct KmapLocal<'a, P: Platform> {
    mm: &'a Mm<P>,
    addr: VirtAddr,
    /// Mappings that this CPU has, with this.
    depth: u8,
    stays: PhantomData<*const ()>,
}

impl<P: Platform> Mm<P> {
    /// Maps the page at `pfn` until what this gives is dropped, which must be before those that were mapped earlier
    /// (`kmap_local_page`). `None` where there is no memory, and for more than [`KM_MAX_IDX`] at a time, which is
    /// reported.
    pub fn kmap_local_page(&self, pfn: Pfn) -> Option<KmapLocal<'_, P>> {
        self.page_zone(pfn)?;
        let depths = self.kmap_depth();
        let depth = depths.get() + 1;
        if depth > KM_MAX_IDX {
            self.platform.log(Level::Warning, format_args!("kmap_local: more than {KM_MAX_IDX} pages mapped"));
            self.platform.dump_stack();
            return None;
        }
        depths.set(depth);
        Some(KmapLocal { mm: self, addr: self.virt(pfn.addr()), depth, stays: PhantomData })
    }

    /// How many pages this CPU has mapped.
    fn kmap_depth(&self) -> &AtomicU8 {
        &self.kmaps.0[self.platform.this_cpu().cpu.index() % NR_CPUS]
    }
}

impl<P: Platform> KmapLocal<'_, P> {
    /// Where the page's bytes are.
    pub fn addr(&self) -> VirtAddr {
        self.addr
    }

    /// Where byte `offset` of the page is; `None` outside the page.
    pub fn at(&self, offset: u64) -> Option<VirtAddr> {
        (offset < PAGE_SIZE).then(|| VirtAddr::new(self.addr.raw() + offset))
    }
}

impl<P: Platform> Drop for KmapLocal<'_, P> {
    fn drop(&mut self) {
        let depths = self.mm.kmap_depth();
        let depth = depths.get();
        if depth != self.depth {
            let platform = self.mm.platform;
            platform
                .log(Level::Warning, format_args!("kunmap_local: {:#x} is not the last one mapped", self.addr.raw()));
            platform.dump_stack();
        }
        depths.set(depth.saturating_sub(1));
    }
}

impl<P: Platform> fmt::Debug for KmapLocal<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmapLocal").field("addr", &self.addr).field("depth", &self.depth).finish_non_exhaustive()
    }
}
