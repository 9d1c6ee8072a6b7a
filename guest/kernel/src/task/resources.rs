//! What threads and processes share, or have of their own, beside memory: open files, directories, what signals do. Each is
//! a reference to something that knows how to make a copy of itself for a child.

use alloc::sync::Arc;
use core::any::Any;
use core::fmt;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use pagevisor_shared::errno::Errno;
use pagevisor_shared::sched::TaskStruct;

use super::clone_flags;
use super::object::Task;
use crate::sync::SpinLock;

/// Something of the kind.
pub trait Resource: Any + Send + Sync {
    /// A copy for a child that does not share it.
    ///
    /// # Errors
    /// ENOMEM and whatever else makes the child impossible.
    fn duplicate(&self) -> Result<Arc<dyn Resource>, Errno>;

    /// Address of what others may read of it, for the word of a task's record that [`Kind::word`] names.
    fn record(&self) -> u64;

    /// For looking at it as what it is: `self`.
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

/// Kinds of resources.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Root, working directory, file mode mask (`fs_struct`).
    Directories = 0,
    /// Open files (`files_struct`).
    Files = 1,
    /// What signals do (`sighand_struct`).
    Signals = 2,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Directories, Self::Files, Self::Signals];

    /// Where the record of a task says what others may read of it.
    const fn word(self, record: &TaskStruct) -> &AtomicU64 {
        match self {
            Self::Directories => &record.fs,
            Self::Files => &record.files,
            Self::Signals => &record.sighand,
        }
    }

    /// The flag of `clone` that shares it.
    const fn flag(self) -> u64 {
        match self {
            Self::Directories => clone_flags::FS,
            Self::Files => clone_flags::FILES,
            Self::Signals => clone_flags::SIGHAND,
        }
    }
}

/// Those of a task, by [`Kind`].
pub struct Resources([SpinLock<Option<Arc<dyn Resource>>>; Kind::ALL.len()]);

impl fmt::Debug for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = Kind::ALL.map(|kind| (kind, self.get(kind).is_some()));
        f.debug_map().entries(has).finish()
    }
}

impl Resources {
    /// None.
    pub const fn new() -> Self {
        Self([const { SpinLock::new(None) }; Kind::ALL.len()])
    }

    /// That of `kind`, if the task has it.
    pub fn get(&self, kind: Kind) -> Option<Arc<dyn Resource>> {
        self.0[kind as usize].lock().clone()
    }

    /// That of `kind`, as what it is.
    pub fn get_as<T: Any + Send + Sync>(&self, kind: Kind) -> Option<Arc<T>> {
        Arc::downcast(self.get(kind)?.into_any()).ok()
    }
}

impl Task {
    /// Changes that of `kind`; gives what was there.
    pub fn set_resource(&self, kind: Kind, resource: Option<Arc<dyn Resource>>) -> Option<Arc<dyn Resource>> {
        let mut place = self.resources.0[kind as usize].lock();
        kind.word(&self.record).store(resource.as_ref().map_or(0, |resource| resource.record()), Relaxed);
        core::mem::replace(&mut *place, resource)
    }
}

/// Where somebody outside finds `record`.
pub fn address_of<T>(record: &T) -> u64 {
    core::ptr::from_ref(record).expose_provenance() as u64
}

/// Gives `child` its resources: those of `parent` that `flags` says it shares, and copies of the others.
pub(super) fn copy(parent: &Task, child: &Task, flags: u64) -> Result<(), Errno> {
    for kind in Kind::ALL {
        let Some(resource) = parent.resources.get(kind) else { continue };
        let given = if flags & kind.flag() != 0 { resource } else { resource.duplicate()? };
        child.set_resource(kind, Some(given));
    }
    Ok(())
}

/// Takes all resources from `task`, which ends.
pub(super) fn exit(task: &Task) {
    for kind in Kind::ALL {
        drop(task.set_resource(kind, None));
    }
}
