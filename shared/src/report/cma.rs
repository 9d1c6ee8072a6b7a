//! `/sys/kernel/debug/cma`: contiguous memory areas. Linux has a folder for each area with a file for each number; here
//! each area is a paragraph, with a line for each file.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering::{Acquire, Relaxed};

use crate::region::RegionRef;
use crate::region::records::CmaRecord;

/// Areas that are in use.
pub fn areas<'a>(region: &RegionRef<'a>) -> impl Iterator<Item = &'a CmaRecord> + use<'a> {
    region.cmas().iter().filter(|area| area.count.load(Acquire) != 0)
}

/// An area's name as text; a byte that is no plain character reads as `?`.
pub struct Name<'a>(pub &'a CmaRecord);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.name_bytes();
        bytes
            .iter()
            .take_while(|byte| **byte != 0)
            .try_for_each(|&byte| f.write_char(if byte.is_ascii_graphic() { byte as char } else { '?' }))
    }
}

/// All areas.
///
/// # Errors
/// Those of `out`.
pub fn cma(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    for area in areas(region) {
        writeln!(out, "cma-{}", Name(area))?;
        let rows = [
            ("base_pfn", area.base_pfn.load(Relaxed)),
            ("count", area.count.load(Relaxed)),
            ("order_per_bit", area.order_per_bit.load(Relaxed).into()),
            ("used", area.used.load(Relaxed)),
        ];
        rows.iter().try_for_each(|(name, value)| writeln!(out, "  {name:<14} {value}"))?;
    }
    Ok(())
}
