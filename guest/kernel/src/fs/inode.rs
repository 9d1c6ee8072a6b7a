//! What the tree is made of: directories, regular files, symbolic links, devices.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_mm::filemap::FileMapping;
use pagevisor_shared::errno::Errno;

use super::access::WriteCount;
use super::content::{Content, FileSystem};
use super::mode;
use super::proc::Node;
use crate::sync::SpinLock;
use crate::{clock, platform};

/// Bytes in a unit of `st_blocks`.
const BLOCK: u64 = 512;

/// Devices, with the numbers of Linux.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// `/dev/null`.
    Null,
    /// `/dev/zero`.
    Zero,
    /// `/dev/full`.
    Full,
    /// `/dev/random`.
    Random,
    /// `/dev/urandom`.
    Urandom,
    /// `/dev/console`.
    Console,
}

impl Device {
    /// Its number, as `stat` gives it.
    pub const fn number(self) -> u64 {
        match self {
            Self::Null => 1 << 8 | 3,
            Self::Zero => 1 << 8 | 5,
            Self::Full => 1 << 8 | 7,
            Self::Random => 1 << 8 | 8,
            Self::Urandom => 1 << 8 | 9,
            Self::Console => 5 << 8 | 1,
        }
    }

    /// The one of this number, if there is one.
    pub fn of_number(major: u32, minor: u32) -> Option<Self> {
        let number = u64::from(major) << 8 | u64::from(minor);
        let all = [Self::Null, Self::Zero, Self::Full, Self::Random, Self::Urandom, Self::Console];
        all.into_iter().find(|device| device.number() == number)
    }
}

/// What [`Inode::allocate`] does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocate {
    /// Takes pages away.
    Hole,
    /// Gives pages.
    Pages {
        /// The file does not grow.
        keep_size: bool,
    },
}

/// What a file is.
#[derive(Debug)]
pub enum Kind {
    /// A directory: what it has, by name; and what it is in, which for the root and for what was removed is nothing.
    Directory(SpinLock<BTreeMap<String, Arc<Inode>>>, SpinLock<Weak<Inode>>),
    /// A regular file.
    Regular(Content),
    /// A symbolic link, and where it leads.
    Link(String),
    /// A device.
    Device(Device),
    /// A pipe.
    Pipe,
    /// A file or directory of `/proc`.
    Proc(Node),
}

/// A file, whatever its name is.
#[derive(Debug)]
pub struct Inode {
    /// Its number.
    pub number: u64,
    /// The file system that it is in.
    pub system: FileSystem,
    /// Type and rights.
    pub mode: AtomicU32,
    /// Names that it has.
    pub links: AtomicU32,
    /// When it was read last, when what is in it was changed, and when anything about it was, in nanoseconds since boot.
    pub times: [AtomicU64; 3],
    /// Who writes to it, or executes it.
    pub writers: WriteCount,
    /// What it is.
    pub kind: Kind,
}

/// [`Inode::times`]: of reading.
pub const READ: usize = 0;
/// Of writing.
pub const WRITTEN: usize = 1;
/// Of any change.
pub const CHANGED: usize = 2;

static NUMBERS: AtomicU64 = AtomicU64::new(1);

impl Inode {
    /// A file without a name yet.
    pub fn new(system: FileSystem, mode: u32, kind: Kind) -> Arc<Self> {
        Self::numbered(system, NUMBERS.fetch_add(1, Relaxed), mode, kind)
    }

    /// As [`Self::new`], with a number that is known.
    pub fn numbered(system: FileSystem, number: u64, mode: u32, kind: Kind) -> Arc<Self> {
        let now = clock::nanos();
        Arc::new(Self {
            number,
            system,
            mode: AtomicU32::new(mode),
            links: AtomicU32::new(u32::from(matches!(kind, Kind::Proc(_)))),
            times: [now; 3].map(AtomicU64::new),
            writers: WriteCount::default(),
            kind,
        })
    }

    /// An empty directory.
    pub fn directory(system: FileSystem, rights: u32) -> Arc<Self> {
        let kind = Kind::Directory(SpinLock::new(BTreeMap::new()), SpinLock::new(Weak::new()));
        Self::new(system, mode::DIRECTORY | rights & 0o7777, kind)
    }

    /// An empty regular file.
    ///
    /// # Errors
    /// ENOSPC.
    pub fn regular(system: FileSystem, rights: u32) -> Result<Arc<Self>, Errno> {
        let number = NUMBERS.fetch_add(1, Relaxed);
        let content = Content::new(system, number, false)?;
        Ok(Self::numbered(system, number, mode::REGULAR | rights & 0o7777, Kind::Regular(content)))
    }

    /// An empty file of shared memory that never has a name (`shmem_file_setup`), and may be sealed or not.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn unnamed(may_be_sealed: bool) -> Result<Arc<Self>, Errno> {
        let number = platform::mm().ok_or(Errno::ENOMEM)?.next_unnamed_ino();
        let content = Content::new(FileSystem::Unnamed, number, may_be_sealed).map_err(|_| Errno::ENOMEM)?;
        Ok(Self::numbered(FileSystem::Unnamed, number, mode::REGULAR | 0o777, Kind::Regular(content)))
    }

    /// Notes that it, and what is in it, was changed now.
    fn touch(&self) {
        let now = clock::nanos();
        self.times[WRITTEN].store(now, Relaxed);
        self.times[CHANGED].store(now, Relaxed);
    }

    /// The pages of a regular file.
    pub fn mapping(&self) -> Option<FileMapping> {
        match &self.kind {
            Kind::Regular(content) => Some(content.mapping()),
            _ => None,
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        match self.kind {
            Kind::Directory(..) => true,
            Kind::Proc(node) => node.is_directory(),
            _ => false,
        }
    }

    /// The file of this name in it.
    ///
    /// # Errors
    /// ENOTDIR, ENOENT.
    pub fn find(&self, name: &str) -> Result<Arc<Self>, Errno> {
        match &self.kind {
            Kind::Directory(entries, _) => entries.lock().get(name).cloned().ok_or(Errno::ENOENT),
            Kind::Proc(node) => node.find(name),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// The directory that it, a directory, is in; itself if that is none.
    pub fn parent(self: &Arc<Self>) -> Arc<Self> {
        match &self.kind {
            Kind::Directory(_, parent) => parent.lock().upgrade().unwrap_or_else(|| Arc::clone(self)),
            Kind::Proc(node) => node.parent(),
            _ => Arc::clone(self),
        }
    }

    /// Enters `file` as `name`.
    ///
    /// # Errors
    /// ENOTDIR, EEXIST, ENAMETOOLONG; EPERM in `/proc`; EXDEV for another file system's.
    pub fn insert(self: &Arc<Self>, name: &str, file: Arc<Self>) -> Result<Arc<Self>, Errno> {
        if file.system == self.system { self.enter(name, file) } else { Err(Errno::EXDEV) }
    }

    /// As [`Self::insert`], also for the root of a file system that is mounted there.
    ///
    /// # Errors
    /// As there, but EXDEV.
    pub fn enter(self: &Arc<Self>, name: &str, file: Arc<Self>) -> Result<Arc<Self>, Errno> {
        let entries = self.names()?;
        if name.len() > super::path::NAME_MAX {
            return Err(Errno::ENAMETOOLONG);
        }
        let name = String::from(name);
        let mut entries = entries.lock();
        if entries.contains_key(&name) {
            return Err(Errno::EEXIST);
        }
        if let Kind::Directory(_, parent) = &file.kind {
            *parent.lock() = Arc::downgrade(self);
            file.links.store(2, Relaxed);
            self.links.fetch_add(1, Relaxed);
        } else {
            file.links.fetch_add(1, Relaxed);
        }
        entries.insert(name, Arc::clone(&file));
        self.touch();
        Ok(file)
    }

    /// What it has by name, to be changed.
    fn names(&self) -> Result<&SpinLock<BTreeMap<String, Arc<Self>>>, Errno> {
        match &self.kind {
            Kind::Directory(entries, _) => Ok(entries),
            Kind::Proc(_) => Err(Errno::EPERM),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// Takes the name `name` away; for a directory if `directory` is set, and only if that is empty.
    ///
    /// # Errors
    /// ENOTDIR, ENOENT, EISDIR, ENOTEMPTY, EBUSY.
    pub fn remove(&self, name: &str, directory: bool) -> Result<(), Errno> {
        let entries = self.names()?;
        let mut entries = entries.lock();
        let file = entries.get(name).ok_or(Errno::ENOENT)?;
        match &file.kind {
            // Another file system is mounted there.
            _ if file.system != self.system => return Err(Errno::EBUSY),
            Kind::Directory(..) if !directory => return Err(Errno::EISDIR),
            Kind::Directory(inside, _) if !inside.lock().is_empty() => return Err(Errno::ENOTEMPTY),
            Kind::Directory(..) => {
                self.links.fetch_sub(1, Relaxed);
            }
            _ if directory => return Err(Errno::ENOTDIR),
            _ => {
                file.links.fetch_sub(1, Relaxed);
            }
        }
        let removed = entries.remove(name);
        drop(entries);
        drop(removed);
        self.touch();
        Ok(())
    }

    /// Takes the name `name` away, for another to be given to what has it.
    ///
    /// # Errors
    /// ENOTDIR, ENOENT.
    pub fn detach(&self, name: &str) -> Result<(), Errno> {
        let entries = self.names()?;
        let file = entries.lock().remove(name).ok_or(Errno::ENOENT)?;
        if file.is_directory() {
            self.links.fetch_sub(1, Relaxed);
        } else {
            file.links.fetch_sub(1, Relaxed);
        }
        self.touch();
        Ok(())
    }

    /// The name, number and type of the entry at `place`, in the order of names, and the place behind it.
    pub fn entry(&self, place: u64) -> Option<(String, u64, u32, u64)> {
        if let Kind::Proc(node) = self.kind {
            return node.entry(place);
        }
        let Kind::Directory(entries, _) = &self.kind else { return None };
        let entries = entries.lock();
        let (name, file) = entries.iter().nth(place as usize)?;
        Some((name.clone(), file.number, file.mode.load(Relaxed), place + 1))
    }

    /// The name that `file` has in it.
    pub fn name_of(&self, file: &Self) -> Option<String> {
        if let Kind::Proc(node) = self.kind {
            return node.name_of(file.number);
        }
        let Kind::Directory(entries, _) = &self.kind else { return None };
        entries.lock().iter().find(|(_, entry)| entry.number == file.number).map(|(name, _)| name.clone())
    }

    /// Bytes in it.
    pub fn size(&self) -> u64 {
        match &self.kind {
            Kind::Regular(content) => content.mapping().i_size.load(Relaxed),
            Kind::Link(to) => to.len() as u64,
            _ => 0,
        }
    }

    /// Units of 512 bytes that it takes.
    pub fn blocks(&self) -> u64 {
        match &self.kind {
            Kind::Regular(content) => content.mapping().i_blocks.load(Relaxed),
            Kind::Link(to) => (to.len() as u64).div_ceil(BLOCK),
            _ => 0,
        }
    }

    /// Reads a regular file at `offset`; gives how much there was.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> usize {
        match (self.mapping(), platform::mm()) {
            (Some(mapping), Some(mm)) => mm.file_read(mapping, offset, to),
            _ => 0,
        }
    }

    /// Writes a regular file at `offset`, or at its end; gives where it ended, and how much was written.
    ///
    /// # Errors
    /// EFBIG, ENOSPC; EPERM if it is sealed.
    pub fn write(&self, offset: Option<u64>, from: &[u8]) -> Result<(u64, usize), Errno> {
        let (Some(mapping), Some(mm)) = (self.mapping(), platform::mm()) else { return Err(Errno::EINVAL) };
        let written = match offset {
            Some(offset) => {
                let written = mm.file_write(mapping, offset, from)?;
                (offset + written as u64, written)
            }
            None => mm.file_append(mapping, from)?,
        };
        self.touch();
        Ok(written)
    }

    /// Makes `len` bytes of a file of shared memory from `offset` on zero, or gives them pages (`shmem_fallocate`).
    ///
    /// # Errors
    /// ENODEV and EOPNOTSUPP for other files; EINVAL, EFBIG, ENOSPC, EPERM if it is sealed.
    pub fn allocate(&self, what: Allocate, offset: u64, len: u64) -> Result<(), Errno> {
        let (Some(mapping), Some(mm)) = (self.mapping(), platform::mm()) else { return Err(Errno::ENODEV) };
        if !self.system.is_shmem() {
            return Err(Errno::EOPNOTSUPP);
        }
        match what {
            Allocate::Hole => mm.punch_hole(mapping, offset, len)?,
            Allocate::Pages { keep_size } => mm.fallocate(mapping, offset, len, keep_size)?,
        }
        self.touch();
        Ok(())
    }

    /// Cuts a regular file off at `size`, or fills it up with zeros.
    ///
    /// # Errors
    /// EINVAL for other files, EFBIG; EPERM if it is sealed.
    pub fn truncate(&self, size: u64) -> Result<(), Errno> {
        let (Some(mapping), Some(mm)) = (self.mapping(), platform::mm()) else { return Err(Errno::EINVAL) };
        mm.truncate(mapping, size)?;
        self.touch();
        Ok(())
    }
}
