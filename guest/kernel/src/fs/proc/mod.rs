//! `/proc` (`fs/proc`): what there is follows from what runs, so files are made when they are asked for, and texts when they
//! are read from their beginning.
//!
//! [`global`] what is about the machine; [`process`] and [`areas`] about a process; [`setting`] `/proc/sys/vm`.

mod areas;
mod global;
mod process;
mod setting;
mod text;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use pagevisor_shared::errno::Errno;

use super::content::FileSystem;
use super::inode::{Inode, Kind};
use super::mode;
use crate::selftest::provoke;
use crate::task;
use global::Global;
pub use process::Item;
use setting::Setting;

/// Where link files lead.
#[derive(Clone, Debug)]
pub enum Target {
    /// To what is at a path.
    Path(String),
    /// To a file, whatever its path is now; and what to call it.
    File(Arc<Inode>, String),
}

impl Target {
    /// As `readlink` gives it.
    pub fn into_text(self) -> String {
        match self {
            Self::Path(text) | Self::File(_, text) => text,
        }
    }
}

/// A file or directory of `/proc`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Node {
    /// `/proc`.
    Root,
    /// About the machine.
    Global(Global),
    /// `/proc/self`.
    Own,
    /// `/proc/thread-self`.
    OwnThread,
    /// `/proc/mounts`.
    Mounts,
    /// `/proc/provoke-crash`.
    Provoke,
    /// `/proc/sys`.
    Sys,
    /// `/proc/sys/vm`.
    SysVm,
    /// A setting there.
    Setting(Setting),
    /// `/proc/PID`.
    Process(u32),
    /// A file there.
    Item(u32, Item),
    /// `/proc/PID/fd/N`.
    Open(u32, u32),
}

/// An entry of a directory: its place, its name, what it is.
type Entry = (u64, String, Node);

/// Place in `/proc` from which on processes come, in order of their numbers.
const FIRST_PROCESS: u64 = 256;
/// Number of the first inode; those of other file systems are lower.
const NUMBERS: u64 = 1 << 40;
/// Numbers that a process has for its files.
const PER_PROCESS: u64 = 1 << 16;
/// The first of them for open files.
const FIRST_OPEN: u64 = 64;

impl Node {
    /// The inode.
    pub fn inode(self) -> Arc<Inode> {
        Inode::numbered(FileSystem::Proc, self.number(), self.mode(), Kind::Proc(self))
    }

    fn number(self) -> u64 {
        let of = |pid: u32, file: u64| NUMBERS + u64::from(pid) * PER_PROCESS + file;
        match self {
            Self::Root => of(0, 1),
            Self::Own => of(0, 2),
            Self::OwnThread => of(0, 3),
            Self::Mounts => of(0, 4),
            Self::Sys => of(0, 5),
            Self::SysVm => of(0, 6),
            Self::Provoke => of(0, 7),
            Self::Global(file) => of(0, 16 + file as u64),
            Self::Setting(setting) => of(0, 64 + setting as u64),
            Self::Process(pid) => of(pid, 0),
            Self::Item(pid, item) => of(pid, 1 + item as u64),
            Self::Open(pid, number) => of(pid, FIRST_OPEN + u64::from(number)),
        }
    }

    fn mode(self) -> u32 {
        match self {
            Self::Root | Self::Sys | Self::SysVm | Self::Process(_) => mode::DIRECTORY | 0o555,
            Self::Own | Self::OwnThread | Self::Mounts => mode::LINK | 0o777,
            Self::Open(..) => mode::LINK | 0o700,
            Self::Global(_) => mode::REGULAR | 0o444,
            Self::Provoke => mode::REGULAR | 0o200,
            Self::Setting(setting) => mode::REGULAR | setting.rights(),
            Self::Item(_, item) => item.mode(),
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(self) -> bool {
        self.mode() & mode::TYPE == mode::DIRECTORY
    }

    fn entries(self) -> Vec<Entry> {
        match self {
            Self::Root => top(),
            Self::Sys => Vec::from([(0, "vm".to_string(), Self::SysVm)]),
            Self::SysVm => {
                numbered(Setting::ALL.iter().map(|setting| (setting.name().to_string(), Self::Setting(*setting))))
            }
            Self::Process(pid) => {
                numbered(Item::ALL.iter().map(|item| (item.name().to_string(), Self::Item(pid, *item))))
            }
            Self::Item(pid, Item::Files) => process::open_files(pid)
                .into_iter()
                .map(|number| (number.into(), number.to_string(), Self::Open(pid, number)))
                .collect(),
            Self::Item(pid, Item::Threads) => {
                process::threads(pid).into_iter().map(|tid| (tid.into(), tid.to_string(), Self::Process(tid))).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The file of this name in it.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR.
    pub fn find(self, name: &str) -> Result<Arc<Inode>, Errno> {
        if !self.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        // Threads have directories by their own numbers, too, though those are not listed.
        if self == Self::Root
            && let Some(pid) = name.parse().ok().filter(|pid: &u32| name == pid.to_string())
        {
            return task::find(pid).map(|_| Self::Process(pid).inode()).ok_or(Errno::ENOENT);
        }
        let mut entries = self.entries().into_iter();
        entries.find(|(_, known, _)| known == name).map(|(_, _, node)| node.inode()).ok_or(Errno::ENOENT)
    }

    /// The directory that it is in.
    pub fn parent(self) -> Arc<Inode> {
        match self {
            Self::Root => Arc::clone(super::root()),
            Self::SysVm => Self::Sys.inode(),
            Self::Setting(_) => Self::SysVm.inode(),
            Self::Item(pid, _) => Self::Process(pid).inode(),
            Self::Open(pid, _) => Self::Item(pid, Item::Files).inode(),
            _ => Self::Root.inode(),
        }
    }

    /// The first entry from place `from` on: its name, number and mode, and the place behind it.
    pub fn entry(self, from: u64) -> Option<(String, u64, u32, u64)> {
        let (at, name, node) = self.entries().into_iter().find(|(at, ..)| *at >= from)?;
        Some((name, node.number(), node.mode(), at + 1))
    }

    /// The name of the entry with inode number `number`.
    pub fn name_of(self, number: u64) -> Option<String> {
        self.entries().into_iter().find(|(_, _, node)| node.number() == number).map(|(_, name, _)| name)
    }

    /// Where it leads, if it is a link.
    pub fn target(self) -> Option<Result<Target, Errno>> {
        let current = task::current();
        Some(match self {
            Self::Own => Ok(Target::Path(current.tgid().to_string())),
            Self::OwnThread => Ok(Target::Path(format!("{}/task/{}", current.tgid(), current.pid()))),
            Self::Mounts => Ok(Target::Path("self/mounts".to_string())),
            Self::Item(pid, item) if item.mode() & mode::TYPE == mode::LINK => process::target(pid, item),
            Self::Open(pid, number) => process::open_file(pid, number),
            _ => return None,
        })
    }

    /// What it says.
    ///
    /// # Errors
    /// ESRCH for a process that is gone, EINVAL for what is no text.
    pub fn text(self) -> Result<Vec<u8>, Errno> {
        match self {
            Self::Global(file) => file.text(),
            Self::Setting(setting) => setting.text(),
            Self::Item(pid, item) => process::text(pid, item),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Reads what has no text but words, if it is such a file: `pagemap`.
    pub fn read_words(self, offset: u64, to: &mut [u8]) -> Option<Result<usize, Errno>> {
        match self {
            Self::Item(pid, Item::Pagemap) => Some(areas::pagemap(pid, offset, to)),
            _ => None,
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// EIO for what cannot be written; EINVAL, EPERM.
    pub fn write(self, from: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Setting(setting) => setting.write(from),
            Self::Provoke => provoke::provoke(from),
            Self::Item(pid, Item::Comm) => process::rename(pid, from),
            _ => Err(Errno::EIO),
        }
    }
}

fn numbered(entries: impl Iterator<Item = (String, Node)>) -> Vec<Entry> {
    entries.enumerate().map(|(at, (name, node))| (at as u64, name, node)).collect()
}

/// Entries of `/proc`.
fn top() -> Vec<Entry> {
    let links = [("self", Node::Own), ("thread-self", Node::OwnThread), ("mounts", Node::Mounts), ("sys", Node::Sys)];
    let files = Global::ALL.iter().map(|file| (file.name(), Node::Global(*file)));
    let tests = provoke::is_allowed().then_some(("provoke-crash", Node::Provoke));
    let mut entries = numbered(files.chain(links).chain(tests).map(|(name, node)| (name.to_string(), node)));
    let mut pids = Vec::new();
    task::for_each(|task| {
        if task.pid() == task.tgid() {
            pids.push(task.pid());
        }
    });
    pids.sort_unstable();
    entries.extend(pids.into_iter().map(|pid| (FIRST_PROCESS + u64::from(pid), pid.to_string(), Node::Process(pid))));
    entries
}

/// The directory itself.
pub fn root() -> Arc<Inode> {
    Node::Root.inode()
}
