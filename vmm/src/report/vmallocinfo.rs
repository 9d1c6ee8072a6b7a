//! `/proc/vmallocinfo`, and crash's `kmem -v`.

use std::fmt::{self, Write as _};
use std::io::Write;

use pagevisor_shared::vmalloc::VmFlags;
use serde_json::{Value, json};

use super::error::ReportError;
use super::kmem::hex;
use super::kmem::just::{Just, just};
use super::view::write_json;
use crate::machine::kernel_elf;
use crate::state::{Patience, Sections, StateError, StateView, VmInfo, VmallocArea, VmallocAreas};
use crate::symbols::Symbols;

/// What Linux says an area is for, in its order.
const KINDS: [(VmFlags, &str); 4] =
    [(VmFlags::IOREMAP, "ioremap"), (VmFlags::ALLOC, "vmalloc"), (VmFlags::MAP, "vmap"), (VmFlags::USERMAP, "user")];

/// Reads what belongs to areas.
struct Reader<'a> {
    state: &'a StateView,
    sections: Sections,
    symbols: Symbols,
    /// Pages that may still be looked at: areas have no more pages of their own than there are.
    budget: u64,
}

impl<'a> Reader<'a> {
    fn new(state: &'a StateView) -> Result<Self, ReportError> {
        Ok(Self {
            state,
            sections: state.sections()?,
            symbols: Symbols::of_guest(kernel_elf(), state.memory()),
            budget: state.slab_budget(),
        })
    }

    /// Pages by node; none for an area that has none of its own, or that is being filled.
    fn pages(&mut self, vm: &VmInfo) -> Result<Vec<(usize, u64)>, StateError> {
        if !vm.flags.contains(VmFlags::ALLOC) || vm.flags.contains(VmFlags::UNINITIALIZED) {
            return Ok(Vec::new());
        }
        let counts = self.state.area_pages(vm, &self.sections, &mut self.budget)?;
        Ok(counts.into_iter().enumerate().filter(|(_, pages)| *pages != 0).collect())
    }
}

fn kinds(vm: &VmInfo) -> impl Iterator<Item = &'static str> {
    let flags = vm.flags;
    KINDS.into_iter().filter(move |(flag, _)| flags.contains(*flag)).map(|(_, name)| name)
}

/// The line of an area (`s_show`); nothing for a reservation.
fn line(reader: &mut Reader<'_>, vm: &VmInfo, out: &mut String) -> Result<(), ReportError> {
    let pages = reader.pages(vm)?;
    // Writing to a string cannot fail.
    let _ = (|| -> fmt::Result {
        write!(out, "0x{:016x}-0x{:016x} {:>7}", vm.addr, vm.addr.wrapping_add(vm.size), vm.size)?;
        if vm.caller != 0 {
            write!(out, " {}", reader.symbols.locate_return(vm.caller))?;
        }
        if vm.nr_pages != 0 && vm.flags.contains(VmFlags::ALLOC) {
            write!(out, " pages={}", vm.nr_pages)?;
        }
        if vm.phys_addr != 0 {
            write!(out, " phys=0x{:016x}", vm.phys_addr)?;
        }
        kinds(vm).try_for_each(|kind| write!(out, " {kind}"))?;
        pages.iter().try_for_each(|(node, count)| write!(out, " N{node}={count}"))?;
        writeln!(out)
    })();
    Ok(())
}

fn check(areas: &VmallocAreas) -> Result<(), ReportError> {
    areas.damage.map_or(Ok(()), |damage| Err(StateError::from(damage).into()))
}

/// `show vmallocinfo`: what is whole; damage comes after it.
pub(super) fn vmallocinfo(state: &StateView, as_json: bool, out: &mut dyn Write) -> Result<(), ReportError> {
    let areas = state.vmalloc_areas(Patience::default())?;
    let mut reader = Reader::new(state)?;
    if as_json {
        let rows: Result<Vec<Value>, ReportError> = areas.busy.iter().map(|area| to_json(&mut reader, area)).collect();
        let unpurged = areas.unpurged.iter().map(|area| json!({ "start": hex(area.start), "end": hex(area.end) }));
        write_json(&json!({ "areas": rows?, "unpurged": unpurged.collect::<Vec<_>>() }), out)?;
        return check(&areas);
    }
    let mut text = String::new();
    for vm in areas.busy.iter().filter_map(|area| area.vm.as_ref()) {
        line(&mut reader, vm, &mut text)?;
    }
    for area in &areas.unpurged {
        let _ =
            writeln!(text, "0x{:016x}-0x{:016x} {:>7} unpurged vm_area", area.start, area.end, area.end - area.start);
    }
    out.write_all(text.as_bytes()).map_err(ReportError::Write)?;
    check(&areas)
}

fn to_json(reader: &mut Reader<'_>, area: &VmallocArea) -> Result<Value, ReportError> {
    let mut row = json!({
        "vmap_area": hex(area.address),
        "start": hex(area.start),
        "end": hex(area.end),
        "size": area.end - area.start,
    });
    if let Some(vm) = &area.vm {
        let pages = reader.pages(vm)?;
        row["vm_struct"] = hex(vm.address).into();
        row["caller"] = reader.symbols.locate_return(vm.caller).to_string().into();
        row["nr_pages"] = vm.nr_pages.into();
        row["phys"] = (vm.phys_addr != 0).then(|| hex(vm.phys_addr)).into();
        row["flags"] = kinds(vm).collect();
        row["nodes"] = pages.iter().map(|(node, pages)| json!({ "node": node, "pages": pages })).collect();
    }
    Ok(row)
}

/// The heading of crash's rows of areas.
fn heading(out: &mut String) {
    let (area, vm) = (just("VMAP_AREA", 16, Just::Center), just("VM_STRUCT", 16, Just::Center));
    let _ = writeln!(out, "{area}  {vm}  {}     SIZE", just("ADDRESS RANGE", 35, Just::Center));
}

fn row(area: &VmallocArea, vm: &VmInfo, out: &mut String) {
    let (start, end) = (area.start, area.end);
    let _ = writeln!(out, "{:<16x}  {:<16x}  {start:>16x} - {end:<16x}  {:>7}", area.address, vm.address, end - start);
}

/// `kmem -v`: areas that are more than reservations.
pub(super) fn vmlist(state: &StateView, as_json: bool, out: &mut dyn Write) -> Result<(), ReportError> {
    if as_json {
        return vmallocinfo(state, true, out);
    }
    let areas = state.vmalloc_areas(Patience::default())?;
    let mut text = String::new();
    heading(&mut text);
    for area in &areas.busy {
        if let Some(vm) = &area.vm {
            row(area, vm, &mut text);
        }
    }
    out.write_all(text.as_bytes()).map_err(ReportError::Write)?;
    check(&areas)
}

/// The row of the area that has `address`, with its heading; nothing when no area has it.
pub(super) fn area_of(state: &StateView, address: u64) -> Result<Option<String>, ReportError> {
    let areas = state.vmalloc_areas(Patience::default())?;
    let area = areas.busy.iter().find(|area| (area.start..area.end).contains(&address));
    Ok(area.and_then(|area| Some((area, area.vm.as_ref()?))).map(|(area, vm)| {
        let mut text = String::new();
        heading(&mut text);
        row(area, vm, &mut text);
        text
    }))
}
