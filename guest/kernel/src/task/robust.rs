//! Mutexes whose owner ends: a thread has a list of those that it holds, in its own memory, and who waits for one of them
//! learns that the owner has died (`kernel/futex/core.c`, `exit_robust_list`).

use core::sync::atomic::Ordering::Relaxed;

use pagevisor_mm::mmap::Space;

use super::object::Task;
use super::wait::{self, ALL_BITS, Key};
use crate::arch::uaccess;

/// Bits of a word: who holds it, that he has died, that somebody waits.
const TID_MASK: u32 = 0x3fff_ffff;
const OWNER_DIED: u32 = 0x4000_0000;
const WAITERS: u32 = 0x8000_0000;
/// Most entries of a list (`ROBUST_LIST_LIMIT`).
const LIMIT: u32 = 2048;
/// The bit of an entry that says that its mutex lends priority, of which there are none here.
const LENDS: u64 = 1;

/// The current task gives up its memory: lets others have what it holds.
pub(super) fn exit(task: &Task) {
    let head = task.robust_list.swap(0, Relaxed);
    let Some(space) = task.space().filter(|_| head != 0) else { return };
    // The next entry, where words are from entries, and the entry that is being added or removed.
    let Ok([mut entry, offset, pending]) = uaccess::read_words(head) else { return };
    for _ in 0..LIMIT {
        if entry & !LENDS == head {
            break;
        }
        // Read first: who gets the mutex may free the entry.
        let next = uaccess::read_u64(entry & !LENDS);
        if entry != pending {
            owner_died(task, space, (entry & !LENDS).wrapping_add(offset), false);
        }
        match next {
            Ok(next) => entry = next,
            Err(_) => return,
        }
    }
    if pending != 0 {
        owner_died(task, space, (pending & !LENDS).wrapping_add(offset), true);
    }
}

/// Notes in a mutex's word that its owner has died, if that is `task` (`handle_futex_death`).
fn owner_died(task: &Task, space: Space, word: u64, pending: bool) {
    let Ok(value) = uaccess::read_u32(word) else { return };
    let held = value & TID_MASK == task.pid();
    if !word.is_multiple_of(4) || !(held || pending && value & TID_MASK == 0) {
        return;
    }
    if held && uaccess::write_u32(word, value & WAITERS | OWNER_DIED).is_err() {
        return;
    }
    // Who noted meanwhile that he waits is awake still, and looks again; so is, after this, who waits already.
    wait::wake(Key::shared(space, word), ALL_BITS, 1);
}
