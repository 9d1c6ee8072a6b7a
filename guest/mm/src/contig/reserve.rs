//! The area that the command line asks for (`cma=`, `kernel/dma/contiguous.c`).

use core::ops::Range;

use pagevisor_shared::units::{Pfn, PhysAddr};

use super::{CmaRequest, cma_declare_contiguous};
use crate::Mm;
use crate::memblock::Memblock;
use crate::platform::{Level, Platform};

/// Reserves memory for the area, as high as there is any (`dma_contiguous_reserve`).
pub(crate) fn dma_contiguous_reserve<P: Platform>(
    platform: &P,
    memblock: &mut Memblock,
    request: CmaRequest,
) -> Option<Range<PhysAddr>> {
    if request.size == 0 {
        return None;
    }
    let bottom_up = memblock.bottom_up();
    memblock.set_bottom_up(false);
    let reserved = cma_declare_contiguous(memblock, request);
    memblock.set_bottom_up(bottom_up);
    match reserved {
        Ok(range) => {
            let (start, mib) = (range.start.raw(), (range.end.raw() - range.start.raw()) >> 20);
            platform.log(Level::Info, format_args!("cma: Reserved {mib} MiB at {start:#018x}"));
            Some(range)
        }
        Err(_) => {
            platform.log(Level::Err, format_args!("cma: Failed to reserve {} MiB", request.size >> 20));
            None
        }
    }
}

impl<P: Platform> Mm<P> {
    /// What is left to do once every CPU has the record that [`Self::cpu_local`] makes: makes the area that the command
    /// line asked for one (`cma_init_reserved_areas`). Once. [`Self::slab_init`] comes before it.
    pub fn finish_boot(&self) {
        self.start_events();
        self.start_faults();
        let Some(range) = &self.boot_area else { return };
        if let Err(error) = self.cma_init_named(range, Some("reserved")) {
            let line = format_args!("CMA area reserved could not be activated: {error}");
            self.platform.log(Level::Err, line);
            // Of no use for an area, so of use for anything.
            self.free_reserved_area(Pfn::containing(range.start), Pfn::containing(range.end));
        }
    }
}
