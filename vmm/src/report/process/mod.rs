//! Programs, as they lie in guest memory: the files of Linux's `/proc/PID`, and crash's `ps`, `vm` and `vtop`.
//!
//! ```text
//! maps, numa_maps, smaps, smaps_rollup, pagemap      (areas.rs)
//! status, statm       counters                       (status.rs)
//! ps, vm, vm -p, vtop crash's                        (ps.rs, vm.rs)
//! ```

mod areas;
mod ps;
mod status;
mod vm;

use std::fmt;
use std::io::Write;
use std::str::FromStr;

use pagevisor_shared::pgtable::Entry;
use pagevisor_shared::report::process::{MappedPage, Memory};
use pagevisor_shared::zone::MAX_NR_ZONES;
use serde_json::Value;
use std::sync::atomic::Ordering::Relaxed;

use super::error::ReportError;
use super::view::write_json;
use crate::state::{Areas, Memmap, PageMeta, Patience, Sections, SpaceInfo, StateError, StateView, TaskInfo};
use crate::state::{USER_END, UserPage};

/// A file of `/proc/PID`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PidFile {
    /// `maps`
    Maps,
    /// `smaps`
    Smaps,
    /// `smaps_rollup`
    SmapsRollup,
    /// `status`
    Status,
    /// `statm`
    Statm,
    /// `numa_maps`
    NumaMaps,
    /// `pagemap`, as text
    Pagemap,
}

impl PidFile {
    /// All files, with their names.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Maps, "maps"),
        (Self::Smaps, "smaps"),
        (Self::SmapsRollup, "smaps_rollup"),
        (Self::Status, "status"),
        (Self::Statm, "statm"),
        (Self::NumaMaps, "numa_maps"),
        (Self::Pagemap, "pagemap"),
    ];
}

/// A view of programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProcessView {
    /// A file of a task's.
    File(u32, PidFile),
    /// `ps`: all tasks
    Ps,
    /// `vm [-p] PID`: a task's areas, and their pages with `-p`
    Vm(u32, bool),
    /// `vtop PID ADDRESS`: a walk through a program's page tables
    Vtop(u32, u64),
}

/// Digits only: what stands for a number of a task.
fn pid(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

impl FromStr for ProcessView {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let view = match *words.as_slice() {
            ["ps"] => Some(Self::Ps),
            ["vm", number] => pid(number).map(|number| Self::Vm(number, false)),
            ["vm", "-p", number] | ["vm", number, "-p"] => pid(number).map(|number| Self::Vm(number, true)),
            ["vtop", number, address] => pid(number).and_then(|number| {
                let address = u64::from_str_radix(address.strip_prefix("0x").unwrap_or(address), 16).ok()?;
                Some(Self::Vtop(number, address))
            }),
            [path] => path.strip_prefix("pid/").and_then(|rest| rest.split_once('/')).and_then(|(number, name)| {
                let (file, _) = PidFile::ALL.into_iter().find(|(_, known)| *known == name)?;
                Some(Self::File(pid(number)?, file))
            }),
            _ => None,
        };
        view.ok_or(())
    }
}

/// The name, as [`FromStr`] takes it.
impl fmt::Display for ProcessView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(pid, file) => {
                let name = PidFile::ALL.iter().find(|(known, _)| known == file).map_or("", |(_, name)| name);
                write!(f, "pid/{pid}/{name}")
            }
            Self::Ps => f.write_str("ps"),
            Self::Vm(pid, false) => write!(f, "vm {pid}"),
            Self::Vm(pid, true) => write!(f, "vm -p {pid}"),
            Self::Vtop(pid, address) => write!(f, "vtop {pid} {address:x}"),
        }
    }
}

/// What a view has made.
struct Shown {
    text: String,
    value: Value,
    /// What was wrong with the guest's records; the view has what is whole.
    damage: Option<crate::state::Corrupt>,
}

impl ProcessView {
    /// Writes the view; damage comes after what is whole.
    pub(super) fn render(self, state: &StateView, json: bool, out: &mut dyn Write) -> Result<(), ReportError> {
        let shown = match self {
            Self::Ps => ps::ps(state)?,
            Self::Vtop(pid, address) => {
                let task = task(state, pid)?;
                return vm::vtop(state, &task, address, json, out);
            }
            Self::Vm(pid, pages) => vm::vm(&mut Process::of(state, pid)?, pages)?,
            Self::File(pid, file) => {
                let mut process = Process::of(state, pid)?;
                match file {
                    PidFile::Maps => areas::maps(&process)?,
                    PidFile::Smaps => areas::smaps(&mut process)?,
                    PidFile::SmapsRollup => areas::rollup(&mut process)?,
                    PidFile::Status => status::status(&process)?,
                    PidFile::Statm => status::statm(&process)?,
                    PidFile::NumaMaps => areas::numa_maps(&mut process)?,
                    PidFile::Pagemap => areas::pagemap(&mut process)?,
                }
            }
        };
        if json {
            write_json(&shown.value, out)?;
        } else {
            out.write_all(shown.text.as_bytes()).map_err(ReportError::Write)?;
        }
        shown.damage.map_or(Ok(()), |damage| Err(StateError::from(damage).into()))
    }
}

/// The task with number `pid`.
fn task(state: &StateView, pid: u32) -> Result<TaskInfo, ReportError> {
    let tasks = state.tasks(Patience::default())?;
    match (tasks.list.into_iter().find(|task| task.pid == pid), tasks.damage) {
        (Some(task), _) => Ok(task),
        (None, Some(damage)) => Err(StateError::from(damage).into()),
        (None, None) => Err(ReportError::NoTask { pid }),
    }
}

/// A task with its address space.
struct Process<'v> {
    state: &'v StateView,
    task: TaskInfo,
    /// None for a thread of the kernel, and for a task that has ended.
    space: Option<SpaceInfo>,
    /// What the files show of it.
    memory: Option<Memory>,
    areas: Areas,
    sections: Sections,
    memmap: Memmap<'v>,
    zero_pfn: u64,
    /// Page tables that may still be read.
    budget: u64,
}

impl<'v> Process<'v> {
    fn of(state: &'v StateView, pid: u32) -> Result<Self, ReportError> {
        let task = task(state, pid)?;
        let (space, areas) = match task.mm {
            0 => (None, Areas::default()),
            mm => (Some(state.space(mm)?), state.user_areas(mm, Patience::default())?),
        };
        Ok(Self {
            state,
            task,
            memory: space.as_ref().map(SpaceInfo::memory),
            space,
            sections: state.sections()?,
            memmap: state.memmap(),
            zero_pfn: state.region().header().roots.zero_pfn.load(Relaxed),
            budget: state.table_budget(areas.list.len()),
            areas,
        })
    }

    /// Calls `visit` with each page that is mapped in `start..end`, and what is known of it (`vm_normal_page`): nothing of
    /// the zero page and of frames without memory.
    fn pages(
        &mut self,
        start: u64,
        end: u64,
        visit: &mut dyn FnMut(UserPage, Option<MappedPage>),
    ) -> Result<(), ReportError> {
        let Some(space) = &self.space else { return Ok(()) };
        let (memmap, sections, zero) = (&mut self.memmap, &self.sections, self.zero_pfn);
        let mut failed = Ok(());
        self.state.user_pages(space.pgd, start..end.min(USER_END), &mut self.budget, &mut |page| {
            let pfn = page.pfn();
            let counts = page.entry.0 & Entry::SPECIAL == 0 && (zero == 0 || pfn != zero) && sections.is_present(pfn);
            let meta = match memmap.get(pfn) {
                Ok(meta) => meta.filter(|_| counts),
                Err(error) => {
                    failed = Err(error);
                    None
                }
            };
            let node = sections.zone_of(pfn).map_or(0, |zone| zone.index() / MAX_NR_ZONES);
            let known = |meta: PageMeta| MappedPage::new(page.entry, meta.flags, meta.mapcount, meta.mapping, node);
            visit(page, meta.map(known));
        })?;
        Ok(failed?)
    }
}
