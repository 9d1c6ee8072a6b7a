//! All tasks, in the order in which they were made, and by number. The list starts in the state region's roots, where the
//! host finds it.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Relaxed, Release};

use super::list::{List, Nodes};
use super::object::{Task, TaskRef};
use super::pid::PidMap;
use crate::region;
use crate::sync::{IrqSpinGuard, IrqSpinLock};

/// Chains of the table of numbers.
const CHAINS: usize = 256;

/// Tasks, as entries of the list of all.
#[derive(Debug)]
struct All;

impl Nodes for All {
    fn links(&self, entry: u64) -> (&AtomicU64, &AtomicU64) {
        // SAFETY: whoever is on the list is kept by it.
        let record = unsafe { &Task::at(entry).record };
        (&record.next, &record.prev)
    }
}

/// What the lock of the tasks guards (`tasklist_lock`): who there is, their numbers, and who belongs to whom.
#[derive(Debug)]
pub(super) struct Table {
    all: List<All>,
    pids: PidMap,
    /// First task of each chain, linked by [`Task::chain`].
    chains: [u64; CHAINS],
    count: u64,
}

static TABLE: IrqSpinLock<Table> =
    IrqSpinLock::new(Table { all: List::new(All), pids: PidMap::new(), chains: [0; CHAINS], count: 0 });

/// Locks the table of tasks.
pub(super) fn lock() -> IrqSpinGuard<'static, Table> {
    TABLE.lock()
}

/// The task with number `pid` (`find_get_task_by_vpid`).
pub fn find(pid: u32) -> Option<TaskRef> {
    lock().find(pid).map(Task::get)
}

/// Calls `look` with every task, in the order in which they were made, the table being locked.
pub fn for_each(mut look: impl FnMut(&Task)) {
    let table = lock();
    let mut entry = table.all.first();
    while entry != 0 {
        // SAFETY: the list keeps it, and its lock is held.
        look(unsafe { Task::at(entry) });
        entry = table.all.next(entry);
    }
}

/// How many tasks there are.
pub fn count() -> u64 {
    lock().count
}

impl Table {
    /// Takes a number for a task.
    pub fn alloc_pid(&mut self) -> Option<u32> {
        self.pids.alloc()
    }

    /// Gives a number back whose task was not entered, or is no more.
    pub fn free_pid(&mut self, pid: u32) {
        self.pids.free(pid);
    }

    /// Enters `task`, which has its number, for good: the table keeps it until [`Self::remove`].
    pub fn insert(&mut self, task: TaskRef) {
        let chain = &mut self.chains[task.pid() as usize % CHAINS];
        task.chain.store(*chain, Relaxed);
        let entry = task.into_addr();
        *chain = entry;
        self.all.push(entry);
        self.count += 1;
        self.publish();
    }

    /// Takes `task` out, and its number; gives the reference that the table had.
    pub fn remove(&mut self, task: &Task) -> TaskRef {
        let entry = task.addr();
        let chain = &mut self.chains[task.pid() as usize % CHAINS];
        if *chain == entry {
            *chain = task.chain.load(Relaxed);
        } else {
            let mut at = *chain;
            while at != 0 {
                // SAFETY: what is in a chain is kept by the table.
                let before = unsafe { Task::at(at) };
                at = before.chain.load(Relaxed);
                if at == entry {
                    before.chain.store(task.chain.load(Relaxed), Relaxed);
                    break;
                }
            }
        }
        self.all.remove(entry);
        self.count -= 1;
        self.pids.free(task.pid());
        self.publish();
        // SAFETY: `insert` kept the count, and the task is on no list any more.
        unsafe { TaskRef::from_addr(entry) }
    }

    /// The task with number `pid`.
    pub fn find(&self, pid: u32) -> Option<&Task> {
        let mut at = self.chains[pid as usize % CHAINS];
        while at != 0 {
            // SAFETY: what is in a chain is kept by the table, which is borrowed.
            let task = unsafe { Task::at(at) };
            if task.pid() == pid {
                return Some(task);
            }
            at = task.chain.load(Relaxed);
        }
        None
    }

    /// Tells the host.
    fn publish(&self) {
        if let Some(region) = region::get() {
            let roots = &region.header().roots;
            roots.tasks.store(self.all.first(), Release);
            roots.nr_tasks.store(self.count, Relaxed);
        }
    }
}
