//! The numbers of open files, and where paths begin (`fs/file.c`, `fs_struct`).

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;
use pagevisor_shared::sched::{FilesStruct, FsStruct};

use super::file::File;
use super::inode::Inode;
use super::root;
use crate::sync::SpinLock;
use crate::task::{self, Kind, Resource, Task};

/// Room that a table of files has from the start (`NR_OPEN_DEFAULT`).
const NR_OPEN_DEFAULT: usize = 64;

/// An open file's entry.
#[derive(Clone, Debug)]
struct Slot {
    file: Arc<File>,
    /// Closed when another program is run.
    close_on_exec: bool,
}

/// Numbers that there is room for (`max_fds`).
fn room_of(slots: &Slots) -> u32 {
    slots.len().max(NR_OPEN_DEFAULT).next_power_of_two() as u32
}

/// The open files of a process, by number.
#[derive(Debug)]
pub struct Files {
    /// What others may read. Written with the slots locked.
    record: FilesStruct,
    slots: SpinLock<Slots>,
}

type Slots = Vec<Option<Slot>>;

impl Default for Files {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Resource for Files {
    fn duplicate(&self) -> Result<Arc<dyn Resource>, Errno> {
        let mut copy = Vec::new();
        let slots = self.slots.lock();
        copy.try_reserve_exact(slots.len()).map_err(|_| Errno::ENOMEM)?;
        copy.extend_from_slice(&slots);
        Ok(Arc::new(Self::new(copy)))
    }

    fn record(&self) -> u64 {
        task::address_of(&self.record)
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Files {
    fn new(slots: Slots) -> Self {
        Self { record: FilesStruct { max_fds: AtomicU32::new(room_of(&slots)) }, slots: SpinLock::new(slots) }
    }

    /// Makes room for file `number` (`expand_files`).
    fn make_room(&self, slots: &mut Slots, number: usize) -> Result<(), Errno> {
        if number >= slots.len() {
            slots.try_reserve(number + 1 - slots.len()).map_err(|_| Errno::ENOMEM)?;
            slots.resize(number + 1, None);
            self.record.max_fds.store(room_of(slots), Relaxed);
        }
        Ok(())
    }

    /// Enters `file` at the first free number from `first` on, below `limit`.
    ///
    /// # Errors
    /// EMFILE; ENOMEM.
    pub fn insert(&self, file: Arc<File>, first: usize, limit: u64, close_on_exec: bool) -> Result<usize, Errno> {
        let mut slots = self.slots.lock();
        let number = (first..slots.len()).find(|number| slots[*number].is_none()).unwrap_or(slots.len().max(first));
        if number as u64 >= limit {
            return Err(Errno::EMFILE);
        }
        self.make_room(&mut slots, number)?;
        slots[number] = Some(Slot { file, close_on_exec });
        Ok(number)
    }

    /// Enters `file` at `number`; gives what was there.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn replace(&self, number: usize, file: Arc<File>, close_on_exec: bool) -> Result<Option<Arc<File>>, Errno> {
        let mut slots = self.slots.lock();
        self.make_room(&mut slots, number)?;
        Ok(slots[number].replace(Slot { file, close_on_exec }).map(|slot| slot.file))
    }

    /// The numbers that there are.
    pub fn numbers(&self) -> Vec<u32> {
        let slots = self.slots.lock();
        slots.iter().enumerate().filter(|(_, slot)| slot.is_some()).map(|(number, _)| number as u32).collect()
    }

    /// Numbers that there is room for.
    pub fn room(&self) -> u32 {
        self.record.max_fds.load(Relaxed)
    }

    /// The file of this number.
    ///
    /// # Errors
    /// EBADF.
    pub fn get(&self, number: u64) -> Result<Arc<File>, Errno> {
        let slots = self.slots.lock();
        let slot = slots.get(number as u32 as usize).and_then(Option::as_ref).ok_or(Errno::EBADF)?;
        Ok(Arc::clone(&slot.file))
    }

    /// Takes the file of this number out.
    ///
    /// # Errors
    /// EBADF.
    pub fn remove(&self, number: u64) -> Result<Arc<File>, Errno> {
        let mut slots = self.slots.lock();
        let slot = slots.get_mut(number as u32 as usize).and_then(Option::take).ok_or(Errno::EBADF)?;
        Ok(slot.file)
    }

    /// Whether it is closed when another program is run; changes that if `set` says so.
    ///
    /// # Errors
    /// EBADF.
    pub fn close_on_exec(&self, number: u64, set: Option<bool>) -> Result<bool, Errno> {
        let mut slots = self.slots.lock();
        let slot = slots.get_mut(number as u32 as usize).and_then(Option::as_mut).ok_or(Errno::EBADF)?;
        if let Some(set) = set {
            slot.close_on_exec = set;
        }
        Ok(slot.close_on_exec)
    }

    /// Another program is run (`do_close_on_exec`).
    pub fn exec(&self) {
        let mut closed = Vec::new();
        let mut slots = self.slots.lock();
        for slot in slots.iter_mut() {
            closed.extend(slot.take_if(|slot| slot.close_on_exec));
        }
        drop(slots);
    }
}

/// Where paths begin that do not begin at the root, and rights that new files do not get.
#[derive(Debug)]
pub struct Directories {
    /// What others may read: the mask.
    pub record: FsStruct,
    work: SpinLock<Arc<Inode>>,
}

impl Default for Directories {
    fn default() -> Self {
        Self::new(Arc::clone(root()), 0o022)
    }
}

impl Resource for Directories {
    fn duplicate(&self) -> Result<Arc<dyn Resource>, Errno> {
        Ok(Arc::new(Self::new(self.work(), self.record.umask.load(Relaxed))))
    }

    fn record(&self) -> u64 {
        task::address_of(&self.record)
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

impl Directories {
    fn new(work: Arc<Inode>, umask: u32) -> Self {
        Self { record: FsStruct { umask: AtomicU32::new(umask) }, work: SpinLock::new(work) }
    }

    /// The working directory.
    pub fn work(&self) -> Arc<Inode> {
        Arc::clone(&self.work.lock())
    }

    /// Changes the working directory.
    pub fn set_work(&self, directory: Arc<Inode>) {
        let old = core::mem::replace(&mut *self.work.lock(), directory);
        drop(old);
    }
}

/// The open files of `task`.
///
/// # Errors
/// EBADF if it has no such thing.
pub fn files(task: &Task) -> Result<Arc<Files>, Errno> {
    task.resources.get_as(Kind::Files).ok_or(Errno::EBADF)
}

/// Where paths of `task` begin.
///
/// # Errors
/// ENOENT if it has no such thing.
pub fn directories(task: &Task) -> Result<Arc<Directories>, Errno> {
    task.resources.get_as(Kind::Directories).ok_or(Errno::ENOENT)
}
