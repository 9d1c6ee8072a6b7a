//! `/proc/PID/maps` (`show_map_vma`).

use pagevisor_shared::units::PAGE_SHIFT;
use serde_json::{Value, json};

use super::{Process, Shown, permissions};
use crate::report::kmem::hex;
use crate::state::AreaInfo;

/// Places before a name (`seq_setwidth` in `show_vma_header_prefix`).
const NAME_AT: usize = 25 + 8 * 6 - 1;

/// The line of a range with what stands behind it, as Linux pads it.
pub(super) fn line(range: (u64, u64), permissions: &str, [pgoff, dev, ino]: [u64; 3], name: &str) -> String {
    let (major, minor) = (dev >> 20, dev & 0xf_ffff);
    let (start, end) = range;
    let prefix = format!("{start:08x}-{end:08x} {permissions} {pgoff:08x} {major:02x}:{minor:02x} {ino} ");
    if name.is_empty() { format!("{prefix}\n") } else { format!("{prefix:NAME_AT$} {name}\n") }
}

/// The line of an area.
pub(super) fn area_line(process: &Process<'_>, area: &AreaInfo) -> String {
    let place =
        area.file.as_ref().map_or([0; 3], |file| [area.pgoff.wrapping_shl(PAGE_SHIFT), file.dev.into(), file.ino]);
    line((area.start, area.end), &permissions(area.flags), place, process.name(area))
}

/// An area for programs.
pub(super) fn area_json(process: &Process<'_>, area: &AreaInfo) -> Value {
    json!({
        "start": hex(area.start),
        "end": hex(area.end),
        "permissions": permissions(area.flags),
        "offset": area.file.as_ref().map(|_| area.pgoff.wrapping_shl(PAGE_SHIFT)),
        "device": area.file.as_ref().map(|file| format!("{:02x}:{:02x}", file.dev >> 20, file.dev & 0xf_ffff)),
        "inode": area.file.as_ref().map(|file| file.ino),
        "name": process.name(area),
    })
}

/// `maps`
pub(super) fn maps(process: &Process<'_>) -> Shown {
    let areas = &process.areas.list;
    Shown {
        text: areas.iter().map(|area| area_line(process, area)).collect(),
        value: areas.iter().map(|area| area_json(process, area)).collect(),
        damage: process.areas.damage,
    }
}
