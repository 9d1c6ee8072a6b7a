//! crash's `vm`, `vm -p`, and `vtop` of a program's address.

use std::fmt::Write as _;
use std::io::Write;

use pagevisor_shared::pgtable::PTRS_PER_TABLE;
use pagevisor_shared::units::{PAGE_SHIFT, PAGE_SIZE};
use serde_json::{Value, json};

use super::areas::area_json;
use super::{Process, Shown};
use crate::report::error::ReportError;
use crate::report::kmem::just::{Just, hex as hex_at, just};
use crate::report::kmem::{hex, pages};
use crate::report::view::{PageSpec, write_json};
use crate::report::vtop;
use crate::state::{AreaInfo, Patience, SpaceInfo, StateError, StateView, TaskInfo};

/// Places of an address of the kernel's (`VADDR_PRLEN`), and of a program's (`UVADDR_PRLEN`), though they may have more.
const KERNEL: usize = 16;
const USER: usize = 10;
/// Pages in a row without memory that are listed one by one: what a page table is for. Of more, only the first is.
const MOST_UNMAPPED: u64 = PTRS_PER_TABLE as u64;

/// The heading of areas' rows.
fn area_heading() -> String {
    let (start, end) = (just("START", USER, Just::CenterRight), just("END", USER, Just::CenterRight));
    format!("{} {start} {end}  FLAGS FILE\n", just("VMA", KERNEL, Just::Center))
}

/// The row of an area (`PRINT_VMA_DATA`).
fn area_row(area: &AreaInfo) -> String {
    let file = area.file.as_ref().map_or("", |file| &file.path);
    let address = hex_at(area.address, KERNEL, Just::Center);
    format!("{address} {:>USER$x} {:>USER$x} {:>6x} {file}\n", area.start, area.end, area.flags.0)
}

/// What stands before the areas (`print_task_header`, `PRINT_VM_DATA`).
fn task_heading(state: &StateView, task: &TaskInfo, space: Option<&SpaceInfo>) -> String {
    let mut text = format!(
        "PID: {:<7}  TASK: {:<16x}  CPU: {:<3}  COMMAND: \"{}\"\n",
        task.pid, task.address, task.cpu, task.comm
    );
    let columns = |words: [&str; 4]| {
        let widths = [KERNEL, KERNEL, 6, 8];
        let cells: Vec<String> =
            words.into_iter().zip(widths).map(|(word, width)| just(word, width, Just::Center)).collect();
        cells.join("  ") + "\n"
    };
    text += &columns(["MM", "PGD", "RSS", "TOTAL_VM"]);
    let kib = |pages: u64| format!("{}k", pages.saturating_mul(PAGE_SIZE >> 10));
    text += &match space {
        Some(space) => {
            let pgd = state.direct_address(space.pgd >> PAGE_SHIFT);
            let words = [format!("{:x}", space.address), format!("{pgd:x}"), kib(space.rss()), kib(space.total_vm)];
            columns(words.each_ref().map(String::as_str))
        }
        None => columns(["0", "0", "0k", "0k"]),
    };
    text
}

/// The pages of an area (`vm_area_page_dump`): `(address, physical address)`.
fn area_pages(process: &mut Process<'_>, area: &AreaInfo) -> Result<Vec<(u64, u64)>, ReportError> {
    let mut found = Vec::new();
    process.pages(area.start, area.end, &mut |page, _| found.push((page.address, page.pfn() << PAGE_SHIFT)))?;
    Ok(found)
}

/// Lists pages without memory from `from` to `to`.
fn unmapped(area: &AreaInfo, from: u64, to: u64, text: &mut String) {
    let pages = (to - from) >> PAGE_SHIFT;
    let listed = if pages > MOST_UNMAPPED { 1 } else { pages };
    for page in 0..listed {
        let address = from + page * PAGE_SIZE;
        // Writing to a string cannot fail.
        let _ = match &area.file {
            Some(file) => {
                let offset = (area.pgoff << PAGE_SHIFT).wrapping_add(address - area.start);
                writeln!(text, "{address:<USER$x}  FILE: {}  OFFSET: {offset:x}", file.path)
            }
            None => writeln!(text, "{address:<USER$x}  (not mapped)"),
        };
    }
    if listed < pages {
        let _ = writeln!(text, "{:USER$}  ({} more pages not mapped)", "", pages - listed);
    }
}

/// `vm PID` and `vm -p PID`.
pub(super) fn vm(process: &mut Process<'_>, with_pages: bool) -> Result<Shown, ReportError> {
    let mut text = task_heading(process.state, &process.task, process.space.as_ref());
    let areas = process.areas.list.clone();
    let highest = process.state.roots().max_pfn.saturating_mul(PAGE_SIZE);
    let physical = format!("{highest:x}").len().max("PHYSICAL".len());
    let mut values: Vec<Value> = Vec::new();
    if !with_pages && !areas.is_empty() {
        text += &area_heading();
    }
    for area in &areas {
        let mut value = area_json(process, area);
        value["vma"] = hex(area.address).into();
        value["flags"] = hex(area.flags.0).into();
        if with_pages {
            let found = area_pages(process, area)?;
            text += &area_heading();
            text += &area_row(area);
            let _ = writeln!(text, "{:<USER$}  {:<physical$}", "VIRTUAL", "PHYSICAL");
            let mut next = area.start;
            for (address, frame) in &found {
                unmapped(area, next, *address, &mut text);
                let _ = writeln!(text, "{address:<USER$x}  {frame:>physical$x}");
                next = address + PAGE_SIZE;
            }
            unmapped(area, next.min(area.end), area.end, &mut text);
            text.push('\n');
            let rows = found.iter().map(|(address, frame)| json!({ "virtual": hex(*address), "physical": frame }));
            value["pages"] = rows.collect();
        } else {
            text += &area_row(area);
        }
        values.push(value);
    }
    let space = process.space.as_ref();
    let value = json!({
        "pid": process.task.pid,
        "task": hex(process.task.address),
        "name": process.task.comm,
        "mm": space.map(|space| hex(space.address)),
        "pgd": space.map(|space| hex(space.pgd)),
        "rss_pages": space.map(SpaceInfo::rss),
        "total_vm_pages": space.map(|space| space.total_vm),
        "areas": values,
    });
    Ok(Shown { text, value, damage: process.areas.damage })
}

/// `vtop PID ADDRESS`: the walk through the program's tables, the area, and the page.
pub(super) fn vtop(
    state: &StateView,
    task: &TaskInfo,
    address: u64,
    as_json: bool,
    out: &mut dyn Write,
) -> Result<(), ReportError> {
    if address >= crate::state::USER_END || task.mm == 0 {
        return Err(ReportError::NotUser { pid: task.pid, address });
    }
    let space = state.space(task.mm)?;
    let areas = state.user_areas(task.mm, Patience::default())?;
    let area = areas.list.iter().find(|area| (area.start..area.end).contains(&address));
    let (steps, found) = state.trace_user(space.pgd, address)?;
    if as_json {
        let mut value = vtop::to_json(address, space.pgd, &steps, found);
        value["pid"] = task.pid.into();
        value["vma"] = area.map(|area| hex(area.address)).into();
        return write_json(&value, out);
    }
    let mut text = String::new();
    if area.is_none() {
        let _ = writeln!(text, "{:<USER$}  {:<KERNEL$}", "VIRTUAL", "PHYSICAL");
        let _ = writeln!(text, "{address:<USER$x}  (not accessible)\n");
    } else {
        let _ = vtop::user_text(address, &steps, found, &mut text);
    }
    if let Some(area) = area {
        text += &area_heading();
        text += &area_row(area);
        text.push('\n');
    }
    out.write_all(text.as_bytes()).map_err(ReportError::Write)?;
    if let Some(page) = found
        && area.is_some()
        && state.sections()?.is_present(page.gpa >> PAGE_SHIFT)
    {
        pages(state, Some(PageSpec::Pfn(page.gpa >> PAGE_SHIFT)), false, out)?;
    }
    match areas.damage {
        Some(damage) if area.is_none() => Err(StateError::from(damage).into()),
        _ => Ok(()),
    }
}
