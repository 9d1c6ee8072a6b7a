//! `/proc/iomem`.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;

use crate::region::RegionRef;
use crate::region::records::ResourceKind;

/// Deepest level that is indented (`MAX_IORES_LEVEL`).
const MAX_IORES_LEVEL: u32 = 5;

/// `/proc/iomem`: the tree of resources.
///
/// # Errors
/// Those of `out`.
pub fn iomem(region: &RegionRef<'_>, out: &mut dyn Write) -> fmt::Result {
    for record in region.resources() {
        let depth = record.depth.load(Relaxed).min(MAX_IORES_LEVEL) as usize;
        let name = ResourceKind::ALL.get(record.kind.load(Relaxed) as usize).map_or("<BAD>", |kind| kind.name());
        let (start, end) = (record.start.load(Relaxed), record.end.load(Relaxed));
        writeln!(out, "{:indent$}{start:08x}-{end:08x} : {name}", "", indent = depth * 2)?;
    }
    Ok(())
}
