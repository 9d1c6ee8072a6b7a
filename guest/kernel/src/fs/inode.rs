//! What the tree is made of: directories, regular files, symbolic links, devices.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};

use pagevisor_shared::errno::Errno;

use super::mode;
use super::proc::Node;
use crate::clock;
use crate::sync::SpinLock;

/// Most bytes of a file; what is in it is in one piece of the kernel's memory.
pub const MAX_SIZE: u64 = 1 << 30;

/// Devices, with the numbers of Linux.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Device {
    /// `/dev/null`.
    Null,
    /// `/dev/zero`.
    Zero,
    /// `/dev/full`.
    Full,
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
            Self::Console => 5 << 8 | 1,
        }
    }

    /// The one of this number, if there is one.
    pub fn of_number(major: u32, minor: u32) -> Option<Self> {
        let number = u64::from(major) << 8 | u64::from(minor);
        [Self::Null, Self::Zero, Self::Full, Self::Console].into_iter().find(|device| device.number() == number)
    }
}

/// What is in a regular file.
#[derive(Debug)]
pub enum Content {
    /// What the loader gave, where it put it.
    Given(&'static [u8]),
    /// What was written.
    Own(Vec<u8>),
}

impl Content {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Given(bytes) => bytes,
            Self::Own(bytes) => bytes,
        }
    }

    /// The bytes, to be changed: a copy of what was given.
    fn own(&mut self) -> Result<&mut Vec<u8>, Errno> {
        if let Self::Given(bytes) = *self {
            let mut copy = Vec::new();
            copy.try_reserve_exact(bytes.len()).map_err(|_| Errno::ENOSPC)?;
            copy.extend_from_slice(bytes);
            *self = Self::Own(copy);
        }
        match self {
            Self::Own(bytes) => Ok(bytes),
            Self::Given(_) => Err(Errno::EIO),
        }
    }
}

/// What a file is.
#[derive(Debug)]
pub enum Kind {
    /// A directory: what it has, by name; and what it is in, which for the root and for what was removed is nothing.
    Directory(SpinLock<BTreeMap<String, Arc<Inode>>>, SpinLock<Weak<Inode>>),
    /// A regular file.
    Regular(SpinLock<Content>),
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
    /// Type and rights.
    pub mode: AtomicU32,
    /// Names that it has.
    pub links: AtomicU32,
    /// When it was changed, in nanoseconds since boot.
    pub changed: AtomicU64,
    /// What it is.
    pub kind: Kind,
}

static NUMBERS: AtomicU64 = AtomicU64::new(1);

impl Inode {
    /// A file without a name yet.
    pub fn new(mode: u32, kind: Kind) -> Arc<Self> {
        Self::numbered(NUMBERS.fetch_add(1, Relaxed), mode, kind)
    }

    /// As [`Self::new`], with a number that is known.
    pub fn numbered(number: u64, mode: u32, kind: Kind) -> Arc<Self> {
        Arc::new(Self {
            number,
            mode: AtomicU32::new(mode),
            links: AtomicU32::new(u32::from(matches!(kind, Kind::Proc(_)))),
            changed: AtomicU64::new(clock::nanos()),
            kind,
        })
    }

    /// An empty directory.
    pub fn directory(rights: u32) -> Arc<Self> {
        let kind = Kind::Directory(SpinLock::new(BTreeMap::new()), SpinLock::new(Weak::new()));
        Self::new(mode::DIRECTORY | rights & 0o7777, kind)
    }

    /// A regular file.
    pub fn regular(rights: u32, content: Content) -> Arc<Self> {
        Self::new(mode::REGULAR | rights & 0o7777, Kind::Regular(SpinLock::new(content)))
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
    /// ENOTDIR, EEXIST, ENAMETOOLONG; EPERM in `/proc`.
    pub fn insert(self: &Arc<Self>, name: &str, file: Arc<Self>) -> Result<Arc<Self>, Errno> {
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
        self.changed.store(clock::nanos(), Relaxed);
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
    /// ENOTDIR, ENOENT, EISDIR, ENOTEMPTY.
    pub fn remove(&self, name: &str, directory: bool) -> Result<(), Errno> {
        let entries = self.names()?;
        let mut entries = entries.lock();
        let file = entries.get(name).ok_or(Errno::ENOENT)?;
        match &file.kind {
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
        self.changed.store(clock::nanos(), Relaxed);
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
        self.changed.store(clock::nanos(), Relaxed);
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
            Kind::Regular(content) => content.lock().bytes().len() as u64,
            Kind::Link(to) => to.len() as u64,
            _ => 0,
        }
    }

    /// Reads a regular file at `offset`; gives how much there was.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> usize {
        let Kind::Regular(content) = &self.kind else { return 0 };
        let content = content.lock();
        let bytes = usize::try_from(offset).ok().and_then(|offset| content.bytes().get(offset..)).unwrap_or(&[]);
        let len = bytes.len().min(to.len());
        to[..len].copy_from_slice(&bytes[..len]);
        len
    }

    /// Writes a regular file at `offset`, or at its end; gives where it ended.
    ///
    /// # Errors
    /// EFBIG, ENOSPC.
    pub fn write(&self, offset: Option<u64>, from: &[u8]) -> Result<u64, Errno> {
        let Kind::Regular(content) = &self.kind else { return Err(Errno::EINVAL) };
        let mut content = content.lock();
        let own = content.own()?;
        let start = offset.unwrap_or(own.len() as u64);
        let end = start.checked_add(from.len() as u64).filter(|end| *end <= MAX_SIZE).ok_or(Errno::EFBIG)?;
        resize(own, own.len().max(end as usize))?;
        own[start as usize..end as usize].copy_from_slice(from);
        self.changed.store(clock::nanos(), Relaxed);
        Ok(end)
    }

    /// Cuts a regular file off at `size`, or fills it up with zeros.
    ///
    /// # Errors
    /// EINVAL for other files, EFBIG, ENOSPC.
    pub fn truncate(&self, size: u64) -> Result<(), Errno> {
        let Kind::Regular(content) = &self.kind else { return Err(Errno::EINVAL) };
        if size > MAX_SIZE {
            return Err(Errno::EFBIG);
        }
        let mut content = content.lock();
        self.changed.store(clock::nanos(), Relaxed);
        if size == 0 {
            *content = Content::Own(Vec::new());
            return Ok(());
        }
        resize(content.own()?, size as usize)
    }
}

fn resize(bytes: &mut Vec<u8>, len: usize) -> Result<(), Errno> {
    bytes.try_reserve(len.saturating_sub(bytes.len())).map_err(|_| Errno::ENOSPC)?;
    bytes.resize(len, 0);
    Ok(())
}
