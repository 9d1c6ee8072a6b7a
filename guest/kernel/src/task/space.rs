//! The address space of a task: whose it is, and giving it up.

use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use pagevisor_mm::mmap::Space;
use pagevisor_shared::mm_types::VmaFlags;
use pagevisor_shared::units::{PAGE_SHIFT, VirtAddr};

use super::object::{Task, current};
use super::user;
use super::wait::{self, ALL_BITS, Key};
use crate::platform;

impl Task {
    /// The address space, if it has one. For the task itself, or who holds the table of tasks and does not sleep; others
    /// take [`Self::get_space`].
    pub fn space(&self) -> Option<Space> {
        // SAFETY: the word is 0 or the address of a space's record, by `set_space` and `exchange_space`.
        unsafe { Space::at(self.record.mm.load(SeqCst)) }
    }

    /// The address space, with a use of it for the caller, who gives it back by `mmput` (`get_task_mm`).
    pub fn get_space(&self) -> Option<Space> {
        let mm = platform::mm()?;
        let _held = self.space_lock.lock();
        let space = self.space()?;
        mm.mmget(space);
        Some(space)
    }

    /// The use of a space that a task which does not run yet begins with.
    pub(super) fn set_space(&self, space: Space) {
        self.record.mm.store(space.addr().raw(), SeqCst);
        self.record.active_mm.store(space.addr().raw(), SeqCst);
    }
}

/// Makes `space`, whose use the caller has, that of the current task, and gives up the one it had (`exec_mmap`).
pub fn exec_space(space: Space) {
    change(Some(space));
}

/// The current task gives up its address space (`exit_mm`).
pub(super) fn exit_space() {
    change(None);
}

fn change(space: Option<Space>) {
    let task = current();
    let Some(mm) = platform::mm() else { return };
    release(&task);
    if let (Some(process), Some(space)) = (task.process(), task.space()) {
        process.gone.add_space(space);
    }
    let held = task.space_lock.lock();
    let old = user::exchange_space(space.map_or(0, |space| space.addr().raw()));
    drop(held);
    // SAFETY: what the word held is 0 or the address of a space's record, by `set_space` and `exchange_space`.
    if let Some(old) = unsafe { Space::at(old) } {
        mm.mmput(old);
    }
}

/// The current task will not touch the memory it has any more: tells whoever waits for that (`mm_release`).
fn release(task: &Task) {
    let Some(mm) = platform::mm() else { return };
    super::robust::exit(task);
    let tid = task.clear_child_tid.swap(0, Relaxed);
    if tid != 0
        && let Some(space) = task.space()
        && space.record().mm_users.load(Relaxed) > 1
    {
        // What cannot be written need not be.
        mm.write_remote_vm(space, VirtAddr::new(tid), &0u32.to_le_bytes());
        wait::wake(Key::shared(space, tid), ALL_BITS, 1);
    }
    if task.vfork.swap(0, SeqCst) != 0 {
        wait::wake_all(&task.vfork);
    }
}

impl Key {
    /// Of a word of a program's own memory.
    pub fn private(space: Space, word: u64) -> Self {
        Self { space: space.addr().raw(), word }
    }

    /// Of a word that other programs may have, too: by its place in the file if it is in memory that is shared, otherwise
    /// that of the program's own (`get_futex_key`).
    pub fn shared(space: Space, word: u64) -> Self {
        let area = platform::mm().and_then(|mm| mm.find_vma(space, VirtAddr::new(word)));
        let area = area.filter(|area| area.start.raw() <= word && area.flags.contains(VmaFlags::MAYSHARE));
        match area.and_then(|area| Some((area, area.vma.file()?.mapping()?))) {
            Some((area, file)) => {
                let place = (area.pgoff << PAGE_SHIFT) + (word - area.start.raw());
                Self { space: file.addr().raw(), word: place }
            }
            None => Self::private(space, word),
        }
    }
}
